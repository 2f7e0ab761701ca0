# SPDX-License-Identifier: Apache-2.0
"""Triggers that keep an encrypted copy of a column honest while code that does not know the copy still writes.

A trigger cannot encrypt. It makes what is stale visible instead: when the old column or the owner changes alone, the
copy becomes NULL and the next run of `op.encrypt_column` copies it again. Once all is copied, code may come that knows
the copy only: from then on the old column becomes NULL, too, when the copy changes alone. Not before: code that writes
both may write the same value again, as another cell, and old code must go on to see it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from alembic.operations import MigrateOperation, Operations

from sa_asherah.alembic.errors import MigrationError
from sa_asherah.alembic.names import limited, quoted, verbatim

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection
    from sqlalchemy.engine import Dialect

__all__ = ["CreateCopyTriggersOp", "DropCopyTriggersOp", "RequireCopiedOp", "has_triggers", "settle"]


def has_triggers(connection: Connection, copy: CreateCopyTriggersOp | RequireCopiedOp) -> bool:
    """Tell whether the trigger of a copy is there and enabled.

    Args:
        connection: A connection.
        copy: The copy.

    Returns:
        Whether it is.
    """
    return any(_has_trigger(connection, copy, is_settled=is_settled) for is_settled in (False, True))


def settle(connection: Connection, copy: CreateCopyTriggersOp, *, is_settled: bool) -> None:
    """Say whether every value is copied, so that code may come that knows the copy only.

    One trigger takes the place of the other; at no time there is none.

    Args:
        connection: A connection; on SQLite, with an open transaction.
        copy: The copy.
        is_settled: Whether every value is copied.
    """
    has_other = _has_trigger(connection, copy, is_settled=not is_settled)
    statements: list[str] = []
    if not _has_trigger(connection, copy, is_settled=is_settled):
        statements += _created(connection.dialect, copy, is_settled=is_settled, has_other=has_other)
    if has_other:
        statements += _dropped(connection.dialect, copy, is_settled=not is_settled)
    for statement in statements:
        connection.execute(verbatim(statement))


def _name(copy: CreateCopyTriggersOp | RequireCopiedOp, *, is_settled: bool) -> str:
    # PostgreSQL runs triggers in the order of their names: the second comes before the first, see `_created`.
    return limited(f"asherah_{'copied' if is_settled else 'copy'}_{copy.table}_{copy.into}")


def _has_trigger(connection: Connection, copy: CreateCopyTriggersOp | RequireCopiedOp, *, is_settled: bool) -> bool:
    name, dialect = _name(copy, is_settled=is_settled), connection.dialect
    if dialect.name == "sqlite":
        master = f"{quoted(dialect, copy.schema)}.sqlite_master" if copy.schema else "sqlite_master"
        query = f"SELECT count(*) FROM {master} WHERE type = 'trigger' AND name = :name AND tbl_name = :table"  # noqa: S608
        found = connection.scalar(sa.text(query), {"name": name, "table": copy.table})
    elif dialect.name == "postgresql":
        query = (
            "SELECT count(*) FROM pg_trigger WHERE tgname = :name AND tgenabled <> 'D' "
            "AND tgrelid = CAST(:table AS regclass)"
        )
        found = connection.scalar(sa.text(query), {"name": name, "table": quoted(dialect, copy.schema, copy.table)})
    else:
        query = (
            "SELECT count(*) FROM information_schema.triggers WHERE trigger_name = :name "
            "AND event_object_table = :table AND trigger_schema = COALESCE(:schema, database())"
        )
        found = connection.scalar(sa.text(query), {"name": name, "table": copy.table, "schema": copy.schema})
    return bool(found)


@Operations.register_operation("create_copy_triggers")
class CreateCopyTriggersOp(MigrateOperation):
    """Keep a column and its encrypted copy from telling different things."""

    def __init__(
        self, table: str, column: str, into: str, bound_to: Sequence[str], *, schema: str | None = None
    ) -> None:
        """Keep the arguments.

        Args:
            table: The table.
            column: The column.
            into: Its encrypted copy.
            bound_to: The columns whose values the ciphertext is bound to.
            schema: The table's schema.
        """
        self.table, self.column, self.into, self.schema = table, column, into, schema
        self.bound_to = tuple(bound_to)

    @classmethod
    def create_copy_triggers(
        cls,
        operations: Operations,
        table: str,
        column: str,
        into: str,
        bound_to: Sequence[str],
        *,
        schema: str | None = None,
    ) -> None:
        """Let the database watch a column that `op.encrypt_column` copies into another.

        Args:
            operations: Alembic's.
            table: The table.
            column: The column, which must accept NULL.
            into: Its encrypted copy, which must accept NULL too.
            bound_to: The columns whose values the ciphertext is bound to: the owner column and, with `bind_row=`, the
                primary key.
            schema: The table's schema.
        """
        operations.invoke(cls(table, column, into, bound_to, schema=schema))

    def reverse(self) -> MigrateOperation:
        """Give the operation that undoes this one."""
        return DropCopyTriggersOp(self.table, self.column, self.into, self.bound_to, schema=self.schema)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Name the difference for `alembic check`."""
        return ("create_copy_triggers", self.schema, self.table, self.column, self.into)


