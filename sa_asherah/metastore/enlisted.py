# SPDX-License-Identifier: Apache-2.0
"""Key tables in SQLite: keys are written in the caller's own transaction.

A second connection is locked out by an open write transaction, and in memory it is the same connection: it would roll
the caller's work back. So keys are enlisted: they are read and written on the connection that executes the statement.
"""

from __future__ import annotations

import sqlite3
import urllib.parse
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import URL, Connection, Engine

from sa_asherah.errors import ConfigurationError, UsageError
from sa_asherah.metastore import failure
from sa_asherah.metastore.loader import in_greenlet, off_loop
from sa_asherah.metastore.sqlite import SQLiteRows, wait_for_writers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sa_asherah.core.ports import KeyRow, KeyRows

__all__ = ["EnlistedMetastore", "SeparateFile"]

_BUSY_TIMEOUT = 5.0

T = TypeVar("T")


class _WithoutConnections:
    """What both kinds have in common: they keep no connection."""

    def off_loop(self, call: Callable[[], T]) -> T:
        """Make a call that blocks, in a thread where it would stop an event loop.

        Args:
            call: The call.

        Returns:
            What it returned.
        """
        return off_loop(call)

    def close(self) -> None:
        """Do nothing: no connection is kept."""


class EnlistedMetastore(_WithoutConnections):
    """The key table in the SQLite database of the encrypted data.

    Attributes:
        enlisted: Always true.
        keeps_all: Whether the database is in memory and its driver asynchronous: then a key that is needed while
            results are processed, outside SQLAlchemy's greenlet, can be read nowhere.
    """

    enlisted = True

    def __init__(self, engine: Engine) -> None:
        """Note where the database is.

        Args:
            engine: An engine for SQLite.
        """
        self._is_async = engine.dialect.is_async
        self._path = _path_of(engine.url)
        self.keeps_all = self._is_async and self._path is None

    def run(self, work: Callable[[KeyRows], T], connection: object | None = None, *, writing: bool = False) -> T:
        """Run `work` on the caller's connection, or without one on a short connection of its own to the file.

        Args:
            work: What to do.
            connection: The caller's SQLAlchemy `Connection`, if there is one that is not closed.
            writing: Whether `work` may insert keys.

        Returns:
            What `work` returned.

        Raises:
            UsageError: The database is in memory and there is no connection.
            ConfigurationError: The connection reads uncommitted data, or the database is out of reach.
            MetastoreUnavailableError: The database is locked.
            MetastoreError: The table cannot be used.
        """
        if isinstance(connection, Connection) and self._is_usable(connection):
            try:
                rows = _EnlistedRows(connection)
                if writing and rows.reads_uncommitted():
                    raise ConfigurationError(
                        "the connection reads uncommitted data (PRAGMA read_uncommitted), so a key may vanish under "
                        "the data it encrypts; remove isolation_level='READ UNCOMMITTED' from the engine"
                    )
                if writing:
                    wait_for_writers(connection)
                return work(rows)
            except connection.dialect.loaded_dbapi.Error as error:
                raise failure.of_sqlite(error) from error
        if self._path is None:
            raise UsageError(
                "the key table is in a SQLite database in memory, which only its own connection can read: encrypt and "
                "read values while the connection that belongs to them is open (pass connection=, fetch results before "
                "the session or connection is closed)"
            )
        return _run_on_file(self._path, work, writing=writing)

    def _is_usable(self, connection: Connection) -> bool:
        return not connection.closed and not connection.invalidated and (in_greenlet() or not self._is_async)


class SeparateFile(_WithoutConnections):
    """A key table in a SQLite file of its own, apart from the encrypted data: keys are committed before use.

    Attributes:
        enlisted: Always false.
        keeps_all: Always false.
    """

    enlisted = False
    keeps_all = False

    def __init__(self, engine: Engine) -> None:
        """Note where the database is.

        Args:
            engine: An engine for a SQLite file.

        Raises:
            ConfigurationError: The database is in memory.
        """
        path = _path_of(engine.url)
        if path is None:
            raise ConfigurationError("a key table in memory cannot serve another engine; use a SQLite file or a server")
        self._path = path

    def run(self, work: Callable[[KeyRows], T], connection: object | None = None, *, writing: bool = False) -> T:
        """Run `work` on a short connection of its own.

        Args:
            work: What to do.
            connection: Not used.
            writing: Whether `work` may insert keys.

        Returns:
            What `work` returned.

        Raises:
            MetastoreUnavailableError: The database is locked or out of reach.
            MetastoreError: The table cannot be used.
        """
        del connection
        return _run_on_file(self._path, work, writing=writing)


class _EnlistedRows(SQLiteRows):
    """Rows in the caller's transaction, which a write begins as the caller's statement would."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection.connection)
        self._caller = connection

    def reads_uncommitted(self) -> bool:
        cursor = self._connection.cursor()
        try:
            cursor.execute("PRAGMA read_uncommitted")
            return bool(cursor.fetchone()[0])
        finally:
            cursor.close()

    def insert(self, rows: Sequence[KeyRow], parent: KeyRow | None = None) -> bool:
        self._begin()
        return super().insert(rows, parent)

    def erase(self, tombstones: Sequence[KeyRow], ids: Sequence[str], text: Callable[[KeyRow], str]) -> list[KeyRow]:
        self._begin()
        return super().erase(tombstones, ids, text)

    def replace(self, row: KeyRow, text: str) -> bool:
        self._begin()
        return super().replace(row, text)

    def remove(self, row: KeyRow) -> bool:
        self._begin()
        return super().remove(row)

    def _begin(self) -> None:
        if not self._caller.in_transaction():
            self._caller.begin()


class _FileRows(SQLiteRows):
    """Rows on a connection of our own: what is written is committed."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        super().__init__(connection)
        self._own = connection

    def insert(self, rows: Sequence[KeyRow], parent: KeyRow | None = None) -> bool:
        self._own.execute("BEGIN IMMEDIATE")
        with self._own:
            return super().insert(rows, parent)

    def erase(self, tombstones: Sequence[KeyRow], ids: Sequence[str], text: Callable[[KeyRow], str]) -> list[KeyRow]:
        self._own.execute("BEGIN IMMEDIATE")
        with self._own:
            return super().erase(tombstones, ids, text)

    def replace(self, row: KeyRow, text: str) -> bool:
        self._own.execute("BEGIN IMMEDIATE")
        with self._own:
            return super().replace(row, text)

    def remove(self, row: KeyRow) -> bool:
        self._own.execute("BEGIN IMMEDIATE")
        with self._own:
            return super().remove(row)


def _run_on_file(path: Path, work: Callable[[KeyRows], T], *, writing: bool) -> T:
    uri = f"file:{urllib.parse.quote(str(path))}?mode={'rw' if writing else 'ro'}"
    try:
        with closing(sqlite3.connect(uri, timeout=_BUSY_TIMEOUT, isolation_level=None, uri=True)) as connection:
            return work(_FileRows(connection))
    except sqlite3.Error as error:
        raise failure.of_sqlite(error) from error


def _path_of(url: URL) -> Path | None:
    database = url.database or ":memory:"
    if database.startswith("file:"):
        parts = urllib.parse.urlsplit(database)
        database = urllib.parse.unquote(parts.path)
        if "mode=memory" in parts.query:
            return None
    if database == ":memory:" or url.query.get("mode") == "memory":
        return None
    return Path(database).absolute()
