# SPDX-License-Identifier: Apache-2.0
"""How the encrypted columns of a table are read past their types."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sqlalchemy import Text, cast, null, select

from sa_asherah.errors import OwnerRequiredError
from sa_asherah.orm.owner import canonical_text, owner_kind
from sa_asherah.reencrypt.pages import Pages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import Column, ColumnElement, Connection, Row
    from sqlalchemy.engine import Dialect

    from sa_asherah.orm.plan import EncryptedColumn, Group, TablePlan
    from sa_asherah.orm.types import Encrypted

__all__ = ["Layout", "Slot", "labelled", "partition_of"]

_MAX_ROWS = 200


@dataclass(frozen=True, eq=False)
class Slot:
    """One encrypted column of a table.

    Attributes:
        layout: The table.
        group: The columns with the same owner.
        column: The column.
    """

    layout: Layout
    group: Group
    column: EncryptedColumn

    @cached_property
    def type(self) -> Encrypted:
        """The column's type."""
        return self.column.column.type  # type: ignore[return-value] # a plan has encrypted columns only

    @cached_property
    def name(self) -> str:
        """Table and column."""
        return f"{self.layout.plan.table.fullname}.{self.column.column.name}"

    @cached_property
    def decode(self) -> Callable[[bytes], Any]:
        """What makes a value of the plaintext of a cell without padding."""
        return self.type.codec.decode

    @cached_property
    def decode_record(self) -> Callable[[bytes], Any]:
        """What makes a value of the plaintext of a data row record."""
        return self.type.plain_codec.decode

    def row_texts(self, connection: Connection, partition: str) -> Iterator[str]:
        """List the primary keys of an owner's rows, as far as row-bound values may be bound to them.

        Args:
            connection: To the database.
            partition: The owner's partition.

        Yields:
            Their texts, a bounded number.
        """
        if self.group.row is None:
            return
        query = select(self.layout.text(self.group.row)).limit(_MAX_ROWS)
        if self.group.owner is not None:
            before, _, after = self.group.template.partition("{}")
            owner = partition[len(before) : len(partition) - len(after)]
            # SQLite and MariaDB may store UUIDs without hyphens.
            query = query.where(self.layout.text(self.group.owner).in_([owner, owner.replace("-", "")]))
        found = connection.execute(query).scalars().all()
        connection.rollback()
        yield from (text for each in found if (text := _canonical(self.group.row, each)) is not None)


class Layout:
    """What is read of one table, and where each part of it stands in a row.

    Attributes:
        plan: The table's plan.
        pages: Its pages.
        slots: Its encrypted columns.
    """

    def __init__(self, plan: TablePlan, dialect: Dialect) -> None:
        """Lay out.

        Args:
            plan: The table.
            dialect: The database's.

        Raises:
            ConfigurationError: The table has no primary key that can be paged.
        """
        self.plan = plan
        self.pages = Pages(plan.table, dialect)
        self.slots = [Slot(self, group, column) for group in plan.groups for column in group.columns.values()]
        self._dialect = dialect.name
        self._keys = len(plan.table.primary_key.columns)

    @property
    def sized(self) -> list[ColumnElement[Any]]:
        """The encrypted columns."""
        return [self._raw(slot.column.column) for slot in self.slots]

    @property
    def columns(self) -> list[ColumnElement[Any]]:
        """What to select besides the primary key: owner and row of each group, then the encrypted columns."""
        found: list[ColumnElement[Any]] = []
        for number, group in enumerate(self.plan.groups):
            for name, place in (("owner", group.owner), ("row", group.row)):
                text = null() if place is None else self.text(place)
                found.append(text.label(f"sa_asherah_{name}_{number}"))
        is_json = [self._dialect == "postgresql" and slot.type.storage == "json" for slot in self.slots]
        values = zip(self.sized, is_json, strict=True)
        return found + [cast(value, Text()).label(value.name) if json else value for value, json in values]

    def text(self, column: Column[Any]) -> ColumnElement[Any]:
        """Give a column as the text that names an owner or a row.

        Args:
            column: An owner or primary key column.
        """
        return cast(self._raw(column), Text())

    def primary_key(self, row: Row[Any]) -> tuple[str, ...]:
        """Name a row.

        Args:
            row: The row as it was read.

        Returns:
            The parts of its primary key.
        """
        return tuple(str(part) for part in row[: self._keys])

    def groups(self, row: Row[Any]) -> Iterator[tuple[Group, str | None, str, list[tuple[Slot, Any]]]]:
        """Take a row apart.

        Args:
            row: The row as it was read.

        Yields:
            For each group with a value: the group, the owner's text, the row's text, and the values by column.
        """
        places = row[self._keys :]
        values = list(zip(self.slots, places[2 * len(self.plan.groups) :], strict=True))
        for number, group in enumerate(self.plan.groups):
            found = [(slot, value) for slot, value in values if slot.group is group and value is not None]
            if found:
                owner, text = places[2 * number : 2 * number + 2]
                yield group, _text(owner), _canonical(group.row, text) or "", found

    def _raw(self, column: Column[Any]) -> Any:
        return self.pages.source.c[column.name]


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return bytes(value).decode(errors="replace")


def _canonical(column: Column[Any] | None, value: Any) -> str | None:
    text = _text(value)
    if column is None or text is None:
        return None
    try:
        return canonical_text(owner_kind(column), text)
    except OwnerRequiredError:
        return None


def partition_of(group: Group, owner: str) -> str:
    """Give the partition that an owner's text leads to.

    Args:
        group: The columns, which have an owner column.
        owner: The text that the database gave.

    Returns:
        The partition.

    Raises:
        OwnerRequiredError: The text is not canonical.
    """
    if group.kind is None:
        raise OwnerRequiredError("these columns have no owner column")
    return group.template.replace("{}", canonical_text(group.kind, owner))


def labelled(layouts: Sequence[Layout]) -> list[Slot]:
    """List the columns that hold cells, each label once.

    Args:
        layouts: All tables.

    Returns:
        The columns.
    """
    slots = {slot.column.label: slot for layout in layouts for slot in layout.slots if not slot.column.is_record}
    return list(slots.values())
