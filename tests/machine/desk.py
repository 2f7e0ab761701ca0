# SPDX-License-Identifier: Apache-2.0
"""A session with its savepoints, and the objects in it, each beside its twin."""

from __future__ import annotations

import gc
from typing import Any

import pytest
from sqlalchemy import inspect, select
from sqlalchemy.orm import Session

from sa_asherah import OwnerRequiredError
from tests.machine.model import NAMES, Changes, Cipher, Pair, Plain, World, assert_sealed, compare, everything, lawless
from tests.machine.statements import row_id

ROWS = 4
"""How many rows each session works on."""


class Desk:
    """One session on rows of its own.

    Attributes:
        pairs: The objects that somebody works with, by the number of the row.
        aside: Detached ones.
        unsure: Whether objects may be expired whose rows are gone.
    """

    def __init__(self, world: World, side: int) -> None:
        self.world, self.side = world, side
        self.aside: dict[int, Pair] = {}
        self.open(expire_on_commit=True)

    def open(self, *, expire_on_commit: bool) -> None:
        """Begin a new session."""
        self.session = Session(self.world.engine, autoflush=False, expire_on_commit=expire_on_commit)
        self.savepoints: list[Any] = []
        self.pairs: dict[int, Pair] = {}
        self.unsure = False

    def pair(self, number: int) -> Pair | None:
        """Find an object and its twin, pending ones too."""
        self.forget_gone_rows()
        if number not in self.pairs:
            found, twin = self.session.get(Cipher, self.id(number)), self.session.get(Plain, self.id(number))
            assert (found is None) == (twin is None)
            if found is None or twin is None:
                return None
            self.pairs[number] = (found, twin)
        return self.pairs[number]

    def id(self, number: int) -> int:
        """Give the primary key of a row of this session."""
        return row_id(self.side, number)

    def free(self) -> list[int]:
        """List the numbers that no row and no new object has."""
        return [number for number in range(1, ROWS + 1) if number not in self._taken()]

    def existing(self, number: int) -> int:
        """Choose one of the numbers that a row or a new object has; if there is none, that of no row."""
        taken = self._taken()
        return taken[number % len(taken)] if taken else number

    def stored(self, *criteria: Any) -> list[Changes]:
        """Read rows as they must be."""
        return [dict(row) for row in self.session.execute(everything(Plain).where(*criteria)).mappings()]

    def flush(self) -> bool:
        """Flush; where a value belongs to nobody it must be refused, and everything is undone."""
        self.forget_gone_rows()
        refused = any(
            lawless(self._after_flush(number, twin))
            for number, (_, twin) in self.pairs.items()
            if twin in self.session.new or (twin in self.session.dirty and twin not in self.session.deleted)
        )
        if not refused:
            self.session.flush()
            self._forget_gone_objects()
            return True
        gc.collect()
        with pytest.raises(OwnerRequiredError):
            self.session.flush()
        self.undo()
        return False

    def undo(self) -> None:
        """Roll back to the innermost savepoint."""
        # Deleted objects come back, in place of others with their keys, if they are still in memory by chance.
        gc.collect()
        (self.savepoints.pop() if self.savepoints else self.session).rollback()
        # A savepoint's end leaves in memory what was read after statements that it undid, and an owner that changes
        # makes the encrypted twin read it again: no difference between the two is told from that.
        self.session.expire_all()
        self.unsure = True

    def rollback(self) -> None:
        """Roll back everything."""
        self.savepoints.clear()
        self.undo()

    def compare(self) -> None:
        """Compare what is in memory and, within a transaction, what the session reads."""
        self._forget_gone_objects()
        for found, twin in self.pairs.values():
            assert _state(found) == _state(twin)
            ours, theirs = vars(found), vars(twin)
            for name in NAMES:
                if name in ours and name in theirs:
                    assert ours[name] == theirs[name], f"{name} is {ours[name]!r}, not {theirs[name]!r}"
        if self.session.in_transaction():
            compare(lambda model: self.session.execute(everything(model)).all())
            assert_sealed(self.session.connection().exec_driver_sql)

    def _taken(self) -> list[int]:
        self.forget_gone_rows()
        stored = {*self.session.scalars(select(Plain.id))}
        return [number for number in range(1, ROWS + 1) if number in self.pairs or self.id(number) in stored]

    def _forget_gone_objects(self) -> None:
        """Let go of objects that have left the session, of both twins or of none."""
        for number, (found, twin) in list(self.pairs.items()):
            assert (found in self.session) == (twin in self.session)
            if twin not in self.session:
                del self.pairs[number]

    def forget_gone_rows(self) -> None:
        """Let go of expired objects whose rows are gone, which SQLAlchemy notices only when it loads them."""
        if not self.unsure:
            return
        self.unsure = False
        stored = {*self.session.scalars(select(Plain.id))}
        for number, pair in list(self.pairs.items()):
            if self.id(number) not in stored and pair[1] not in self.session.new:
                for instance in self.pairs.pop(number):
                    if instance in self.session:
                        self.session.expunge(instance)
        self._forget_gone_objects()

    def _after_flush(self, number: int, twin: Plain) -> Changes:
        known = vars(twin)
        row = next(iter(self.stored(Plain.id == self.id(number))), {})
        return {name: known.get(name, row.get(name)) for name in NAMES}


def _state(instance: Any) -> tuple[bool, ...]:
    state = inspect(instance)
    return state.transient, state.pending, state.persistent, state.deleted, state.detached
