# SPDX-License-Identifier: Apache-2.0
"""One table with a column of every inner type, its twin without encryption, and tables for values changed in place."""

from __future__ import annotations

import enum
import uuid
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Double,
    Enum,
    Float,
    Integer,
    Interval,
    LargeBinary,
    MetaData,
    Numeric,
    SmallInteger,
    String,
    Table,
    Text,
    Time,
    Unicode,
    Uuid,
)  # fmt: skip
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.ext.mutable import MutableDict, MutableList
from sqlalchemy.orm import registry
from sqlalchemy.types import TypeDecorator, TypeEngine

from sa_asherah import Encrypted
from tests.orm.app import App
from tests.orm.models import CANARY

if TYPE_CHECKING:
    from sqlalchemy.orm import Mapped


class Colour(enum.Enum):
    RED = f"{CANARY} red"
    GREEN = f"{CANARY} green"


class Celsius(TypeDecorator[float]):
    """A user's type: kelvin inside, and what dialects it was asked for."""

    impl = Float
    cache_ok = True

    def process_bind_param(self, value: float | None, dialect: Any) -> float | None:  # noqa: ARG002
        return None if value is None else value + 273.0

    def process_result_value(self, value: float | None, dialect: Any) -> float | None:  # noqa: ARG002
        return None if value is None else value - 273.0