@Operations.register_operation("drop_copy_triggers")
class DropCopyTriggersOp(CreateCopyTriggersOp):
    """Watch no more."""

    @classmethod
    def drop_copy_triggers(
        cls,
        operations: Operations,
        table: str,
        column: str,
        into: str,
        bound_to: Sequence[str] = (),
        *,
        schema: str | None = None,
    ) -> None:
        """Drop what `op.create_copy_triggers` made.

        Args:
            operations: Alembic's.
            table: The table.
            column: The column.
            into: Its encrypted copy.
            bound_to: As it was created; not needed.
            schema: The table's schema.
        """
        operations.invoke(cls(table, column, into, bound_to, schema=schema))

    def reverse(self) -> MigrateOperation:
        """Give the operation that undoes this one."""
        return CreateCopyTriggersOp(self.table, self.column, self.into, self.bound_to, schema=self.schema)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Name the difference for `alembic check`."""
        return ("drop_copy_triggers", self.schema, self.table, self.column, self.into)


@Operations.register_operation("require_copied")
class RequireCopiedOp(MigrateOperation):
    """Go on only if every value has its encrypted copy."""

    def __init__(self, table: str, column: str, into: str, *, schema: str | None = None) -> None:
        """Keep the arguments.

        Args:
            table: The table.
            column: The column.
            into: Its encrypted copy.
            schema: The table's schema.
        """
        self.table, self.column, self.into, self.schema = table, column, into, schema

    @classmethod
    def require_copied(
        cls, operations: Operations, table: str, column: str, into: str, *, schema: str | None = None
    ) -> None:
        """Stop the migration unless every value of a column has its encrypted copy: the gate before the column goes.

        Args:
            operations: Alembic's.
            table: The table.
            column: The column.
            into: Its encrypted copy.
            schema: The table's schema.

        Raises:
            MigrationError: Values have no copy, the triggers are gone, or `--sql` is given.
        """
        operations.invoke(cls(table, column, into, schema=schema))

    def reverse(self) -> MigrateOperation:
        """Give the operation itself: a gate changes nothing."""
        return self

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Name the difference for `alembic check`."""
        return ("require_copied", self.schema, self.table, self.column, self.into)


@Operations.implementation_for(RequireCopiedOp)
def _require(operations: Operations, copy: RequireCopiedOp) -> None:
    where = f"op.require_copied({copy.table!r}, {copy.column!r}, {copy.into!r})"
    if operations.get_context().as_sql:
        raise MigrationError(f"{where} looks at the rows, which --sql cannot: run this revision against the database")
    connection = operations.get_bind()
    if not has_triggers(connection, copy):
        raise MigrationError(
            f"{where}: the triggers are gone, so copies may be older than their values. Call op.create_copy_triggers, "
            f"set {copy.into!r} to NULL in all rows, and run op.encrypt_column again"
        )
    table = sa.table(copy.table, sa.column(copy.column), sa.column(copy.into), schema=copy.schema)
    # Nobody may slip in between this look and what the revision does next.
    if connection.dialect.name == "postgresql":
        connection.execute(
            sa.text(f"LOCK TABLE {quoted(connection.dialect, copy.schema, copy.table)} IN SHARE ROW EXCLUSIVE MODE")
        )
    missing = table.c[copy.column].is_not(None) & table.c[copy.into].is_(None)
    count = connection.scalar(sa.select(sa.func.count()).select_from(table).where(missing))
    if count:
        raise MigrationError(
            f"{where}: {count} values have no encrypted copy, so {copy.column!r} must stay. Stop the code that writes "
            f"only {copy.column!r}, call op.encrypt_column(..., into={copy.into!r}) before this, and run it again"
        )


@Operations.implementation_for(CreateCopyTriggersOp)
def _create(operations: Operations, copy: CreateCopyTriggersOp) -> None:
    context = operations.get_context()
    if context.dialect.name == "sqlite" and not context.as_sql:
        _require_rowid(operations.get_bind(), copy)
    for statement in _created(context.dialect, copy, is_settled=False):
        operations.execute(verbatim(statement))


def _require_rowid(connection: Connection, copy: CreateCopyTriggersOp) -> None:
    """Refuse here what SQLite would refuse at each UPDATE of the application."""
    options = sa.inspect(connection).get_table_options(copy.table, schema=copy.schema)
    if not options.get("sqlite_with_rowid", True):
        raise MigrationError(
            f"op.create_copy_triggers({copy.table!r}, ...): the table is WITHOUT ROWID, by which a trigger of SQLite "
            "finds its row. Encrypt the column in place, as text"
        )


