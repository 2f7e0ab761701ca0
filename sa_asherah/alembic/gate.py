# SPDX-License-Identifier: Apache-2.0
"""`op.require_encrypted`: from here on a column holds ciphertext only, and the database says so by a CHECK.

The CHECK looks at length and first bytes. It stops accidents, such as a program of an older version that still writes
plaintext; whoever means to plant a value can make one that passes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from alembic.operations import MigrateOperation, Operations

from sa_asherah.alembic.conversion import job_name
from sa_asherah.alembic.errors import MigrationError
from sa_asherah.alembic.names import limited, quoted, verbatim
from sa_asherah.alembic.rebuilding import rebuild
from sa_asherah.errors import ConfigurationError, ReencryptionError
from sa_asherah.reencrypt import require_finished
from sa_asherah.reencrypt.tables import asherah_job

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.engine import Dialect

    from sa_asherah.orm.types import Encrypted

__all__ = ["AllowPlaintextOp", "RequireEncryptedOp", "ValidateEncryptedOp", "check_name", "condition"]

_SMALLEST = {"binary": 89, "text": 123}
"""Length of a cell of one byte, and of its text."""
_ADVICE = "Let only code run that writes ciphertext, run op.{}_column again, and come back"


def check_name(table: str, column: str) -> str:
    """Name the CHECK of a column.

    Args:
        table: The table.
        column: The column.

    Returns:
        The name; autogenerate knows by it that the column is encrypted.
    """
    return limited(f"ck_{table}_{column}_encrypted")


def condition(dialect: Dialect, column: str, storage: str) -> str:
    """Write what is true for a value with the shape of a cell, false for another one and unknown for NULL.

    Args:
        dialect: The database's dialect.
        column: The column's name.
        storage: `binary` or `text`.

    Returns:
        A SQL condition.
    """
    name, least = quoted(dialect, column), _SMALLEST[storage]
    if storage == "text":
        return f"char_length({name}) >= {least} AND substr({name}, 1, 4) = 'sa1:'".replace(
            "char_length", "length" if dialect.name == "sqlite" else "char_length"
        )
    if dialect.name == "postgresql":
        return f"octet_length({name}) >= {least} AND substr({name}, 1, 2) = decode('a501', 'hex')"
    return f"length({name}) >= {least} AND substr({name}, 1, 2) = x'a501'"


class _GateOp(MigrateOperation):
    """What the operations on a column's CHECK have in common."""

    def __init__(self, table: str, column: str, target: Encrypted, *, schema: str | None = None) -> None:
        """Keep the arguments.

        Args:
            table: The table.
            column: The column.
            target: The type that reads it.
            schema: The table's schema.

        Raises:
            ConfigurationError: The type stores data row records.
        """
        if target.format != "cell":
            raise ConfigurationError(
                f"{table}.{column}: data row records (format='asherah') are JSON and carry no mark that a CHECK could "
                "look for; leave this operation out"
            )
        self.table, self.column, self.target, self.schema = table, column, target, schema

    @property
    def check(self) -> str:
        """The constraint's name."""
        return check_name(self.table, self.column)


@Operations.register_operation("require_encrypted")
class RequireEncryptedOp(_GateOp):
    """Go on only if nothing but ciphertext is left, and keep it so."""

    @classmethod
    def require_encrypted(
        cls, operations: Operations, table: str, column: str, target: Encrypted, *, schema: str | None = None
    ) -> None:
        """Stop the migration while a value is no ciphertext; then forbid such values by a CHECK.

        PostgreSQL checks new values only until `op.validate_encrypted`, in a later revision, has looked at the old
        ones without keeping anybody from writing.

        Args:
            operations: Alembic's.
            table: The table.
            column: The column.
            target: The type that reads it: cells, as binary or as text.
            schema: The table's schema.

        Raises:
            MigrationError: Values are left, or in quarantine.
            ConfigurationError: The type stores data row records.
        """
        operations.invoke(cls(table, column, target, schema=schema))

    def reverse(self) -> MigrateOperation:
        """Give the operation that undoes this one."""
        return AllowPlaintextOp(self.table, self.column, self.target, schema=self.schema)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Name the difference for `alembic check`."""
        return ("require_encrypted", self.schema, self.table, self.column)


@Operations.register_operation("allow_plaintext")
class AllowPlaintextOp(_GateOp):
    """Drop the CHECK."""

    @classmethod
    def allow_plaintext(
        cls, operations: Operations, table: str, column: str, target: Encrypted, *, schema: str | None = None
    ) -> None:
        """Drop the CHECK that `op.require_encrypted` made.

        Args:
            operations: Alembic's.
            table: The table.
            column: The column.
            target: The type that reads it.
            schema: The table's schema.
        """
        operations.invoke(cls(table, column, target, schema=schema))

    def reverse(self) -> MigrateOperation:
        """Give the operation that undoes this one."""
        return RequireEncryptedOp(self.table, self.column, self.target, schema=self.schema)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Name the difference for `alembic check`."""
        return ("allow_plaintext", self.schema, self.table, self.column)


