# SPDX-License-Identifier: Apache-2.0
"""What a table encrypts for whom, checked once when the table is first met."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from sqlalchemy.exc import NoReferencedColumnError, NoReferencedTableError
from sqlalchemy.schema import Column, MetaData, Table

from sa_asherah.errors import ConfigurationError
from sa_asherah.orm.lineage import label_of
from sa_asherah.orm.owner import OwnerKind, owner_kind
from sa_asherah.orm.types import Encrypted

if TYPE_CHECKING:
    from sa_asherah.orm.codec import Codec

__all__ = ["Group", "TablePlan", "plan_of"]

_UNSAFE_ON_UPDATE = {"CASCADE", "SET NULL", "SET DEFAULT"}
_UNSAFE_ON_DELETE = {"SET NULL", "SET DEFAULT"}


@dataclass(frozen=True, slots=True)
class EncryptedColumn:
    """One encrypted column of a table.

    Attributes:
        column: The column.
        label: What its ciphertext is bound to.
        codec: How its values become bytes.
    """

    column: Column[Any]
    label: str
    codec: Codec


@dataclass(frozen=True, slots=True)
class Group:
    """The encrypted columns of a table that share an owner column and a partition template.

    Attributes:
        owner: The owner column, `None` where a `partition_scope` names the owner.
        kind: Kind of the owner column.
        template: Partition template.
        columns: The encrypted columns by `Column.key`.
    """

    owner: Column[Any] | None
    kind: OwnerKind | None
    template: str
    columns: dict[str, EncryptedColumn] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TablePlan:
    """All that is encrypted in a table.

    Attributes:
        table: The table.
        groups: Its encrypted columns by owner.
        keys: `Column.key` of every encrypted column and every owner column.
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
        if not isinstance(column.type, Encrypted):
            continue
        type_ = column.type
        _check_column(column)
        key = (type_.owner, type_.partition)
        if key not in groups:
            owner = _owner(column, type_)
            groups[key] = Group(owner, None if owner is None else owner_kind(owner), type_.partition)
        groups[key].columns[column.key] = EncryptedColumn(column, label_of(column), type_.codec)
    if not groups:
        return None
    _check_metadata(table.metadata)
    keys = {key for group in groups.values() for key in group.columns}
    keys.update(group.owner.key for group in groups.values() if group.owner is not None)
    return TablePlan(table, tuple(groups.values()), frozenset(keys))


def _owner(column: Column[Any], type_: Encrypted) -> Column[Any] | None:
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
    if owner.computed is not None or owner.server_default is not None or (owner.default and not _client_side(owner)):
        raise ConfigurationError(
            f"owner column {owner} is filled by the server: the owner must be known before the row is written; use a "
            "Python-side default or set it"
        )
    for foreign_key in owner.foreign_keys:
        if (foreign_key.onupdate or "").upper() in _UNSAFE_ON_UPDATE:
            raise ConfigurationError(
                f"owner column {owner} has a foreign key with ON UPDATE {foreign_key.onupdate}: the database would "
                "change the owner without re-encrypting; remove it"
            )
        if (foreign_key.ondelete or "").upper() in _UNSAFE_ON_DELETE:
            raise ConfigurationError(
                f"owner column {owner} has a foreign key with ON DELETE {foreign_key.ondelete}: the database would "
                "take the owner away from its ciphertext; use CASCADE or RESTRICT"
            )
    return owner


def _client_side(column: Column[Any]) -> bool:
    return bool(column.default.is_scalar or column.default.is_callable)  # type: ignore[union-attr]


def _check_column(column: Column[Any]) -> None:
    if column.primary_key:
        raise ConfigurationError(
            f"{column} is encrypted and a primary key: ciphertext differs each time, use another key"
        )
    if column.foreign_keys:
        raise ConfigurationError(f"{column} is encrypted and a foreign key: ciphertext matches no other row")
    if column.computed is not None or column.server_default is not None or column.server_onupdate is not None:
        raise ConfigurationError(f"{column} is encrypted: the server cannot make its value, use a Python-side default")
    for default in (column.default, column.onupdate):
        if default is not None and not (default.is_scalar or default.is_callable):
            raise ConfigurationError(f"{column} is encrypted: its default must be a Python value or callable")
    if isinstance(column.type, Encrypted) and column.type.label is None and "." in column.table.name + column.name:
        raise ConfigurationError(f"{column}: a name with a dot makes the label ambiguous; give label='table.column'")


def _check_metadata(metadata: MetaData) -> None:
    """Equal labels, and owner columns of different meaning under one template, would mix up what is kept apart."""
    labels: dict[str, Column[Any]] = {}
    meanings: dict[str, tuple[str, Column[Any]]] = {}
    for table in metadata.tables.values():
        for column in table.columns:
            if not isinstance(column.type, Encrypted):
                continue
            other = labels.setdefault(label_of(column), column)
            if other is not column and (other.table.name, other.name) != (table.name, column.name):
                raise ConfigurationError(
                    f"{other} and {column} have the same label {label_of(column)!r}: a value could be moved between "
                    "them; give one of them another label="
                )
            owner = table.c.get(column.type.owner) if column.type.owner else None
            if owner is not None and column.type.partition == "{}":
                _check_meaning(meanings, owner)


def _check_meaning(meanings: dict[str, tuple[str, Column[Any]]], owner: Column[Any]) -> None:
    meaning = _meaning(owner)
    known, first = meanings.setdefault("{}", (meaning, owner))
    if known != meaning:
        raise ConfigurationError(
            f"owner columns {first} and {owner} lead to different things but share the template '{{}}': owner 7 "
            f"of one and owner 7 of the other would share keys. Declare partition='{owner.table.name}-{{}}' (any "
            "text that names what owns), or give both a foreign key to the same column"
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
