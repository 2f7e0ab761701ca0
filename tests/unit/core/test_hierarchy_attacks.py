# SPDX-License-Identifier: Apache-2.0
"""What someone who can write to the key table, and cannot call the KMS for it, may try."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import pytest

from sa_asherah.core.ids import KeyIds
from sa_asherah.errors import KeyNotFoundError, KeyRecordError
from tests.unit.core.fakes import IDS, START, SYSTEM_ID, World, key_id

if TYPE_CHECKING:
    from collections.abc import Callable

MINE, OTHERS, SYSTEM = (key_id("7"), START), (key_id("8"), START), (SYSTEM_ID, START)


@pytest.fixture
def world() -> World:
    """Two owners' keys and a later pair of keys in the table."""
    world = World()
    world.process().encryption_keys(["7", "8"])
    return world


def moved_to_another_id(world: World) -> None:
    world.table.texts[MINE] = world.table.texts[OTHERS]


def with_another_records_key(world: World) -> None:
    world.table.edit(MINE, Key=json.loads(world.table.texts[OTHERS])["Key"])


def with_another_records_key_and_bind(world: World) -> None:
    other = json.loads(world.table.texts[OTHERS])
    world.table.edit(MINE, Key=other["Key"], Bind=other["Bind"])


def stripped_of_its_bind(world: World) -> None:
    world.table.edit(MINE, Bind=None)


def with_a_foreign_parent(world: World) -> None:
    world.table.edit(MINE, ParentKeyMeta={"KeyId": "_SK_records_other", "Created": START})


def with_its_own_kind_as_parent(world: World) -> None:
    world.table.edit(MINE, ParentKeyMeta={"KeyId": key_id("8"), "Created": START})


def without_a_parent(world: World) -> None:
    world.table.edit(MINE, ParentKeyMeta=None)


def with_another_date_inside(world: World) -> None:
    world.table.edit(MINE, Created=START + 60)


def with_another_system_key_of_ours(world: World) -> None:
    world.clock.now += 60
    rival = World()
    rival.kms, rival.clock = world.kms, world.clock
    rival.process().encryption_keys(["1"])
    world.table.texts[SYSTEM_ID, START + 60] = rival.table.texts[SYSTEM_ID, START + 60]
    world.table.edit(MINE, ParentKeyMeta={"KeyId": SYSTEM_ID, "Created": START + 60})


def under_another_services_system_key(world: World) -> None:
    other = World()
    other.kms = world.kms
    other.process(KeyIds("records", "pharmacy")).encryption_keys(["7"])
    world.table.texts[SYSTEM] = other.table.texts["_SK_records_pharmacy", START]


def under_a_system_key_without_bind(world: World) -> None:
    world.table.edit(SYSTEM, Bind=None)


def with_a_damaged_key(world: World) -> None:
    raw = bytearray(base64.b64decode(json.loads(world.table.texts[MINE])["Key"]))
    raw[3] ^= 1
    world.table.edit(MINE, Key=base64.b64encode(raw).decode())


def that_is_no_json(world: World) -> None:
    world.table.texts[MINE] = "no JSON"


ATTACKS = [
    moved_to_another_id,
    with_another_records_key,
    with_another_records_key_and_bind,
    stripped_of_its_bind,
    with_a_foreign_parent,
    with_its_own_kind_as_parent,
    without_a_parent,
    with_another_date_inside,
    with_another_system_key_of_ours,
    under_another_services_system_key,
    under_a_system_key_without_bind,
    with_a_damaged_key,
    that_is_no_json,
]


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("enlisted", [False, True])
def test_attack_on_a_record_is_an_error_and_never_a_new_key(
    world: World, attack: Callable[[World], None], *, enlisted: bool
) -> None:
    attack(world)
    rows = dict(world.table.texts)
    process = world.process(enlisted=enlisted)
    with pytest.raises(KeyRecordError):
        process.encryption_keys(["7"])
    with pytest.raises(KeyRecordError):
        process.decryption_key("7", START)
    assert world.table.texts == rows


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("enlisted", [False, True])
def test_attack_under_a_running_process_is_noticed_at_the_next_check(
    world: World, attack: Callable[[World], None], *, enlisted: bool
) -> None:
    process = world.process(enlisted=enlisted, check_interval=0)
    process.encryption_keys(["7", "8"])
    attack(world)
    rows = dict(world.table.texts)
    with pytest.raises(KeyRecordError):
        process.encryption_keys(["7"])
    assert world.table.texts == rows


def test_attack_with_a_later_date_is_refused(world: World) -> None:
    later = (key_id("7"), START + 200)
    world.table.texts[later] = world.table.texts[MINE]
    world.table.edit(later, Created=START + 200)
    with pytest.raises(KeyRecordError, match="Bind"):
        world.process().encryption_keys(["7"])


def test_attack_with_a_date_in_the_far_future_is_not_even_looked_at(world: World) -> None:
    later = (key_id("7"), 4_102_444_800)
    world.table.texts[later] = world.table.texts[MINE]
    world.table.edit(later, Created=later[1])
    assert world.process().encryption_keys(["7"])["7"].created == START
    with pytest.raises(KeyRecordError, match="Bind"):
        world.process().decryption_key("7", later[1])


def test_attack_that_names_a_system_key_of_the_far_future_does_not_date_a_new_one(world: World) -> None:
    world.table.edit(MINE, ParentKeyMeta={"KeyId": SYSTEM_ID, "Created": 4_102_444_800})
    world.table.edit(SYSTEM, Revoked=True)
    key = world.process().encryption_keys(["7"])["7"]
    assert key.parent is not None
    assert (key.created, key.parent.created) == (START + 1, START + 1)


def test_attack_that_deletes_a_row_is_named_and_makes_no_key(world: World) -> None:
    del world.table.texts[MINE]
    with pytest.raises(KeyNotFoundError):
        world.process().decryption_key("7", START)
    assert MINE not in world.table.texts


def test_attack_that_deletes_the_newest_row_does_not_bring_back_the_older_one(world: World) -> None:
    process = world.process(check_interval=0)
    process.encryption_keys(["7"])
    world.table.edit(MINE, Revoked=True)
    newest = process.encryption_keys(["7"])["7"]
    world.table.edit(MINE, Revoked=None)
    del world.table.texts[newest.id, newest.created]
    assert process.encryption_keys(["7"])["7"].created == newest.created


def test_a_table_shared_with_peers_takes_records_without_bind_but_none_with_a_wrong_one(world: World) -> None:
    peers = KeyIds(IDS.service, IDS.product, peers=True)
    stripped_of_its_bind(world)
    under_a_system_key_without_bind(world)
    assert world.process(peers).encryption_keys(["7"])["7"].created == START
    with_another_records_key_and_bind(world)
    with pytest.raises(KeyRecordError, match="Bind"):
        world.process(peers).encryption_keys(["7"])


@pytest.mark.parametrize("attack", ATTACKS)
def test_attack_leaves_nothing_secret_in_the_error(world: World, attack: Callable[[World], None]) -> None:
    secrets: list[Any] = [json.loads(text)["Key"] for text in world.table.texts.values()]
    attack(world)
    with pytest.raises(KeyRecordError) as caught:
        world.process().decryption_key("7", START)
    text = f"{caught.value!r} {caught.value} {caught.value.__cause__!r}"
    assert not any(secret in text for secret in secrets)
