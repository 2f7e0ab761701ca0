# SPDX-License-Identifier: Apache-2.0
"""What autogenerate sees: columns that became encrypted, and the tables of this package, which are not to be dropped.

A type tells most: no text column stores binary cells. Where both look alike (TEXT and `Encrypted(Text(),
storage="text")`), the CHECK that `op.require_encrypted` makes tells.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from alembic.operations import ops
from alembic.util import PriorityDispatchResult
from sqlalchemy.types import JSON, LargeBinary, String

from sa_asherah.alembic.gate import RequireEncryptedOp, check_name
from sa_asherah.alembic.metastore import CreateAsherahMetastoreOp
from sa_asherah.alembic.proposal import splitting
from sa_asherah.alembic.rendering import rendering_encrypted
from sa_asherah.metastore.table import encryption_key
from sa_asherah.orm.types import Encrypted
from sa_asherah.reencrypt import tables

if TYPE_CHECKING:
    from collections.abc import Iterator

    from alembic.autogenerate.api import AutogenContext
    from alembic.operations.ops import AlterColumnOp, MigrateOperation, UpgradeOps
    from sqlalchemy.schema import Column, Table
    from sqlalchemy.types import TypeEngine

__all__ = ["compare", "complete", "prepare"]

_OURS = frozenset({encryption_key.name, *tables.metadata.tables})
_STORED: dict[str, type[TypeEngine[Any]]] = {"binary": LargeBinary, "text": String, "json": JSON}

_logger = logging.getLogger("sa_asherah.alembic")


def prepare(context: AutogenContext, upgrade: UpgradeOps, schemas: object) -> PriorityDispatchResult:  # noqa: ARG001
    """Before anything is compared: take part in how types are written and revisions split.

    Args:
        context: Alembic's.
        upgrade: What was found so far.
        schemas: Where it looks.

    Returns:
        That others go on.
    """
    by_name = {(table.schema, table.name): table for table in _declared(context)}
    options = context.opts
    options["render_item"] = rendering_encrypted(options.get("render_item"))
    options["process_revision_directives"] = splitting(options.get("process_revision_directives"), by_name)
    return PriorityDispatchResult.CONTINUE


def compare(  # noqa: PLR0917 -- what Alembic calls it with
    context: AutogenContext,
    change: AlterColumnOp,
    schema: str | None,
    table: str,
    name: str,
    stored: Column[Any],
    declared: Column[Any],
) -> PriorityDispatchResult:
    """After others compared a column: decide what has become of its type.

    Args:
        context: Alembic's.
        change: What was found so far.
        schema: Of the table.
        table: Its name.
        name: The column's name.
        stored: The column as the database has it.
        declared: The column as the application declares it.

    Returns:
        That others go on.
    """
    is_checked = _is_checked(context, schema, str(table), str(name))
    if isinstance(declared.type, Encrypted):
        is_done = is_checked or _is_stored_alike(context, stored.type, declared.type)
        change.existing_type = stored.type
        change.modify_type = None if is_done else declared.type
    elif is_checked:
        change.modify_type = None
        _logger.warning(
            "%s.%s is encrypted and no longer declared so: autogenerate does not know under which owner, and leaves it "
            "alone. Write op.allow_plaintext and op.decrypt_column by hand",
            table,
            name,
        )
    return PriorityDispatchResult.CONTINUE


def complete(context: AutogenContext, upgrade: UpgradeOps, schemas: object) -> PriorityDispatchResult:  # noqa: ARG001
    """After everything was compared: keep our tables and CHECKs, and mark new columns that look like plaintext.

    Args:
        context: Alembic's.
        upgrade: What was found.
        schemas: Where it looked.

    Returns:
        That others go on.
    """
    encrypted = {table for table in _declared(context) if list(_encrypted(table))}
    checks = {check_name(table.name, column.name) for table in encrypted for column in _encrypted(table)}
    upgrade.ops = [operation for operation in upgrade.ops if not _is_ours(operation)]
    for operation in upgrade.ops:
        if isinstance(operation, ops.ModifyTableOps):
            operation.ops = [each for each in operation.ops if getattr(each, "constraint_name", None) not in checks]
    upgrade.ops += [mark for operation in list(upgrade.ops) for mark in _marks(context, operation)]
    if encrypted and not context.inspector.has_table(encryption_key.name):
        upgrade.ops.insert(0, CreateAsherahMetastoreOp())
    return PriorityDispatchResult.CONTINUE


def _declared(context: AutogenContext) -> list[Table]:
    return list(context.sorted_tables)


def _encrypted(table: Table) -> Iterator[Column[Any]]:
    return (column for column in table.columns if isinstance(column.type, Encrypted))


def _is_ours(operation: MigrateOperation) -> bool:
    if not isinstance(operation, ops.DropTableOp | ops.ModifyTableOps):
        return False
    return operation.schema is None and operation.table_name in _OURS


def _is_checked(context: AutogenContext, schema: str | None, table: str, column: str) -> bool:
    checks = context.inspector.get_check_constraints(table, schema=schema)
    return check_name(table, column) in {check["name"] for check in checks}


def _is_stored_alike(context: AutogenContext, stored: TypeEngine[Any], declared: Encrypted) -> bool:
    """Tell whether the column can only hold ciphertext: it is stored as cells are, and plaintext would not be."""
    wanted = _STORED[declared.storage]
    if isinstance(stored, JSON) and wanted is String and declared.format == "asherah":
        return False
    return isinstance(stored, wanted) and (declared.format == "asherah" or not _looks_alike(context, declared))


def _looks_alike(context: AutogenContext, declared: Encrypted) -> bool:
    """Tell whether plaintext of the declared type is stored in the same kind of column as cells."""
    plain = declared.inner.dialect_impl(context.dialect)
    wanted: tuple[type[TypeEngine[Any]], ...] = (_STORED[declared.storage],)
    if context.dialect.name in {"mysql", "mariadb"} and declared.storage == "text":
        wanted = (String, JSON)  # JSON is text on MariaDB
    return isinstance(getattr(plain, "impl", plain), wanted)


def _marks(context: AutogenContext, operation: MigrateOperation) -> Iterator[MigrateOperation]:
    """Give new columns their CHECK where nothing else would tell the next run that they are encrypted."""
    columns: list[Any] = []
    if isinstance(operation, ops.CreateTableOp):
        columns = list(operation.columns)
    elif isinstance(operation, ops.ModifyTableOps):
        columns = [each.column for each in operation.ops if isinstance(each, ops.AddColumnOp)]
    elif isinstance(operation, ops.AddColumnOp):
        columns = [operation.column]
    for column in columns:
        type_ = getattr(column, "type", None)
        if isinstance(type_, Encrypted) and type_.format == "cell" and _looks_alike(context, type_):
            yield RequireEncryptedOp(operation.table_name, column.name, type_, schema=operation.schema)  # type: ignore[attr-defined]