@Operations.implementation_for(DropCopyTriggersOp)
def _drop(operations: Operations, copy: DropCopyTriggersOp) -> None:
    for is_settled in (False, True):
        for statement in _dropped(operations.get_context().dialect, copy, is_settled=is_settled):
            operations.execute(verbatim(statement))


def _dropped(dialect: Dialect, copy: CreateCopyTriggersOp, *, is_settled: bool) -> list[str]:
    name = _name(copy, is_settled=is_settled)
    if dialect.name != "postgresql":
        return [f"DROP TRIGGER IF EXISTS {quoted(dialect, copy.schema, name)}"]
    return [
        f"DROP TRIGGER IF EXISTS {quoted(dialect, name)} ON {quoted(dialect, copy.schema, copy.table)}",
        f"DROP FUNCTION IF EXISTS {quoted(dialect, copy.schema, name)}()",
    ]


def _created(dialect: Dialect, copy: CreateCopyTriggersOp, *, is_settled: bool, has_other: bool = False) -> list[str]:
    """Write the trigger in a dialect's words.

    While one trigger takes the other's place, both may run for one row. The settled one runs first: what it does looks
    to the other like a change of both columns, or of the copy, and it does nothing.
    """
    drops_old, drops_new = _rules(dialect, copy, is_settled=is_settled)
    name = _name(copy, is_settled=is_settled)
    table, trigger = quoted(dialect, copy.schema, copy.table), quoted(dialect, copy.schema, name)
    old, new = quoted(dialect, copy.column), quoted(dialect, copy.into)
    if dialect.name == "postgresql":
        body = (
            f"BEGIN IF {drops_old} THEN NEW.{old} = NULL; ELSIF {drops_new} THEN NEW.{new} = NULL; END IF; "
            "RETURN NEW; END"
        )
        rows = f"FOR EACH ROW EXECUTE FUNCTION {trigger}()"
        return [
            f"CREATE FUNCTION {trigger}() RETURNS trigger LANGUAGE plpgsql SET extra_float_digits = 1 AS $$ {body} $$",
            f"CREATE TRIGGER {quoted(dialect, name)} BEFORE UPDATE ON {table} {rows}",
        ]
    if dialect.name == "sqlite":
        table = quoted(dialect, copy.table)
        sets = f"{old} = CASE WHEN {drops_old} THEN NULL ELSE {old} END"
        sets += f", {new} = CASE WHEN {drops_new} THEN NULL ELSE {new} END"
        body = f"UPDATE {table} SET {sets} WHERE rowid = NEW.rowid"  # noqa: S608 -- names are quoted
        when = f"AFTER UPDATE ON {table} WHEN ({drops_old}) OR ({drops_new})"
        return [f"CREATE TRIGGER {trigger} {when} BEGIN {body}; END"]
    order = f" PRECEDES {quoted(dialect, _name(copy, is_settled=False))}" if is_settled and has_other else ""
    # One SET, from left to right: what the first does, the second takes for a change of the old column's.
    sets = f"NEW.{old} = IF({drops_old}, NULL, NEW.{old}), NEW.{new} = IF({drops_new}, NULL, NEW.{new})"
    return [f"CREATE TRIGGER {trigger} BEFORE UPDATE ON {table} FOR EACH ROW{order} SET {sets}"]  # noqa: S608 -- the same


def _rules(dialect: Dialect, copy: CreateCopyTriggersOp, *, is_settled: bool) -> tuple[str, str]:
    """Write when the old value is dropped, and when the copy.

    A collation takes a new text for the old one, and a number's text may leave out its last digits: text is compared
    byte by byte, numbers as numbers too.
    """
    if dialect.name == "postgresql":
        differ = 'CAST(NEW.{0} AS text) COLLATE "C" IS DISTINCT FROM CAST(OLD.{0} AS text) COLLATE "C"'
    elif dialect.name == "sqlite":
        differ = "NEW.{0} IS NOT OLD.{0} OR CAST(NEW.{0} AS BLOB) IS NOT CAST(OLD.{0} AS BLOB)"
    else:
        differ = "NOT (NEW.{0} <=> OLD.{0}) OR NOT (CAST(NEW.{0} AS BINARY) <=> CAST(OLD.{0} AS BINARY))"

    def changed(*columns: str) -> str:
        return " OR ".join(f"({differ.format(quoted(dialect, column))})" for column in columns)

    value_changed, copy_changed = changed(copy.column), changed(copy.into)
    bound, old = changed(*copy.bound_to) or "1 = 0", quoted(dialect, copy.column)
    drops_old = f"{copy_changed} AND NOT {value_changed}" if is_settled else "1 = 0"
    return drops_old, f"NOT {copy_changed} AND ({value_changed} OR (({bound}) AND NEW.{old} IS NOT NULL))"
