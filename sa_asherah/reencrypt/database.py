# SPDX-License-Identifier: Apache-2.0
"""Transactions of the job: short, READ COMMITTED, repeated after a deadlock, and silent about what they carry."""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sqlalchemy import BigInteger, Engine, SingletonThreadPool, StaticPool, event, literal_column, select
from sqlalchemy.exc import DBAPIError, StatementError

from sa_asherah.errors import ConfigurationError, MetastoreUnavailableError, ReencryptionError
from sa_asherah.metastore.failure import TransientError, of_server
from sa_asherah.metastore.loader import in_greenlet

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import ColumnElement, Connection
    from sqlalchemy.engine import Dialect

__all__ = ["Database", "clock_of"]

_FIRST_DELAY = 0.02
_LONGEST_DELAY = 1.0
_POLL = 0.002
"""Seconds between two attempts to get SQLite's lock, which has no queue: writers in a hurry leave it for moments."""
_PATIENCE = 60.0
"""Seconds for which an operation is repeated; a server restarts in less."""
_CLOCKS: Final = {
    "sqlite": "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)",
    "postgresql": "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)",
    "mysql": "CAST(UNIX_TIMESTAMP(NOW(6)) * 1000 AS SIGNED)",
}
_BUSY = frozenset({5, 6})
_SKIPS_LOCKED = {True: (10, 6), False: (8, 0, 1)}
"""Versions of MariaDB and MySQL that know SKIP LOCKED."""

T = TypeVar("T")

_logger = logging.getLogger("sa_asherah.reencrypt")


def clock_of(dialect: Dialect) -> ColumnElement[int]:
    """Give the database's clock.

    Args:
        dialect: A dialect.

    Returns:
        Milliseconds since 1970.
    """
    return literal_column(_CLOCKS["mysql" if dialect.name == "mariadb" else dialect.name], BigInteger())


