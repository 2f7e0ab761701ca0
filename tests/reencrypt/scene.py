# SPDX-License-Identifier: Apache-2.0
"""A database with notes in plaintext, the same text in the clear beside it: what must come out."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import Column, Engine, Integer, MetaData, String, Table, Text
from sqlalchemy.dialects import mysql

from sa_asherah import Asherah, Encrypted
from sa_asherah.errors import StaticKeyWarning
from sa_asherah.kms.static import StaticKMS
from sa_asherah.reencrypt.plan import Change, Plan

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

LONG_TEXT = Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")
ENCRYPTED = Encrypted(Text(), owner="tenant", label="notes.body", storage="text")


def asherah(**settings: Any) -> Asherah:
    """Return an Asherah with empty caches."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StaticKeyWarning)
        kms = StaticKMS(bytes(32))
    return Asherah("records", "clinic", kms, **settings)


def engine_of(url: str, **options: Any) -> Engine:
    """Return an engine; SQLite waits for its lock as long as it takes."""
    if url.startswith("sqlite"):
        options["connect_args"] = {"timeout": 60}
    return sa.create_engine(url, **options)


def notes(body: Any, *others: Column[Any], key: Iterable[Column[Any]] = ()) -> Table:
    """Return the table of notes, with this type of the column that becomes encrypted."""
    keys = list(key) or [Column("id", Integer, primary_key=True)]
    return Table(
        "notes",
        MetaData(),
        *keys,
        Column("tenant", String(40)),
        Column("clear", LONG_TEXT),
        Column("body", body),
        *others,
    )


OLD = notes(LONG_TEXT)
NEW = notes(ENCRYPTED)


def plan(**options: Any) -> Plan:
    """Return the plan of the usual case: plaintext becomes cells, in place."""
    return Plan(NEW, [Change("body", ENCRYPTED, LONG_TEXT)], **options)


class Scene:
    """A database, an Asherah, and what everybody does with them."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.url = url
        self.engine = engine_of(url)
        self.asherah = asherah(**settings)
        self.asherah.attach(self.engine)
        self.asherah.create_metastore(self.engine)

    @property
    def kind(self) -> str:
        """Name of the database family."""
        return self.engine.dialect.name

    def fill(self, table: Table, rows: Iterable[dict[str, Any]]) -> None:
        """Create a table and insert rows."""
        table.create(self.engine)
        rows = list(rows)
        if rows:
            with self.engine.begin() as connection:
                connection.execute(table.insert(), rows)

    def fill_many(self, count: int) -> None:
        """Create the table of notes with rows 1 to count, most of them by the server itself."""
        OLD.create(self.engine)
        table = OLD.c
        with self.engine.begin() as connection:
            tenant, text = first_note(1)
            connection.execute(OLD.insert().values(id=1, tenant=tenant, body=text))
            done = 1
            while done < count:
                number = table.id + done
                values = [
                    number,
                    "tenant " + sa.cast(number % 5, String(1)),
                    "note " + sa.cast(number, String(9)) + " é",
                ]
                some = sa.select(*values).where(table.id <= count - done)
                connection.execute(OLD.insert().from_select(["id", "tenant", "body"], some))
                done = min(2 * done, count)

    def sql(self, statement: str, **parameters: Any) -> list[Any]:
        """Run SQL, committed."""
        with self.engine.begin() as connection:
            result = connection.execute(sa.text(statement), parameters)
            return list(result) if result.returns_rows else []

    def bodies(self, table: Table) -> list[tuple[Any, Any]]:
        """Return what the application reads, beside what it should be."""
        with self.engine.connect() as connection:
            return [(row.body, row.clear) for row in connection.execute(sa.select(table))]

    def stored(self) -> list[Any]:
        """Return what is stored."""
        return [row[0] for row in self.sql("SELECT body FROM notes")]

    def close(self) -> None:
        """End."""
        self.engine.dispose()
        self.asherah.close()


def first_note(number: int) -> tuple[str, str | None]:
    """Return owner and text of a row as `Scene.fill_many` makes it."""
    return f"tenant {number % 5}", f"note {number} é"


def rows(count: int, tenants: int = 3) -> list[dict[str, Any]]:
    """Return notes of some tenants."""
    return [
        {"tenant": f"tenant {number % tenants}", "clear": f"note {number} é", "body": f"note {number} é"}
        for number in range(count)
    ]


@contextmanager
def between(converter: Any, act: Callable[[], None]) -> Generator[None]:
    """Let something happen once, after a page was read and sealed and before it is swapped."""
    original = converter.treat
    done: list[bool] = []

    def treat(self: Any, page: Any, *, sealing: bool) -> Any:
        treated = original(self, page, sealing=sealing)
        if not done and sealing and page:
            done.append(True)
            act()
        return treated

    converter.treat = treat
    try:
        yield
    finally:
        converter.treat = original
