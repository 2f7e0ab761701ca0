# SPDX-License-Identifier: Apache-2.0
"""What the hierarchy tells, and that it tells no secret."""

from __future__ import annotations

import pytest

from sa_asherah.errors import KeyRecordError
from tests.unit.core.fakes import EXPIRE_AFTER, INTERVAL, START, SYSTEM_ID, World, key_id


@pytest.fixture
def world() -> World:
    return World()


def told(world: World) -> list[tuple[str, str, int]]:
    found = [(name, attributes["id"], attributes["created"]) for name, attributes in world.told]
    world.told.clear()
    return found


def test_keys_made_and_keys_loaded_are_told_once(world: World) -> None:
    process = world.process()
    for _ in range(3):
        process.encryption_keys(["7"])
    assert told(world) == [("key_created", SYSTEM_ID, START), ("key_created", key_id("7"), START)]
    other = world.process()
    for _ in range(3):
        other.decryption_key("7", START)
        other.encryption_keys(["7"])
    assert told(world) == [("key_loaded", SYSTEM_ID, START), ("key_loaded", key_id("7"), START)]


def test_a_rotation_names_the_key_before(world: World) -> None:
    process = world.process()
    process.encryption_keys(["7"])
    world.told.clear()
    world.clock.now += EXPIRE_AFTER + 1
    created = process.encryption_keys(["7"])["7"].created
    rotated = [attributes for name, attributes in world.told if name == "key_rotated"]
    assert rotated == [
        {"id": one, "created": created, "previous": START, "previous_revoked": False}
        for one in (SYSTEM_ID, key_id("7"))
    ]


@pytest.mark.parametrize("writes", [False, True])
def test_a_revocation_is_told_once_by_each_process_that_sees_it(world: World, *, writes: bool) -> None:
    process = world.process(check_interval=0, shared_intermediate_keys=True)
    process.encryption_keys(["7"])
    world.told.clear()
    world.table.edit((key_id("7"), START), Revoked=True)
    for _ in range(2):
        if writes:
            process.encryption_keys(["7"])
        else:
            process.decryption_key("7", START)
    assert [entry for entry in told(world) if entry[0] == "key_revoked"] == [("key_revoked", key_id("7"), START)]


def test_a_revoked_key_is_loaded_as_such(world: World) -> None:
    world.process().encryption_keys(["7"])
    world.table.edit((key_id("7"), START), Revoked=True)
    world.told.clear()
    world.process().decryption_key("7", START)
    assert [attributes["revoked"] for _, attributes in world.told] == [False, True]


@pytest.mark.parametrize("attack", ["Bind", "Created", "Key"])
def test_a_refused_record_is_told_without_what_it_holds(world: World, attack: str) -> None:
    world.process().encryption_keys(["7", "8"])
    place = (key_id("7"), START)
    secrets = list(world.table.texts.values())
    changes = {"Bind": "A" * 43 + "=", "Created": START + 1, "Key": "A" * 80}
    world.table.edit(place, **{attack: changes[attack]})
    world.told.clear()
    with pytest.raises(KeyRecordError):
        world.process().decryption_key("7", START)
    name, attributes = world.told[-1]
    assert (name, attributes["id"], attributes["created"]) == ("key_refused", *place)
    texts = [part for text in secrets for part in text.split('"') if len(part) > 40]
    assert len(texts) >= 6
    assert not any(part in repr(world.told) for part in texts)


def test_a_system_key_of_another_process_is_told(world: World) -> None:
    process = world.process()
    process.encryption_keys(["7"])
    world.table.edit((SYSTEM_ID, START), Revoked=True)
    other = world.process().encryption_keys(["8"])["8"]
    world.told.clear()
    world.clock.now += INTERVAL * 1.2
    process.encryption_keys(["7"])
    assert other.parent is not None
    assert told(world)[0] == ("system_key_appeared", SYSTEM_ID, other.parent.created)