class Tags(TypeDecorator[frozenset[str]]):
    """A user's type over a user's type."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: frozenset[str] | None, dialect: Any) -> str | None:  # noqa: ARG002
        return None if value is None else ",".join(sorted(value))

    def process_result_value(self, value: str | None, dialect: Any) -> frozenset[str] | None:  # noqa: ARG002
        return None if value is None else frozenset(value.split(","))


class UpperTags(TypeDecorator[frozenset[str]]):
    impl = Tags
    cache_ok = True

    def process_bind_param(self, value: frozenset[str] | None, dialect: Any) -> frozenset[str] | None:  # noqa: ARG002
        return None if value is None else frozenset(map(str.upper, value))


@dataclass(frozen=True)
class Kind:
    """An inner type, two values, and the databases whose plain column of that type holds them as they are."""

    type: TypeEngine[Any]
    values: tuple[Any, Any]
    plain: frozenset[str] = frozenset({"sqlite", "postgresql", "mariadb"})


PG: Final = frozenset({"postgresql"})
SECOND: Final = datetime(2020, 2, 29, 12, 30, 15)  # noqa: DTZ001
EAST: Final = timezone(timedelta(hours=5, minutes=30))

KINDS: Final[dict[str, Kind]] = {
    "string": Kind(String(60), (f"{CANARY} é ß 中 😀", "")),
    "text": Kind(Text(), (CANARY * 100, "secret**")),
    "unicode": Kind(Unicode(60), (f"{CANARY} 1", f"{CANARY} 2")),
    "binary": Kind(LargeBinary(), (CANARY.encode() + b"\0\xff", b"")),
    "flag": Kind(Boolean(), (True, False)),
    "whole": Kind(Integer(), (2**31 - 1, -(2**31))),
    "big": Kind(BigInteger(), (2**63 - 1, -(2**63))),
    "small": Kind(SmallInteger(), (-1, 0)),
    "exact": Kind(Numeric(10, 2), (Decimal("12.25"), Decimal("-0.50"))),
    "inexact": Kind(Numeric(10, 2, asdecimal=False), (12.25, -0.5)),
    "float_": Kind(Float(53), (0.1, -1.5)),
    "double": Kind(Double(), (1e300, -2.5)),
    "day": Kind(Date(), (date(9999, 12, 31), date(1000, 1, 1))),
    "clock": Kind(Time(), (time(1, 2, 3), time(23, 59, 59))),
    "moment": Kind(DateTime(), (SECOND, datetime(9999, 12, 31, 23, 59, 59))),  # noqa: DTZ001
    "zoned": Kind(DateTime(timezone=True), (SECOND.replace(tzinfo=EAST), SECOND.replace(tzinfo=UTC)), PG),
    "span": Kind(Interval(), (timedelta(days=3, seconds=7), timedelta(-1))),
    "key": Kind(Uuid(), (uuid.UUID(int=7), uuid.UUID(int=2**128 - 1))),
    "key_text": Kind(Uuid(as_uuid=False), (str(uuid.UUID(int=7)), str(uuid.UUID(int=8)))),
    "colour": Kind(Enum(Colour, name="type_colour"), (Colour.RED, Colour.GREEN)),
    "size": Kind(Enum("small", f"{CANARY} big", name="type_size"), ("small", f"{CANARY} big")),
    "document": Kind(JSON(), ({"é": [1, 2.5, True, None, {CANARY: "x"}]}, [])),
    "jsonb": Kind(JSON().with_variant(postgresql.JSONB(), "postgresql"), ([1, "a"], {"a": {}})),
    "numbers": Kind(ARRAY(Integer()), ([1, 2, None], []), PG),
    "matrix": Kind(ARRAY(Text(), dimensions=2), ([["a", None], ["b", CANARY]], [["", ""]]), PG),
    "celsius": Kind(Celsius(), (20.0, -3.0)),
    "tags": Kind(UpperTags(), (frozenset({"A", CANARY.upper()}), frozenset({"B"}))),
}
"""The values are within what plain columns hold; what only encrypted ones do is in the test of edge values."""

mapping = registry(metadata=MetaData())
PARTITION: Final = "clinic-{}"


def encrypted(inner: TypeEngine[Any]) -> Encrypted:
    return Encrypted(inner, owner="clinic_id", partition=PARTITION)


def _keys() -> list[Column[Any]]:
    return [Column("id", Integer, primary_key=True, autoincrement=False), Column("clinic_id", Integer)]


kinds: Final = Table(
    "kinds", mapping.metadata, *_keys(), *(Column(name, encrypted(kind.type)) for name, kind in KINDS.items())
)
twins: Final = Table(
    "kind_twins",
    MetaData(),
    *_keys(),
    *(
        Column(name, kind.type if kind.plain != PG else kind.type.with_variant(Text(), "sqlite", "mysql", "mariadb"))
        for name, kind in KINDS.items()
    ),
)


@mapping.mapped
class Everything:
    """A row with every inner type, encrypted."""

    __table__ = kinds

    if TYPE_CHECKING:
        id: Mapped[int]
        clinic_id: Mapped[int]
        document: Mapped[Any]

        def __init__(self, **values: Any) -> None: ...


@mapping.mapped
class Folder:
    """Values that are changed in place."""

    __table__ = Table(
        "folders",
        mapping.metadata,
        *_keys(),
        Column("options", MutableDict.as_mutable(encrypted(JSON()))),
        Column("entries", MutableList.as_mutable(encrypted(mysql.JSON()))),
        Column("marks", MutableList.as_mutable(encrypted(ARRAY(Integer())))),
        Column("frozen", encrypted(JSON())),
    )

    if TYPE_CHECKING:
        id: Mapped[int]
        clinic_id: Mapped[int]
        options: Mapped[Any]
        entries: Mapped[Any]
        marks: Mapped[Any]
        frozen: Mapped[Any]

        def __init__(self, **values: Any) -> None: ...


class TypesApp(App):
    """An application with these tables too, empty at the start of each test."""

    def _empty(self) -> None:
        super()._empty()
        with self.engine.begin() as connection:
            for metadata in (mapping.metadata, twins.metadata):
                metadata.create_all(connection)
                for table in metadata.tables.values():
                    connection.execute(table.delete())

    def _assert_nothing_readable(self) -> None:
        super()._assert_nothing_readable()
        for table in mapping.metadata.tables.values():
            for row in self.stored(table.name):
                for value in row.values():
                    raw = bytes(value) if isinstance(value, bytes | memoryview) else str(value).encode()
                    assert CANARY.encode() not in raw.lower(), f"plaintext is stored in {table}"
