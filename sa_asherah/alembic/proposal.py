# SPDX-License-Identifier: Apache-2.0
"""The revisions that encrypt a column: expand, backfill, contract, and on PostgreSQL validate.

They are revisions of their own: what an operation on data has committed cannot be rolled back with the rest of its
revision, and between any two of them code may be deployed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alembic.operations import ops
from alembic.util import rev_id
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.schema import Column, Table
from sqlalchemy.types import JSON, LargeBinary, String, Text, TypeEngine

from sa_asherah.alembic.conversion import Conversion
from sa_asherah.alembic.copying import CreateCopyTriggersOp, DropCopyTriggersOp, RequireCopiedOp
from sa_asherah.alembic.errors import MigrationError
from sa_asherah.alembic.gate import RequireEncryptedOp, ValidateEncryptedOp
from sa_asherah.alembic.names import limited
from sa_asherah.orm.lineage import label_of
from sa_asherah.orm.types import Encrypted

if TYPE_CHECKING:
    from collections.abc import Callable

    from alembic.operations.ops import MigrateOperation, MigrationScript
    from alembic.runtime.migration import MigrationContext

__all__ = ["splitting"]

_STORED: dict[str, TypeEngine[Any]] = {
    "binary": LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb"),
    "text": Text().with_variant(mysql.LONGTEXT(charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb"),
    "json": JSON().with_variant(postgresql.JSONB(), "postgresql"),
}
"""How ciphertext is stored, for what needs no more than that: Alembic cannot rename a column of a type with options."""
_UPGRADES, _DOWNGRADES = "upgrades", "downgrades"
"""What the template of a revision calls them."""
_KEEPING = (Conversion, RequireCopiedOp, ValidateEncryptedOp)
"""What a contract or validation does not undo."""


class Rename(ops.AlterColumnOp):
    """A column gets another name; going back is that, too."""

    def reverse(self) -> Rename:
        """Give the operation that undoes this one."""
        return Rename(
            self.table_name,
            str(self.modify_name),
            schema=self.schema,
            existing_type=self.existing_type,
            modify_name=self.column_name,
            modify_nullable=True,
        )


_ORDER = (Conversion, RequireCopiedOp, DropCopyTriggersOp, ops.MigrateOperation, CreateCopyTriggersOp)
"""What a revision does first: SQLite loses the triggers of a table that `batch_alter_table` rebuilds."""


class Stage:
    """What one of the revisions does, for all columns.

    Attributes:
        name: What it is called in the revision's message.
        upgrade: Its operations.
    """

    def __init__(self, name: str) -> None:
        """Start with none.

        Args:
            name: What it is called.
        """
        self.name = name
        self.upgrade: list[MigrateOperation] = []

    def add(self, *operations: MigrateOperation) -> None:
        """Add what it does for a column.

        Args:
            *operations: The operations.
        """
        self.upgrade = sorted([*self.upgrade, *operations], key=_rank)

    @property
    def downgrade(self) -> list[MigrateOperation]:
        """What undoes it, in the opposite order."""
        undone = reversed(self.upgrade)
        return [each.reverse() for each in undone if self.name == "backfill" or not isinstance(each, _KEEPING)]


def _rank(operation: MigrateOperation) -> int:
    exact = [number for number, kind in enumerate(_ORDER) if type(operation) is kind]
    return exact[0] if exact else _ORDER.index(ops.MigrateOperation)


def splitting(given: Callable[..., None] | None, tables: dict[tuple[str | None, str], Table]) -> Callable[..., None]:
    """Extend the `process_revision_directives` of an `env.py`.

    Args:
        given: What the `env.py` gives, if anything; it sees the revisions as they will be written.
        tables: The application's tables by schema and name.

    Returns:
        A `process_revision_directives` that puts what encrypts columns into revisions of its own.
    """

    def process(context: MigrationContext, revision: Any, directives: list[MigrationScript]) -> None:
        _split(context, directives, tables)
        if given:
            given(context, revision, directives)

    return process


def _split(
    context: MigrationContext, directives: list[MigrationScript], tables: dict[tuple[str | None, str], Table]
) -> None:
    script = directives[-1]
    upgrade, downgrade = script.upgrade_ops, script.downgrade_ops
    if upgrade is None or downgrade is None:
        return
    stages = [Stage("expand"), Stage("backfill"), Stage("contract"), Stage("validate")]
    for changed in list(upgrade.ops):
        if isinstance(changed, ops.ModifyTableOps):
            for operation in _taken(changed):
                _propose(tables[changed.schema, changed.table_name], operation, stages)
    if not stages[1].upgrade:
        return
    if upgrade.upgrade_token != _UPGRADES:
        raise MigrationError(
            "columns became encrypted, which needs several revisions, and this env.py writes those of several "
            "databases into one: write op.encrypt_column and the others by hand, see reference/alembic.md"
        )
    if context.dialect.name == "sqlite":
        context.opts["render_as_batch"] = True  # it cannot alter a column otherwise
    upgrade.ops = [each for each in upgrade.ops if not isinstance(each, ops.ModifyTableOps) or each.ops]
    upgrade.reverse_into(downgrade)
    upgrade.ops += stages[0].upgrade
    downgrade.ops = stages[0].downgrade + downgrade.ops
    if context.dialect.name != "postgresql":
        stages.pop()
    for stage in stages[1:]:
        directives.append(_script(directives[-1], stage, script.message))


def _taken(changed: ops.ModifyTableOps) -> list[ops.AlterColumnOp]:
    """Take out of a table's changes that columns become encrypted; what else changes about these columns stays."""
    found: list[ops.AlterColumnOp] = []
    for operation in list(changed.ops):
        if isinstance(operation, ops.AlterColumnOp) and isinstance(operation.modify_type, Encrypted):
            found.append(
                ops.AlterColumnOp(
                    operation.table_name,
                    operation.column_name,
                    schema=operation.schema,
                    existing_type=operation.existing_type,
                    existing_nullable=operation.existing_nullable,
                    modify_type=operation.modify_type,
                )
            )
            operation.modify_type = None
            if not operation.has_changes():
                changed.ops.remove(operation)
    return found


