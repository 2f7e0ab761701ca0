# SPDX-License-Identifier: Apache-2.0
"""Tombstones and retired system keys: whoever makes a key sees them, however the moments fall."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from sa_asherah.core.erasure import changed, erased, tombstone
from sa_asherah.core.ids import MAX_ID_LENGTH, KeyIds, tombstone_of
from sa_asherah.core.ports import KeyRow
from sa_asherah.errors import MetastoreError, OwnerErasedError
from tests.unit.core.fakes import DAY, IDS, INTERVAL, START, SYSTEM_ID, World, key_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sa_asherah.core.hierarchy import Hierarchy
    from sa_asherah.core.key import Key

IK = key_id("7")
STONE = tombstone(IK)


@pytest.fixture
def world() -> World:
    return World()


def bury(world: World) -> None:
    """Erase owner 7."""
    world.table.erase([STONE], [IK], erased)


def retire(world: World, created: int) -> None:
    world.table.edit((SYSTEM_ID, created), Retired=2)


def test_a_tombstone_has_an_id_as_long_as_the_key_and_looks_like_a_revoked_record() -> None:
    longest = "x" * (MAX_ID_LENGTH - len(IK) + 1)
    assert len(tombstone_of(IDS.intermediate_key_id(longest))[0]) == MAX_ID_LENGTH
    record = json.loads(STONE.text)
    assert (record["Revoked"], record["Created"], len(record["Key"])) == (True, STONE.created, 80)
    assert json.loads(tombstone(IK).text)["Key"] != record["Key"]


def test_with_a_tombstone_no_key_is_made(world: World) -> None:
    bury(world)
    with pytest.raises(OwnerErasedError):
        world.process().encryption_keys(["8", "7"])
    assert world.table.created(IK) == []
    world.process().encryption_keys(["8"])


def test_a_tombstone_that_comes_between_the_look_and_the_insert_wins(world: World) -> None:
    def before_insert(rows: Sequence[KeyRow]) -> None:
        if rows[0].id == IK:
            bury(world)

    world.table.before_insert = before_insert
    with pytest.raises(OwnerErasedError):
        world.process().encryption_keys(["7"])
    (created,) = world.table.created(IK)
    record = json.loads(world.table.texts[IK, created])
    assert record["Revoked"] is True
    with pytest.raises(OwnerErasedError):
        world.process().decryption_key("7", created)


def lost_record(world: World) -> tuple[Hierarchy, Key]:
    """A process that holds a key whose record is gone."""
    process = world.process()
    key = process.encryption_keys(["7"])["7"]
    del world.table.texts[IK, key.created]
    world.clock.now += 1.2 * INTERVAL
    return process, key


def test_a_lost_record_is_not_brought_back_past_a_tombstone(world: World) -> None:
    process, key = lost_record(world)
    bury(world)
    with pytest.raises(OwnerErasedError):
        process.encryption_keys(["7"])
    assert (IK, key.created) not in world.table.texts


def test_a_lost_record_that_came_back_with_a_tombstone_is_taken_out_again_and_never_overwritten(world: World) -> None:
    """It has encrypted, and a tombstone may be forged: the row is gone as before, and no more than that."""
    process, key = lost_record(world)
    world.table.before_insert = lambda _rows: bury(world)
    with pytest.raises(OwnerErasedError):
        process.encryption_keys(["7"])
    assert (IK, key.created) not in world.table.texts
    assert ("replace", 1) not in world.table.calls


@pytest.mark.parametrize("is_new", [True, False])
def test_without_the_right_to_take_a_key_back_its_owner_is_refused_all_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch, *, is_new: bool
) -> None:
    process = world.process() if is_new else lost_record(world)[0]

    def refused(*_: object) -> bool:
        raise MetastoreError("no right")

    monkeypatch.setattr(world.table, "replace" if is_new else "remove", refused)
    world.table.before_insert = lambda rows: bury(world) if rows[0].id == IK else None
    with pytest.raises(OwnerErasedError):
        process.encryption_keys(["7"])


def test_a_tombstone_that_another_one_hides_counts_all_the_same(world: World) -> None:
    bury(world)
    world.table.texts[STONE.id, STONE.created + 1] = "{}"
    before = dict(world.table.texts)
    with pytest.raises(OwnerErasedError):
        world.process().encryption_keys(["7"])
    assert world.table.texts == before


def test_another_processs_key_is_never_overwritten_for_a_tombstone(world: World) -> None:
    """A tombstone may be forged, and that key may have encrypted."""
    other = world.process()

    def before_insert(rows: Sequence[KeyRow]) -> None:
        if rows[0].id == IK:
            world.table.before_insert = lambda _rows: None
            other.encryption_keys(["7"])
            world.table.texts[STONE.id, STONE.created] = STONE.text

    world.process().encryption_keys(["8"])
    process = world.process()
    world.table.before_insert = before_insert
    with pytest.raises(OwnerErasedError):
        process.encryption_keys(["7"])
    secret = other.decryption_key("7", START).secret
    assert world.process().decryption_key("7", START).secret == secret


def test_a_key_in_memory_is_dropped_when_its_record_is_found_erased(world: World) -> None:
    process = world.process()
    created = process.encryption_keys(["7"])["7"].created
    process.row_keys["reader"] = {b"head": object()}
    bury(world)
    world.clock.now += 1.2 * INTERVAL
    with pytest.raises(OwnerErasedError):
        process.decryption_key("7", created)
    assert process.row_keys["reader"] == {}
    del world.table.texts[STONE.id, STONE.created]
    with pytest.raises(MetastoreError):  # it is not in memory any more
        process.decryption_key("7", created)


def test_a_key_in_memory_is_dropped_when_its_record_is_gone_and_its_owner_erased(world: World) -> None:
    """Or whoever holds a key whose record was lost before the erasure would read for ever."""
    process = world.process()
    created = {owner: key.created for owner, key in process.encryption_keys(["7", "8"]).items()}
    del world.table.texts[IK, created["7"]]
    bury(world)
    world.clock.now += 1.2 * INTERVAL
    process.decryption_key("8", created["8"])  # the other one's turn comes with it
    for _ in range(2):
        with pytest.raises(OwnerErasedError):
            process.decryption_key("7", created["7"])
    assert process._keyring.intermediate.get(IK, created["7"]) is None


def test_with_peers_tombstones_count_for_nothing(world: World) -> None:
    bury(world)
    world.process(KeyIds("records", "clinic", peers=True)).encryption_keys(["7"])


# Retired system keys


def test_a_retired_system_key_gets_no_children_and_those_it_has_stay(world: World) -> None:
    process = world.process()
    old = process.encryption_keys(["7"])["7"]
    retire(world, START)
    world.clock.now += 1.2 * INTERVAL
    assert process.encryption_keys(["7"])["7"] is old
    new = process.encryption_keys(["8"])["8"]
    assert new.record.parent != (SYSTEM_ID, START)
    assert world.process().encryption_keys(["7"])["7"].created == old.created


def test_a_system_key_that_retires_between_the_look_and_the_insert_gets_no_child(world: World) -> None:
    world.process().encryption_keys(["8"])
    process = world.process()

    def before_insert(_rows: Sequence[KeyRow]) -> None:
        world.table.before_insert = lambda _rows: None
        retire(world, START)

    world.table.before_insert = before_insert
    key = process.encryption_keys(["7"])["7"]
    assert key.record.parent is not None
    assert key.record.parent[1] > START
    assert world.process().decryption_key("7", key.created).secret == key.secret


def test_a_system_key_that_is_gone_before_the_insert_gets_no_child(world: World) -> None:
    world.process().encryption_keys(["8"])
    process = world.process()

    def before_insert(_rows: Sequence[KeyRow]) -> None:
        world.table.before_insert = lambda _rows: None
        del world.table.texts[SYSTEM_ID, START]

    world.table.before_insert = before_insert
    key = process.encryption_keys(["7"])["7"]
    assert world.process().decryption_key("7", key.created).secret == key.secret


def test_a_system_key_that_changes_all_the_time_ends_in_an_error(world: World) -> None:
    world.process().encryption_keys(["8"])
    numbers = iter(range(100))
    world.table.before_insert = lambda _rows: world.table.edit((SYSTEM_ID, START), Note=next(numbers))
    with pytest.raises(MetastoreError, match="changed all the time"):
        world.process().encryption_keys(["7"])


def test_a_lost_key_of_a_retired_system_key_comes_back_under_the_new_one(world: World) -> None:
    process = world.process()
    key = process.encryption_keys(["7"])["7"]
    retire(world, START)
    world.clock.now += 1.2 * INTERVAL
    process.encryption_keys(["7", "8"])  # it learns that the system key is retired, and makes another one
    del world.table.texts[IK, key.created]
    del world.table.texts[SYSTEM_ID, START]
    world.clock.now += 1.2 * INTERVAL
    assert process.encryption_keys(["7"])["7"].created == key.created
    assert (SYSTEM_ID, START) not in world.table.texts
    assert world.process().decryption_key("7", key.created).secret == key.secret


def test_a_key_that_was_wrapped_anew_under_another_system_key_goes_on(world: World) -> None:
    process = world.process()
    key = process.encryption_keys(["7"])["7"]
    secret = bytes(key.secret)
    retire(world, START)
    other = world.process()
    new = other.encryption_keys(["8"])["8"].parent
    assert new is not None
    moved = other._keyring.wrapped_anew(other.decryption_key("7", key.created), new)
    world.table.texts[IK, key.created] = moved.text
    del world.table.texts[SYSTEM_ID, START]
    for _ in range(2):
        world.clock.now += 1.2 * INTERVAL
        assert bytes(process.decryption_key("7", key.created).secret) == secret
        assert process.encryption_keys(["7"])["7"].created == key.created
    assert (SYSTEM_ID, START) not in world.table.texts
    world.clock.now += 91 * DAY
    assert bytes(process.decryption_key("7", key.created).secret) == secret


def test_members_of_others_survive_a_change() -> None:
    assert json.loads(changed('{"Other":[1],"Key":"a"}', Key="b", Revoked=True)) == {
        "Other": [1],
        "Key": "b",
        "Revoked": True,
    }
