# SPDX-License-Identifier: Apache-2.0
"""What becomes unreadable when an owner's keys are destroyed: tables, columns, numbers of rows."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import TypeDecorator, Uuid, func, select, type_coerce

from sa_asherah.errors import OwnerRequiredError
from sa_asherah.orm.owner import canonical_text
from sa_asherah.orm.plan import plan_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Column, ColumnElement, Connection, MetaData

    from sa_asherah.orm.plan import Group

__all__ = ["Loss", "losses"]


@dataclass(frozen=True, slots=True)
class Loss:
    """The values of one column that become unreadable.

    Attributes:
        table: The table, with its schema if it has one.
        column: The column.
        rows: In how many rows it has a value of the owner; `None` where no column names the owner, so that only the
            application knows.
    """

    table: str
    column: str
    rows: int | None


def losses(connection: Connection, metadata: MetaData, partition: str) -> list[Loss]:
    """Count what becomes unreadable.

    Args:
        connection: A connection to the data.
        metadata: The tables.
        partition: The owner, in the columns' template if they have one.

    Returns:
        Every encrypted column whose owner may be this one, without those that have no value of it.
    """
    found: list[Loss] = []
    for table in metadata.sorted_tables:
        plan = plan_of(table)
        for group in () if plan is None else plan.groups:
            found += _of_group(connection, table.fullname, group, partition)
    return found


def _of_group(connection: Connection, table: str, group: Group, partition: str) -> Iterator[Loss]:
    columns = [each.column for each in group.columns.values()]
    if group.owner is None:
        yield from (Loss(table, column.name, None) for column in columns)
        return
    condition = _condition(group, group.owner, partition)
    if condition is None:
        return
    counts = connection.execute(select(*(func.count(column) for column in columns)).where(condition)).one()
    for column, count in zip(columns, counts, strict=True):
        if count:
            yield Loss(table, column.name, int(count))


def _condition(group: Group, owner: Column[Any], partition: str) -> ColumnElement[bool] | None:
    """Turn a partition back into an owner; `None` if no owner of this column has it."""
    before, _, after = group.template.partition("{}")
    text = partition[len(before) : len(partition) - len(after)]
    if not group.kind or before + text + after != partition:
        return None
    try:
        if canonical_text(group.kind, text) != text:
            return None
    except OwnerRequiredError:
        return None
    # What a decorator makes of a value is the application's affair: the stored form is compared.
    type_ = owner.type
    while isinstance(type_, TypeDecorator):
        type_ = type_.impl_instance
    value: object = text
    if group.kind == "int":
        value = int(text)
    elif isinstance(type_, Uuid) and type_.as_uuid:
        value = uuid.UUID(text)
    return type_coerce(owner, type_) == value