def _script(after: MigrationScript, stage: Stage, message: str | None) -> MigrationScript:
    return ops.MigrationScript(
        rev_id(),
        ops.UpgradeOps(stage.upgrade, upgrade_token=_UPGRADES),
        ops.DowngradeOps(stage.downgrade, downgrade_token=_DOWNGRADES),
        message=f"{message or 'encrypt'} {stage.name}",
        head=after.rev_id,
        version_path=after.version_path,
    )


def _propose(table: Table, change: ops.AlterColumnOp, stages: list[Stage]) -> None:
    column = next(column for column in table.columns if column.name == change.column_name)
    declared = column.type
    assert isinstance(declared, Encrypted)  # noqa: S101 -- _taken chose it
    if declared.storage == "text" and isinstance(change.existing_type, String):
        _in_place(column, declared, change, stages)
    else:
        _by_copy(column, declared, change, stages)


def _in_place(column: Column[Any], declared: Encrypted, change: ops.AlterColumnOp, stages: list[Stage]) -> None:
    expand, backfill = stages[:2]
    table, schema, target = change.table_name, change.schema, _by_names(column, declared)
    change.modify_type = target
    expand.add(ops.ModifyTableOps(table, [change], schema=schema))
    types = _types(column, declared)
    backfill.add(Conversion("encrypt", table, column.name, declared.inner, target, schema=schema, types=types))
    _require(stages, table, column.name, target, schema)


def _by_copy(column: Column[Any], declared: Encrypted, change: ops.AlterColumnOp, stages: list[Stage]) -> None:
    expand, backfill, contract, _ = stages
    table, name, schema, old_type = change.table_name, column.name, change.schema, change.existing_type
    copy, target = limited(f"{name}_encrypted"), _by_names(column, declared, label=label_of(column))
    types = _types(column, declared)
    added: list[MigrateOperation] = [
        ops.AddColumnOp.from_column_and_tablename(schema, table, Column(copy, target, nullable=True))
    ]
    if change.existing_nullable is False:
        opened = ops.AlterColumnOp(table, name, schema=schema, existing_type=old_type, existing_nullable=False)
        opened.modify_nullable = True
        added.insert(0, opened)
    expand.add(
        ops.ModifyTableOps(table, added, schema=schema),
        CreateCopyTriggersOp(table, name, copy, list(types), schema=schema),
    )
    convert = Conversion("encrypt", table, name, declared.inner, target, into=copy, schema=schema, types=types)
    backfill.add(convert)
    old = Column(name, old_type, nullable=True)
    drop = ops.DropColumnOp.from_column_and_tablename(schema, table, old)
    rename = Rename(
        table,
        copy,
        schema=schema,
        existing_type=_STORED[target.storage],
        modify_name=name,
        modify_nullable=bool(column.nullable),
    )
    contract.add(
        convert,  # once more: what was written since the backfill
        RequireCopiedOp(table, name, copy, schema=schema),
        DropCopyTriggersOp(table, name, copy, list(types), schema=schema),
        ops.ModifyTableOps(table, [drop], schema=schema),
        ops.ModifyTableOps(table, [rename], schema=schema),
    )
    _require(stages, table, name, target, schema)


def _require(stages: list[Stage], table: str, column: str, target: Encrypted, schema: str | None) -> None:
    if target.format == "cell":  # a data row record has no mark
        stages[2].add(RequireEncryptedOp(table, column, target, schema=schema))
        stages[3].add(ValidateEncryptedOp(table, column, target, schema=schema))


def _by_names(column: Column[Any], declared: Encrypted, **changes: Any) -> Encrypted:
    """Name owner and row as the database does: a migration has no keys of columns."""
    for place in ("owner", "bind_row"):
        key = getattr(declared, place)
        if key is not None:
            changes[place] = _named(column, key).name
    return declared.variant(reads=(), **changes)


def _types(column: Column[Any], declared: Encrypted) -> dict[str, Any]:
    """Tell the types of the columns that ciphertext is bound to: a database may not know that its text is a UUID."""
    places = [_named(column, key) for key in (declared.owner, declared.bind_row) if key is not None]
    return {place.name: place.type for place in places}


def _named(column: Column[Any], key: str) -> Column[Any]:
    found: Column[Any] = column.table.c[key]
    return found
