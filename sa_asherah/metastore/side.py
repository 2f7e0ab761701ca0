# SPDX-License-Identifier: Apache-2.0
"""Key tables on a server: keys are read and written on connections of our own, and committed before they are used."""

from __future__ import annotations

import logging
import os
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Connection, Engine, NullPool, text

from sa_asherah.errors import AsherahError, MetastoreError, MetastoreUnavailableError
from sa_asherah.metastore.failure import TransientError
from sa_asherah.metastore.loader import Loader, in_greenlet, off_loop, pause
from sa_asherah.metastore.mysql import MySQLRows
from sa_asherah.metastore.postgresql import PostgreSQLRows

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from sa_asherah.core.ports import KeyRows
    from sa_asherah.metastore.rows import ServerRows

__all__ = ["SideMetastore"]

_RETRIES = 3
_FIRST_DELAY = 0.05

T = TypeVar("T")

_logger = logging.getLogger("sa_asherah.metastore")


class SideMetastore:
    """The key table of a PostgreSQL, MySQL or MariaDB database.

    Never a connection of the application's pool: with every slot taken, a key would wait for those who wait for it.

    Attributes:
        enlisted: Always false.
        keeps_all: Always false.
    """

    enlisted = False
    keeps_all = False

    def __init__(self, engine: Engine) -> None:
        """Note whose connection settings to use; the engine is held weakly.

        Args:
            engine: The application's engine.
        """
        self._engine = weakref.ref(engine)
        self._is_async = engine.dialect.is_async
        self._is_postgresql = engine.dialect.name == "postgresql"
        self._compiled: dict[Any, Any] = {}
        self._loader = Loader()
        self._warned = False

    def run(self, work: Callable[[KeyRows], T], connection: object | None = None, *, writing: bool = False) -> T:
        """Run `work` on a connection of its own, again after a transient error.

        Args:
            work: What to do; starts by reading.
            connection: Not used.
            writing: Not used.

        Returns:
            What `work` returned.

        Raises:
            MetastoreUnavailableError: The database cannot be reached, or transient errors do not end.
            MetastoreError: The table cannot be used.
        """
        del connection, writing
        if self._is_async and not in_greenlet():
            return self._loader.run(lambda: self._run(work))
        return self._run(work)

    def off_loop(self, call: Callable[[], T]) -> T:
        """Make a call that blocks, in a thread where it would stop an event loop.

        Args:
            call: The call.

        Returns:
            What it returned.
        """
        return off_loop(call)

    def close(self) -> None:
        """End the thread that serves asynchronous drivers, if there is one."""
        self._loader.close()

    def _run(self, work: Callable[[KeyRows], T]) -> T:
        delay = _FIRST_DELAY
        for _ in range(_RETRIES):
            try:
                return self._run_once(work)
            except TransientError as error:
                _logger.info("key transaction is tried again: %s", error)
            pause(delay * (0.5 + int.from_bytes(os.urandom(2), "big") / 65_536))
            delay *= 2
        try:
            return self._run_once(work)
        except TransientError as error:
            raise MetastoreUnavailableError(str(error)) from error.__cause__

    def _run_once(self, work: Callable[[KeyRows], T]) -> T:
        with self._connected() as connection:
            return work(self._rows(connection))

    def _rows(self, connection: Connection) -> ServerRows:
        return PostgreSQLRows(connection) if self._is_postgresql else MySQLRows(connection)

    @contextmanager
    def _connected(self) -> Generator[Connection]:
        try:
            connection = self._connect()
            if not self._is_postgresql:
                self._prepare_mysql(connection)
        except AsherahError:
            raise
        except Exception as error:  # noqa: BLE001 - drivers raise errors of many kinds when they cannot connect
            cause = getattr(error, "orig", None) or error
            raise MetastoreUnavailableError(
                "the database of the key table cannot be reached; check that it runs and that the engine's URL is right"
            ) from cause
        with connection:
            yield connection

    def _connect(self) -> Connection:
        engine = self._engine()
        if engine is None:
            raise MetastoreError(
                "the engine of the key table is gone; keep a reference to it as long as keys are needed"
            )
        # Made anew each time: listeners that the application has added to its engine by now take part.
        creator = engine.pool._creator  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        pool = NullPool(creator, dialect=engine.dialect, _dispatch=engine.pool.dispatch)
        options: dict[str, Any] = {"isolation_level": "READ COMMITTED", "compiled_cache": self._compiled}
        translation = engine.get_execution_options().get("schema_translate_map")
        if translation:
            options["schema_translate_map"] = translation
        own = Engine(pool, engine.dialect, engine.url, hide_parameters=True)
        return own.connect().execution_options(**options)

    def _prepare_mysql(self, connection: Connection) -> None:
        with connection.begin():
            connection.execute(text("SET SESSION innodb_lock_wait_timeout = 5, lock_wait_timeout = 5"))
            if not self._warned:
                flush = connection.execute(text("SELECT @@innodb_flush_log_at_trx_commit")).scalar()
                self._warned = True
                if flush != 1:
                    _logger.warning(
                        "innodb_flush_log_at_trx_commit is %s: a crash of the server may lose keys, and with them all "
                        "data they encrypted; set it to 1",
                        flush,
                    )
