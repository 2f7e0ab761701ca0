# SPDX-License-Identifier: Apache-2.0
"""INSERT in all its shapes: rows in parameters, in the statement, from a SELECT; upserts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy.sql.elements import Null
from sqlalchemy.sql.selectable import CompoundSelect, Select

from sa_asherah.errors import OwnerChangedError, OwnerRequiredError, UsageError
from sa_asherah.orm.assignments import Assignments
from sa_asherah.orm.lineage import bare, label_of, neighbour, origin
from sa_asherah.orm.sealing import Batch, partitions_of, row_texts, rows_with_values
from sa_asherah.orm.types import Encrypted
from sa_asherah.orm.upsert import Upsert

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection
    from sqlalchemy.schema import Column
    from sqlalchemy.sql.dml import Insert

    from sa_asherah.orm.attachment import Attachment
    from sa_asherah.orm.plan import Group, TablePlan

__all__ = ["client_default", "rewrite_insert"]

Parameters = Sequence[Mapping[str, Any]]


class _RowContext:
    """What a context-sensitive default may ask of the row being written."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        self.current_parameters = row

    def get_current_parameters(self, isolate_multiinsert_groups: bool = True) -> Mapping[str, Any]:  # noqa: FBT001, FBT002, ARG002 -- SQLAlchemy's signature
        return self.current_parameters


def client_default(generator: Any, row: Mapping[str, Any]) -> Any:
    """Evaluate a Python-side `default=` or `onupdate=` for a row.

    Args:
        generator: `Column.default` or `Column.onupdate`.
        row: The values of the row so far.

    Returns:
        The value.
    """
    return generator.arg(_RowContext(row)) if generator.is_callable else generator.arg


def rewrite_insert(
    attachment: Attachment, connection: Connection, statement: Insert, parameters: Parameters, plan: TablePlan
) -> tuple[Insert, Parameters]:
    """Encrypt what an INSERT writes.

    Args:
        attachment: The engine's Asherah.
        connection: The executing connection.
        statement: The INSERT.
        parameters: Its parameter sets.
        plan: What the table encrypts.

    Returns:
        The statement and the parameters to execute instead.

    Raises:
        AsherahError: A value cannot be encrypted; nothing is written.
    """
    if statement.select is not None:
        _check_from_select(statement, plan)
        return statement, parameters
    rows = Assignments(statement, parameters, plan.table)
    batch = Batch(attachment)
    upsert = Upsert.of(statement, plan)
    for group in plan.groups:
        _fill_defaults(rows, [column.column for column in group.columns.values()])
        present = {key: column for key, column in group.columns.items() if key in rows}
        values = {key: rows.column(key) for key in present}
        wanted = rows_with_values(values.values(), len(rows))
        updates = upsert is not None and upsert.touches(group)
        if not updates and not any(wanted):
            continue
        needed = [True] * len(rows) if updates else wanted
        partitions = partitions_of(group, _place(rows, group.owner, group), needed)
        keys = [""] * len(rows) if group.row is None else row_texts(group.row, _place(rows, group.row, group), needed)
        if upsert is not None and updates:
            upsert.add(batch, group, partitions, keys)
        for key, column in present.items():
            batch.add(rows, column, values[key], partitions, keys)
    batch.seal(connection)
    return upsert.into(rows.statement()) if upsert is not None else rows.statement(), rows.parameters


def _place(rows: Assignments, column: Column[Any] | None, group: Group) -> list[Any]:
    """List the owner or the primary key of each row."""
    if column is None:
        return [None] * len(rows)
    _fill_defaults(rows, [column])
    if column.key not in rows:
        raise OwnerRequiredError(
            f"the row has no {'owner' if column is group.owner else 'primary key'}: {column} must be set in the INSERT "
            f"that writes {', '.join(group.columns)}, or have a Python-side default (a key made by the server is known "
            "too late; use e.g. default=uuid4)"
        )
    return rows.column(column.key)


def _fill_defaults(rows: Assignments, columns: Sequence[Column[Any]]) -> None:
    """Evaluate defaults here: SQLAlchemy would do it after the values have been encrypted."""
    for column in columns:
        if column.default is not None and column.key not in rows:
            rows.put(column.key, [client_default(column.default, row) for row in rows.seen()])


def _check_from_select(statement: Insert, plan: TablePlan) -> None:
    names = statement._select_names or []
    for group in plan.groups:
        present = [key for key in group.columns if key in names]
        for key, column in group.columns.items():
            if key not in names and column.column.default is not None and statement.include_insert_from_select_defaults:
                raise UsageError(
                    f"INSERT FROM SELECT cannot fill the default of {column.label}: name the column, or "
                    "pass include_defaults=False"
                )
        if present:
            for branch in _branches(statement.select):
                _check_branch(branch, group, names, present)


def _branches(select: Any) -> list[Any]:
    if isinstance(select, CompoundSelect):
        return [branch for each in select.selects for branch in _branches(each)]
    return [select]


def _check_branch(branch: Any, group: Group, names: Sequence[str], present: Sequence[str]) -> None:
    """Only ciphertext of the same label may be copied, and only beside the owner it was made for."""
    chosen = dict(zip(names, branch.selected_columns, strict=False)) if isinstance(branch, Select) else {}
    for key in present:
        source = chosen.get(key)
        if isinstance(source, Null):
            continue
        tables = [] if source is None else origin(source)
        target_type: Any = group.columns[key].column.type
        if any(isinstance(leaf.type, Encrypted) and leaf.type.windows for leaf in tables):
            raise UsageError(
                f"{group.columns[key].label} cannot be copied as it is stored from a column with reads=, which may "
                "still hold plaintext: read the rows and insert them with values, or re-encrypt the column and remove "
                "reads="
            )
        same = bool(tables) and all(
            isinstance(leaf.type, Encrypted)
            and label_of(leaf) == group.columns[key].label
            and leaf.type.partition == group.template
            and leaf.type.form == target_type.form
            for leaf in tables
        )
        row = group.row if group.columns[key].row_bound else None
        if not same or not (
            _beside(source, tables, "owner", group.owner, chosen)
            and (row is None or _beside(source, tables, "bind_row", row, chosen))
        ):
            raise OwnerChangedError(
                f"INSERT FROM SELECT into {group.columns[key].label} would store what was not encrypted for the new "
                "row's owner (or, if row-bound, primary key): select the same encrypted column and its own owner "
                "column and primary key side by side, or read the rows and insert them with values"
            )


def _beside(
    source: Any,
    tables: list[Column[Any]],
    which: Literal["owner", "bind_row"],
    target: Column[Any] | None,
    chosen: Mapping[str, Any],
) -> bool:
    """Tell whether what the ciphertext is bound to feeds the same column of the new row."""
    found = neighbour(source, tables, which)
    fed = None if target is None else chosen.get(target.key)
    return found is not None and fed is not None and bare(found) is bare(fed)
