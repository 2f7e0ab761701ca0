# SPDX-License-Identifier: Apache-2.0
"""Processes with wrong clocks, one key table, one key service, and all that happens to them in years."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from sa_asherah.errors import KeyExpiredError, KeyNotFoundError, KmsUnavailableError, MetastoreUnavailableError
from tests.unit.core.fakes import DAY, EXPIRE_AFTER, INTERVAL, START, SYSTEM_ID, FakeMetastore, World, key_id

if TYPE_CHECKING:
    from sa_asherah.core.hierarchy import Hierarchy
    from sa_asherah.core.key import Key
    from tests.unit.core.fakes import Clock

OWNERS = ("7", "8")
MAX_STALE = 3_600
GRACE = DAY
SPREAD = 7 * DAY
AHEAD = 300
TRIES = 5
PAUSE = 10
STEPS = (0, 1, 12, 61, 600, INTERVAL, 1.2 * INTERVAL, DAY, EXPIRE_AFTER / 2, EXPIRE_AFTER + SPREAD)
Place = tuple[str, int]


@dataclass
class SkewedClock:
    """A clock that is wrong, and was set back by so much in all."""

    right: Clock
    skew: int
    set_back: int = 0

    def __call__(self) -> float:
        return self.right() + self.skew

    def set(self, skew: int) -> None:
        self.set_back += max(0, self.skew - skew)
        self.skew = skew


@dataclass
class Process:
    """A process with a clock of its own."""

    hierarchy: Hierarchy
    metastore: FakeMetastore
    clock: SkewedClock


@dataclass(frozen=True)
class Value:
    """What somebody encrypted: whose it is, with which bytes, and which rows it takes to read it."""

    owner: str
    created: int
    secret: bytes
    rows: tuple[tuple[Place, str], ...]


class Life(RuleBasedStateMachine):
    """Steps in any order; after each, what must never happen has not happened."""

    enlisted = False

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.processes: list[Process] = []
        self.values: list[Value] = []
        self.revoked: dict[Place, float] = {}
        self.revocations = dict.fromkeys((SYSTEM_ID, *map(key_id, OWNERS)), 0)
        self.made: dict[str, set[tuple[int, str]]] = {key: set() for key in self.revocations}
        self.losses = 0
        self.missed: dict[tuple[Hierarchy, str, int], float] = {}
        self.table_is_down = False
        self.was_down = float("-inf")
        self.world.table.before_insert = self._note_rows

    def _note_rows(self, rows: object) -> None:
        for row in rows:  # type: ignore[attr-defined] # the fake's callback takes rows
            if (row.id, row.created) not in self.world.table.texts:
                self.made[row.id].add((row.created, json.loads(row.text)["Key"]))

    # What happens

    @initialize(
        skews=st.sampled_from((0, 100, 400)).flatmap(
            lambda most: st.lists(st.integers(-most, most), min_size=3, max_size=3)
        ),
        early=st.booleans(),
        precision=st.sampled_from((0, 60)),
    )
    def start(self, skews: list[int], precision: int, *, early: bool) -> None:
        self.most = max(map(abs, skews))
        self.skews = set(skews)
        self.spread = SPREAD if early else 0
        self.policy: dict[str, Any] = {
            "early_rotation": 0.02 if early else 0,
            "rotation_spread": self.spread,
            "precision": precision,
            "max_stale": MAX_STALE,
            "rotation_grace": GRACE,
        }
        self.processes = [self._new_process(skew) for skew in skews]

    def _new_process(self, skew: int) -> Process:
        clock = SkewedClock(self.world.clock, skew)
        hierarchy = self.world.process(enlisted=self.enlisted, clock=clock, **self.policy)
        self.world.metastore.is_down = self.table_is_down
        return Process(hierarchy, self.world.metastore, clock)

    @rule(number=st.integers(0, 2))
    def restart(self, number: int) -> None:
        self.processes[number] = self._new_process(self.processes[number].clock.skew)

    @rule(number=st.integers(0, 2), share=st.sampled_from((-1, 0, 1)))
    def set_the_clock(self, number: int, share: int) -> None:
        """Set a clock forward or back, or right."""
        self.processes[number].clock.set(share * self.most)
        self.skews.add(share * self.most)

    @rule(seconds=st.sampled_from(STEPS))
    def wait(self, seconds: float) -> None:
        if self.is_out:
            self.was_down = self.world.clock.now
        self.world.clock.now += seconds
        if self.is_out:
            self.was_down = self.world.clock.now

    @rule(number=st.integers(0, 2), owner=st.sampled_from(OWNERS))
    def encrypt(self, number: int, owner: str) -> None:
        process = self.processes[number]
        try:
            key = process.hierarchy.encryption_keys([owner])[owner]
        except (MetastoreUnavailableError, KmsUnavailableError, KeyExpiredError) as error:
            self._expect(error)
            return
        note(f"{owner} encrypts with {key.created - START}")
        self._may_encrypt(key, process)
        assert key.parent is not None
        rows = tuple(((one.id, one.created), one.record.key) for one in (key, key.parent))
        self.values.append(Value(owner, key.created, bytes(key.secret), rows))
        assert self.losses or self._is_readable(self.values[-1]), "it encrypted with a key that is not stored"

    @precondition(lambda self: self.values)
    @rule(number=st.integers(0, 2), which=st.integers(0, 10_000))
    def decrypt(self, number: int, which: int) -> None:
        self._decrypt(self.processes[number].hierarchy, self.values[-1 - which % len(self.values)])

    @rule(key=st.sampled_from((SYSTEM_ID, *map(key_id, OWNERS))))
    def revoke_the_newest(self, key: str) -> None:
        dates = self.world.table.created(key)
        if dates and (key, dates[-1]) not in self.revoked:
            self.world.table.edit((key, dates[-1]), Revoked=True)
            self.revoked[key, dates[-1]] = self.world.clock.now
            self.revocations[key] += 1

    @rule(count=st.integers(1, 3))
    def lose_the_newest_rows(self, count: int) -> None:
        """Fail over to a copy that lacks the rows inserted last."""
        for place in list(self.world.table.texts)[-count:]:
            del self.world.table.texts[place]
            self.revoked.pop(place, None)
            self.losses += 1

    @rule(table=st.booleans(), kms=st.booleans())
    def outage(self, *, table: bool, kms: bool) -> None:
        if self.is_out:
            self.was_down = self.world.clock.now
        self.table_is_down, self.world.kms.is_down = table, kms
        for process in self.processes:
            process.metastore.is_down = table

    # What must hold

    @property
    def is_out(self) -> bool:
        return self.table_is_down or self.world.kms.is_down

    def _expect(self, error: Exception) -> None:
        assert self.is_out, f"nothing is down, and still: {error!r}"

    def _may_encrypt(self, key: Key, process: Process) -> None:
        assert key.parent is not None
        now = process.clock()
        # A look that a clock dates in the future counts again once that time has come.
        limit = 0 if self.enlisted else 1.1 * INTERVAL + MAX_STALE + process.clock.set_back
        for one in (key, key.parent):
            since = self.revoked.get((one.id, one.created), self.world.clock.now)
            assert self.world.clock.now <= since + limit, f"{one!r} was revoked {self.world.clock.now - since} s ago"
        assert key.created <= now + AHEAD + TRIES  # a successor of the last key that counts
        end = min(key.created, key.parent.created + self.spread) + EXPIRE_AFTER
        if self.is_out or self.world.clock.now <= self.was_down + PAUSE:
            end = max(end, min(key.created, key.parent.created) + EXPIRE_AFTER + GRACE)
        assert now <= end, f"{key!r} is too old by {now - end} s"

    def _is_readable(self, value: Value) -> bool:
        """Tell whether the key table has what it takes."""
        texts = self.world.table.texts
        return all(place in texts and json.loads(texts[place])["Key"] == key for place, key in value.rows)

    def _decrypt(self, hierarchy: Hierarchy, value: Value) -> None:
        readable = self._is_readable(value)
        try:
            key = hierarchy.decryption_key(value.owner, value.created)
            if bytes(key.secret) != value.secret:
                key = hierarchy.reload(key)  # as whoever reads does whose cell does not open
            assert bytes(key.secret) == value.secret or not readable, "another key came out"
        except (MetastoreUnavailableError, KmsUnavailableError) as error:
            self._expect(error)
        except KeyNotFoundError:
            self._missed(hierarchy, value, is_there=readable)

    def _missed(self, hierarchy: Hierarchy, value: Value, *, is_there: bool) -> None:
        """A process looks again for a key that it did not find after a pause, by its own clock."""
        place, now, clock = (hierarchy, value.owner, value.created), self.world.clock.now, hierarchy.policy.clock
        assert isinstance(clock, SkewedClock)
        until = self.missed.get(place, float("-inf")) + PAUSE + clock.set_back
        assert not is_there or now <= until, "its key is in the key table"
        if now > until:
            self.missed[place] = now

    def teardown(self) -> None:
        if not self.processes:
            return
        self.outage(table=False, kms=False)
        self.world.clock.now += PAUSE + 1
        for hierarchy in (self._new_process(0).hierarchy, *(process.hierarchy for process in self.processes)):
            for value in self.values:
                self._decrypt(hierarchy, value)
        self._made_no_more_keys_than_needed()

    def _made_no_more_keys_than_needed(self) -> None:
        """At most one in a period, and of owners' keys one more for the system key's."""
        periods = 1 + int((self.world.clock.now - START) / (EXPIRE_AFTER * 0.97))
        # Beyond 300 s apart, clocks do not count each other's newest keys.
        views = 1 if max(self.skews) - min(self.skews) <= AHEAD else len(self.skews)
        systems = periods + self.revocations[SYSTEM_ID] + self.losses
        assert len(self.made[SYSTEM_ID]) <= views * systems
        for one in map(key_id, OWNERS):
            assert len(self.made[one]) <= views * (periods + self.revocations[one] + self.losses + systems)


class EnlistedLife(Life):
    """The same on SQLite, where each statement looks at the key table."""

    enlisted = True
