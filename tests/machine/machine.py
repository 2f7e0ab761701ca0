# SPDX-License-Identifier: Apache-2.0
"""The state machine: everything that an application does, done to an encrypted row and to its plain twin."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import wraps
from typing import Any, Final

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from sqlalchemy import delete, insert, inspect, literal, select
from sqlalchemy.orm import Session

from sa_asherah import OwnerRequiredError
from tests.machine import statements
from tests.machine.desk import ROWS, Desk
from tests.machine.model import (
    GROUPS,
    MARK,
    NAMES,
    SECRETS,
    Changes,
    Cipher,
    Plain,
    World,
    columns,
    compare,
    lawless,
    refusal,
)
from tests.machine.statements import CRITERIA, loaded

_KEEP: Final = "keep"
_IDLE: Final = object()
"""What a rule returns that found nothing to do."""
_NUMBER = st.integers(1, ROWS)
_KIND = st.sampled_from([_KEEP, "new", "none", "empty"])
_CHANGES = st.fixed_dictionaries(
    {"tenant": st.sampled_from([_KEEP, 1, 2, 3]), "region": st.sampled_from([_KEEP, "north", "south"])}
    | dict.fromkeys(SECRETS, _KIND)
)
_GROUP = st.sampled_from(sorted(GROUPS))
_NAMES = st.lists(st.sampled_from(NAMES[2:]), max_size=3, unique=True)
_BY = st.sampled_from(list(CRITERIA))


def step(**draws: st.SearchStrategy[Any]) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """Make a rule that counts how often it had something to do."""

    def decorate(work: Callable[..., Any]) -> Callable[..., None]:
        @wraps(work)
        def run(self: TwinMachine, **drawn: Any) -> None:
            if "number" in drawn:
                drawn["number"] = self.desk.existing(drawn["number"])
            self.idle = work(self, **drawn) is _IDLE
            if not self.idle:
                self.world.steps[work.__name__] += 1

        decorated: Callable[..., None] = rule(**draws)(run)  # type: ignore[call-overload]
        return decorated

    return decorate


class TwinMachine(RuleBasedStateMachine):
    """Two sessions on rows of their own; after every step both twins must look alike."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        world.renew()
        self._desks = [Desk(world, 0), Desk(world, 1)]
        self._active = 0
        self._made = 0
        self.idle = False

    @property
    def desk(self) -> Desk:
        """The session that is at work."""
        return self._desks[self._active]

    @property
    def session(self) -> Session:
        """The session that is at work."""
        return self.desk.session

    def teardown(self) -> None:
        """Commit what can be committed, and read it all once more."""
        try:
            for desk in (self.desk, *self._desks):
                if desk.session.is_active and desk.flush():
                    desk.session.commit()
                desk.session.close()
            self.world.read_cold()
        finally:
            for desk in self._desks:
                desk.session.close()

    @invariant()
    def _no_difference(self) -> None:
        if self.idle:
            return
        self.desk.compare()
        if not self.session.in_transaction():
            self.world.read_cold()

    def _values(self, drawn: Changes) -> Changes:
        """Make values out of what was drawn; each is unlike all others."""
        return {name: self._value(name, kind) for name, kind in drawn.items() if kind != _KEEP}

    def _value(self, name: str, kind: Any) -> Any:
        if name in GROUPS:
            return kind
        self._made += 1
        empty, new = (0, self._made) if name == "d" else ("", f"{MARK} {name} {self._made} ä")
        return {"none": None, "empty": empty, "new": new}[kind]

    def _row(self, number: int, drawn: Changes) -> Changes:
        """Make a whole row, with owners."""
        made = {"tenant": 1, "region": "north"} | dict.fromkeys(SECRETS) | self._values(drawn)
        return {"id": self.desk.id(number), "side": self.desk.side} | made

    # Objects

    @step(changes=_CHANGES)
    def add(self, changes: Changes) -> object:
        free = self.desk.free()
        if not free:
            return _IDLE
        row = self._row(free[0], changes)
        found, twin = Cipher(**row), Plain(**row)
        self.session.add_all([found, twin])
        self.desk.pairs[free[0]] = found, twin
        return None

    @step(number=_NUMBER, changes=_CHANGES)
    def change(self, number: int, changes: Changes) -> object:
        pair = self.desk.pair(number)
        for name, value in self._values(changes).items():
            for instance in pair or ():
                setattr(instance, name, value)
        return pair or _IDLE

    @step(number=_NUMBER, tenant=st.integers(1, 3))
    def move(self, number: int, tenant: int) -> object:
        return self.change_one(number, {"tenant": tenant})

    @step(number=_NUMBER, group=_GROUP, clear=st.sampled_from([True, True, True, False]))
    def disown(self, number: int, group: str, *, clear: bool) -> object:
        return self.change_one(number, {group: None} | (dict.fromkeys(GROUPS[group]) if clear else {}))

    def change_one(self, number: int, values: Changes) -> object:
        """Set attributes of an object and of its twin."""
        pair = self.desk.pair(number)
        for instance in pair or ():
            for name, value in values.items():
                setattr(instance, name, value)
        return pair or _IDLE

    @step(number=_NUMBER)
    def delete(self, number: int) -> object:
        pair = self.desk.pair(number)
        if pair is None or pair[1] in self.session.new:
            return _IDLE
        for instance in pair:
            self.session.delete(instance)
        return None

    @step(number=_NUMBER, changes=_CHANGES)
    def replace(self, number: int, changes: Changes) -> object:
        """Delete an object and add another one with its key: SQLAlchemy makes one UPDATE of it."""
        if self.delete_now(number) is _IDLE:
            return _IDLE
        row = self._row(number, changes)
        pair = Cipher(**row), Plain(**row)
        self.session.add_all(pair)
        self.desk.pairs[number] = pair
        return None

    def delete_now(self, number: int) -> object:
        """Delete an object that has no other change."""
        if not self.desk.flush() or (pair := self.desk.pair(number)) is None:
            return _IDLE
        for instance in pair:
            self.session.delete(instance)
        return None

    @step(number=_NUMBER, names=_NAMES)
    def expire(self, number: int, names: list[str]) -> object:
        return self._with_stored(number, lambda instance: self.session.expire(instance, names or None))

    @step(number=_NUMBER, names=_NAMES)
    def refresh(self, number: int, names: list[str]) -> object:
        if not self.desk.flush():
            return None
        return self._with_stored(number, lambda instance: self.session.refresh(instance, names or None))

    @step(number=_NUMBER)
    def touch(self, number: int) -> object:
        """Read every attribute, which loads what is not loaded."""
        pair = self.desk.pair(number)
        if pair is not None:
            assert loaded(pair[0]) == loaded(pair[1])
        return pair or _IDLE

    @step(number=_NUMBER)
    def detach(self, number: int) -> object:
        # Moving a row loads its encrypted columns: a detached object has what it loaded.
        found = self._with_stored(number, loaded) if self.desk.flush() else _IDLE
        if found is not _IDLE:
            self.desk.aside[number] = pair = self.desk.pairs.pop(number)
            for instance in pair:
                self.session.expunge(instance)
        return found

    @step(changes=_CHANGES)
    def merge_detached(self, changes: Changes) -> object:
        if not self.desk.aside or not self.desk.flush():
            return _IDLE
        number, pair = self.desk.aside.popitem()
        for name, value in self._values(changes).items():
            for instance in pair:
                setattr(instance, name, value)
        self.desk.pairs[number] = self.session.merge(pair[0]), self.session.merge(pair[1])
        return None

    @step(any_number=_NUMBER, changes=_CHANGES)
    def merge(self, any_number: int, changes: Changes) -> object:
        if not self.desk.flush():
            return None
        values = self._values(changes) if self.desk.pair(any_number) else self._row(any_number, changes)
        values |= {"id": self.desk.id(any_number), "side": self.desk.side}
        self.desk.pairs[any_number] = self.session.merge(Cipher(**values)), self.session.merge(Plain(**values))
        return None

    @step(number=_NUMBER)
    def merge_unloaded(self, number: int) -> object:
        found = self._with_stored(number, loaded) if self.desk.flush() else _IDLE
        if found is not _IDLE:
            for instance in self.desk.pairs[number]:
                self.session.expunge(instance)
            found, twin = (self.session.merge(instance, load=False) for instance in self.desk.pairs[number])
            self.desk.pairs[number] = found, twin  # type: ignore[assignment]
        return found

    # Statements

    @step(how=st.sampled_from([*statements.INSERTS, "returning"]), rows=st.lists(_CHANGES, min_size=1, max_size=3))
    def insert(self, how: str, rows: list[Changes]) -> object:
        if not self.desk.flush():
            return None
        made = [self._row(number, row) for number, row in zip(self.desk.free(), rows, strict=False)]
        if how == "upsert":
            made = [self._row(number + 1, row) for number, row in enumerate(rows)]
        if not made:
            return _IDLE
        if how == "returning":
            compare(lambda model: statements.insert_returning(self.session, model, made))
        else:
            for model in (Cipher, Plain):
                statements.INSERTS[how](self.session, model, made)
        self.session.expire_all()
        return None

    @step(number=_NUMBER)
    def copy(self, number: int) -> object:
        """Let the database copy a row, whose owners stay the same."""
        if not self.desk.flush() or not (free := self.desk.free()):
            return _IDLE
        source = self.desk.id(number)
        target = literal(self.desk.id(free[0]))
        for model in (Cipher, Plain):
            row = select(target, *columns(model)[1:]).where(model.id == source)
            self.session.execute(insert(model).from_select(NAMES, row))
        return None

    @step(how=st.sampled_from(statements.UPDATES), by=_BY, number=_NUMBER, changes=_CHANGES)
    def update(self, how: str, by: str, number: int, changes: Changes) -> object:
        values = self._values(changes) or {"a": None}
        if not self.desk.flush():
            return None
        side = self.desk.side

        def criteria(source: Any) -> Any:
            return CRITERIA[by](source, side, number)

        refused = refusal(values, self.desk.stored(criteria(Plain)))
        if refused is not None:
            with pytest.raises(refused):
                statements.update_by(self.session, Cipher, how, criteria, values)
        else:
            compare(lambda model: statements.update_by(self.session, model, how, criteria, values))
        if how not in {"evaluate", "fetch"}:
            self.session.expire_all()
        return None

    @step(
        how=st.sampled_from(statements.BY_KEY),
        groups=st.sets(_GROUP, min_size=1),
        owners=st.booleans(),
        rows=st.lists(_CHANGES, min_size=1, max_size=3),
    )
    def update_by_key(self, how: str, groups: set[str], rows: list[Changes], *, owners: bool) -> object:
        """Update many rows by their keys, with or without their owners."""
        if not self.desk.flush():
            return None
        stored = self.desk.stored(Plain.side == self.desk.side)
        names = [name for group in sorted(groups) for name in (*GROUPS[group], *([group] if owners else []))]
        made = [
            {"id": before["id"]} | {name: self._row(0, row)[name] for name in names}
            for before, row in zip(stored, rows, strict=False)
        ]
        if not made:
            return _IDLE
        after = [before | values for before, values in zip(stored, made, strict=False)]
        if any(map(lawless, after)):
            gc.collect()
            with pytest.raises(OwnerRequiredError):
                statements.update_by_key(self.session, Cipher, how, made)
            if how == "mappings":
                self.desk.undo()  # the session does so itself, as after a flush that fails
        else:
            compare(lambda model: statements.update_by_key(self.session, model, how, made))
        if how == "mappings":
            self.session.expire_all()
        return None

    @step(how=st.sampled_from(["evaluate", "fetch"]), by=_BY, number=_NUMBER)
    def delete_by(self, how: str, by: str, number: int) -> object:
        if not self.desk.flush():
            return None
        options = {"synchronize_session": how}
        for model in (Cipher, Plain):
            criteria = CRITERIA[by](model, self.desk.side, number)
            self.session.execute(delete(model).where(criteria), execution_options=options)
        # An expired object is not looked at: it stays, as one that an owner's change has loaded again does not.
        self.desk.unsure = True
        self.desk.forget_gone_rows()
        return None

    @step(how=st.sampled_from(statements.READS))
    def read(self, how: str) -> None:
        if self.desk.flush():
            compare(lambda model: statements.read(self.session, model, how))

    # Transactions, sessions and processes

    @step()
    def flush(self) -> object:
        if not (self.session.new or self.session.dirty or self.session.deleted):
            return _IDLE
        self.desk.flush()
        return None

    @step()
    def commit(self) -> object:
        if not self.session.in_transaction():
            return _IDLE
        if self.desk.flush():
            self.session.commit()
            self.desk.savepoints.clear()
        return None

    @step()
    def rollback(self) -> object:
        if not self.session.in_transaction():
            return _IDLE
        self.desk.rollback()
        return None

    @step()
    def savepoint(self) -> object:
        if not self.desk.flush():
            return None
        if not self.world.begins and not self.session.connection().connection.in_transaction:
            return _IDLE  # the driver would commit when the savepoint is released
        self.desk.savepoints.append(self.session.begin_nested())
        return None

    @step(keep=st.booleans())
    def leave_savepoint(self, *, keep: bool) -> object:
        if not self.desk.savepoints:
            return _IDLE
        if not keep:
            self.desk.undo()
        elif self.desk.flush():
            self.desk.savepoints.pop().commit()
        return None

    @step(expire_on_commit=st.booleans())
    def reopen(self, *, expire_on_commit: bool) -> None:
        self.session.close()
        self.desk.open(expire_on_commit=expire_on_commit)

    @step()
    def switch(self) -> object:
        if self.world.one_writer and self.session.in_transaction():
            return _IDLE
        self._active = 1 - self._active
        return None

    @step(days=st.sampled_from([0, 1, 100]), cold=st.booleans())
    def go_on(self, days: int, *, cold: bool) -> None:
        """Let time pass, so that keys expire, or start the process anew, which knows no key then."""
        self.world.pass_time(days)
        if cold:
            self.world.forget(self.world.engine)

    def _with_stored(self, number: int, work: Callable[[Any], Any]) -> object:
        """Do something with an object that has a row, and with its twin."""
        pair = self.desk.pair(number)
        if pair is None or not inspect(pair[1]).persistent:
            return _IDLE
        assert work(pair[0]) == work(pair[1])
        return None
