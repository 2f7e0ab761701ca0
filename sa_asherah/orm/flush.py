# SPDX-License-Identifier: Apache-2.0
"""What the unit of work knows that its UPDATE does not say: whose row it is, and that a changed owner re-encrypts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

from sqlalchemy import JSON, event, inspect, or_, select
from sqlalchemy.orm import Mapper, Session, object_session
from sqlalchemy.orm.attributes import flag_modified, set_committed_value
from sqlalchemy.orm.base import PASSIVE_NO_INITIALIZE

from sa_asherah.errors import ConfigurationError, OwnerChangedError, OwnerRequiredError
from sa_asherah.orm.inserts import client_default
from sa_asherah.orm.mapping import check_mapper
from sa_asherah.orm.plan import plan_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy.engine import Connection
    from sqlalchemy.orm.state import InstanceState
    from sqlalchemy.schema import Column, Table

    from sa_asherah.orm.plan import EncryptedColumn, Group

__all__ = ["noted"]


@dataclass(frozen=True, slots=True)
class _MappedGroup:
    """A group of encrypted columns as one mapper maps it: attribute names to columns.

    `unmapped` are the columns that only other classes of the same table have.
    """

    table: Table
    owner: str | None
    row: str | None
    places: dict[str, Column[Any]]
    columns: dict[str, Column[Any]]
    row_bound: frozenset[str]
    unmapped: tuple[Column[Any], ...]

    def written(self) -> dict[str, Column[Any]]:
        """All columns whose values must be known before the row is encrypted."""
        return self.columns | self.places


@dataclass(eq=False, slots=True, weakref_slot=True)
class _Flush:
    """One flush of a session.

    Attributes:
        nulls: Instances and the names of their attributes that stand for JSON null while their owner changes.
    """

    nulls: list[tuple[Any, str]] = field(default_factory=list[tuple[Any, str]])


@dataclass(frozen=True, slots=True)
class _Notes:
    """Owners (or keys) of the rows that one flush updates on one connection, by table, column key and primary key."""

    session: ref[Session]
    flush: _Flush
    places: dict[tuple[Table, str], dict[tuple[Any, ...], Any]]

    def current(self) -> bool:
        session = self.session()
        return session is not None and _flushes.get(session) is self.flush


_flushes: WeakKeyDictionary[Session, _Flush] = WeakKeyDictionary()
_notes: WeakKeyDictionary[Connection, _Notes] = WeakKeyDictionary()
_mapped: WeakKeyDictionary[Mapper[Any], list[_MappedGroup]] = WeakKeyDictionary()


def noted(connection: Connection, table: Table, key: str) -> dict[tuple[Any, ...], Any] | None:
    """Give the values of a column that the flush running on a connection knows without them being in its UPDATE.

    Args:
        connection: The executing connection.
        table: The updated table.
        key: `Column.key` of an owner or primary key column, or of an encrypted column that is NULL in these rows.

    Returns:
        Values by primary key; `None` outside a flush.
    """
    notes = _notes.get(connection)
    return notes.places.get((table, key)) if notes is not None and notes.current() else None


@event.listens_for(Session, "before_flush")
def _start(session: Session, flush_context: Any, instances: Any) -> None:  # noqa: ARG001
    _flushes[session] = _Flush()


@event.listens_for(Session, "after_flush")
@event.listens_for(Session, "after_soft_rollback")
def _end(session: Session, *_: Any) -> None:
    flush = _flushes.pop(session, None)
    for target, name in flush.nulls if flush is not None else ():
        set_committed_value(target, name, None)


@event.listens_for(Mapper, "mapper_configured")
def _configure(mapper: Mapper[Any], class_: type[Any]) -> None:  # noqa: ARG001
    groups: list[_MappedGroup] = []
    check_mapper(mapper)
    for table in mapper.tables:
        plan = plan_of(table)
        for group in plan.groups if plan is not None else ():
            mapped = {
                mapper.get_property_by_column(each.column).key: each
                for each in group.columns.values()
                if each.column in mapper.columns.values() and mapper._columntoproperty.get(each.column) is not None
            }
            if mapped or any(place in mapper._columntoproperty for place in group.places):
                groups.append(_map(mapper, plan.table, group, mapped))  # type: ignore[union-attr]
    if groups:
        _mapped[mapper] = groups
        if any(column.default is not None for group in groups for column in group.written().values()):
            event.listen(mapper, "before_insert", _before_insert)
        event.listen(mapper, "before_update", _before_update)


def _map(mapper: Mapper[Any], table: Table, group: Group, mapped: dict[str, EncryptedColumn]) -> _MappedGroup:
    names: dict[Column[Any], str] = {}
    for place in group.places:
        if place not in mapper._columntoproperty:
            if not mapped:
                continue
            raise ConfigurationError(
                f"{mapper.class_.__name__} maps encrypted columns but not their owner or primary key column {place}: "
                "map it"
            )
        names[place] = mapper.get_property_by_column(place).key
    return _MappedGroup(
        table,
        None if group.owner is None else names.get(group.owner),
        None if group.row is None else names.get(group.row),
        {name: place for place, name in names.items()},
        {name: each.column for name, each in mapped.items()},
        frozenset(name for name, each in mapped.items() if each.row_bound),
        tuple(each.column for each in group.columns.values() if each not in mapped.values()),
    )


def _before_insert(mapper: Mapper[Any], connection: Connection, target: Any) -> None:  # noqa: ARG001
    """Evaluate Python-side defaults here, so that the attribute has the value that was encrypted for or from."""
    state: InstanceState[Any] = inspect(target)
    for group in _mapped[mapper]:
        for name, column in group.written().items():
            if column.default is not None and state.dict.get(name) is None:
                setattr(target, name, client_default(column.default, _row(mapper, group.table, state)))


def _before_update(mapper: Mapper[Any], connection: Connection, target: Any) -> None:
    session = object_session(target)
    state: InstanceState[Any] = inspect(target)
    for group in _mapped[mapper]:
        _fill_onupdate(mapper, group, session, state, target)
        moved = {name for name in group.places if _has_changes(state, name)}
        if group.owner in moved:
            _reencrypt(mapper, group, group.columns, session, connection, target)
        elif moved:
            _reencrypt(mapper, group, group.row_bound, session, connection, target)
        if moved and group.unmapped and session is not None:
            _require_blank(mapper, group, session, connection, state)
        if session is not None and any(_has_changes(state, name) for name in group.columns):
            identity = _identity(mapper, group.table, state)
            for name in group.places.keys() - moved:
                value = _place_value(mapper, group, name, connection, state)
                _note(session, connection, group.places[name], identity, value)


def _fill_onupdate(mapper: Mapper[Any], group: _MappedGroup, session: Session | None, state: Any, target: Any) -> None:
    generators = {
        name: column.onupdate
        for name, column in group.columns.items()
        if column.onupdate is not None and not _has_changes(state, name)
    }
    if generators and session is not None and session.is_modified(target, include_collections=False):
        for name, generator in generators.items():
            setattr(target, name, client_default(generator, _row(mapper, group.table, state)))
            flag_modified(target, name)


def _reencrypt(  # noqa: PLR0917 -- what a mapper event gives
    mapper: Mapper[Any],
    group: _MappedGroup,
    names: Collection[str],
    session: Session | None,
    connection: Connection,
    target: Any,
) -> None:
    """Make the UPDATE that changes the owner, or the primary key, write again every column bound to it."""
    state: Any = inspect(target)
    unchanged = [name for name in names if not _has_changes(state, name)]
    if unchanged:
        # What is in memory may be older than the row: writing it again would undo another session's change.
        columns = [group.columns[name] for name in unchanged]
        query = select(*columns, *(column.is_not(None) for column in columns))
        query = query.where(*_where(mapper, group.table, state)).with_for_update()
        loaded = connection.execute(query).one_or_none()
        if loaded is None:
            raise OwnerChangedError(
                f"the row of {group.table.name} whose owner or primary key changes is gone: somebody else deleted it"
            )
        for name, value, is_filled in zip(unchanged, loaded, loaded[len(columns) :], strict=False):
            set_committed_value(target, name, value)
            if value is None and is_filled and session is not None:
                _keep_json_null(session, target, name, group.columns[name])
    if group.owner is not None and any(state.dict[name] is not None for name in names):
        _require_owner(group, group.owner, state)
    for name in names:
        flag_modified(target, name)


def _keep_json_null(session: Session, target: Any, name: str, column: Column[Any]) -> None:
    """JSON null and NULL are both read as None: write again what it was, and show None when the flush is over."""
    inner = column.type.inner  # type: ignore[attr-defined]
    if isinstance(inner, JSON) and session in _flushes:
        set_committed_value(target, name, JSON.NULL)
        _flushes[session].nulls.append((target, name))


def _require_blank(
    mapper: Mapper[Any], group: _MappedGroup, session: Session, connection: Connection, state: Any
) -> None:
    """Note that the row has no values of other classes of its table, which the UPDATE then need not write."""
    filled = or_(*(column.is_not(None) for column in group.unmapped))
    query = select(filled).where(*_where(mapper, group.table, state)).with_for_update()
    if connection.execute(query).scalar():
        raise OwnerChangedError(
            f"the owner or primary key of a row of {group.table.name} changes, and the row holds values that "
            f"{mapper.class_.__name__} does not map ({', '.join(map(str, group.unmapped))}): change it through the "
            "class that maps them"
        )
    for column in group.unmapped:
        _note(session, connection, column, _identity(mapper, group.table, state), None)


def _require_owner(group: _MappedGroup, owner: str, state: Any) -> None:
    if owner in state.dict and state.dict[owner] is None:
        raise OwnerRequiredError(
            f"{group.places[owner]} becomes NULL while {', '.join(group.columns)} hold encrypted values, which "
            "nobody could read then: give the row another owner, set the columns to None, or delete the row with its "
            "owner"
        )


def _place_value(mapper: Mapper[Any], group: _MappedGroup, name: str, connection: Connection, state: Any) -> Any:
    if name in state.dict:
        return state.dict[name]
    return connection.execute(select(group.places[name]).where(*_where(mapper, group.table, state))).scalar()


def _note(session: Session, connection: Connection, place: Column[Any], identity: tuple[Any, ...], value: Any) -> None:
    flush = _flushes.get(session)
    if flush is None:
        return
    notes = _notes.get(connection)
    if notes is None or notes.flush is not flush:
        notes = _notes[connection] = _Notes(ref(session), flush, {})
    notes.places.setdefault((place.table, place.key), {})[identity] = value


def _has_changes(state: Any, name: str) -> bool:
    if name not in state.committed_state:
        return False
    return bool(state.manager[name].impl.get_history(state, state.dict, PASSIVE_NO_INITIALIZE).has_changes())


def _identity(mapper: Mapper[Any], table: Table, state: Any) -> tuple[Any, ...]:
    """Give the primary key under which the row is stored now."""
    known = dict(
        zip((mapper.get_property_by_column(key).key for key in mapper.primary_key), state.identity, strict=True)
    )
    names = [mapper.get_property_by_column(key).key for key in table.primary_key]
    return tuple(known[name] if name in known else state.dict.get(name) for name in names)


def _where(mapper: Mapper[Any], table: Table, state: Any) -> list[Any]:
    return [key == value for key, value in zip(table.primary_key, _identity(mapper, table, state), strict=True)]


def _row(mapper: Mapper[Any], table: Table, state: Any) -> dict[str, Any]:
    return {
        str(column.key): state.dict.get(prop.key)
        for column, prop in mapper._columntoproperty.items()
        if column.table is table
    }
