# SPDX-License-Identifier: Apache-2.0
"""When keys give way to others: early, spread, worn; and what a wrong clock may do."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from sa_asherah.core.session import Session
from sa_asherah.errors import KeyExpiredError
from tests.unit.core.fakes import DAY, EXPIRE_AFTER, START, SYSTEM_ID, World, key_id

SPREAD = 7 * DAY


@pytest.fixture
def world() -> World:
    return World()


# Early


def test_one_process_moves_first_and_the_others_follow_at_their_next_check(world: World) -> None:
    first = world.process(early_rotation=0.02, draw=lambda _id, _created: 1)
    others = [world.process(early_rotation=0.02, draw=lambda _id, _created: 0) for _ in range(3)]
    for process in (first, *others):
        process.encryption_keys(["7"])
    world.clock.now += EXPIRE_AFTER * 0.98 + 61
    new = first.encryption_keys(["7"])["7"]
    assert new.created > START
    for process in others:
        assert process.encryption_keys(["7"])["7"].created == new.created
    assert len(world.table.texts) == 4
    assert world.kms.calls.count("encrypt") == 2


def test_a_key_that_is_due_early_encrypts_on_while_the_key_service_is_down(world: World) -> None:
    process = world.process(early_rotation=0.5, draw=lambda _id, _created: 1, rotation_grace=0)
    old = process.encryption_keys(["7"])["7"]
    world.kms.is_down = True
    world.clock.now += EXPIRE_AFTER * 0.6
    assert process.encryption_keys(["7"])["7"] is old
    assert process.encryption_keys(["8"])["8"].parent is old.parent
    world.clock.now = START + EXPIRE_AFTER + 1
    with pytest.raises(KeyExpiredError):
        process.encryption_keys(["7"])


def test_a_process_that_makes_no_system_keys_waits_for_their_expiry(world: World) -> None:
    world.process().encryption_keys(["7"])
    process = world.process(create_system_keys=False, early_rotation=0.5, draw=lambda _id, _created: 1)
    world.clock.now += EXPIRE_AFTER * 0.6
    key = process.encryption_keys(["7"])["7"]
    assert key.created > START
    assert key.parent is not None
    assert key.parent.created == START
    runs = world.metastore.runs
    world.clock.now += 60
    process.encryption_keys(["7"])
    assert world.metastore.runs == runs


# Spread


def give_way(world: World, partition: str) -> float:
    """Return how long after its system key's expiry an owner's key gave way, to an hour."""
    process = world.process(rotation_spread=SPREAD, check_interval=0)
    created = process.encryption_keys([partition])[partition].created
    while process.encryption_keys([partition])[partition].created == created:
        world.clock.now += 3_600
    return world.clock.now - (START + EXPIRE_AFTER)


def test_keys_of_an_expired_system_key_give_way_one_after_the_other(world: World) -> None:
    world.process().encryption_keys(["first"])
    world.clock.now += EXPIRE_AFTER - 10 * DAY
    owners = [str(n) for n in range(30)]
    world.process().encryption_keys(owners)
    moment, ends = world.clock.now, []
    for owner in owners:
        world.clock.now = moment
        ends.append(give_way(world, owner))
    assert min(ends) > 0
    assert max(ends) <= SPREAD + 3_600
    assert len({end // DAY for end in ends}) >= 4
    assert world.table.created(SYSTEM_ID)[0] == START


def test_a_revoked_system_key_takes_all_along_at_once(world: World) -> None:
    world.process().encryption_keys(["7"])
    world.clock.now += EXPIRE_AFTER - DAY
    process = world.process(rotation_spread=SPREAD, check_interval=0)
    old = process.encryption_keys(["8"])["8"]
    world.clock.now += DAY + 1
    assert process.encryption_keys(["8"])["8"] is old
    world.table.edit((SYSTEM_ID, START), Revoked=True)
    assert process.encryption_keys(["8"])["8"].created > old.created


def test_a_new_key_of_that_time_gets_a_new_system_key(world: World) -> None:
    process = world.process(rotation_spread=SPREAD)
    process.encryption_keys(["7"])
    world.clock.now += EXPIRE_AFTER + 1
    key = process.encryption_keys(["new"])["new"]
    assert key.parent is not None
    assert key.parent.created > START


def test_each_owner_gets_one_key_a_period_and_one_for_the_system_keys(world: World) -> None:
    """Three periods, five processes, twelve owners: every period has at most two new keys for each of them."""
    settings: dict[str, Any] = {"rotation_spread": SPREAD, "early_rotation": 0.02, "check_interval": 6 * 3_600}
    processes = []
    for n in range(5):
        shares = {START: n / 5}
        processes.append(
            world.process(**settings, draw=lambda _id, created, n=n, s=shares: s.get(created, (created * n % 7) / 7))
        )
    owners = [str(n) for n in range(12)]
    for step in range(int(3 * EXPIRE_AFTER / (DAY / 2))):
        world.clock.now = START + step * DAY / 2
        started = owners[: 1 + step // 12]
        for process in processes:
            process.encryption_keys(started)
    for owner in owners:
        periods = Counter((created - START) // EXPIRE_AFTER for created in world.table.created(key_id(owner)))
        assert max(periods.values()) <= 2, owner
    assert len(world.table.created(SYSTEM_ID)) <= 4


# Worn


def test_a_key_that_wrapped_its_share_gives_way_at_once(world: World) -> None:
    process = world.process(max_wraps=3)
    old = process.encryption_keys(["7"])["7"]
    for _ in range(3):
        assert process.encryption_keys(["7"])["7"] is old
        old.wrap(bytes(32))
    new = process.encryption_keys(["7"])["7"]
    assert (new.created, new.parent) == (START + 1, old.parent)
    assert process.decryption_key("7", START) is old
    assert world.process(max_wraps=3).encryption_keys(["7"])["7"].created == START + 1


def test_so_does_a_system_key(world: World) -> None:
    process = world.process(max_wraps=3)
    keys = [process.encryption_keys([str(n)])[str(n)] for n in range(7)]
    assert [key.parent.created - START for key in keys if key.parent] == [0, 0, 0, 1, 1, 1, 2]
    assert process.encryption_keys(["0"])["0"] is keys[0]


def test_the_count_outlives_the_stay_in_memory(world: World) -> None:
    process = world.process(max_wraps=2, cache_size=1)
    for owner in ("7", "8", "7"):
        process.encryption_keys([owner])[owner].wrap(bytes(32))
    assert process.encryption_keys(["8"])["8"].created == START
    assert process.encryption_keys(["7"])["7"].created == START + 1


def test_counts_are_bounded_and_the_high_ones_stay(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sa_asherah.core.wear._MAX_COUNTERS", 20)
    process = world.process(max_wraps=10, cache_size=1)
    key = process.encryption_keys(["7"])["7"]
    for _ in range(10):
        key.wrap(bytes(32))
    process.encryption_keys([str(n) for n in range(8, 108)])
    assert len(process._keyring._wear._wraps) <= 20
    assert process.encryption_keys(["7"])["7"].created > START


def test_a_worn_key_encrypts_on_while_no_successor_can_be_made(world: World) -> None:
    process = world.process(max_wraps=1)
    key = process.encryption_keys(["7"])["7"]
    key.wrap(bytes(32))
    world.kms.is_down = True
    assert process.encryption_keys(["7"])["7"] is key
    calls, runs = len(world.kms.calls), world.metastore.runs
    for _ in range(3):
        key.wrap(bytes(32))
        assert process.encryption_keys(["7"])["7"] is key
    assert (len(world.kms.calls), world.metastore.runs) == (calls, runs)
    world.kms.is_down = False
    world.clock.now += 11
    assert process.encryption_keys(["7"])["7"].created > key.created


@pytest.mark.parametrize("settings", [{}, {"cache_intermediate_keys": False}, {"cache_size": 1}])
def test_each_record_of_a_session_counts(world: World, settings: dict[str, Any]) -> None:
    process = world.process(max_wraps=3, **settings)
    with Session(process, "7") as session, Session(process, "8") as other:
        records = []
        for _ in range(7):
            records.append(session.encrypt(b"data"))
            other.decrypt(other.encrypt(b"data"))
        dates = [json.loads(record)["Key"]["ParentKeyMeta"]["Created"] - START for record in records]
        assert dates == [0, 0, 0, 1, 1, 1, 2]
        assert {session.decrypt(record) for record in records} == {b"data"}


# Clocks


@pytest.mark.parametrize("error", [-30 * DAY, -400, 200, 400, 30 * DAY, 500 * DAY])
def test_one_wrong_clock_among_many_stops_nobody(world: World, error: float) -> None:
    right = [world.process(check_interval=0) for _ in range(2)]
    wrong = world.process(check_interval=0)
    keys = []
    for step in range(8):
        moment = START + step * 20 * DAY
        for process, clock in ((right[0], moment), (wrong, moment + error), (right[1], moment + 1)):
            world.clock.now = clock
            key = process.encryption_keys(["7"])["7"]
            keys.append(key)
            if process is not wrong:
                assert key.created <= clock + 300
                assert not process.policy.is_expired(key.created, clock)
    for key in keys:
        for process in (*right, wrong, world.process()):
            assert process.decryption_key("7", key.created).secret == key.secret
    # The right ones take over what the wrong one made where they may, and make no key for each of its keys.
    assert len(world.table.created(key_id("7"))) <= 6


def test_a_revocation_takes_effect_although_the_clock_is_behind(world: World) -> None:
    world.process().encryption_keys(["7"])
    world.clock.now -= 200
    process = world.process(check_interval=0)
    assert process.encryption_keys(["7"])["7"].created == START
    world.table.edit((key_id("7"), START), Revoked=True)
    assert process.encryption_keys(["7"])["7"].created == START + 1
