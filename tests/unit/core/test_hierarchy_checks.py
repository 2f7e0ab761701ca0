# SPDX-License-Identifier: Apache-2.0
"""Keys in memory: looked at again, used on in an outage, not looked for twice, left out of memory."""

from __future__ import annotations

import base64
import logging
import math
import threading
from typing import TYPE_CHECKING

import pytest

from sa_asherah.core.flight import Flights
from sa_asherah.core.hierarchy import Hierarchy
from sa_asherah.core.policy import CryptoPolicy
from sa_asherah.errors import (
    ConfigurationError,
    KeyNotFoundError,
    KeyRecordError,
    MetastoreUnavailableError,
    UsageError,
)
from tests.unit.core.fakes import DAY, EXPIRE_AFTER, IDS, INTERVAL, START, SYSTEM_ID, FakeMetastore, World, key_id

if TYPE_CHECKING:
    from collections.abc import Collection


@pytest.fixture
def world() -> World:
    """Two owners' keys are in the table."""
    world = World()
    world.process().encryption_keys(["7", "8"])
    world.table.taken_calls()
    world.kms.calls.clear()
    return world


# Looking again


def test_a_key_that_only_decrypts_is_looked_at_every_interval(world: World) -> None:
    process = world.process()
    key = process.decryption_key("7", START)
    calls = len(world.table.calls)
    world.clock.now += INTERVAL * 0.9 - 1
    assert process.decryption_key("7", START) is key
    assert len(world.table.calls) == calls
    world.clock.now += INTERVAL * 0.2 + 2
    assert process.decryption_key("7", START) is key
    assert world.table.calls[calls:] == [("exact", 2)]
    assert process.decryption_key("7", START) is key
    assert len(world.table.calls) == calls + 1
    assert world.kms.calls == ["decrypt"]


def test_interval_0_looks_every_time_and_at_one_key_only(world: World) -> None:
    process = world.process(check_interval=0)
    process.decryption_key("7", START)
    process.decryption_key("8", START)
    world.table.taken_calls()
    for _ in range(3):
        process.decryption_key("7", START)
    assert world.table.calls == [("exact", 2)] * 3


def test_a_thousand_keys_share_one_query(world: World) -> None:
    owners = [str(n) for n in range(1_500)]
    process = world.process(cache_size=2_000)
    process.encryption_keys(owners)
    world.clock.now += INTERVAL * 1.2
    world.table.taken_calls()
    for owner in owners:
        process.decryption_key(owner, START)
    assert world.table.calls == [("exact", 1_001), ("exact", 501)]


def test_a_revocation_seen_by_a_reader_stops_encryption_at_once(world: World) -> None:
    process = world.process()
    old = process.encryption_keys(["7"])["7"]
    world.clock.now += 5
    world.table.edit((key_id("7"), START), Revoked=True)
    assert process.encryption_keys(["7"])["7"] is old
    old.look_again = world.clock.now  # a reader's turn comes before the writer's
    assert process.decryption_key("7", START).revoked
    assert process.encryption_keys(["7"])["7"].created == START + 1
    assert process.decryption_key("7", START) is old


def test_a_revoked_system_key_is_seen_by_a_reader_even_if_it_left_the_memory(world: World) -> None:
    process = world.process()
    key = process.decryption_key("7", START)
    process._keyring.system.clear()
    world.table.edit((SYSTEM_ID, START), Revoked=True)
    world.clock.now += INTERVAL * 1.2
    assert process.decryption_key("7", START) is key
    assert key.revoked
    assert world.kms.calls == ["decrypt"]


def test_a_look_empties_the_readers_data_row_keys(world: World) -> None:
    process = world.process()
    process.decryption_key("7", START)
    process.row_keys["reader"] = {b"head": object()}
    world.clock.now += INTERVAL * 1.2
    process.decryption_key("7", START)
    assert process.row_keys == {"reader": {}}


def test_readers_do_not_use_data_row_keys_for_long_without_a_look(world: World) -> None:
    process = world.process()
    known = process.row_keys.setdefault("reader", {})
    process.before_reading()
    known[b"head"] = object()
    world.clock.now += INTERVAL / 10 - 1
    process.before_reading()
    assert known
    world.clock.now += 2
    process.before_reading()
    assert not known
    known[b"head"] = object()
    world.clock.now -= 10
    process.before_reading()
    assert not known


