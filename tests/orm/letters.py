# SPDX-License-Identifier: Apache-2.0
"""A table in the middle of its re-encryption: every column accepts older forms besides the one that it writes."""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Column, Integer, MetaData, String, Table, Text, text
from sqlalchemy.orm import registry

from sa_asherah import Asherah, Encrypted
from tests.orm.app import App

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    from sqlalchemy.orm import Mapped
    from sqlalchemy.types import TypeEngine

LAST_DAY: Final = "2031-05-31"
TEXT: Final = (f"plaintext@{LAST_DAY}", f"asherah@{LAST_DAY}")
FLAGS: Final = (f"unpadded@{LAST_DAY}", f"not-row-bound@{LAST_DAY}")


def table_of(**types: TypeEngine[Any]) -> Table:
    """Describe the table once more, with other types."""
    columns: list[Column[Any]] = [Column(name, type_) for name, type_ in types.items()]
    key = Column("id", Integer, primary_key=True, autoincrement=False)
    return Table("slips", MetaData(), key, Column("clinic_id", Integer), *columns)


def encrypted(reads: tuple[str, ...] = (), **options: Any) -> Encrypted:
    """Make a type of the table's owner."""
    return Encrypted(String(), owner="clinic_id", partition="clinic-{}", reads=reads, **options)


letters: Final = table_of(
    body=encrypted(TEXT, storage="text"),
    raw=encrypted(TEXT[:1]),
    record=encrypted(TEXT[:1], format="asherah"),
    bound=encrypted(FLAGS, bind_row="id", pad=64),
)
plain: Final = table_of(body=Text(), raw=encrypted(), record=Text(), bound=encrypted())
"""As the table was, where text was plain."""
older: Final = table_of(body=encrypted(format="asherah"), bound=encrypted())
"""With other forms of ciphertext."""
unpadded: Final = table_of(bound=encrypted(bind_row="id"))
strict: Final = table_of(
    body=encrypted(storage="text"),
    raw=encrypted(),
    record=encrypted(format="asherah"),
    bound=encrypted(bind_row="id", pad=64),
)
"""As it will be."""

mapping: Final = registry(metadata=letters.metadata)


@mapping.mapped
class Letter:
    """A row of it."""

    __table__ = letters

    if TYPE_CHECKING:
        id: Mapped[int]
        clinic_id: Mapped[int | None]
        body: Mapped[str | None]
        raw: Mapped[str | None]
        record: Mapped[str | None]
        bound: Mapped[str | None]

        def __init__(self, **values: Any) -> None: ...


class Meter:
    """Counts what events count."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()

    def measure(self, name: str, attributes: Mapping[str, str]) -> AbstractContextManager[None]:  # noqa: ARG002
        return contextlib.nullcontext()

    def count(self, name: str, number: int, attributes: Mapping[str, str]) -> None:
        if name == "window.read":
            self.counts[attributes["form"], f"{attributes['table']}.{attributes['column']}"] += number


class LettersApp(App):
    """An application with this table, whose clock can be set."""

    now: float = 1_900_000_000.0

    def new_asherah(self) -> Asherah:
        made = Asherah("records", "clinic", self.kms, clock=lambda: self.now)
        made.events.meter = Meter()
        return made

    @property
    def counts(self) -> Counter[tuple[str, str]]:
        meter = self.asherah.events.meter
        assert isinstance(meter, Meter)
        return meter.counts

    def put(self, row: int, **values: Any) -> None:
        """Store something past everything; text in `raw` as its bytes."""
        for name, value in values.items():
            stored = value.encode() if name == "raw" and isinstance(value, str) else value
            statement = text(f"UPDATE slips SET {name} = :value WHERE id = :row")  # noqa: S608
            with self.engine.begin() as connection:
                connection.execute(statement, {"value": stored, "row": row})

    def _empty(self) -> None:
        super()._empty()
        with self.engine.begin() as connection:
            letters.create(connection, checkfirst=True)
            connection.execute(letters.delete())

    def _assert_nothing_readable(self) -> None:
        """Plaintext is what these tests are about."""
