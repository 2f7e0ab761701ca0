# SPDX-License-Identifier: Apache-2.0
"""Key tables in real databases, reached as an application reaches them."""

from __future__ import annotations

import asyncio
import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from sqlalchemy import Engine, StaticPool, create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from sa_asherah.core.hierarchy import Hierarchy
from sa_asherah.core.ids import KeyIds
from sa_asherah.core.policy import CryptoPolicy
from sa_asherah.core.ports import KeyRow
from sa_asherah.metastore import create, open_metastore
from tests.servers.database import async_url
from tests.unit.core.fakes import FakeKMS

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from sqlalchemy import Connection

    from sa_asherah.core.ports import KeyRows, Metastore

T = TypeVar("T")

IDS = KeyIds("records", "clinic")
KMS = FakeKMS()


def row(key_id: str, created: int, **members: Any) -> KeyRow:
    """Return a row that looks like a key record."""
    return KeyRow(key_id, created, json.dumps({"Created": created, "Key": "a2V5"} | members))


class Backend(Protocol):
    """Runs work on the key table in a transaction that is committed."""

    def run(self, work: Callable[[KeyRows], T]) -> T:
        """Run work."""
        ...

    def sql(self, statement: str) -> list[Any]:
        """Run SQL as the application."""
        ...


class SyncBackend:
    """A database with a synchronous driver."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.metastore = open_metastore(engine)
        create(engine)

    def run(self, work: Callable[[KeyRows], T]) -> T:
        with self.engine.begin() as connection:
            return self.metastore.run(work, connection, writing=True)

    def sql(self, statement: str) -> list[Any]:
        with self.engine.begin() as connection:
            result = connection.exec_driver_sql(statement)
            return list(result) if result.returns_rows else []


class AsyncBackend:
    """A database with an asynchronous driver; every run has an event loop of its own."""

    def __init__(self, url: str) -> None:
        self._url = async_url(url)
        self._on_connection(create)

    def run(self, work: Callable[[KeyRows], T]) -> T:
        def inside(connection: Connection) -> T:
            return open_metastore(connection.engine).run(work, connection, writing=True)

        return self._on_connection(inside)

    def sql(self, statement: str) -> list[Any]:
        def inside(connection: Connection) -> list[Any]:
            result = connection.exec_driver_sql(statement)
            return list(result) if result.returns_rows else []

        return self._on_connection(inside)

    def _on_connection(self, work: Callable[[Connection], T]) -> T:
        async def main() -> T:
            engine = create_async_engine(self._url)
            try:
                async with engine.begin() as connection:
                    return await connection.run_sync(work)
            finally:
                await engine.dispose()

        return asyncio.run(main())


@contextmanager
def engine_of(url: str, **options: Any) -> Generator[Engine]:
    """Make an engine and dispose of it."""
    engine = create_engine(url, **options)
    try:
        yield engine
    finally:
        engine.dispose()


@contextmanager
def memory_engine(**options: Any) -> Generator[Engine]:
    """Make an engine for a SQLite database in memory that all threads share."""
    with engine_of("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False}, **options) as engine:
        yield engine


def hierarchy(source: Engine | Metastore, ids: KeyIds = IDS, **policy: Any) -> Hierarchy:
    """Return a hierarchy with empty caches, as a process that just started has it."""
    metastore = open_metastore(source) if isinstance(source, Engine) else source
    return Hierarchy(ids, CryptoPolicy(**policy), KMS, metastore)
