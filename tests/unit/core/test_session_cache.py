# SPDX-License-Identifier: Apache-2.0
"""What sessions have of their own: lent, kept for the next one, bounded in number and time, wiped."""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING, Any

import pytest

from sa_asherah.core.session_cache import Lease, SessionCache
from sa_asherah.errors import UsageError
from tests.unit.core.fakes import START, World

if TYPE_CHECKING:
    from sa_asherah.core.hierarchy import Hierarchy


class Lender:
    """A hierarchy whose sessions share no intermediate keys, with a cache of sessions."""

    def __init__(self, **policy: Any) -> None:
        settings: dict[str, Any] = {
            "shared_intermediate_keys": False,
            "session_cache": True,
            "session_cache_duration": 100,
        }
        self.world = World()
        self.root = self.world.process(**(settings | policy))
        self.cache = SessionCache(self.root.policy)

    def lend(self, partition: str) -> Lease:
        """Lend for a session that uses its key at once."""
        lease = self.cache.lend(self.root, partition)
        lease.hierarchy.encryption_keys([partition])
        return lease

    def use(self, partition: str) -> Hierarchy:
        """Open and close a session."""
        lease = self.lend(partition)
        lease.end()
        return lease.hierarchy


def number_of_keys(hierarchy: Hierarchy) -> int:
    return len(hierarchy._keyring.intermediate)


def test_sessions_that_share_keys_get_the_hierarchy_itself() -> None:
    lender = Lender(shared_intermediate_keys=True)
    lease = lender.lend("7")
    assert lease.hierarchy is lender.root
    lease.end()
    lender.cache.clear()
    assert number_of_keys(lender.root) == 1


def test_the_next_session_of_a_partition_finds_the_keys_of_the_last_one() -> None:
    lender = Lender()
    first = lender.use("7")
    runs = lender.world.metastore.runs
    assert lender.use("7") is first
    assert lender.world.metastore.runs == runs
    assert lender.use("8") is not first


def test_sessions_at_the_same_time_share_what_is_kept() -> None:
    lender = Lender()
    first, second = lender.lend("7"), lender.lend("7")
    assert first.hierarchy is second.hierarchy
    first.end()
    assert number_of_keys(second.hierarchy) == 1


def test_without_a_session_cache_each_session_has_its_own_and_leaves_nothing() -> None:
    lender = Lender(session_cache=False)
    first, second = lender.lend("7"), lender.lend("7")
    assert first.hierarchy is not second.hierarchy
    first.end()
    assert (number_of_keys(first.hierarchy), number_of_keys(second.hierarchy)) == (0, 1)


def test_the_least_recently_used_partition_goes_first_and_its_keys_are_wiped() -> None:
    lender = Lender(session_cache_size=2)
    one, two = lender.use("1"), lender.use("2")
    assert lender.use("1") is one
    three = lender.use("3")
    assert [number_of_keys(each) for each in (one, two, three)] == [1, 0, 1]
    assert len(lender.cache._kept) == 2


def test_what_is_dropped_while_a_session_uses_it_goes_with_the_last_session() -> None:
    lender = Lender(session_cache_size=1)
    first, second = lender.lend("7"), lender.lend("7")
    lender.use("8")
    first.end()
    first.end()
    assert number_of_keys(second.hierarchy) == 1
    second.end()
    assert number_of_keys(second.hierarchy) == 0


@pytest.mark.parametrize("moment", [101, -1])
def test_what_was_not_used_for_long_goes_and_a_clock_that_was_set_back_keeps_nothing(moment: float) -> None:
    lender = Lender()
    first = lender.use("7")
    lender.world.clock.now += moment
    lender.use("8")
    assert number_of_keys(first) == 0
    assert lender.use("7") is not first


def test_the_time_counts_from_the_last_sessions_end() -> None:
    lender = Lender()
    first = lender.lend("7")
    lender.world.clock.now += 100
    first.end()
    lender.world.clock.now += 100
    assert lender.use("7") is first.hierarchy


def test_a_session_that_was_forgotten_counts_as_closed() -> None:
    lender = Lender(session_cache=False)
    branch = lender.lend("7").hierarchy
    gc.collect()
    assert number_of_keys(branch) == 0


def test_clearing_wipes_what_running_sessions_have_too() -> None:
    lender = Lender(session_cache_size=1)
    running, kept = lender.lend("7"), lender.use("8")
    lender.root.close()
    lender.cache.clear()
    assert [number_of_keys(each) for each in (running.hierarchy, kept)] == [0, 0]
    with pytest.raises(UsageError, match="closed"):
        running.hierarchy.decryption_key("7", START)
    running.end()


def test_the_end_of_a_forgotten_session_may_come_at_any_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Garbage collection ends sessions in the middle of the cache's own work."""
    lender = Lender(session_cache_size=3)
    leases = [lender.lend(partition) for partition in "123"]
    lender.world.clock.now += 101
    clock = lender.root.policy.clock
    drop = lender.root.drop

    def drop_and_end(branch: Hierarchy) -> None:
        if leases:
            leases.pop().end()
        drop(branch)

    monkeypatch.setattr(lender.root, "drop", drop_and_end)
    lender.cache._kept["1"].users = 0  # as if the first one's session were over
    for partition in "4567":
        lender.use(partition)
    assert len(lender.cache._kept) == 3
    assert all(branch.used == clock() for branch in lender.cache._kept.values())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_gets_a_free_lock() -> None:
    lender = Lender()
    lender.use("7")
    with lender.cache._lock:
        child = os.fork()
        if child == 0:
            lender.use("8")
            os._exit(0 if len(lender.cache._kept) == 2 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
