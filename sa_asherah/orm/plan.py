# SPDX-License-Identifier: Apache-2.0
"""What a table encrypts for whom, checked once when the table is first met."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from sqlalchemy.exc import NoReferencedColumnError, NoReferencedTableError
from sqlalchemy.schema import CheckConstraint, Column, ColumnCollectionConstraint, MetaData, Table
from sqlalchemy.sql.elements import BinaryExpression, ClauseElement, Null

from sa_asherah.core import cell
from sa_asherah.errors import ConfigurationError
from sa_asherah.orm.lineage import label_of
from sa_asherah.orm.owner import OwnerKind, owner_kind
from sa_asherah.orm.types import Encrypted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["EncryptedColumn", "Group", "TablePlan", "check_together", "owner_of", "plan_of", "row_of"]

_UNSAFE_ON_UPDATE = {"CASCADE", "SET NULL", "SET DEFAULT"}
_UNSAFE_ON_DELETE = {"SET NULL", "SET DEFAULT"}


@dataclass(frozen=True, slots=True)
class EncryptedColumn:
    """One encrypted column of a table.

    Attributes:
        column: The column.
        label: What its ciphertext is bound to.
        encode: Value to plaintext, padded if the type says so.
        flags: Flags of its cells.
        is_record: Whether it holds data row records instead of cells.
    """

    column: Column[Any]
    label: str
    encode: Callable[[Any], bytes]
    flags: int
    is_record: bool

    @property
    def row_bound(self) -> bool:
        """Whether the primary key of the row is part of the context."""
        return bool(self.flags & cell.ROW_BOUND)


@dataclass(frozen=True, slots=True)
class Group:
    """The encrypted columns of a table that share an owner column and a partition template.

    Attributes:
        owner: The owner column, `None` where a `partition_scope` names the owner.
        kind: Kind of the owner column.
        template: Partition template.
        row: The primary key column that row-bound columns are bound to, if there are any.
        columns: The encrypted columns by `Column.key`.
    """

    owner: Column[Any] | None
    kind: OwnerKind | None
    template: str
    row: Column[Any] | None
    columns: dict[str, EncryptedColumn] = field(default_factory=dict)

    @property
    def row_bound(self) -> dict[str, EncryptedColumn]:
        """The columns that are bound to their row."""
        return {key: column for key, column in self.columns.items() if column.row_bound}

    @property
    def places(self) -> list[Column[Any]]:
        """The columns that say where a value belongs: the owner and the primary key."""
        return [column for column in (self.owner, self.row) if column is not None]


@dataclass(frozen=True, slots=True)
class TablePlan:
    """All that is encrypted in a table.

    Attributes:
        table: The table.
        groups: Its encrypted columns by owner.
        keys: `Column.key` of every encrypted column and of every column that says where its values belong.
    """

    table: Table
    groups: tuple[Group, ...]
    keys: frozenset[str]


_plans: WeakKeyDictionary[Table, tuple[int, TablePlan | None]] = WeakKeyDictionary()


def plan_of(table: Any) -> TablePlan | None:
    """Give the plan of a table.

    Args:
        table: A table; anything else has no plan.

    Returns:
        The plan, `None` if nothing in the table is encrypted.

    Raises:
        ConfigurationError: The table's encrypted columns cannot work as declared.
    """
    table = table._deannotate()
    if not isinstance(table, Table):
        return None
    width = len(table.columns)
    known = _plans.get(table)
    if known is None or known[0] != width:
        known = _plans[table] = (width, _make(table))
    return known[1]


def _make(table: Table) -> TablePlan | None:
    groups: dict[tuple[str | None, str], Group] = {}
    for column in table.columns:
        _check_type(column)
        if not isinstance(column.type, Encrypted):
            continue
        type_ = column.type
        _check_column(column)
        key = (type_.owner, type_.partition)
        if key not in groups:
            owner = owner_of(column, type_)
            kind = None if owner is None else owner_kind(owner)
            groups[key] = Group(owner, kind, type_.partition, None)
        row = row_of(column, type_)
        if row is not None:
            groups[key] = replace(groups[key], row=row)
        groups[key].columns[column.key] = EncryptedColumn(
            column, label_of(column), type_.encode, type_.flags, type_.format == "asherah"
        )
    if not groups:
        return None
    _check_constraints(table)
    _check_metadata(table.metadata)
    keys = {key for group in groups.values() for key in group.columns}
    keys.update(place.key for group in groups.values() for place in group.places)
    return TablePlan(table, tuple(groups.values()), frozenset(keys))


def owner_of(column: Column[Any], type_: Encrypted) -> Column[Any] | None:
    """Find the owner column that a type names.

    Args:
        column: The column that has the type, or is to get it.
        type_: The type.

    Returns:
        The owner column; `None` where a `partition_scope` names the owner.

    Raises:
        ConfigurationError: There is none of that key, or it cannot be an owner.
    """
    if type_.owner is None:
        return None
    owner = column.table.c.get(type_.owner)
    if owner is None:
        raise ConfigurationError(
            f"{column}: owner={type_.owner!r} is not a column key of table {column.table.name!r}; the owner column "
            "must be in the table of the encrypted column (in joined inheritance: repeat it there)"
        )
    if isinstance(owner.type, Encrypted):
        raise ConfigurationError(f"{column}: the owner column {owner} is itself encrypted; an owner must be readable")
    _check_place(owner, "owner column")
    return owner


def row_of(column: Column[Any], type_: Encrypted) -> Column[Any] | None:
    """Find the primary key column that a row-bound type names.

    Args:
        column: The column that has the type, or is to get it.
        type_: The type.

    Returns:
        The primary key column, `None` if the type binds no rows.

    Raises:
        ConfigurationError: It names something else, or a key that is not known in time.
    """
    if type_.bind_row is None:
        return None
    row = column.table.c.get(type_.bind_row)
    rest = {key.key for key in column.table.primary_key} - {type_.bind_row, type_.owner}
    if row is None or not row.primary_key or rest:
        raise ConfigurationError(
            f"{column}: bind_row={type_.bind_row!r} must be the key of the table's primary key column; a further part "
            "of the primary key may only be the owner"
        )
    if row is column.table.autoincrement_column and row.default is None:
        raise ConfigurationError(
            f"{column}: bind_row={type_.bind_row!r} is numbered by the server, so it is not known when the row is "
            "encrypted: use a client-made key, e.g. Uuid with default=uuid4, or autoincrement=False"
        )
    owner_kind(row)
    _check_place(row, "primary key column")
    return row


def _check_place(place: Column[Any], what: str) -> None:
    """Refuse that the database fills or changes what its ciphertext is bound to."""
    if place.computed is not None or place.server_default is not None or (place.default and not _client_side(place)):
        raise ConfigurationError(
            f"{what} {place} is filled by the server: it must be known before the row is written; use a "
            "Python-side default or set it"
        )
    for foreign_key in place.foreign_keys:
        if (foreign_key.onupdate or "").upper() in _UNSAFE_ON_UPDATE:
            raise ConfigurationError(
                f"{what} {place} has a foreign key with ON UPDATE {foreign_key.onupdate}: the database would "
                "change it without re-encrypting; remove it"
            )
        if (foreign_key.ondelete or "").upper() in _UNSAFE_ON_DELETE:
            raise ConfigurationError(
                f"{what} {place} has a foreign key with ON DELETE {foreign_key.ondelete}: the database would "
                "take it away from its ciphertext; use CASCADE or RESTRICT"
            )


def _client_side(column: Column[Any]) -> bool:
    return bool(column.default.is_scalar or column.default.is_callable)  # type: ignore[union-attr]


def _check_column(column: Column[Any]) -> None:
    if column.primary_key:
        raise ConfigurationError(
            f"{column} is encrypted and a primary key: ciphertext differs each time, use another key"
        )
    if column.foreign_keys:
        raise ConfigurationError(
            f"{column} is encrypted and a foreign key: ciphertext matches no other row; use a plain column"
        )
    if column.computed is not None or column.server_default is not None or column.server_onupdate is not None:
        raise ConfigurationError(f"{column} is encrypted: the server cannot make its value, use a Python-side default")
    for default in (column.default, column.onupdate):
        if default is not None and not (default.is_scalar or default.is_callable):
            raise ConfigurationError(f"{column} is encrypted: its default must be a Python value or callable")
    if isinstance(column.type, Encrypted) and column.type.label is None and "." in column.table.name + column.name:
        raise ConfigurationError(f"{column}: a name with a dot makes the label ambiguous; give label='table.column'")


def _check_type(column: Column[Any]) -> None:
    """Refuse `Encrypted` within another type, which would hide it from here, and variants of it."""
    types: list[Any] = list(column.type._variant_mapping.values())
    if isinstance(column.type, Encrypted):
        if types:
            raise ConfigurationError(f"{column}: Encrypted chooses the storage of each database: remove its variants")
        return
    types += [getattr(column.type, name, None) for name in ("impl", "item_type")]
    if any(isinstance(type_, Encrypted) for type_ in types):
        raise ConfigurationError(
            f"{column}: Encrypted must be the column's own type, not inside {type(column.type).__name__} or a variant: "
            "put the other type into it, Encrypted(<type>, owner=...)"
        )


def _check_constraints(table: Table) -> None:
    """Refuse indexes and constraints over ciphertext: they would look as if they did something."""
    checked: list[tuple[str, Any]] = []
    for index in table.indexes:
        parts = [*index.expressions, *index.dialect_kwargs.values()]
        checked += [(f"index {index.name}", part) for part in parts]
    for constraint in table.constraints:
        if isinstance(constraint, CheckConstraint):
            checked.append((f"check constraint {constraint.name}", constraint.sqltext))
        elif isinstance(constraint, ColumnCollectionConstraint):
            checked += [(f"{type(constraint).__name__} {constraint.name}", column) for column in constraint.columns]
    for what, part in checked:
        column = _compared(part) if isinstance(part, ClauseElement) else None
        if column is not None:
            raise ConfigurationError(
                f"{what} is over the encrypted column {column}: equal values have different ciphertexts, so it would "
                "neither find nor forbid anything; put it on another column, or remove it"
            )


def _compared(element: Any) -> Any:
    """Find an encrypted column in an expression, other than in IS [NOT] NULL."""
    if isinstance(element, Column):
        return element if isinstance(element.type, Encrypted) else None
    if isinstance(element, BinaryExpression) and isinstance(element.right, Null):
        return None
    return next((found for child in element.get_children() if (found := _compared(child)) is not None), None)


def _check_metadata(metadata: MetaData) -> None:
    columns = [column for table in metadata.tables.values() for column in table.columns]
    check_together([(column, column.type) for column in columns if isinstance(column.type, Encrypted)])


def check_together(columns: Iterable[tuple[Column[Any], Encrypted]]) -> None:
    """Refuse equal labels, and owner columns of different meaning under one template: they mix up what is kept apart.

    Args:
        columns: The encrypted columns of one `MetaData`, each with its type.

    Raises:
        ConfigurationError: Two of them would read each other's values or share keys.
    """
    labels: dict[str, Column[Any]] = {}
    meanings: dict[str, tuple[str, Column[Any]]] = {}
    kinds: dict[str, tuple[str, Column[Any]]] = {}
    for column, type_ in columns:
        table, label = column.table, label_of(column, type_)
        other = labels.setdefault(label, column)
        if other is not column and (other.table.name, other.name) != (table.name, column.name):
            raise ConfigurationError(
                f"{other} and {column} have the same label {label!r}: a value could be moved between them; give one "
                "of them another label="
            )
        owner = table.c.get(type_.owner) if type_.owner else None
        if owner is not None and type_.partition == "{}":
            _check_meaning(meanings, owner)
        if owner is not None:
            _check_kind(kinds, type_.partition, owner)


def _check_meaning(meanings: dict[str, tuple[str, Column[Any]]], owner: Column[Any]) -> None:
    meaning = _meaning(owner)
    known, first = meanings.setdefault("{}", (meaning, owner))
    if known != meaning:
        raise ConfigurationError(
            f"owner columns {first} and {owner} lead to different things but share the template '{{}}': owner 7 "
            f"of one and owner 7 of the other would share keys. Declare partition='{owner.table.name}-{{}}' (any "
            "text that names what owns), or give both a foreign key to the same column"
        )


def _check_kind(kinds: dict[str, tuple[str, Column[Any]]], template: str, owner: Column[Any]) -> None:
    kind = owner_kind(owner)
    known, first = kinds.setdefault(template, (kind, owner))
    if known != kind:
        raise ConfigurationError(
            f"owner columns {first} and {owner} share the template {template!r}, but one is of kind {known!r} and the "
            f"other of kind {kind!r}: equal texts would not mean the same owner; give one of them another partition="
        )


def _meaning(column: Column[Any]) -> str:
    """Follow foreign keys to the column that an owner column stands for."""
    seen: list[Column[Any]] = []
    while column.foreign_keys and column not in seen:
        seen.append(column)
        foreign_key = min(column.foreign_keys, key=lambda key: key.target_fullname)
        try:
            column = foreign_key.column
        except (NoReferencedTableError, NoReferencedColumnError):
            return foreign_key.target_fullname
    return f"{column.table.fullname}.{column.name}"
