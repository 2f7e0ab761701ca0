# SPDX-License-Identifier: Apache-2.0
"""ON CONFLICT DO UPDATE and ON DUPLICATE KEY UPDATE: a value may land in a row of another owner."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from sqlalchemy import bindparam
from sqlalchemy.schema import Column
from sqlalchemy.sql.selectable import Alias

from sa_asherah.errors import OwnerChangedError, UnsupportedValueError
from sa_asherah.orm.assignments import column_key, literal_value
from sa_asherah.orm.owner import owner_text

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from sqlalchemy.sql.dml import Insert

    from sa_asherah.orm.plan import Group, TablePlan
    from sa_asherah.orm.sealing import Batch

__all__ = ["Upsert"]


class Upsert:
    """The second half of an upsert: what it sets where a row exists already."""

    def __init__(self, clause: Any, plan: TablePlan, assigned: dict[Any, Any]) -> None:
        """Use `of`.

        Args:
            clause: SQLAlchemy's clause.
            plan: What the table encrypts.
            assigned: What it sets, by the application's own keys.
        """
        self._clause, self._plan, self._assigned = clause, plan, assigned
        self._names = {key: name for name in assigned if (key := column_key(plan.table, name)) is not None}

    @classmethod
    def of(cls, statement: Insert, plan: TablePlan) -> Self | None:
        """Find the clause of a statement.

        Args:
            statement: An INSERT.
            plan: What its table encrypts.

        Returns:
            The upsert, `None` if it has none or does nothing on conflict.
        """
        clause: Any = statement._post_values_clause
        assigned = getattr(clause, "update_values_to_set", None)
        if assigned is None and clause is not None:
            assigned = getattr(clause, "update", None)
        return None if assigned is None else cls(clause, plan, dict(assigned))

    def touches(self, group: Group) -> bool:
        """Tell whether it sets an encrypted column of a group, its owner or, if row-bound, its primary key.

        Args:
            group: A group of the table.
        """
        return any(key in self._names for key in (*group.columns, *(place.key for place in group.places)))

    def add(self, batch: Batch, group: Group, partitions: Sequence[str | None], rows: Sequence[str]) -> None:
        """Check it and plan the encryption of its literal values.

        Args:
            batch: Takes the values.
            group: A group that it touches.
            partitions: Partition of each inserted row.
            rows: Primary key of each inserted row; empty texts without row-bound columns.

        Raises:
            OwnerChangedError: A value could land in a row of another owner.
            UnsupportedValueError: A value is a SQL expression.
        """
        for place in group.places:
            self._require(place, group.columns if place is group.owner else group.row_bound)
        literal = [key for key in group.columns if key in self._names and not self._is_inserted(key)]
        owner_is_literal = (
            group.owner is not None and group.owner.key in self._names and not self._is_inserted(group.owner.key)
        )
        if (literal or owner_is_literal) and len(set(zip(partitions, rows, strict=True))) > 1:
            raise OwnerChangedError(
                "an upsert of rows of several owners, or of several row-bound rows, can only set encrypted columns to "
                "the inserted (excluded) value"
            )
        if group.row is not None and group.row.key in self._names and not self._is_inserted(group.row.key):
            raise OwnerChangedError(f"the upsert can set {group.row} only to the inserted (excluded) value")
        if owner_is_literal and group.owner is not None and group.kind is not None:
            value = literal_value(self._assigned[self._names[group.owner.key]], {}, group.owner)
            if group.template.replace("{}", owner_text(group.owner, group.kind, value)) != partitions[0]:
                raise OwnerChangedError(f"the upsert sets {group.owner} to another owner than the inserted row's")
        for key in literal:
            column = group.columns[key]
            value = literal_value(self._assigned[self._names[key]], {}, column.column)
            batch.add(self, column, [value], [partitions[0]], [rows[0]])

    def put(self, key: str, values: Sequence[Any]) -> None:
        """Replace a literal value.

        Args:
            key: `Column.key`.
            values: The one value.
        """
        type_ = self._plan.table.c[key].type
        self._assigned[self._names[key]] = bindparam(None, values[0], type_=type_, unique=True)

    def into(self, statement: Any) -> Any:
        """Put the clause into a statement of our own.

        Args:
            statement: The rebuilt INSERT.

        Returns:
            The same statement.
        """
        clause = self._clause._clone()
        clause.__dict__.pop("_is_clone_of", None)  # SQLAlchemy's cache would keep the original with its plaintext
        if hasattr(clause, "update_values_to_set"):
            items = list(self._assigned.items())
            clause.update_values_to_set = items if isinstance(clause.update_values_to_set, list) else dict(items)
        else:
            clause.update = dict(self._assigned)
        statement._post_values_clause = clause
        return statement

    def _require(self, place: Column[Any], columns: Collection[str]) -> None:
        """Be sure that the existing row gets the inserted owner or key: by the target, or as all is overwritten."""
        complete = place.key in self._names and all(key in self._names for key in columns)
        if complete or (place in self._target() and place.key not in self._names):
            return
        raise OwnerChangedError(
            "the upsert may meet a row of another owner (or, if row-bound, primary key) and leave values that cannot "
            f"be read there: put {place} into the conflict target (not on MySQL and MariaDB), or set it and all of "
            f"{', '.join(columns)}"
        )

    def _target(self) -> list[Column[Any]]:
        table = self._plan.table
        elements = getattr(self._clause, "inferred_target_elements", None)
        if elements:
            keys = [
                column_key(table, element)
                for element in elements
                if isinstance(element, str | Column) or hasattr(element, "table")
            ]
            return [table.c[key] for key in keys if key is not None]
        name = getattr(self._clause, "constraint_target", None)
        for constraint in table.constraints:
            if name is not None and name in {constraint, constraint.name}:
                return list(constraint.columns)  # type: ignore[attr-defined]
        return []

    def _is_inserted(self, key: str) -> bool:
        """Tell whether a column is set to the value that the same upsert tried to insert."""
        value = self._assigned[self._names[key]]
        value = value._deannotate() if hasattr(value, "_deannotate") else value
        table = getattr(value, "table", None)
        if (
            not isinstance(table, Alias)
            or table.element._deannotate() is not self._plan.table  # annotated where the INSERT names an entity
            or table.name not in {"excluded", "inserted", "new"}
        ):
            return False
        if value.key != key:
            raise UnsupportedValueError(f"the upsert would copy the ciphertext of {value.key} into {key}")
        return True
