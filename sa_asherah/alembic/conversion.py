# SPDX-License-Identifier: Apache-2.0
"""`op.encrypt_column`, `op.reencrypt_column` and `op.decrypt_column`: what a column holds becomes something else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

from alembic.operations import MigrateOperation, Operations
from sqlalchemy.types import TypeEngine, to_instance

from sa_asherah.errors import ConfigurationError
from sa_asherah.orm.types import Encrypted

if TYPE_CHECKING:
    from collections.abc import Mapping

    TypeOrClass = TypeEngine[Any] | type[TypeEngine[Any]]

__all__ = ["Conversion", "Options", "job_name"]

_REVERSE: dict[str, Literal["encrypt", "reencrypt", "decrypt"]] = {
    "encrypt": "decrypt",
    "reencrypt": "reencrypt",
    "decrypt": "encrypt",
}


class Options(TypedDict, total=False):
    """What a conversion may be told besides.

    Attributes:
        into: The column of the same table that gets the converted values; left out, they stay where they are.
        schema: The table's schema.
        types: Types of the owner column and others where the database's own say too little: `Uuid` on SQLite, say.
        batch: Rows per transaction, 500.
        rows_per_second: At most so many.
    """

    into: str | None
    schema: str | None
    types: Mapping[str, TypeOrClass] | None
    batch: int
    rows_per_second: float | None


def job_name(verb: str, table: str, column: str, schema: str | None = None) -> str:
    """Name the job of a conversion in the tables of progress.

    Args:
        verb: `encrypt`, `reencrypt` or `decrypt`.
        table: The table.
        column: The column that ends up converted.
        schema: The table's schema.

    Returns:
        The same name whenever the same column is converted, so that a migration that was killed goes on.
    """
    return f"{verb} {f'{schema}.' if schema else ''}{table}.{column}"


@Operations.register_operation("encrypt_column")
@Operations.register_operation("reencrypt_column")
@Operations.register_operation("decrypt_column")
class Conversion(MigrateOperation):
    """A column's values are read by one type and written by another.

    Attributes:
        verb: Which of the three operations.
        table: The table.
        column: The column that holds the values.
        source: The types that read it, tried in order.
        target: The type that reads it afterwards.
        into: The column that gets the converted values; `None`: they stay where they are.
        schema: The table's schema.
        types: Types of columns where the database's own say too little: `Uuid` on SQLite, say.
        batch: Rows per transaction.
        rows_per_second: At most so many.
    """

    def __init__(  # noqa: PLR0913 -- a migration says all of it
        self,
        verb: Literal["encrypt", "reencrypt", "decrypt"],
        table: str,
        column: str,
        source: TypeOrClass | Sequence[TypeOrClass],
        target: TypeOrClass,
        *,
        into: str | None = None,
        schema: str | None = None,
        types: Mapping[str, TypeOrClass] | None = None,
        batch: int = 500,
        rows_per_second: float | None = None,
    ) -> None:
        """Keep the arguments; refuse what the operation's name does not say.

        Args:
            verb: See the attributes, as for the others.
            table: The table.
            column: The column.
            source: A type or several.
            target: A type.
            into: A column.
            schema: A schema.
            types: Types by column name.
            batch: Rows per transaction.
            rows_per_second: At most so many.

        Raises:
            ConfigurationError: The types do not fit the operation.
        """
        self.verb = verb
        self.table = table
        self.column = column
        self.source = tuple(to_instance(type_) for type_ in (source if isinstance(source, Sequence) else (source,)))
        self.target = to_instance(target)
        self.into = into
        self.schema = schema
        self.types = {name: to_instance(type_) for name, type_ in (types or {}).items()}
        self.batch = batch
        self.rows_per_second = rows_per_second
        where = f"op.{verb}_column({table!r}, {column!r})"
        if not self.source:
            raise ConfigurationError(f"{where}: source= is the type, or the types, that the column had so far")
        if isinstance(self.target, Encrypted) == (verb == "decrypt"):
            raise ConfigurationError(
                f"{where}: the target of encrypt_column and reencrypt_column is an Encrypted(...), that of "
                "decrypt_column a plain type"
            )
        if verb == "decrypt" and not all(isinstance(type_, Encrypted) for type_ in self.source):
            raise ConfigurationError(f"{where}: what decrypt_column reads is an Encrypted(...)")
        if into == column:
            raise ConfigurationError(f"{where}: into= names another column; leave it out to stay in this one")

    @property
    def name(self) -> str:
        """The job's name."""
        return job_name(self.verb, self.table, self.into or self.column, self.schema)

    @classmethod
    def encrypt_column(
        cls,
        operations: Operations,
        table: str,
        column: str,
        source: TypeOrClass | Sequence[TypeOrClass],
        target: Encrypted,
        **options: Unpack[Options],
    ) -> None:
        """Encrypt what a column holds, while the application runs.

        In place the column must be text and wide enough, and `target` says `storage="text"`. With `into=` the values
        are copied, encrypted, into another column of the table, which `op.create_copy_triggers` keeps up to date.
        What earlier revisions of this run did is committed first. A migration that was killed goes on where it was.

        Args:
            operations: Alembic's.
            table: The table.
            column: The column.
            source: The type it had so far, or several, tried in order.
            target: What reads it afterwards.
            **options: See `Options`.

        Raises:
            MigrationError: Rows are left, or could not be read; or `--sql` is given.
            ConfigurationError: The types do not fit the operation.
        """
        operations.invoke(cls("encrypt", table, column, source, target, **options))

    @classmethod
    def reencrypt_column(
        cls,
        operations: Operations,
        table: str,
        column: str,
        source: TypeOrClass | Sequence[TypeOrClass],
        target: Encrypted,
        **options: Unpack[Options],
    ) -> None:
        """Encrypt anew what is ciphertext already: another owner column, partition, label or format.

        Args:
            operations: Alembic's.
            table: The table.
            column: The column.
            source: What read it so far, or several: an `Encrypted(...)`, or a type of `sa_asherah.reencrypt.foreign`
                if another library encrypted it.
            target: What reads it afterwards.
            **options: See `Options`.

        Raises:
            MigrationError: Rows are left, or could not be read; or `--sql` is given.
            ConfigurationError: The types do not fit the operation.
        """
        operations.invoke(cls("reencrypt", table, column, source, target, **options))

    @classmethod
    def decrypt_column(
        cls,
        operations: Operations,
        table: str,
        column: str,
        source: TypeOrClass | Sequence[TypeOrClass],
        target: TypeOrClass,
        **options: Unpack[Options],
    ) -> None:
        """Store plaintext again; the reverse of `encrypt_column`.

        Args:
            operations: Alembic's.
            table: The table.
            column: The column.
            source: The `Encrypted(...)` that read it so far, or several.
            target: The plain type that reads it afterwards.
            **options: See `Options`.

        Raises:
            MigrationError: Rows are left, or could not be read; or `--sql` is given.
            ConfigurationError: The types do not fit the operation.
        """
        operations.invoke(cls("decrypt", table, column, source, target, **options))

    def reverse(self) -> MigrateOperation:
        """Give the operation that undoes this one."""
        column, into = (self.into, self.column) if self.into else (self.column, None)
        before = self.source[-1 if self.verb == "encrypt" else 0]  # plaintext comes last
        return Conversion(
            _REVERSE[self.verb],
            self.table,
            column,
            self.target,
            before,
            into=into,
            schema=self.schema,
            types=self.types,
            batch=self.batch,
            rows_per_second=self.rows_per_second,
        )

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Name the difference for `alembic check`."""
        return (f"{self.verb}_column", self.schema, self.table, self.column, self.into)