@Operations.register_operation("validate_encrypted")
class ValidateEncryptedOp(_GateOp):
    """Check the old values too."""

    @classmethod
    def validate_encrypted(
        cls, operations: Operations, table: str, column: str, target: Encrypted, *, schema: str | None = None
    ) -> None:
        """Let PostgreSQL check the values that were there before the CHECK; other databases did so at once.

        Args:
            operations: Alembic's.
            table: The table.
            column: The column.
            target: The type that reads it.
            schema: The table's schema.
        """
        operations.invoke(cls(table, column, target, schema=schema))

    def reverse(self) -> MigrateOperation:
        """Give the operation itself: what was checked may be checked again."""
        return self

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Name the difference for `alembic check`."""
        return ("validate_encrypted", self.schema, self.table, self.column)


@Operations.implementation_for(RequireEncryptedOp)
def _require(operations: Operations, gate: RequireEncryptedOp) -> None:
    context = operations.get_context()
    shape = condition(context.dialect, gate.column, gate.target.storage)
    if not context.as_sql:
        _check_rows(operations.get_bind(), gate, shape)
    if context.dialect.name == "sqlite":
        rebuild(operations, gate.table, gate.schema, gate.check, shape)
    else:
        operations.create_check_constraint(
            gate.check,
            gate.table,
            verbatim(shape),
            schema=gate.schema,
            postgresql_not_valid=True,
        )


def _check_rows(connection: Connection, gate: RequireEncryptedOp, shape: str) -> None:
    """Refuse while a conversion of the column has not finished, or a value is no ciphertext whatever they say."""
    if sa.inspect(connection).has_table(asherah_job.name):
        for verb in ("encrypt", "reencrypt"):
            _require_job(connection, verb, gate)
    table = sa.table(gate.table, schema=gate.schema)
    left = sa.select(sa.func.count()).select_from(table).where(verbatim(f"NOT ({shape})"))
    count = connection.scalar(left)
    if count:
        raise MigrationError(
            f"op.require_encrypted({gate.table!r}, {gate.column!r}): {count} values are no ciphertext. "
            f"{_ADVICE.format('encrypt')}"
        )


def _require_job(connection: Connection, verb: str, gate: RequireEncryptedOp) -> None:
    name = job_name(verb, gate.table, gate.column, gate.schema)
    known = sa.select(asherah_job.c.name).where(asherah_job.c.name == name)
    if connection.scalar(known) is None:
        return
    try:
        require_finished(connection, name)
    except ReencryptionError as error:
        reason = str(error)
    else:
        return
    raise MigrationError(f"{reason}. {_ADVICE.format(verb)}")


@Operations.implementation_for(AllowPlaintextOp)
def _allow(operations: Operations, gate: AllowPlaintextOp) -> None:
    if operations.get_context().dialect.name == "sqlite":
        rebuild(operations, gate.table, gate.schema, gate.check, None)
    else:
        operations.drop_constraint(gate.check, gate.table, type_="check", schema=gate.schema)


@Operations.implementation_for(ValidateEncryptedOp)
def _validate(operations: Operations, gate: ValidateEncryptedOp) -> None:
    dialect = operations.get_context().dialect
    if dialect.name == "postgresql":
        table = quoted(dialect, gate.schema, gate.table)
        operations.execute(f"ALTER TABLE {table} VALIDATE CONSTRAINT {quoted(dialect, gate.check)}")
