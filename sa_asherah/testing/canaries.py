# SPDX-License-Identifier: Apache-2.0
"""Canaries: values that nothing else contains, and a look at every place where none of them may show."""

from __future__ import annotations

import gc
import logging
import os
import types
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from sqlalchemy import Column, Engine, MetaData, Table, event, inspect, select, table, text
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import Mapper, Session
from sqlalchemy.pool import Pool

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection
    from sqlalchemy.engine import ExceptionContext
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["LeakCanaries"]

E = TypeVar("E", "Engine", "AsyncEngine")

_BYTES: tuple[type[Any], ...] = (bytes, bytearray, memoryview)
# What a cached statement leads to that is not part of it.
_ELSEWHERE = (
    *(types.ModuleType, types.FunctionType, types.MethodType, types.CodeType, types.FrameType, types.TracebackType),
    *(type, Engine, Dialect, Pool, Session, Mapper, MetaData, Table, Column),
)


class LeakCanaries:
    """Hands out unique values and finds them where they must not be. A context manager; for one thread.

    Inside the block it listens to logging and warnings. `check` then looks into the databases and statement caches of
    the watched engines and raises if a canary was seen anywhere, naming canary and place but never the value.

    A value is plain ASCII letters and digits, so that `repr`, quoting, JSON and any encoding of text leave it whole.
    What hides it (base64, compression, hashing, encryption) hides it from this search too.
    """

    def __init__(self) -> None:
        self._values: dict[str, str] = {}
        self._found: dict[str, None] = {}
        self._engines: list[Engine] = []
        self._unread: list[Engine] = []
        self._handler = _Handler(self)
        self._levels: dict[logging.Logger, int] = {}
        self._showwarning = warnings.showwarning

    def __call__(self, name: str) -> str:
        """Give the value of a canary.

        Args:
            name: What error texts call it; the same name gives the same value.

        Returns:
            A text that occurs nowhere else.
        """
        return self._values.setdefault(name, f"canary{os.urandom(12).hex()}")

    def __repr__(self) -> str:
        """Name the canaries, never a value."""
        return f"<LeakCanaries {', '.join(self._values) or 'none'}>"

    def __enter__(self) -> Self:
        """Listen to logging and warnings.

        Every logger that has no level of its own lets everything pass, down to DEBUG, and SQLAlchemy's engines log
        statements and parameters. Not rows: at DEBUG SQLAlchemy logs the opened rows themselves.
        """
        root, engines = logging.getLogger(), logging.getLogger("sqlalchemy.engine")
        self._levels = {root: root.level, engines: engines.level}
        engines.setLevel(min(engines.getEffectiveLevel(), logging.INFO))
        root.setLevel(logging.NOTSET)
        for logger in _ends():
            logger.addHandler(self._handler)
        self._showwarning, warnings.showwarning = warnings.showwarning, self._on_warning
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Listen no more."""
        warnings.showwarning = self._showwarning
        for logger in _ends():
            logger.removeHandler(self._handler)
        for logger, level in self._levels.items():
            logger.setLevel(level)
        while self._engines:
            event.remove(self._engines.pop(), "handle_error", self._on_error)

    def watch(self, engine: E) -> E:
        """Look into an engine at each `check`: every column of every table, a SQLite file, the statement cache.

        From now on also into every error of a statement, even if it is caught.

        Args:
            engine: An engine. The tables of an asynchronous one cannot be read by `check`: before the test ends, do
                `await connection.run_sync(leak_canaries.check_database)`. Without it the check fails.

        Returns:
            The engine.
        """
        synchronous: Engine = engine if isinstance(engine, Engine) else engine.sync_engine
        if synchronous not in self._engines:
            event.listen(synchronous, "handle_error", self._on_error)
            self._engines.append(synchronous)
            if synchronous is not engine:
                self._unread.append(synchronous)
        return engine

    def look(self, place: str, *things: object) -> None:
        """Look for canaries in anything: texts, bytes, exceptions with their causes; of all else in `str` and `repr`.

        What is found is told by the next `check`.

        Args:
            place: What error texts call it, e.g. `"the audit file"`.
            *things: Where to look.
        """
        for found in (found for thing in things for found in _texts(thing)):
            for name, value in list(self._values.items()):  # other threads log, too
                if value in found:
                    self._found[f"canary {name!r} shows in {place}"] = None

    def check(self) -> None:
        """Assert that no canary was seen, after a look at the watched engines.

        A second connection of each engine reads the tables. A SQLite database in memory has one only: commit first,
        what is not committed there is rolled back.

        Raises:
            AssertionError: A canary was seen, or the tables of an asynchronous engine were not looked at.
        """
        __tracebackhide__ = True
        for engine in self._engines:
            if not engine.dialect.is_async:
                with engine.connect() as connection:
                    self._look_at_database(connection)
            inside: Any = engine
            cache = inside._compiled_cache  # noqa: SLF001 -- it has no public name
            for found in _reachable(cache):
                self.look(f"the cache of compiled statements of {engine!r}", found)
        self._verdict()
        if self._unread:
            raise AssertionError(
                "the tables of an asynchronous engine were not looked at: before the end of the test, "
                "await connection.run_sync(leak_canaries.check_database)"
            )

    def check_database(self, connection: Connection) -> None:
        """Assert that no canary is in the database of a connection, uncommitted rows included.

        Args:
            connection: A connection; of an asynchronous engine through `run_sync`.

        Raises:
            AssertionError: A canary was seen, here or before.
        """
        __tracebackhide__ = True
        self._look_at_database(connection)
        self._unread = [engine for engine in self._unread if engine.dialect is not connection.dialect]
        self._verdict()

    def _verdict(self) -> None:
        __tracebackhide__ = True
        if self._found:
            raise AssertionError("; ".join(self._found))

    def _look_at_database(self, connection: Connection) -> None:
        for schema, name in _tables(connection):
            everything = select(text("*")).select_from(table(name, schema=schema))
            for row in connection.execute(everything).mappings():
                for column, value in row.items():
                    self.look(f"the database: table {name}, column {column}", value)
        if connection.dialect.name == "sqlite":
            for _, _, file in connection.exec_driver_sql("PRAGMA database_list"):
                for path in (Path(f"{file}{suffix}") for suffix in ("", "-wal", "-journal")):
                    if file and path.exists():
                        self.look(f"the file {path.name}, perhaps in a deleted row", path.read_bytes())

    def _on_error(self, context: ExceptionContext) -> None:
        error = context.sqlalchemy_exception or context.original_exception
        self.look(f"the {type(error).__name__} of a statement", error)

    def _on_warning(self, *args: Any, **kwargs: Any) -> None:
        message: Any = kwargs.get("message", args[0] if args else "")
        self.look(f"a {type(message).__name__}", message)
        self._showwarning(*args, **kwargs)


class _Handler(logging.Handler):
    def __init__(self, canaries: LeakCanaries) -> None:
        super().__init__(logging.NOTSET)
        self._canaries = canaries

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        place = f"a log record of {record.name!r} at {record.levelname}"
        try:
            self._canaries.look(place, vars(record), error)
            self._canaries.look(place, record.getMessage())  # raises if the arguments do not fit
        except Exception:  # noqa: BLE001 -- a handler must not raise where somebody logs
            self.handleError(record)


def _ends() -> list[logging.Logger]:
    """List the loggers at which records end their way up."""
    known = list(logging.Logger.manager.loggerDict.values())
    return [logging.getLogger(), *(each for each in known if isinstance(each, logging.Logger) and not each.propagate)]


def _texts(thing: Any) -> Iterator[str]:
    if isinstance(thing, _BYTES):
        yield bytes(thing).decode("latin-1")
    elif isinstance(thing, BaseException):
        yield from _texts_of_error(thing)
    else:
        yield str(thing)
        yield repr(thing)


def _texts_of_error(error: BaseException) -> Iterator[str]:
    """Give what an exception says and holds, parameters and notes included, and so on for its causes."""
    seen: set[int] = set()
    waiting: list[object] = [error]
    while waiting:
        found = waiting.pop()
        if not isinstance(found, BaseException) or id(found) in seen:
            continue
        seen.add(id(found))
        yield f"{found} {found!r} {found.args!r} {vars(found)!r}"
        waiting += [found.__cause__, found.__context__, *vars(found).values(), *getattr(found, "exceptions", ())]


def _reachable(root: object) -> Iterator[str | bytes]:
    """Give every text and every run of bytes that belongs to cached statements, however deep."""
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        found = waiting.pop()
        if id(found) in seen or isinstance(found, _ELSEWHERE):
            continue
        seen.add(id(found))
        if isinstance(found, str | bytes | bytearray):
            yield bytes(found) if isinstance(found, bytearray) else found
        else:
            waiting += gc.get_referents(found)


def _tables(connection: Connection) -> list[tuple[str | None, str]]:
    """List the tables of a database: MySQL's schemas are databases of their own, and may be somebody else's."""
    inspector = inspect(connection)
    schemas: list[str | None] = [None]
    if connection.dialect.name not in {"mysql", "mariadb"}:
        schemas += [
            name
            for name in inspector.get_schema_names()
            if name not in {"information_schema", inspector.default_schema_name}
        ]
    return [(schema, name) for schema in schemas for name in inspector.get_table_names(schema=schema)]
