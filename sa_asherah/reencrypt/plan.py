# SPDX-License-Identifier: Apache-2.0
"""What becomes what: a column was read by one type, and will be read by another. Checked once, before anything runs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

from sqlalchemy.schema import Column, MetaData, Table
from sqlalchemy.types import LargeBinary, TypeEngine

from sa_asherah.errors import ConfigurationError
from sa_asherah.orm.codec import codec_for
from sa_asherah.orm.lineage import label_of
from sa_asherah.orm.plan import check_together, owner_of, plan_of, row_of
from sa_asherah.orm.types import Encrypted
from sa_asherah.orm.windows import NOT_ROW_BOUND, PLAINTEXT, RECORD, UNPADDED, holds_text, innermost
from sa_asherah.reencrypt.foreign.written import Foreign

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Change", "Plan", "storage_of"]


@dataclass(frozen=True)
class Change:
    """One column, and by which types it is read before and after.

    A source is whatever type read the column: `String()`, `Encrypted(...)` as it was declared (with the old label,
    owner column, partition or format), or a type of `sa_asherah.reencrypt.foreign`. Another owner column is named by
    the old declaration; that column must still be there, and tells the old owner of each row.

    Attributes:
        column: `key` of the column that holds the values.
        target: The type that will read them: `Encrypted(...)`, or a plain type to decrypt.
        source: The type that read them, or several that are tried in order.
        into: `key` of another column of the table that takes the new values; left out, they take the place of the old.
        moved: With `into`, whether code or a trigger may leave a value in the new column only. Else a row that has NULL
            in the old column and a value in the new one is left: old code emptied it, and it must not come back.
    """

    column: str
    target: TypeEngine[Any]
    source: TypeEngine[Any] | Sequence[TypeEngine[Any]]
    into: str | None = None
    moved: bool = False

    def __post_init__(self) -> None:
        """Take classes of types for types, as SQLAlchemy does."""
        object.__setattr__(self, "target", _instance(self.target))
        given = (self.source,) if isinstance(self.source, type | TypeEngine) else self.source
        object.__setattr__(self, "source", tuple(map(_instance, given)))

    @property
    def sources(self) -> tuple[TypeEngine[Any], ...]:
        """The types that read the column before, in order."""
        return self.source  # type: ignore[return-value] # since __post_init__

    @property
    def goal(self) -> str:
        """`key` of the column that holds the values afterwards."""
        return self.into or self.column


class Plan:
    """What becomes of the columns of one table. Immutable.

    Attributes:
        table: The table. What its columns declare may be older or newer than the plan; `Encrypted` there must be one of
            the plan's types.
        changes: The changes, one for each column.
        name: What the job is called; processes that use the same name share its work.
        newest_key: Whether a value that opens is sealed again if its key is not the owner's newest.
    """

    def __init__(
        self, table: Table, changes: Sequence[Change], *, name: str | None = None, newest_key: bool = False
    ) -> None:
        """Check everything that can be known without the database.

        Args:
            table: The table.
            changes: The changes, at least one.
            name: Name of the job; by default made of table and columns.
            newest_key: Whether what is encrypted already comes under its owner's newest key.

        Raises:
            ConfigurationError: The plan cannot work, or would lose values.
        """
        self.table = table
        self.changes = tuple(changes)
        self.newest_key = newest_key
        if not self.changes:
            raise ConfigurationError(f"a plan for table {table.name!r} names no column: nothing would be encrypted")
        if not list(table.primary_key):
            raise ConfigurationError(f"table {table.name!r} has no primary key: rows cannot be told apart; add one")
        self._check_names()
        for change in self.changes:
            _check_types(change)
            _check_storage(change)
            self._check_declarations(change)
        self._check_labels()
        self.name = name or f"{table.fullname}: {', '.join(change.goal for change in self.changes)}"

    def __repr__(self) -> str:
        return f"<Plan {self.name!r}>"

    @overload
    @classmethod
    def of(cls, declared: Table, *, name: str | None = None) -> Plan: ...

    @overload
    @classmethod
    def of(cls, declared: MetaData, *, name: str | None = None) -> tuple[Plan, ...]: ...

    @classmethod
    def of(cls, declared: Table | MetaData, *, name: str | None = None) -> Plan | tuple[Plan, ...]:
        """Plan to bring everything that is declared `Encrypted` to its declared form and its owner's newest key.

        What `reads=` names is read, too, whatever its date.

        Args:
            declared: A table; or all tables of a `MetaData`, those first on which others depend.
            name: Name of the job; with a `MetaData` the names of the tables are added.

        Returns:
            The plan of a table, or one for each table that has encrypted columns.

        Raises:
            ConfigurationError: Nothing is encrypted there, or a declaration cannot work.
        """
        if isinstance(declared, Table):
            return cls(declared, _declared(declared), name=name, newest_key=True)
        tables = [table for table in declared.sorted_tables if plan_of(table) is not None]
        if not tables:
            raise ConfigurationError("no table of this MetaData has an encrypted column: import the models first")
        return tuple(cls.of(table, name=f"{name} {table.fullname}" if name else None) for table in tables)

    @property
    def places(self) -> tuple[Column[Any], ...]:
        """The owner and primary key columns that any type of the plan binds its values to."""
        found: dict[str, Column[Any]] = {}
        for change in self.changes:
            for key, type_ in ((change.goal, change.target), *((change.column, each) for each in change.sources)):
                if isinstance(type_, Encrypted):
                    column = self.table.c[key]
                    places = (owner_of(column, type_), row_of(column, type_))
                    found |= {place.key: place for place in places if place is not None}
        return tuple(found.values())

    @property
    def fingerprint(self) -> str:
        """What the plan says, hashed: another one of the same name is another plan. No key is part of it."""
        said = [self.table.fullname, self.newest_key]
        said += [
            (change.column, change.into, change.moved, repr(change.target), repr(change.sources))
            for change in self.changes
        ]
        return hashlib.sha256(repr(said).encode()).hexdigest()

    def _check_names(self) -> None:
        seen: set[str] = set()
        for change in self.changes:
            for key in {change.column, change.goal}:
                if key not in self.table.c:
                    names = ", ".join(self.table.c.keys())
                    raise ConfigurationError(f"table {self.table.name!r} has no column {key!r}, but {names}")
                if self.table.c[key].primary_key:
                    raise ConfigurationError(f"{self.table.c[key]} is part of the primary key and cannot be encrypted")
            if change.into == change.column:
                raise ConfigurationError(f"column {change.column!r}: into= names another column, or is left out")
            if change.goal in seen or change.column in seen:
                raise ConfigurationError(
                    f"column {change.goal!r} comes twice in a plan of table {self.table.name!r}: one value would "
                    "overwrite the other"
                )
            seen |= {change.column, change.goal}

    def _check_declarations(self, change: Change) -> None:
        """Compare with what the table declares, and find owners and primary keys."""
        expected = [(change.goal, change.target), *((change.column, source) for source in change.sources)]
        changed = {key for each in self.changes for key in (each.column, each.goal)}
        for key, type_ in expected:
            if not isinstance(type_, Encrypted):
                continue
            places = (owner_of(self.table.c[key], type_), row_of(self.table.c[key], type_))
            for place in places:
                if place is not None and place.key in changed:
                    raise ConfigurationError(
                        f"{place} names whose values the others are, so it cannot be changed in the same plan"
                    )
        for key in {change.column, change.goal}:
            column = self.table.c[key]
            types = [type_ for name, type_ in expected if name == key and isinstance(type_, Encrypted)]
            places_of = {_place(column, type_) for type_ in types}
            if isinstance(column.type, Encrypted) and _place(column, column.type) not in places_of:
                raise ConfigurationError(
                    f"{column} is declared as {column.type!r}, which is neither a source nor the target of its change: "
                    "what is written now could not be read by it. Name the declared type with the same owner=, "
                    "partition=, label= and form"
                )

    def _check_labels(self) -> None:
        changed = {key for change in self.changes for key in (change.column, change.goal)}
        declared = [
            (column, column.type)
            for table in self.table.metadata.tables.values()
            for column in table.columns
            if isinstance(column.type, Encrypted) and not (table.key == self.table.key and column.key in changed)
        ]
        targets = [(self.table.c[change.goal], change.target) for change in self.changes]
        check_together(declared + [(column, type_) for column, type_ in targets if isinstance(type_, Encrypted)])


def storage_of(type_: TypeEngine[Any]) -> str:
    """Tell how a type stores its values.

    Args:
        type_: A plain, encrypted or foreign type.

    Returns:
        `text`, `binary`, `json`, or `other` for numbers, dates and the like.
    """
    if isinstance(type_, Encrypted | Foreign):
        return type_.storage
    if holds_text(type_):
        return "text"
    return "binary" if _holds_bytes(type_) else "other"


def _holds_bytes(type_: Any) -> bool:
    inner = innermost(type_)
    return isinstance(inner, LargeBinary) or getattr(inner, "__visit_name__", "") in {"BINARY", "VARBINARY"}


def _instance(type_: Any) -> TypeEngine[Any]:
    found: Any = type_() if isinstance(type_, type) else type_
    is_type: bool = isinstance(found, TypeEngine)
    if not is_type:
        raise ConfigurationError(
            "a source and a target are SQLAlchemy types, e.g. String() or Encrypted(String(), ...)"
        )
    return found  # type: ignore[no-any-return] # checked above


def _is_plain(type_: TypeEngine[Any]) -> bool:
    return not isinstance(type_, Encrypted | Foreign)


def _place(column: Column[Any], type_: Encrypted) -> tuple[object, ...]:
    """What decides whether a value of one declaration is read by another."""
    return label_of(column, type_), type_.owner, type_.partition, type_.bind_row, *type_.form


def _check_types(change: Change) -> None:
    name, sources = change.column, change.sources
    if not sources:
        raise ConfigurationError(f"column {name!r}: give source=, the type that read its values so far")
    if isinstance(change.target, Foreign):
        raise ConfigurationError(f"column {name!r}: {type(change.target).__name__} is read only and cannot be a target")
    plain = [_is_plain(source) for source in sources]
    if any(plain[:-1]):
        raise ConfigurationError(
            f"column {name!r}: a plain source comes last, and there is one at most: it takes every value for its own"
        )
    if _is_plain(change.target) and any(not isinstance(source, Encrypted) for source in sources):
        raise ConfigurationError(
            f"column {name!r}: only Encrypted columns are decrypted into a plain type; what another library wrote is "
            "first encrypted, and plaintext stays as it is"
        )
    for type_ in (change.target, *sources):
        if _is_plain(type_):
            codec_for(type_)  # refuses a type whose values no Encrypted holds


def _check_storage(change: Change) -> None:
    """In place, old and new values stand in one column, and must be told apart."""
    if change.into is not None:
        return
    name, target = change.column, storage_of(change.target)
    plain = [type_ for type_ in (change.target, *change.sources) if _is_plain(type_)]
    if any(storage_of(type_) == "binary" for type_ in plain):
        raise ConfigurationError(
            f"column {name!r}: nothing tells bytes that were encrypted from bytes that look so, so a column of "
            "LargeBinary is not changed in place: add a column and give into=, the column that takes the new values"
        )
    for source in change.sources:
        if storage_of(source) != target and not _is_window(change.target, source):
            raise ConfigurationError(
                f"column {name!r} holds {_STORED[storage_of(source)]} and the target stores {_STORED[target]}: one "
                "column cannot hold both, and a database rewrites the whole table to change its type. Add a column and "
                "give into=; or, for text, use Encrypted(..., storage='text') and widen the column to TEXT first"
            )


def _is_window(target: TypeEngine[Any], source: TypeEngine[Any]) -> bool:
    """Tell whether the target declares that it reads the source's text: in a column of bytes it is UTF-8."""
    return isinstance(target, Encrypted) and PLAINTEXT in target.windows and source is target.inner


_STORED = {"text": "text", "binary": "bytes", "json": "JSON", "other": "neither text nor bytes"}


def _declared(table: Table) -> list[Change]:
    if plan_of(table) is None:
        return []
    columns = [column for column in table.columns if isinstance(column.type, Encrypted)]
    return [Change(column.key, column.type, _readable(column.type)) for column in columns]  # type: ignore[arg-type] # chosen above


def _readable(type_: Encrypted) -> list[TypeEngine[Any]]:
    """List the types that read what a declared type reads, the one that it writes first."""
    windows = type_.windows
    found = [type_]
    if UNPADDED in windows:
        found.append(type_.variant(pad=0))
    if NOT_ROW_BOUND in windows:
        found += [each.variant(bind_row=None) for each in list(found)]
    if RECORD in windows and type_.storage == "text":
        found.append(type_.variant(format="asherah", bind_row=None, pad=0))
    return [*found, *([type_.inner] if PLAINTEXT in windows else [])]
