# SPDX-License-Identifier: Apache-2.0
"""The key table and the tables of progress, as a migration creates and drops them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import sqlalchemy as sa
from alembic.operations import MigrateOperation, Operations
from sqlalchemy.schema import CreateTable, DropTable

from sa_asherah.alembic.errors import MigrationError
from sa_asherah.metastore.table import encryption_key
from sa_asherah.reencrypt import tables

if TYPE_CHECKING:
    from typing import Any

__all__ = ["CreateAsherahMetastoreOp", "DropAsherahMetastoreOp"]

_logger = logging.getLogger("sa_asherah.alembic")


@Operations.register_operation("create_asherah_metastore")
class CreateAsherahMetastoreOp(MigrateOperation):
    """Create the key table and the tables in which re-encryptions keep their progress."""

    @classmethod
    def create_asherah_metastore(cls, operations: Operations) -> None:
        """Create `encryption_key` and the tables of progress where they do not exist.

        Args:
            operations: Alembic's.
        """
        operations.invoke(cls())

    def reverse(self) -> MigrateOperation:
        """Give the operation that undoes this one."""
        return DropAsherahMetastoreOp()

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Name the difference for `alembic check`."""
        return ("create_asherah_metastore",)


@Operations.register_operation("drop_asherah_metastore")
class DropAsherahMetastoreOp(MigrateOperation):
    """Drop these tables."""

    def __init__(self, *, destroy_keys: bool = False) -> None:
        """Keep what is asked.

        Args:
            destroy_keys: Whether a key table that holds keys is dropped too.
        """
        self.destroy_keys = destroy_keys

    @classmethod
    def drop_asherah_metastore(cls, operations: Operations, *, destroy_keys: bool = False) -> None:
        """Drop the tables of progress, and `encryption_key` if it holds no key.

        A key table with keys stays, and a warning is logged: what they encrypted, in backups too, could never be read
        again.

        Args:
            operations: Alembic's.
            destroy_keys: Drop the key table with its keys.

        Raises:
            MigrationError: `--sql` is given without `destroy_keys`.
        """
        operations.invoke(cls(destroy_keys=destroy_keys))

    def reverse(self) -> MigrateOperation:
        """Give the operation that undoes this one."""
        return CreateAsherahMetastoreOp()

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Name the difference for `alembic check`."""
        return ("drop_asherah_metastore",)


@Operations.implementation_for(CreateAsherahMetastoreOp)
def _create(operations: Operations, _: CreateAsherahMetastoreOp) -> None:
    for table in (encryption_key, *tables.metadata.sorted_tables):
        operations.execute(CreateTable(table, if_not_exists=True))


@Operations.implementation_for(DropAsherahMetastoreOp)
def _drop(operations: Operations, operation: DropAsherahMetastoreOp) -> None:
    dropped = [*reversed(tables.metadata.sorted_tables), encryption_key]
    if not operation.destroy_keys and _has_keys(operations):
        _logger.warning(
            "encryption_key holds keys and stays. If nothing that they encrypted is wanted any more, not in backups "
            "either, drop it by op.drop_asherah_metastore(destroy_keys=True)"
        )
        dropped.remove(encryption_key)
    for table in dropped:
        operations.execute(DropTable(table, if_exists=True))


def _has_keys(operations: Operations) -> bool:
    if operations.get_context().as_sql:
        raise MigrationError(
            "op.drop_asherah_metastore looks for keys before it drops the key table, which --sql cannot: run this "
            "revision against the database, or say destroy_keys=True"
        )
    connection = operations.get_bind()
    if not sa.inspect(connection).has_table(encryption_key.name):
        return False
    return bool(connection.scalar(sa.select(sa.func.count()).select_from(encryption_key)))