def test_a_key_whose_record_is_gone_decrypts_on_and_that_is_told(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    process = world.process()
    key = process.decryption_key("7", START)
    del world.table.texts[key_id("7"), START]
    world.clock.now += INTERVAL * 1.2
    with caplog.at_level(logging.ERROR, "sa_asherah"):
        assert process.decryption_key("7", START) is key
    assert f"{key_id('7')} created {START} is gone" in caplog.text


def test_another_key_in_the_place_of_one_takes_over(world: World) -> None:
    process = world.process()
    old = process.decryption_key("7", START)
    world.table.texts.clear()
    other = world.process().encryption_keys(["7"])["7"]
    world.clock.now += INTERVAL * 1.2
    assert process.decryption_key("7", START).secret == other.secret != old.secret


@pytest.mark.parametrize("enlisted", [False, True])
def test_another_key_in_the_place_of_one_may_have_another_system_key(world: World, *, enlisted: bool) -> None:
    # Seen in a random history: the row was lost and made again under the system key that came after a revocation.
    reader = world.process(enlisted=enlisted)
    key = reader.decryption_key("7", START)
    reader.decryption_key("8", START)
    del world.table.texts[key_id("7"), START]
    world.table.edit((SYSTEM_ID, START), Revoked=True)
    other = world.process(enlisted=enlisted).encryption_keys(["7"])["7"]
    assert other.created == START
    assert other.parent is not None
    assert other.parent.created == START + 1
    world.clock.now += INTERVAL * 1.2
    assert reader.decryption_key("8", START).id == key_id("8")
    now = reader.decryption_key("7", START)
    assert (now is key, now.has_same_secret(other)) == (False, True)


def test_a_bad_record_stops_its_own_reader_only(world: World) -> None:
    process = world.process()
    process.decryption_key("7", START)
    good = process.decryption_key("8", START)
    world.table.edit((key_id("7"), START), Bind="A" * 43 + "=")
    world.clock.now += INTERVAL * 1.2
    assert process.decryption_key("8", START) is good
    with pytest.raises(KeyRecordError):
        process.decryption_key("7", START)


@pytest.mark.parametrize("writes", [False, True])
def test_a_system_key_wrapped_anew_is_no_reason_to_need_the_key_service(world: World, *, writes: bool) -> None:
    process = world.process()
    key = process.encryption_keys(["7"])["7"]
    assert key.parent is not None
    rewrapped = base64.b64encode(world.kms.encrypt_key(bytes(key.parent.secret))).decode()
    world.table.edit((SYSTEM_ID, START), Key=rewrapped)
    world.kms.is_down = True
    world.clock.now += INTERVAL * 1.2
    assert (process.encryption_keys(["7"])["7"] if writes else process.decryption_key("7", START)) is key


def test_a_system_key_wrapped_anew_may_be_revoked_all_the_same(world: World) -> None:
    process = world.process(check_interval=0, rotation_grace=0)
    key = process.encryption_keys(["7"])["7"]
    assert key.parent is not None
    rewrapped = base64.b64encode(world.kms.encrypt_key(bytes(key.parent.secret))).decode()
    world.table.edit((SYSTEM_ID, START), Key=rewrapped, Revoked=True)
    assert process.encryption_keys(["7"])["7"].created == START + 1


# Outages


def test_readers_use_keys_on_while_the_key_table_cannot_be_read_and_not_for_ever(world: World) -> None:
    process = world.process(max_stale=7_200)
    key = process.decryption_key("7", START)
    world.metastore.is_down = True
    world.clock.now = START + INTERVAL + 7_200
    runs = world.metastore.runs
    for _ in range(5):
        assert process.decryption_key("7", START) is key
    assert world.metastore.runs == runs + 1
    world.clock.now += 11
    with pytest.raises(MetastoreUnavailableError):
        process.decryption_key("7", START)
    world.metastore.is_down = False
    assert process.decryption_key("7", START) is key


def test_of_many_readers_that_find_the_key_table_down_one_waits_for_it(world: World) -> None:
    process = world.process()
    key = process.decryption_key("7", START)
    world.clock.now += INTERVAL * 1.2
    runs = world.metastore.runs
    flights, others = process._lookup._flights, []
    asked = threading.Semaphore(0)

    def claim(keys: Collection[str]) -> tuple[set[str], list[threading.Event]]:
        claimed = Flights.claim(flights, keys)
        asked.release()
        return claimed

    threads = [threading.Thread(target=lambda: others.append(process.decryption_key("7", START))) for _ in range(5)]

    def fail() -> None:
        world.metastore.is_down = True
        for thread in threads:
            thread.start()
        assert all(asked.acquire(timeout=10) for _ in range(6)), "not everybody came"

    flights.claim = claim  # type: ignore[method-assign, assignment]
    world.metastore.before_run = fail
    assert process.decryption_key("7", START) is key
    for thread in threads:
        thread.join(10)
    assert others == [key] * 5
    assert world.metastore.runs == runs + 1


def test_after_a_lost_connection_the_next_write_looks_although_the_table_failed_lately(world: World) -> None:
    process = world.process(max_stale=7_200)
    key = process.encryption_keys(["7"])["7"]
    world.metastore.is_down = True
    world.clock.now += INTERVAL * 1.2
    for _ in range(2):
        assert process.encryption_keys(["7"])["7"] is key
    runs = world.metastore.runs
    with pytest.raises(MetastoreUnavailableError):
        process.encryption_keys(["new"])
    assert process.encryption_keys(["7"])["7"] is key
    assert world.metastore.runs == runs + 1
    process.distrust()
    assert process.encryption_keys(["7"])["7"] is key
    assert world.metastore.runs == runs + 2


def test_in_the_callers_transaction_a_reader_needs_no_connection_for_a_key_in_memory(world: World) -> None:
    process = world.process(enlisted=True, max_stale=0)
    key = process.decryption_key("7", START)
    world.metastore.is_down = True
    world.clock.now += 10 * INTERVAL
    runs = world.metastore.runs
    for _ in range(5):
        assert process.decryption_key("7", START) is key
    assert world.metastore.runs == runs + 1


def test_it_is_known_how_long_writing_would_go_on(world: World) -> None:
    process = world.process(max_stale=7_200, rotation_grace=DAY)
    assert process.seconds_until_writes_stop() == math.inf
    process.encryption_keys(["7"])
    assert process.seconds_until_writes_stop() == INTERVAL + 7_200
    world.clock.now += 1_000
    process.encryption_keys(["8"])
    assert process.seconds_until_writes_stop() == INTERVAL + 7_200 - 1_000
    world.metastore.is_down = True
    world.clock.now += INTERVAL * 2
    process.encryption_keys(["7"])
    left = process.seconds_until_writes_stop()
    assert left == INTERVAL + 7_200 - 1_000 - INTERVAL * 2
    world.clock.now += left
    process.encryption_keys(["7"])
    world.clock.now += 11
    assert process.seconds_until_writes_stop() == 0
    with pytest.raises(MetastoreUnavailableError):
        process.encryption_keys(["7"])


def test_an_owner_that_nobody_writes_for_does_not_count(world: World) -> None:
    process = world.process(max_stale=0)
    process.encryption_keys(["7"])
    world.clock.now += 3 * INTERVAL
    process.encryption_keys(["8"])
    assert process.seconds_until_writes_stop() == INTERVAL


def test_in_the_callers_transaction_only_the_keys_age_counts(world: World) -> None:
    process = world.process(enlisted=True, rotation_grace=DAY)
    process.encryption_keys(["7"])
    assert process.seconds_until_writes_stop() == EXPIRE_AFTER + DAY


# Not there


def test_an_unknown_key_is_looked_for_once_in_10_seconds(world: World) -> None:
    process = world.process()
    for _ in range(5):
        with pytest.raises(KeyNotFoundError, match=str(START + 1)):
            process.decryption_key("7", START + 1)
    assert world.metastore.runs == 1
    world.clock.now += 10.1
    with pytest.raises(KeyNotFoundError):
        process.decryption_key("7", START + 1)
    assert world.metastore.runs == 2


def test_but_not_across_a_commit_of_this_process(world: World) -> None:
    process = world.process()
    with pytest.raises(KeyNotFoundError):
        process.decryption_key("new", START)
    key = process.encryption_keys(["new"])["new"]
    process._keyring.intermediate.clear()
    assert process.decryption_key("new", START).secret == key.secret


def test_in_the_callers_transaction_it_is_looked_for_every_time(world: World) -> None:
    process = world.process(enlisted=True)
    for n in range(3):
        with pytest.raises(KeyNotFoundError):
            process.decryption_key("7", START + 1)
        assert world.metastore.runs == n + 1


def test_what_is_not_there_takes_no_more_than_a_bounded_place(world: World) -> None:
    process = world.process()
    for n in range(3_000):
        with pytest.raises(KeyNotFoundError):
            process.decryption_key("7", START + 1 + n)
    assert len(process._outage.absent) <= 1_024


# In memory or not


def test_without_a_cache_of_intermediate_keys_each_use_reads_them(world: World) -> None:
    process = world.process(cache_intermediate_keys=False)
    process.row_keys["reader"] = {b"head": object()}
    for _ in range(2):
        process.encryption_keys(["7"])
        process.decryption_key("7", START)
    assert world.table.calls == [("newest", 3), ("exact", 1)] * 2
    assert world.kms.calls == ["decrypt"]
    assert process.row_keys == {"reader": {}}
    assert len(process._keyring.intermediate) == 0


def test_without_a_cache_of_system_keys_each_new_key_asks_the_key_service(world: World) -> None:
    process = world.process(cache_system_keys=False)
    for _ in range(2):
        process.decryption_key("7", START)
        process.decryption_key("8", START)
        process.encryption_keys(["7", "8"])
    assert world.kms.calls.count("decrypt") >= 2
    assert len(process._keyring.system) == 0
    calls = len(world.kms.calls)
    process.encryption_keys(["7", "8"])
    assert len(world.kms.calls) == calls


def test_simple_eviction_keeps_all(world: World) -> None:
    process = world.process(cache_eviction="simple", cache_size=2)
    process.encryption_keys([str(n) for n in range(10)])
    assert len(process._keyring.intermediate) == 10


def test_keys_that_must_stay_in_memory_cannot_be_left_out_of_it(world: World) -> None:
    metastore = FakeMetastore(world.table, enlisted=True, keeps_all=True)
    with pytest.raises(ConfigurationError, match="cache_intermediate_keys"):
        Hierarchy(IDS, CryptoPolicy(cache_intermediate_keys=False), world.kms, metastore)


def test_a_branch_has_intermediate_keys_of_its_own(world: World) -> None:
    root = world.process(shared_intermediate_keys=False)
    branch = root.branch()
    assert branch.encryption_keys(["7"])["7"].secret == root.encryption_keys(["7"])["7"].secret
    assert world.kms.calls == ["decrypt"]
    assert branch.decryption_key("7", START) is not root.decryption_key("7", START)
    branch.row_keys["reader"] = {b"head": object()}
    root.drop(branch)
    assert len(branch._keyring.intermediate) == 0
    assert branch.row_keys == {"reader": {}}
    assert len(root._keyring.intermediate) == 1


def test_a_branch_shares_counts_outages_and_the_end(world: World) -> None:
    root = world.process(shared_intermediate_keys=False, max_wraps=2)
    branch = root.branch()
    for process in (root, branch):
        process.encryption_keys(["7"])["7"].wrap(bytes(32))
    assert branch.encryption_keys(["7"])["7"].created == START + 1
    root.distrust()
    runs = world.metastore.runs
    world.clock.now += 1
    branch.encryption_keys(["7"])
    assert world.metastore.runs == runs + 1
    root.close()
    with pytest.raises(UsageError, match="closed"):
        branch.encryption_keys(["7"])
    with pytest.raises(UsageError, match="closed"):
        branch.decryption_key("7", START + 1)


def test_what_a_branch_commits_the_others_find_at_once(world: World) -> None:
    root = world.process(shared_intermediate_keys=False)
    reader, writer = root.branch(), root.branch()
    with pytest.raises(KeyNotFoundError):
        reader.decryption_key("new", START)
    key = writer.encryption_keys(["new"])["new"]
    assert reader.decryption_key("new", START).secret == key.secret


def test_a_system_key_of_another_process_is_told_once_whatever_branch_sees_it(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    root = world.process(shared_intermediate_keys=False, check_interval=0)
    root.branch().encryption_keys(["7"])
    world.table.edit((SYSTEM_ID, START), Revoked=True)
    world.process().encryption_keys(["8"])
    for _ in range(3):
        root.branch().encryption_keys(["7"])
    assert caplog.text.count("system_key_appeared") == 1


def test_sessions_that_share_keys_need_no_branch(world: World) -> None:
    root = world.process()
    root.encryption_keys(["7"])
    assert root.branch() is root
    root.drop(root)
    assert len(root._keyring.intermediate) == 1