class Database:
    """The application's database as a job uses it: the same pool and driver, but none of the engine's listeners.

    Parameters hold plaintext here, so no log, listener or error text gets to see them.

    Attributes:
        dialect: The engine's dialect.
        kind: `sqlite`, `postgresql` or `mysql` (MariaDB too).
        has_one_connection: Whether all work is done on one connection, as in a SQLite database in memory.
    """

    def __init__(self, engine: Engine) -> None:
        """Prepare, without a connection.

        Args:
            engine: The application's engine.

        Raises:
            ConfigurationError: The engine is asynchronous or its database is not supported.
        """
        if not isinstance(engine, Engine) or (engine.dialect.is_async and not in_greenlet()):
            raise ConfigurationError(
                "a re-encryption needs an engine with a synchronous driver: make one with create_engine()"
            )
        self.dialect = engine.dialect
        self.kind = "mysql" if engine.dialect.name == "mariadb" else engine.dialect.name
        if self.kind not in _CLOCKS:
            raise ConfigurationError(
                f"re-encryption works on SQLite, PostgreSQL, MySQL and MariaDB, not on {self.kind}"
            )
        self.has_one_connection = isinstance(engine.pool, SingletonThreadPool | StaticPool)
        options: dict[str, Any] = {} if self.kind == "sqlite" else {"isolation_level": "READ COMMITTED"}
        translation = engine.get_execution_options().get("schema_translate_map")
        if translation:
            options["schema_translate_map"] = translation
        self._engine = Engine(
            engine.pool, engine.dialect, engine.url, hide_parameters=True, execution_options=options or None
        )
        if self.kind == "sqlite":
            event.listen(self._engine, "begin", _begin)

    @property
    def clock(self) -> ColumnElement[int]:
        """Milliseconds since 1970 by the database's clock: hosts may disagree, the database does not."""
        return clock_of(self.dialect)

    @property
    def skips_locked(self) -> bool:
        """Whether rows that others have locked can be passed over."""
        if self.kind != "mysql":
            return self.kind == "postgresql"
        is_mariadb = bool(getattr(self.dialect, "is_mariadb", False))
        return (self.dialect.server_version_info or ()) >= _SKIPS_LOCKED[is_mariadb]

    def now(self) -> int:
        """Tell the time by the database's clock, in milliseconds since 1970."""
        return self.read(lambda connection: int(connection.execute(select(self.clock)).scalar_one()))

    def read(self, work: Callable[[Connection], T]) -> T:
        """Read in a transaction of its own.

        Args:
            work: What to do; it may be called several times.

        Returns:
            What it returned.

        Raises:
            ReencryptionError: The database refuses, or cannot be reached for a while.
        """
        return self.repeat(lambda: self._transact(work, writing=False))

    def write(self, work: Callable[[Connection], T]) -> T:
        """Write in a transaction of its own, committed when this returns.

        Args:
            work: What to do; it may be called several times, each time in a new transaction.

        Returns:
            What it returned.

        Raises:
            ReencryptionError: The database refuses, or cannot be reached for a while.
        """
        return self.repeat(lambda: self._transact(work, writing=True))

    def repeat(self, work: Callable[[], T]) -> T:
        """Do something that may fail because the database is busy or away, as often as it takes, for a minute.

        Args:
            work: What to do; it may be called several times.

        Returns:
            What it returned.

        Raises:
            ReencryptionError: The database refuses, or cannot be reached for a while.
            MetastoreUnavailableError: The key table cannot be reached for a while.
        """
        end, delay = time.monotonic() + _PATIENCE, _POLL if self.kind == "sqlite" else _FIRST_DELAY
        while True:
            reason = ""
            try:
                return work()
            except MetastoreUnavailableError:
                if time.monotonic() > end:
                    raise
            except StatementError as error:
                if not self._is_transient(error) or time.monotonic() > end:
                    reason = _code(error)
            # Not from within `except`: the driver's error may quote the row.
            if reason:
                raise ReencryptionError(
                    f"the database refused a statement of the re-encryption ({reason}); what was committed stays. "
                    "Check the rights of the database user, constraints and triggers of the table, and run it again: "
                    "it goes on where it stopped"
                )
            time.sleep(delay * (0.5 + os.urandom(1)[0] / 256))
            if self.kind != "sqlite":
                _logger.info("a transaction of the re-encryption is tried again")
                delay = min(2 * delay, _LONGEST_DELAY)

    def _transact(self, work: Callable[[Connection], T], *, writing: bool) -> T:
        with self._engine.connect() as plain:
            connection = plain.execution_options(sa_asherah_writing=writing)
            with connection.begin() as transaction:
                result = work(connection)
                if not writing:
                    transaction.rollback()
                return result

    def _is_transient(self, error: StatementError) -> bool:
        if not isinstance(error, DBAPIError):
            return False
        if self.kind == "sqlite":
            return getattr(error.orig, "sqlite_errorcode", 0) & 0xFF in _BUSY
        return isinstance(of_server(error, self.dialect), TransientError)


def _begin(connection: Connection) -> None:
    """Begin on SQLite by a statement: how the application begins, or that it does not, is no concern of a job.

    The lock is had now or not at all, without SQLite's own waiting: see `_POLL`.
    """
    waits = connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one()
    connection.exec_driver_sql("PRAGMA busy_timeout = 0")
    try:
        if connection.get_execution_options().get("sa_asherah_writing"):
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.exec_driver_sql("BEGIN")
            connection.exec_driver_sql("SELECT 1 FROM sqlite_master LIMIT 1").close()
    finally:
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {waits}")


def _code(error: StatementError) -> str:
    cause = error.orig
    name = type(cause).__name__
    sqlstate = getattr(cause, "sqlstate", None) or getattr(cause, "sqlite_errorname", None)
    if sqlstate:
        return f"{name}, {sqlstate}"
    number = cause.args[0] if cause is not None and cause.args and isinstance(cause.args[0], int) else None
    return name if number is None else f"{name}, error {number}"
