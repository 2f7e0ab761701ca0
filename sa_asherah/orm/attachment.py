# SPDX-License-Identifier: Apache-2.0
"""One engine's Asherah: its hierarchy, and the listeners that carry every statement through it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import finalize, ref

from sqlalchemy import Engine, event
from sqlalchemy.engine.cursor import FullyBufferedCursorFetchStrategy
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.schema import ExecutableDDLElement
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.dml import Insert, Update
from sqlalchemy.sql.lambdas import LambdaElement

from sa_asherah import metastore
from sa_asherah.core import cell
from sa_asherah.errors import AsherahError, ConfigurationError, MetastoreUnavailableError, OwnerChangedError
from sa_asherah.orm.assignments import NULL_GUARD, STRICT_GUARD, cut_off
from sa_asherah.orm.audit import Audit
from sa_asherah.orm.element import SUPPORTED_DIALECTS
from sa_asherah.orm.inserts import rewrite_insert
from sa_asherah.orm.nested import has_nested, never_cache, rewrite_nested
from sa_asherah.orm.plan import plan_of
from sa_asherah.orm.refusal import check_definition, shape_of
from sa_asherah.orm.updates import rewrite_update, writes_encrypted

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from sa_asherah.core.hierarchy import Hierarchy
    from sa_asherah.core.key import Key
    from sa_asherah.core.ports import ExternalMetastore

__all__ = ["Attachment"]

_logger = logging.getLogger("sa_asherah.orm")

Parameters = Sequence[Mapping[str, Any]]
T = TypeVar("T")


class Attachment:
    """What `attach` puts on an engine; the engine owns it. Safe to share between threads.

    Attributes:
        audit: Counts values that are decrypted; `None` while nobody asks for that.
    """

    def __init__(
        self, engine: Engine, hierarchy: Hierarchy, owner: object, *, keys: Engine | ExternalMetastore | None = None
    ) -> None:
        """Prepare, without touching the engine.

        Args:
            engine: The root engine.
            hierarchy: Keys for this engine's data.
            owner: The `Asherah` that attaches; kept alive with the engine.
            keys: Where the key table is, if not in the engine's own database: another engine, which is held weakly, or
                a key table outside of SQLAlchemy's databases.
        """
        self.hierarchy = hierarchy
        self.owner = owner
        self._keys: Callable[[], Engine | ExternalMetastore | None]
        self._keys = ref(keys) if isinstance(keys, Engine) else lambda: keys
        self._engine = ref(engine)
        self._reading: ContextVar[ref[Connection] | None] = ContextVar("sa_asherah_reading", default=None)
        self._remembers_connection = engine.dialect.name == "sqlite" and keys is None
        self._checked = False
        self._audit = Audit(hierarchy.events)
        self.audit: Audit | None = None
        self._listeners: list[tuple[str, Any]] = [
            ("before_execute", self._before_execute),
            ("before_cursor_execute", self._before_cursor_execute),
            ("after_cursor_execute", self._after_cursor_execute),
            ("handle_error", self._handle_error),
        ]
        if not engine.dialect.supports_sane_multi_rowcount:
            self._listeners.append(("do_executemany", self._do_executemany))

    def install(self, engine: Engine) -> None:
        """Add the listeners and make the keys reachable from result processors.

        Args:
            engine: The engine.

        Raises:
            ConfigurationError: The engine's database family is not supported.
        """
        if engine.dialect.name not in SUPPORTED_DIALECTS:
            raise ConfigurationError(
                f"engines of {engine.dialect.name!r} are not supported; supported are {', '.join(SUPPORTED_DIALECTS)}"
            )
        if engine.dispatch.before_execute:
            _logger.warning(
                "a before_execute listener was registered on this engine earlier; it sees plaintext parameters"
            )
        for name, listener in self._listeners:
            event.listen(engine, name, listener, retval=name == "before_execute")
        engine.dialect._sa_asherah = self  # type: ignore[attr-defined]
        # SQLAlchemy's own caches may keep the dialect alive longer than the engine, and with it the keys.
        self._release = finalize(engine, _release, engine.dialect, self.hierarchy)
        self._release.atexit = False

    def remove(self) -> None:
        """Take everything off the engine again and forget the keys."""
        engine = self._engine()
        if engine is not None:
            for name, listener in self._listeners:
                event.remove(engine, name, listener)
            self._release()

    def row_keys(self, family: Any) -> dict[bytes, Any]:
        """Give the dictionary of open data row keys of one partition template and owner kind.

        Args:
            family: Template and kind.
        """
        return self.hierarchy.row_keys.setdefault(family, {})

    def context(self, partition: str, label: str, row: str = "") -> bytes:
        """Give what a cell is bound to.

        Args:
            partition: The owner's partition.
            label: The column's label.
            row: Text of the primary key where the column binds its rows.
        """
        ids = self.hierarchy.ids
        return cell.context(ids.service, ids.product, partition, label, row)

    def encryption_keys(self, partitions: Collection[str], connection: Connection | None) -> dict[str, Key]:
        """Find or make the keys for writing.

        Args:
            partitions: The owners' partitions.
            connection: The executing connection; `None` where keys are not read on it.
        """
        return self.hierarchy.encryption_keys(partitions, connection)

    def unlock(
        self, partition: str, created: int, opener: Callable[[Key], T | None], key_id: str | None = None
    ) -> T | None:
        """Open something with the key of a value.

        Args:
            partition: The owner's partition.
            created: Date of the key, from the value.
            opener: Returns `None` if the key does not open it.
            key_id: Key id, from a data row record; one of `Hierarchy.readable_ids`.

        Returns:
            What `opener` returned; `None` if no key opens it.
        """
        with self.hierarchy.events.measure("drr.decrypt", via="statement"):
            return self.hierarchy.unlock(partition, created, opener, self._reading_connection(), key_id=key_id)

    def check(self, connection: Connection, *, writing: bool = False) -> None:
        """Check the key table and the database once before the first statement with encrypted columns.

        Args:
            connection: The executing connection.
            writing: Whether the statement writes.
        """
        if not self._checked:
            self.check_now(connection, writing=writing)  # two threads may do so at once: no harm
            self._checked = True

    def check_now(self, connection: Connection, *, writing: bool = False) -> None:
        """Check the key table and the database.

        Args:
            connection: A connection of the attached engine.
            writing: Whether its transaction is about to write.

        Raises:
            AsherahError: Something is missing, unsafe or out of reach.
        """
        peers = self.hierarchy.ids.peers
        keys = self._keys()
        if keys is None:
            metastore.check(connection, peers=peers, writing=writing)
            return
        metastore.check_data(connection)
        if not isinstance(keys, Engine):
            keys.check()
            return
        try:
            other = keys.connect()
        except (SQLAlchemyError, OSError) as error:
            raise MetastoreUnavailableError(
                "the database of the key table cannot be reached; check that it runs and that the engine's URL is right"
            ) from getattr(error, "orig", None) or error
        with other:
            metastore.check(other, peers=peers)

    def _reading_connection(self) -> Connection | None:
        reference = self._reading.get()
        connection = None if reference is None else reference()
        return None if connection is None or connection.closed else connection

    def _before_execute(
        self, connection: Connection, statement: Any, multiparams: Any, params: Any, options: Mapping[str, Any]
    ) -> tuple[Any, Any, Any]:
        resolved: Any = statement._resolved if isinstance(statement, LambdaElement) else None
        if getattr(resolved, "is_dml", False):
            statement = resolved
        nested = has_nested(statement)
        if not (nested or getattr(statement, "is_insert", False) or getattr(statement, "is_update", False)):
            if isinstance(statement, ExecutableDDLElement):
                check_definition(statement)
            return statement, multiparams, params
        parameters = multiparams or ([params] if params else [])
        if nested:

            def rewrite(inner: Any) -> Any:
                return self._rewrite(connection, inner, parameters[:1], options)[0]

            statement = rewrite_nested(statement, rewrite)
        statement, rewritten = self._rewrite(connection, statement, parameters, options)
        if rewritten is not parameters:
            multiparams, params = rewritten, {}
        if nested:
            never_cache(statement)
        return statement, multiparams, params

    def _rewrite(
        self, connection: Connection, statement: Any, parameters: Parameters, options: Mapping[str, Any]
    ) -> tuple[Any, Parameters]:
        rewritten: Any = statement
        if isinstance(statement, Insert):
            plan = plan_of(statement.table)
            if plan is not None:
                self.check(connection, writing=True)
                rewritten, parameters = rewrite_insert(self, connection, statement, parameters, plan)
        elif isinstance(statement, Update) and writes_encrypted(statement):
            self.check(connection, writing=True)
            rewritten, parameters = rewrite_update(self, connection, statement, parameters, options)
        if rewritten is not statement:
            cut_off(rewritten)
        return rewritten, parameters

    def _before_cursor_execute(
        self,
        connection: Connection,
        _cursor: Any,
        _statement: str,
        _parameters: Any,
        context: Any,
        _executemany: bool,  # noqa: FBT001
    ) -> None:
        compiled = context.compiled if context is not None else None
        if not isinstance(compiled, SQLCompiler):
            return
        shape = compiled.__dict__.get("_sa_asherah_shape")
        if shape is None:
            try:
                shape = shape_of(compiled)
            except BaseException:
                _forget_unchecked(connection.engine, context)
                raise
        if shape.encrypted:
            self.check(connection)
            self.hierarchy.before_reading()
            self.audit = self._audit if self.hierarchy.events.decrypts else None
            if self.audit is not None:
                self.audit.begin(context)
            if self._remembers_connection:
                self._reading.set(ref(connection))

    def _after_cursor_execute(
        self,
        _connection: Connection,
        cursor: Any,
        _statement: str,
        _parameters: Any,
        context: Any,
        _executemany: bool,  # noqa: FBT001
    ) -> None:
        compiled = context.compiled if context is not None else None
        shape = getattr(compiled, "_sa_asherah_shape", None)
        if shape is None or not shape.guards or context.__dict__.get("_sa_asherah_counted"):
            return
        _require_matched(_expected(context, shape.guards), _matched(cursor, context))

    def _handle_error(self, context: Any) -> None:
        """Draw the consequences of a failed statement.

        After a lost connection the primary may be another server, without the newest keys: check them again.
        """
        if context.is_disconnect:
            self.hierarchy.distrust()
        if isinstance(context.original_exception, AsherahError) and context.engine is not None:
            _forget_unchecked(context.engine, context.execution_context)

    def _do_executemany(self, cursor: Any, statement: str, parameters: Any, context: Any) -> bool | None:
        """Send guarded rows one at a time where the driver does not count the rows of an executemany."""
        shape = getattr(context.compiled, "_sa_asherah_shape", None)
        if shape is None or not shape.guards:
            return None
        matched = 0
        for row in parameters:
            cursor.execute(statement, row)
            matched += cursor.rowcount
        context._sa_asherah_counted = True
        _require_matched(_expected(context, shape.guards), matched)
        return True


def _release(dialect: Any, hierarchy: Hierarchy) -> None:
    dialect.__dict__.pop("_sa_asherah", None)
    hierarchy.close()


def _matched(cursor: Any, context: Any) -> int:
    """Count the rows that a statement matched."""
    if context.dialect.name == "sqlite" and cursor.description is not None:
        # SQLite counts what RETURNING gives only as it is fetched.
        rows = cursor.fetchall()
        context.cursor_fetch_strategy = FullyBufferedCursorFetchStrategy(cursor, cursor.description, rows)
        return len(rows)
    return int(cursor.rowcount)


def _expected(context: Any, guards: Sequence[str]) -> int:
    """Count the parameter sets that had a row when they were encrypted, of somebody or of nobody."""
    nulls = [(name, name.replace(STRICT_GUARD, NULL_GUARD)) for name in guards]
    return sum(
        all(row.get(name) is not None or row.get(null) for name, null in nulls) for row in context.compiled_parameters
    )


def _require_matched(expected: int, matched: int) -> None:
    if 0 <= matched < expected:
        raise OwnerChangedError(
            f"a write of encrypted columns matched {matched} of {expected} rows: somebody else changed the owner of a "
            "row or deleted it since it was read; roll back, read again and repeat"
        )


def _forget_unchecked(engine: Engine, context: Any) -> None:
    """A refused statement may hold a plaintext literal: leave none that was not checked in a statement cache."""
    options: Mapping[str, Any] = {} if context is None else context.execution_options
    cache: Any = options.get("compiled_cache", engine._compiled_cache)
    for key, compiled in list((cache or {}).items()):
        if "_sa_asherah_shape" not in compiled.__dict__:
            del cache[key]
