# SPDX-License-Identifier: Apache-2.0
"""An application on one database, driven synchronously or inside an `AsyncSession`, by one body of test code."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.util import greenlet_spawn

from sa_asherah import Asherah
from tests.orm.models import CANARY, Base, Clinic, drafts
from tests.servers.database import async_url

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from sa_asherah.core.ports import KeyManagementService


@dataclass
class App:
    """One engine with an `Asherah`; the tables exist and hold nothing but three clinics.

    Attributes:
        url: The database, for its synchronous driver.
        kms: What wraps the system keys.
        is_async: Whether the asynchronous driver is used.
    """

    url: str
    kms: KeyManagementService
    is_async: bool = False
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    asherah: Asherah = field(init=False)

    def run(self, body: Callable[[], Any]) -> None:
        """Run a body of synchronous code on a clean database; afterwards no plaintext may be stored.

        Args:
            body: What the test does.
        """
        if self.is_async:
            asyncio.run(self._run_async(body))
            return
        engine = create_engine(self.url, **self.options)
        try:
            self._inside(engine, body)
        finally:
            engine.dispose()

    @property
    def dialect(self) -> str:
        """Name of the database."""
        return self.engine.dialect.name

    @contextmanager
    def session(self, **options: Any) -> Generator[Session]:
        """Open a session; the asynchronous one is an `AsyncSession`, whose synchronous inside it gives."""
        if isinstance(self._bind, AsyncEngine):
            session = AsyncSession(self._bind, **options).sync_session
        else:
            session = Session(self._bind, **options)
        with session:
            yield session

    def add(self, *instances: Any) -> None:
        """Add instances in a transaction of their own."""
        with self.session() as session:
            session.add_all(instances)
            session.commit()

    def rows(self, statement: Any, parameters: Any = None) -> list[tuple[Any, ...]]:
        """Execute a statement through a session and list its rows; commit."""
        with self.session(expire_on_commit=False) as session:
            # All at once: a row that cannot be opened would leave the cursor half read, and on SQLite a lock with it.
            rows = [tuple(row) for row in session.execute(statement, parameters).all()]
            session.commit()
            return rows

    def execute(self, statement: Any, parameters: Any = None) -> int:
        """Execute a Core statement on a connection, as it is, and commit; give the number of rows."""
        with self.engine.begin() as connection:
            return connection.execute(statement, parameters).rowcount

    def cold(self) -> None:
        """Go on as a process that just started: no key is known."""
        self.asherah.detach(self.engine)
        self.asherah = self.new_asherah()
        self.asherah.attach(self.engine)

    def new_asherah(self) -> Asherah:
        """Make another `Asherah` for the same service and product."""
        return Asherah("records", "clinic", self.kms)

    def stored(self, table: str) -> list[dict[str, Any]]:
        """List the rows of a table as the database holds them."""
        with self.engine.connect() as connection:
            found = connection.execute(text(f"SELECT * FROM {table} ORDER BY id"))  # noqa: S608
            return [dict(row) for row in found.mappings()]

    async def _run_async(self, body: Callable[[], Any]) -> None:
        engine = create_async_engine(async_url(self.url), **self.options)
        try:
            await greenlet_spawn(self._inside, engine, body)
        finally:
            await engine.dispose()

    def _inside(self, bind: Engine | AsyncEngine, body: Callable[[], Any]) -> None:
        self._bind = bind
        self.engine = bind.sync_engine if isinstance(bind, AsyncEngine) else bind
        self.asherah = self.new_asherah()
        self.asherah.attach(bind)
        self._empty()
        self.add(*(Clinic(id=number, name=f"Clinic {number}") for number in (1, 2, 3)))
        body()
        self._assert_nothing_readable()
        self.asherah.detach(bind)

    def _empty(self) -> None:
        """Remove every row, the keys too."""
        with self.engine.begin() as connection:
            for table in (*reversed(Base.metadata.sorted_tables), drafts):
                connection.execute(table.delete())
            connection.execute(text("DELETE FROM encryption_key"))

    def _assert_nothing_readable(self) -> None:
        with self.engine.connect() as connection:
            for table in (*Base.metadata.sorted_tables, drafts):
                for row in connection.execute(text(f"SELECT * FROM {table.name}")):  # noqa: S608
                    for value in row:
                        raw = bytes(value) if isinstance(value, bytes | memoryview) else str(value).encode()
                        assert CANARY.encode() not in raw, f"plaintext is stored in {table}"


def create_tables(url: str, asherah: Asherah) -> None:
    """Create the tables of the suite and the key table."""
    engine = create_engine(url)
    try:
        Base.metadata.create_all(engine)
        drafts.create(engine, checkfirst=True)
        asherah.create_metastore(engine)
    finally:
        engine.dispose()
