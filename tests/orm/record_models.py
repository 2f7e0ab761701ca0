# SPDX-License-Identifier: Apache-2.0
"""A table with data row records in text and JSON columns beside a cell, and an application that has it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import JSON, Column, Integer, LargeBinary, MetaData, String, Table, select, text
from sqlalchemy.orm import registry
from sqlalchemy.types import TypeEngine

from sa_asherah import Encrypted
from tests.orm.app import App
from tests.orm.models import CANARY

if TYPE_CHECKING:
    from sqlalchemy.orm import Mapped

mapping = registry(metadata=MetaData())
PARTITION: Final = "clinic-{}"
COLUMNS: Final = ("words", "scan", "chart", "count", "cell")
RECORDS: Final = COLUMNS[:-1]


def record(inner: TypeEngine[Any], storage: Any = "text", label: str | None = None) -> Encrypted:
    return Encrypted(inner, "clinic_id", PARTITION, label, "asherah", storage=storage)


sheets: Final = Table(
    "sheets",
    mapping.metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("clinic_id", Integer),
    Column("place", String(40), unique=True),
    Column("words", record(String())),
    Column("scan", record(LargeBinary())),
    Column("chart", record(JSON(), "json")),
    Column("count", record(Integer(), "json")),
    Column("cell", Encrypted(String(), owner="clinic_id", partition=PARTITION)),
)
# The same labels again, in other metadata: one MetaData would refuse them.
copies: Final = Table(
    "sheet_copies",
    MetaData(),
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("clinic_id", Integer),
    Column("words", record(String(), label="sheets.words")),
    Column("chart", record(JSON(), "json", "sheets.chart")),
)
others: Final = {
    name: Table(
        f"sheet_{name}",
        MetaData(),
        Column("id", Integer, primary_key=True, autoincrement=False),
        Column("clinic_id", Integer),
        Column("words", type_),
    )
    for name, type_ in {
        "json": record(String(), "json", "sheets.words"),
        "cells": Encrypted(String(), "clinic_id", PARTITION, "sheets.words", storage="text"),
        "strangers": Encrypted(String(), "clinic_id", "stranger-{}", "sheets.words", "asherah"),
        "labels": record(String()),
    }.items()
}
"""Tables to whose column `words` that of `sheets` must not be copied."""


@mapping.mapped
class Sheet:
    """A row with records and a cell."""

    __table__ = sheets

    if TYPE_CHECKING:
        id: Mapped[int]
        clinic_id: Mapped[int]
        place: Mapped[str]
        words: Mapped[str | None]
        scan: Mapped[bytes | None]
        chart: Mapped[Any]
        count: Mapped[int | None]
        cell: Mapped[str | None]

        def __init__(self, **values: Any) -> None: ...


_VALUES: Final[tuple[tuple[Any, ...], ...]] = (
    (1, 1, "a", f"{CANARY} 1", b"\0\xff", {"é": [1, CANARY]}, 7, f"{CANARY} cell"),
    (2, 1, "b", "", b"", [], -(10**30), None),
    (3, 2, "c", f"{CANARY} é中😀", CANARY.encode(), None, 0, f"{CANARY} cell 3"),
    (4, 2, "d", None, None, None, None, None),
)
ROWS: Final[list[dict[str, Any]]] = [
    dict(zip(("id", "clinic_id", "place", *COLUMNS), values, strict=True)) for values in _VALUES
]


_created: Final[set[str]] = set()


class RecordsApp(App):
    """An application with these tables too, empty at the start of each test."""

    def read(self) -> list[dict[str, Any]]:
        """Read all rows as a process that just started does, then once more with what it knows by then."""
        self.cold()
        found: list[list[dict[str, Any]]] = []
        for _ in range(2):
            with self.engine.connect() as connection:
                rows = connection.execute(select(sheets).order_by(sheets.c.id)).mappings()
                found.append([dict(row) for row in rows])
        assert found[0] == found[1]
        return found[0]

    def record(self, row: int, column: str = "words") -> dict[str, Any]:
        """Give a stored record."""
        (value,) = (each[column] for each in self.stored("sheets") if each["id"] == row)
        return dict(json.loads(value) if isinstance(value, str) else value)

    def put(self, row: int, column: str, value: Any) -> None:
        """Store something in a column, past everything."""
        stored = value if isinstance(value, str | None) else json.dumps(value, ensure_ascii=False)
        place = "CAST(:value AS JSONB)" if self.dialect == "postgresql" and column in {"chart", "count"} else ":value"
        name = '"count"' if column == "count" and self.dialect != "mariadb" else f"{column}"
        statement = text(f"UPDATE sheets SET {name} = {place} WHERE id = :row")  # noqa: S608
        with self.engine.begin() as connection:
            connection.execute(statement, {"value": stored, "row": row})

    def _empty(self) -> None:
        super()._empty()
        with self.engine.begin() as connection:
            for table in (sheets, copies, *others.values()):
                if self.url not in _created:
                    table.create(connection, checkfirst=True)
                connection.execute(table.delete())
        _created.add(self.url)

    def _assert_nothing_readable(self) -> None:
        super()._assert_nothing_readable()
        for name in ("sheets", "sheet_copies"):
            for row in self.stored(name):
                for value in row.values():
                    raw = bytes(value) if isinstance(value, bytes | memoryview) else str(value).encode()
                    assert CANARY.encode() not in raw, f"plaintext is stored in {name}"
