# SPDX-License-Identifier: Apache-2.0
"""What the unit of work knows that its UPDATE does not say: whose row it is, and that a changed owner re-encrypts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

from sqlalchemy import event, inspect, select
from sqlalchemy.orm import Mapper, Session, object_session
from sqlalchemy.orm.attributes import flag_modified, set_committed_value
from sqlalchemy.orm.base import PASSIVE_NO_INITIALIZE

from sa_asherah.errors import ConfigurationError, OwnerChangedError, OwnerRequiredError
from sa_asherah.orm.inserts import client_default
from sa_asherah.orm.plan import plan_of

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection
    from sqlalchemy.orm.state import InstanceState
    from sqlalchemy.schema import Column, Table

__all__ = ["noted"]


@dataclass(frozen=True, slots=True)
class _MappedGroup:
    """A group of encrypted columns as one mapper maps it: attribute names to columns."""

    table: Table
    owner: Column[Any] | None
    owner_name: str | None
    columns: dict[str, Column[Any]]

    def written(self) -> dict[str, Column[Any]]:
        """All columns whose values must be known before the row is encrypted."""
        owner = {} if self.owner is None or self.owner_name is None else {self.owner_name: self.owner}
        return self.columns | owner


@dataclass(frozen=True, slots=True)
class _Notes:
    """Owners of the rows that one flush will update on one connection, by table, owner key and primary key."""

    session: ref[Session]
    flush: object
    owners: dict[tuple[Table, str], dict[tuple[Any, ...], Any]]

    def current(self) -> bool:
        session = self.session()
        return session is not None and _flushes.get(session) is self.flush


_flushes: WeakKeyDictionary[Session, object] = WeakKeyDictionary()
_notes: WeakKeyDictionary[Connection, _Notes] = WeakKeyDictionary()
_mapped: WeakKeyDictionary[Mapper[Any], list[_MappedGroup]] = WeakKeyDictionary()


def noted(connection: Connection, table: Table, owner_key: str) -> dict[tuple[Any, ...], Any] | None:
    """Give the owners that the flush running on a connection knows.

    Args:
        connection: The executing connection.
        table: The updated table.
        owner_key: `Column.key` of the owner column.

    Returns:
        Owner values by primary key; `None` outside a flush.
    """
    notes = _notes.get(connection)
    return notes.owners.get((table, owner_key)) if notes is not None and notes.current() else None


@event.listens_for(Session, "before_flush")
def _start(session: Session, flush_context: Any, instances: Any) -> None:  # noqa: ARG001
    _flushes[session] = object()


@event.listens_for(Session, "after_flush")
@event.listens_for(Session, "after_soft_rollback")
def _end(session: Session, *_: Any) -> None:
    _flushes.pop(session, None)


@event.listens_for(Mapper, "mapper_configured")
def _configure(mapper: Mapper[Any], class_: type[Any]) -> None:  # noqa: ARG001
    groups: list[_MappedGroup] = []
    for table in mapper.tables:
        plan = plan_of(table)
        for group in plan.groups if plan is not None else ():
            columns = {
                mapper.get_property_by_column(each.column).key: each.column
                for each in group.columns.values()
                if each.column in mapper.columns.values() and mapper._columntoproperty.get(each.column) is not None
            }
            if columns:
                groups.append(_MappedGroup(plan.table, group.owner, _owner_name(mapper, group.owner), columns))  # type: ignore[union-attr]
    if groups:
        _mapped[mapper] = groups
        if any(column.default is not None for group in groups for column in group.written().values()):
            event.listen(mapper, "before_insert", _before_insert)
        event.listen(mapper, "before_update", _before_update)


def _owner_name(mapper: Mapper[Any], owner: Column[Any] | None) -> str | None:
    if owner is None:
        return None
    if owner not in mapper._columntoproperty:
        raise ConfigurationError(
            f"{mapper.class_.__name__} maps encrypted columns but not their owner column {owner}: map it"
        )
    return mapper.get_property_by_column(owner).key


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
        if group.owner is None or group.owner_name is None:
            continue
        if _has_changes(state, group.owner_name):
            _reencrypt(mapper, group, connection, state, target)
        elif any(_has_changes(state, name) for name in group.columns) and session is not None:
            _note(
                session,
                connection,
                group,
                _identity(mapper, group.table, state),
                _owner_value(mapper, group, connection, state),
            )


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


def _reencrypt(mapper: Mapper[Any], group: _MappedGroup, connection: Connection, state: Any, target: Any) -> None:
    """Make the UPDATE that changes the owner write every encrypted column of that owner again."""
    unchanged = [name for name in group.columns if not _has_changes(state, name)]
    if unchanged:
        # What is in memory may be older than the row: writing it again would undo another session's change.
        query = select(*(group.columns[name] for name in unchanged)).where(*_where(mapper, group.table, state))
        loaded = connection.execute(query.with_for_update()).one_or_none()
        if loaded is None:
            raise OwnerChangedError(f"the row whose owner {group.owner} changes is gone: somebody else deleted it")
        for name, value in zip(unchanged, loaded, strict=True):
            set_committed_value(target, name, value)
    if state.dict.get(group.owner_name) is None and any(state.dict[name] is not None for name in group.columns):
        raise OwnerRequiredError(
            f"{group.owner} becomes NULL while {', '.join(group.columns)} hold encrypted values, which nobody could "
            "read then: give the row another owner, set the columns to None, or delete the row with its owner"
        )
    for name in group.columns:
        flag_modified(target, name)


def _owner_value(mapper: Mapper[Any], group: _MappedGroup, connection: Connection, state: Any) -> Any:
    if group.owner is None or group.owner_name in state.dict:
        return state.dict.get(group.owner_name)
    return connection.execute(select(group.owner).where(*_where(mapper, group.table, state))).scalar()


def _note(session: Session, connection: Connection, group: _MappedGroup, identity: tuple[Any, ...], owner: Any) -> None:
    flush = _flushes.get(session)
    if flush is None or group.owner is None:
        return
    notes = _notes.get(connection)
    if notes is None or notes.flush is not flush:
        notes = _notes[connection] = _Notes(ref(session), flush, {})
    notes.owners.setdefault((group.table, group.owner.key), {})[identity] = owner


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
