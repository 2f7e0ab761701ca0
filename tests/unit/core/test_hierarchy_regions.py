# SPDX-License-Identifier: Apache-2.0
"""Keys of other regions: read where their suffix is listed, tried in order, never written with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sa_asherah.core.ids import KeyIds
from sa_asherah.errors import ConfigurationError, KeyNotFoundError, KeyRecordError, WrongPartitionError
from tests.unit.core.fakes import START, World

if TYPE_CHECKING:
    from collections.abc import Callable

    from sa_asherah.core.hierarchy import Hierarchy
    from sa_asherah.core.key import Key

WEST, EAST, BARE = (KeyIds("records", "clinic", suffix) for suffix in ("us-west-2", "us-east-1", ""))


@pytest.fixture
def world() -> World:
    return World()


def opens(key: Key) -> Callable[[Key], str | None]:
    """Return what opens a value of this key only, and tells under which id."""
    return lambda other: other.id if other.secret == key.secret else None


def unlock(process: Hierarchy, key: Key, **options: str) -> str | None:
    return process.unlock("7", key.created, opens(key), **options)


@pytest.mark.parametrize("writer", [WEST, EAST, BARE], ids=["west", "east", "bare"])
@pytest.mark.parametrize("enlisted", [False, True])
def test_a_value_of_any_listed_region_is_read(world: World, writer: KeyIds, *, enlisted: bool) -> None:
    keys = {ids: world.process(ids).encryption_keys(["7"])["7"] for ids in (WEST, EAST, BARE)}
    assert len({key.created for key in keys.values()}) == 1
    process = world.process(WEST, read_suffixes=["us-east-1", ""], enlisted=enlisted)
    assert unlock(process, keys[writer]) == writer.intermediate_key_id("7")
    assert unlock(process, keys[writer], key_id=writer.intermediate_key_id("7")) == writer.intermediate_key_id("7")


def test_the_own_region_comes_first_and_the_others_in_their_order(world: World) -> None:
    for ids in (WEST, EAST, BARE):
        world.process(ids).encryption_keys(["7"])
    process = world.process(WEST, read_suffixes=["", "us-east-1"])
    tried: list[str] = []
    assert process.unlock("7", START, lambda key: tried.append(key.id)) is None
    # Each is read once more before it is given up; the same bytes are not tried again.
    assert tried == [ids.intermediate_key_id("7") for ids in (WEST, BARE, EAST)]
    assert process.readable_ids("7") == tuple(tried)


def test_what_is_written_belongs_to_the_own_region(world: World) -> None:
    theirs = world.process(EAST).encryption_keys(["7"])["7"]
    process = world.process(WEST, read_suffixes=["us-east-1"])
    unlock(process, theirs)
    mine = process.encryption_keys(["7"])["7"]
    assert (mine.id, mine.secret == theirs.secret) == (WEST.intermediate_key_id("7"), False)
    assert mine.parent is not None
    assert mine.parent.id == WEST.system_key_id()
    world.clock.now += 10_000
    assert process.encryption_keys(["7"])["7"] is mine


def test_a_region_that_is_not_listed_is_not_read(world: World) -> None:
    theirs = world.process(EAST).encryption_keys(["7"])["7"]
    process = world.process(WEST, read_suffixes=[""])
    world.table.taken_calls()
    with pytest.raises(KeyNotFoundError, match="us-west-2"):
        unlock(process, theirs)
    runs = world.metastore.runs
    with pytest.raises(WrongPartitionError, match="RECOVERY_REGION_SUFFIXES"):
        unlock(process, theirs, key_id=theirs.id)
    assert world.metastore.runs == runs


@pytest.mark.parametrize("partition", ["70", "7_records", "8", "7_records_clinic"])
def test_another_partition_is_never_tried(world: World, partition: str) -> None:
    theirs = world.process(BARE).encryption_keys([partition])[partition]
    process = world.process(WEST, read_suffixes=["", "us-east-1"])
    with pytest.raises(WrongPartitionError):
        unlock(process, theirs, key_id=theirs.id)
    with pytest.raises(KeyNotFoundError):
        unlock(process, theirs)


def test_a_record_moved_to_another_region_is_refused(world: World) -> None:
    world.process(EAST).encryption_keys(["7"])
    world.process(BARE).encryption_keys(["7"])
    east, bare = EAST.intermediate_key_id("7"), BARE.intermediate_key_id("7")
    process = world.process(WEST, read_suffixes=["us-east-1", ""])
    world.table.texts[east, START] = world.table.texts[bare, START]
    with pytest.raises(KeyRecordError, match="region"):
        process.unlock("7", START, lambda _key: None, key_id=east)


def test_a_system_key_moved_to_another_region_is_refused(world: World) -> None:
    world.process(EAST).encryption_keys(["7"])
    world.process(BARE).encryption_keys(["7"])
    world.table.texts[EAST.system_key_id(), START] = world.table.texts[BARE.system_key_id(), START]
    with pytest.raises(KeyRecordError, match="Bind"):
        world.process(EAST).decryption_key("7", START)


def test_a_region_in_use_costs_no_query_for_the_own_one(world: World) -> None:
    theirs = world.process(EAST).encryption_keys(["7"])["7"]
    process = world.process(WEST, read_suffixes=["us-east-1"])
    unlock(process, theirs)
    world.table.taken_calls()
    world.clock.now += 60
    for _ in range(3):
        assert unlock(process, theirs) == theirs.id
    assert world.table.calls == []


def test_a_key_made_after_it_was_looked_for_in_vain_is_found(world: World) -> None:
    theirs = world.process(EAST).encryption_keys(["7"])["7"]
    process = world.process(WEST, read_suffixes=["us-east-1"])
    assert unlock(process, theirs) == theirs.id
    # The other region's key is forgotten, and the absence of the own one is not.
    process._keyring.intermediate.clear()
    with pytest.raises(KeyNotFoundError):
        process.unlock("7", START, opens(theirs), key_id=WEST.intermediate_key_id("7"))
    mine = world.process(WEST).encryption_keys(["7"])["7"]
    assert mine.created == theirs.created
    assert unlock(process, mine) == mine.id


def test_a_value_that_nothing_opens_is_told_from_a_missing_key(world: World) -> None:
    key = world.process(WEST).encryption_keys(["7"])["7"]
    process = world.process(WEST, read_suffixes=[""])
    assert process.unlock("7", START, lambda _key: None) is None
    with pytest.raises(KeyNotFoundError):
        process.unlock("7", START + 1, opens(key))
    world.table.texts.clear()
    with pytest.raises(KeyNotFoundError):
        process.unlock("7", START, lambda _key: None)


@pytest.mark.parametrize(
    ("names", "suffix", "others"),
    [
        (("records", "clinic"), "", ["eu_1"]),
        (("records", "clinic"), "", [" eu"]),
        (("eu", "eu"), "", ["eu"]),
        (("eu", "eu"), "eu", [""]),
    ],
)
def test_suffixes_that_make_ids_ambiguous_are_refused(names: tuple[str, str], suffix: str, others: list[str]) -> None:
    with pytest.raises(ConfigurationError, match="suffix"):
        KeyIds(*names, suffix).regions(others)


def test_no_id_of_one_region_is_an_id_of_another_one() -> None:
    parts = ["a", "b", "a_b", "b_a", "a_a"]
    for peers in (False, True):
        for service in ("a", "b"):
            suffixes = ("", "a", "b", "c", "a_b", "a_a_b") if peers else ("", "a", "b", "c")
            for suffix in suffixes[1:]:
                ids = KeyIds(service, "a", suffix, peers=peers)
                for other in suffixes:
                    check_apart(ids, other, parts)


def check_apart(ids: KeyIds, other: str, partitions: list[str]) -> None:
    """Every id of a region is found to be of that region, and differs from every id of the other one."""
    try:
        regions = ids.regions([other])
    except ConfigurationError:
        return
    named = {
        (region.suffix, partition): region.intermediate_key_id(partition)
        for region in regions
        for partition in partitions
        if "_" not in partition or "_" not in region.suffix
    }
    assert len(set(named.values())) == len(named)
    for (suffix, _), key_id in named.items():
        assert [region.suffix for region in regions if key_id.endswith(region.tail)] == [suffix]


def test_the_own_suffix_and_repetitions_do_no_harm() -> None:
    assert WEST.regions(["us-west-2", "us-east-1", "us-east-1"]) == (WEST, EAST)
