# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import base64
import logging
import pickle
from typing import TYPE_CHECKING

import pytest

from sa_asherah.core.hierarchy import Hierarchy
from sa_asherah.errors import (
    KeyExpiredError,
    KeyNotFoundError,
    KmsUnavailableError,
    MetastoreError,
    MetastoreUnavailableError,
    OwnerRequiredError,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sa_asherah.core.ports import KeyRow
from tests.unit.core.fakes import DAY, EXPIRE_AFTER, IDS, INTERVAL, START, SYSTEM_ID, World, key_id


@pytest.fixture
def world() -> World:
    return World()


def test_the_first_value_makes_a_system_key_and_an_intermediate_key(world: World) -> None:
    key = world.process().encryption_keys(["7"])["7"]
    assert (key.id, key.created) == (key_id("7"), START)
    assert sorted(world.table.texts) == [(key_id("7"), START), (SYSTEM_ID, START)]
    assert world.table.calls == [("newest", 3), ("insert", 1), ("exact", 1), ("insert", 1), ("exact", 2)]
    assert world.kms.calls == ["encrypt"]


def test_many_partitions_take_one_query_and_one_insert(world: World) -> None:
    process = world.process()
    process.encryption_keys(["0"])
    world.table.taken_calls()
    keys = process.encryption_keys([str(n) for n in range(50)])
    assert {partition: key.id for partition, key in keys.items()} == {str(n): key_id(str(n)) for n in range(50)}
    assert world.table.calls == [("newest", 99), ("insert", 49), ("exact", 98)]


def test_a_checked_key_needs_no_query(world: World) -> None:
    process = world.process()
    first = process.encryption_keys(["7"])["7"]
    world.clock.now += INTERVAL * 0.9 - 1
    assert process.encryption_keys(["7"])["7"] is first
    assert world.metastore.runs == 1


def test_a_key_is_checked_again_after_the_interval(world: World) -> None:
    process = world.process()
    first = process.encryption_keys(["7"])["7"]
    process.row_keys["reader"] = {b"head": object()}
    known = process.row_keys["reader"]
    world.clock.now += INTERVAL * 1.1 + 1
    world.table.taken_calls()
    assert process.encryption_keys(["7"])["7"] is first
    assert world.table.calls == [("newest", 3)]
    assert known == {}
    assert world.kms.calls == ["encrypt"]


def test_checks_of_several_keys_do_not_fall_due_together(world: World) -> None:
    process = world.process()
    due: set[int] = set()
    for n in range(20):
        process.encryption_keys([str(n)])
    for second in range(int(INTERVAL * 0.9), int(INTERVAL * 1.1) + 2, 10):
        world.clock.now = START + second
        for n in range(20):
            before = world.metastore.runs
            process.encryption_keys([str(n)])
            if world.metastore.runs > before:
                due.add(second)
    assert len(due) > 5


def test_interval_0_checks_every_time(world: World) -> None:
    process = world.process(check_interval=0)
    for _ in range(3):
        process.encryption_keys(["7"])
    assert world.metastore.runs == 3


def test_a_clock_that_was_set_back_does_not_stop_the_checks(world: World) -> None:
    process = world.process()
    process.encryption_keys(["7"])
    world.clock.now -= 100
    process.encryption_keys(["7"])
    assert world.metastore.runs == 2


def test_after_a_lost_connection_keys_are_checked(world: World) -> None:
    process = world.process()
    process.encryption_keys(["7"])
    process.distrust()
    world.clock.now += 1
    process.encryption_keys(["7"])
    process.encryption_keys(["7"])
    assert world.metastore.runs == 2


def test_enlisted_keys_are_read_for_every_statement(world: World) -> None:
    process = world.process(enlisted=True)
    first = process.encryption_keys(["7", "8"])
    world.table.taken_calls()
    assert process.encryption_keys(["7", "8"]) == first
    assert process.encryption_keys(["7", "8"]) == first
    assert world.table.calls == [("newest", 5), ("newest", 5)]


def test_an_unusable_partition_is_refused_before_anything_is_read(world: World) -> None:
    with pytest.raises(OwnerRequiredError):
        world.process().encryption_keys(["7", ""])
    assert world.table.calls == []


def test_a_batch_larger_than_the_cache_gets_all_its_keys(world: World) -> None:
    process = world.process(cache_size=3)
    keys = process.encryption_keys([str(n) for n in range(10)])
    assert len({bytes(key.secret) for key in keys.values()}) == 10
    assert bytes(32) not in {bytes(key.secret) for key in keys.values()}


# Another process


def test_another_process_finds_the_same_keys(world: World) -> None:
    keys = world.process().encryption_keys(["7", "8"])
    other = world.process()
    assert other.encryption_keys(["7"])["7"].secret == keys["7"].secret
    assert other.decryption_key("8", START).secret == keys["8"].secret
    assert world.kms.calls == ["encrypt", "decrypt"]


def test_the_system_key_is_fetched_once_for_all_partitions(world: World) -> None:
    world.process().encryption_keys(["7", "8", "9"])
    other = world.process()
    world.table.taken_calls()
    for partition in ("7", "8", "9", "8", "7"):
        other.decryption_key(partition, START)
    assert world.table.calls == [("exact", 1)] * 4
    assert world.kms.calls == ["encrypt", "decrypt"]


# Expiry and revocation


def test_an_expired_key_gives_way_and_still_decrypts(world: World) -> None:
    process = world.process()
    old = process.encryption_keys(["7"])["7"]
    world.clock.now += EXPIRE_AFTER + 1
    new = process.encryption_keys(["7"])["7"]
    assert new.created == (START + EXPIRE_AFTER + 1) // 60 * 60
    assert new.parent is not None
    assert old.parent is not None
    assert new.parent.created > old.parent.created
    assert process.decryption_key("7", START) is old
    assert world.process().decryption_key("7", START).secret == old.secret


def test_a_key_that_expires_within_the_interval_gives_way_at_once(world: World) -> None:
    process = world.process(expire_after=1_000)
    process.encryption_keys(["7"])
    world.clock.now += 1_001
    assert process.encryption_keys(["7"])["7"].created > START


def test_an_expired_system_key_makes_a_valid_intermediate_key_give_way(world: World) -> None:
    process = world.process()
    process.encryption_keys(["7"])
    world.clock.now += EXPIRE_AFTER - DAY
    young = process.encryption_keys(["8"])["8"]
    assert world.table.created(SYSTEM_ID) == [START]
    world.clock.now += 2 * DAY
    assert process.encryption_keys(["8"])["8"].created > young.created
    assert len(world.table.created(SYSTEM_ID)) == 2


def test_an_intermediate_key_outlives_the_rotation_of_a_valid_system_key(world: World) -> None:
    process = world.process(check_interval=0)
    key = process.encryption_keys(["7"])["7"]
    world.clock.now += EXPIRE_AFTER - DAY
    world.process(expire_after=EXPIRE_AFTER - 2 * DAY).encryption_keys(["9"])
    assert len(world.table.created(SYSTEM_ID)) == 2
    assert process.encryption_keys(["7"])["7"] is key


@pytest.mark.parametrize("enlisted", [False, True])
def test_a_revoked_key_gives_way_within_its_own_minute(world: World, *, enlisted: bool) -> None:
    process = world.process(check_interval=0, enlisted=enlisted)
    old = process.encryption_keys(["7"])["7"]
    world.table.edit((key_id("7"), START), Revoked=True)
    world.clock.now += 5
    new = process.encryption_keys(["7"])["7"]
    assert (new.created, new.secret == old.secret) == (START + 1, False)
    assert process.decryption_key("7", START).secret == old.secret


def test_a_revoked_system_key_takes_its_intermediate_keys_along(world: World) -> None:
    process = world.process(check_interval=0)
    process.encryption_keys(["7", "8"])
    world.table.edit((SYSTEM_ID, START), Revoked=True)
    keys = process.encryption_keys(["7", "8"])
    assert {key.created for key in keys.values()} == {START + 1}
    assert {key.parent.created for key in keys.values() if key.parent} == {START + 1}
    assert world.table.created(SYSTEM_ID) == [START, START + 1]


def test_a_revocation_seen_for_one_partition_counts_for_all_of_its_system_key(world: World) -> None:
    process = world.process()
    process.encryption_keys(["7"])
    world.table.edit((SYSTEM_ID, START), Revoked=True)
    process.encryption_keys(["8"])
    world.clock.now += 10
    assert process.encryption_keys(["7"])["7"].created == START + 1


def test_keys_from_the_near_future_encrypt_and_later_ones_do_not_count(world: World) -> None:
    ahead = world.process()
    world.clock.now += 300
    key = ahead.encryption_keys(["7"])["7"]
    world.clock.now += 3_600
    far = ahead.encryption_keys(["8"])["8"]
    world.clock.now = START
    process = world.process()
    assert process.encryption_keys(["7"])["7"].secret == key.secret
    assert process.encryption_keys(["8"])["8"].created == START
    assert process.decryption_key("8", far.created).secret == far.secret


# Races between processes


def test_the_loser_of_a_race_takes_the_winners_key(world: World) -> None:
    rival = world.process()
    process = world.process()

    def rival_first(_rows: object) -> None:
        world.table.before_insert = lambda _rows: None
        rival.encryption_keys(["7"])

    world.table.before_insert = rival_first
    key = process.encryption_keys(["7"])["7"]
    assert key.secret == rival.encryption_keys(["7"])["7"].secret
    assert len(world.table.texts) == 2


def test_the_winners_key_may_hang_on_another_system_key(world: World) -> None:
    rival = world.process(check_interval=0)
    process = world.process()
    process.encryption_keys(["1"])

    def rival_first(_rows: object) -> None:
        world.table.before_insert = lambda _rows: None
        world.table.edit((SYSTEM_ID, START), Revoked=True)
        rival.encryption_keys(["7"])

    world.table.before_insert = rival_first
    key = process.encryption_keys(["7"])["7"]
    assert key.parent is not None
    assert key.parent.created == START + 1
    assert key.secret == rival.encryption_keys(["7"])["7"].secret


def test_a_race_lost_against_a_revoked_key_goes_one_second_on(world: World) -> None:
    rival = world.process()
    process = world.process()
    process.encryption_keys(["1"])

    def rival_first(_rows: object) -> None:
        world.table.before_insert = lambda _rows: None
        rival.encryption_keys(["7"])
        world.table.edit((key_id("7"), START), Revoked=True)

    world.table.before_insert = rival_first
    assert process.encryption_keys(["7"])["7"].created == START + 1


def test_after_five_lost_races_it_gives_up(world: World) -> None:
    process = world.process()
    process.encryption_keys(["1"])
    tries = 0

    def always_taken(rows: Sequence[KeyRow]) -> None:
        nonlocal tries
        tries += 1
        rival = World()
        rival.kms = world.kms
        rival.clock.now = world.clock.now
        rival.table.texts = {place: text for place, text in world.table.texts.items() if place[0] == SYSTEM_ID}
        for row in rows:
            rival.clock.now = row.created
            rival.process(precision=0).encryption_keys(["7"])
            rival.table.edit((row.id, row.created), Revoked=True)
            world.table.texts[row.id, row.created] = rival.table.texts[row.id, row.created]

    world.table.before_insert = always_taken
    with pytest.raises(MetastoreError, match="5 tries"):
        process.encryption_keys(["7"])
    assert tries == 5


def test_a_table_that_swallows_rows_is_an_error(world: World) -> None:
    process = world.process()
    world.table.texts = Forgetful()
    with pytest.raises(MetastoreError, match="inserted and is not there"):
        process.encryption_keys(["7"])


class Forgetful(dict[tuple[str, int], str]):
    def setdefault(self, key: tuple[str, int], default: str = "") -> str:
        del key
        return default


# Records that the table lost


def test_a_lost_record_is_inserted_again(world: World, caplog: pytest.LogCaptureFixture) -> None:
    process = world.process(check_interval=0)
    key = process.encryption_keys(["7"])["7"]
    before = dict(world.table.texts)
    del world.table.texts[key_id("7"), START]
    world.clock.now += 600
    with caplog.at_level(logging.ERROR, "sa_asherah"):
        assert process.encryption_keys(["7"])["7"] is key
    assert world.table.texts == before
    assert key.id in caplog.text
    assert key.record.key not in caplog.text


@pytest.mark.parametrize("lost", [[0], [1], [0, 1]])
@pytest.mark.parametrize("enlisted", [False, True])
def test_so_is_the_system_key(world: World, lost: list[int], *, enlisted: bool) -> None:
    process = world.process(check_interval=0, enlisted=enlisted)
    keys = process.encryption_keys(["7", "8"])
    places = [(SYSTEM_ID, START), (key_id("7"), START)]
    for n in lost:
        del world.table.texts[places[n]]
    world.clock.now += 600
    assert process.encryption_keys(["7"])["7"] is keys["7"]
    assert set(places) < set(world.table.texts)
    other = world.process()
    assert other.decryption_key("7", START).secret == keys["7"].secret
    assert other.decryption_key("8", START).secret == keys["8"].secret


def test_an_older_record_does_not_replace_the_lost_one(world: World) -> None:
    process = world.process(check_interval=0)
    process.encryption_keys(["7"])
    world.table.edit((key_id("7"), START), Revoked=True)
    newest = process.encryption_keys(["7"])["7"]
    world.table.edit((key_id("7"), START), Revoked=None)
    del world.table.texts[newest.id, newest.created]
    assert process.encryption_keys(["7"])["7"] is newest


def test_a_lost_record_whose_system_key_was_replaced_is_not_inserted_again(world: World) -> None:
    process = world.process(check_interval=0)
    old = process.encryption_keys(["7"])["7"]
    world.table.texts.clear()
    world.process().encryption_keys(["8"])
    new = process.encryption_keys(["7"])["7"]
    assert new.secret != old.secret
    assert world.process().decryption_key("7", new.created).secret == new.secret


def test_the_record_of_another_key_in_the_place_of_a_lost_one_wins(world: World) -> None:
    process = world.process(check_interval=0)
    old = process.encryption_keys(["7"])["7"]
    process.row_keys["reader"] = {b"head": object()}
    world.table.texts.clear()
    other = world.process().encryption_keys(["7"])["7"]
    new = process.encryption_keys(["7"])["7"]
    assert new.secret == other.secret != old.secret
    assert process.row_keys == {"reader": {}}
    assert process.decryption_key("7", START) is new


def test_a_rewrapped_system_key_stays_the_same_key(world: World) -> None:
    process = world.process(check_interval=0)
    key = process.encryption_keys(["7"])["7"]
    assert key.parent is not None
    rewrapped = base64.b64encode(world.kms.encrypt_key(bytes(key.parent.secret))).decode()
    world.table.edit((SYSTEM_ID, START), Key=rewrapped)
    world.kms.calls.clear()
    for _ in range(3):
        assert process.encryption_keys(["7"])["7"] is key
    assert world.kms.calls == ["decrypt"]
    assert world.process().decryption_key("7", START).secret == key.secret


def test_a_lost_system_key_that_does_not_open_the_record_is_not_inserted_again(world: World) -> None:
    process = world.process(check_interval=0, enlisted=True)
    process.encryption_keys(["7"])
    world.table.texts.clear()
    other = world.process().encryption_keys(["8"])["8"]
    del world.table.texts[SYSTEM_ID, START]
    key = process.encryption_keys(["8"])["8"]
    assert key.secret != other.secret
    assert key.created > other.created


# Outages


def test_cached_keys_outlive_an_outage_of_the_key_table_for_a_while(world: World) -> None:
    process = world.process(max_stale=7_200)
    key = process.encryption_keys(["7"])["7"]
    world.metastore.is_down = True
    world.clock.now = START + INTERVAL + 7_200
    assert process.encryption_keys(["7"])["7"] is key
    with pytest.raises(MetastoreUnavailableError):
        process.encryption_keys(["8"])
    world.clock.now += 20
    with pytest.raises(MetastoreUnavailableError):
        process.encryption_keys(["7"])
    world.metastore.is_down = False
    assert process.encryption_keys(["7"])["7"] is key


def test_an_outage_is_not_asked_about_for_every_statement(world: World) -> None:
    process = world.process()
    process.encryption_keys(["7"])
    world.metastore.is_down = True
    world.clock.now += INTERVAL * 2
    for _ in range(5):
        process.encryption_keys(["7"])
    assert world.metastore.runs == 2
    world.clock.now += 11
    world.metastore.is_down = False
    process.encryption_keys(["7"])
    assert world.metastore.runs == 3


def test_a_revoked_key_does_not_outlive_an_outage(world: World) -> None:
    process = world.process()
    process.encryption_keys(["7"])
    world.table.edit((SYSTEM_ID, START), Revoked=True)
    process.encryption_keys(["8"])
    world.metastore.is_down = True
    with pytest.raises(MetastoreUnavailableError):
        process.encryption_keys(["7"])


def test_an_outage_of_the_kms_does_not_touch_cached_keys(world: World) -> None:
    process = world.process(check_interval=0)
    process.encryption_keys(["7"])
    world.kms.is_down = True
    world.clock.now += 30 * DAY
    process.encryption_keys(["7", "8", "9"])


def test_an_expired_key_encrypts_on_while_no_successor_can_be_made(world: World) -> None:
    process = world.process(rotation_grace=DAY)
    key = process.encryption_keys(["7"])["7"]
    world.kms.is_down = True
    world.clock.now += EXPIRE_AFTER + DAY
    assert process.encryption_keys(["7"])["7"] is key
    new_owner = process.encryption_keys(["8"])["8"]
    assert new_owner.parent is key.parent
    world.clock.now += 20
    with pytest.raises(KeyExpiredError) as caught:
        process.encryption_keys(["7"])
    assert isinstance(caught.value.__cause__, KmsUnavailableError)
    world.kms.is_down = False
    assert process.encryption_keys(["7"])["7"].created > START


def test_in_grace_the_kms_is_not_asked_for_every_statement(world: World) -> None:
    process = world.process()
    process.encryption_keys(["7"])
    world.kms.is_down = True
    world.kms.calls.clear()
    world.clock.now += EXPIRE_AFTER + 1
    for _ in range(5):
        process.encryption_keys(["7"])
    assert world.kms.calls == ["encrypt"]


def test_grace_is_not_for_revoked_keys(world: World) -> None:
    process = world.process(check_interval=0)
    process.encryption_keys(["7"])
    world.table.edit((SYSTEM_ID, START), Revoked=True)
    world.kms.is_down = True
    with pytest.raises(KeyExpiredError, match="revoked"):
        process.encryption_keys(["7"])


def test_a_process_that_may_not_make_system_keys_waits_for_the_officer(world: World) -> None:
    process = world.process(create_system_keys=False)
    with pytest.raises(KeyExpiredError, match="officer"):
        process.encryption_keys(["7"])
    world.process().encryption_keys(["1"])
    process.encryption_keys(["7"])
    world.clock.now += EXPIRE_AFTER + 1
    world.kms.calls.clear()
    process.encryption_keys(["7"])
    world.clock.now += DAY
    with pytest.raises(KeyExpiredError, match="officer"):
        process.encryption_keys(["7"])
    assert "encrypt" not in world.kms.calls


def test_without_any_key_the_kms_error_says_what_is_wrong(world: World) -> None:
    world.kms.is_down = True
    with pytest.raises(KmsUnavailableError):
        world.process().encryption_keys(["7"])
    assert world.table.texts == {}


# Reading


def test_a_missing_key_is_named_and_found_once_it_is_back(world: World) -> None:
    world.process().encryption_keys(["7"])
    lost = dict(world.table.texts)
    process = world.process()
    for place in ((key_id("7"), START), (SYSTEM_ID, START)):
        del world.table.texts[place]
        with pytest.raises(KeyNotFoundError, match=f"{place[0]}.*{place[1]}"):
            process.decryption_key("7", START)
        world.table.texts.update(lost)
        world.clock.now += 11
    process.decryption_key("7", START)
    assert ("insert", 1) not in world.table.taken_calls()[5:]


def test_expired_and_revoked_keys_decrypt(world: World) -> None:
    key = world.process().encryption_keys(["7"])["7"]
    world.table.edit((key_id("7"), START), Revoked=True)
    world.table.edit((SYSTEM_ID, START), Revoked=True)
    world.clock.now += 2 * EXPIRE_AFTER
    assert world.process().decryption_key("7", START).secret == key.secret


def test_a_key_of_another_partition_is_never_given(world: World) -> None:
    process = world.process()
    keys = process.encryption_keys(["7", "70"])
    assert process.decryption_key("7", START) is keys["7"]
    assert process.decryption_key("70", START) is keys["70"]


def test_reloading_finds_the_same_key_or_its_successor_in_place(world: World) -> None:
    process = world.process()
    key = process.encryption_keys(["7"])["7"]
    assert process.reload(key) is key
    world.table.texts.clear()
    world.process().encryption_keys(["7"])
    process.row_keys["reader"] = {b"head": object()}
    other = process.reload(key)
    assert other.secret != key.secret
    assert process.decryption_key("7", START) is other
    assert process.row_keys == {"reader": {}}


def test_reloading_a_key_that_is_gone_drops_it(world: World) -> None:
    process = world.process()
    key = process.encryption_keys(["7"])["7"]
    world.table.texts.clear()
    with pytest.raises(KeyNotFoundError):
        process.reload(key)
    with pytest.raises(KeyNotFoundError):
        process.decryption_key("7", START)


def test_a_system_key_that_was_rolled_back_does_not_stop_reading(world: World) -> None:
    process = world.process(enlisted=True)
    process.encryption_keys(["7"])
    world.table.texts.clear()
    other = world.process().encryption_keys(["8"])["8"]
    assert process.decryption_key("8", START).secret == other.secret


# The end


def test_closing_drops_the_keys_and_refuses_new_work(world: World) -> None:
    process = world.process()
    key = process.encryption_keys(["7"])["7"]
    process.row_keys["reader"] = {b"head": object()}
    process.close()
    process.close()
    assert process.row_keys == {"reader": {}}
    assert world.metastore.is_closed
    assert bytes(key.secret) != bytes(32)
    with pytest.raises(UsageError, match="closed"):
        process.encryption_keys(["7"])
    with pytest.raises(UsageError, match="closed"):
        process.decryption_key("7", START)


def test_nothing_secret_in_its_text(world: World) -> None:
    process = world.process()
    key = process.encryption_keys(["7"])["7"]
    assert repr(process) == f"<Hierarchy of {IDS.system_key_id()!r}>"
    assert key.record.key not in repr(vars(process))
    with pytest.raises(TypeError):
        pickle.dumps(process)
    assert isinstance(process, Hierarchy)
