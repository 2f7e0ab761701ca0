# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from typing import Any

import pytest

from sa_asherah.core.policy import CryptoPolicy, share_of_process
from sa_asherah.errors import ConfigurationError

DAY = 86_400
IDS = [f"_IK_{n}_records_clinic" for n in range(50)]
TIMES = [
    "expire_after",
    "check_interval",
    "precision",
    "max_stale",
    "rotation_grace",
    "rotation_spread",
    "session_cache_duration",
]


@pytest.mark.parametrize(
    ("precision", "expire_after", "now", "created"),
    [
        (60, 1000, 125.9, 120),
        (60, 1000, 120.0, 120),
        (0, 1000, 125.9, 125),
        (0.5, 1000, 125.9, 125),
        (1, 1000, 125.9, 125),
        (60, 3, 125.9, 123),
        (60, 1, 125.9, 125),
    ],
)
def test_new_keys_are_dated_by_precision(precision: float, expire_after: float, now: float, created: int) -> None:
    policy = CryptoPolicy(precision=precision, expire_after=expire_after)
    assert policy.truncate(now) == created
    assert type(policy.truncate(now)) is int


@pytest.mark.parametrize("expire_after", [1, 3, 59, 60, 61])
@pytest.mark.parametrize("share", [0, 0.5, 0.999])
def test_a_new_key_is_neither_expired_nor_due(expire_after: int, share: float) -> None:
    policy = CryptoPolicy(expire_after=expire_after, early_rotation=0.5, draw=lambda _id, _created: share)
    for second in range(200):
        created = policy.truncate(second)
        assert not policy.is_expired(created, second)
        assert second <= policy.wraps_until("_SK_s_p", created)
        assert second <= policy.encrypts_until(IDS[0], created, created)


def test_a_key_expires_after_its_last_second() -> None:
    policy = CryptoPolicy(expire_after=100)
    assert not policy.is_expired(1000, 1100)
    assert policy.is_expired(1000, 1100.001)
    assert not policy.is_expired(2000, 1100)


def test_without_spread_and_early_rotation_keys_end_as_in_the_reference() -> None:
    policy = CryptoPolicy(rotation_spread=0, early_rotation=0)
    for key_id in IDS:
        assert policy.wraps_until(key_id, 1000) == 1000 + 90 * DAY
        assert policy.encrypts_until(key_id, 5000, 1000) == 1000 + 90 * DAY
        assert policy.encrypts_until(key_id, 1000, 1000) == 1000 + 90 * DAY


def test_a_process_replaces_each_key_at_a_time_of_its_own_up_to_a_fiftieth_early() -> None:
    policy = CryptoPolicy()
    ends = [policy.wraps_until(key_id, 0) for key_id in IDS]
    assert ends == [policy.wraps_until(key_id, 0) for key_id in IDS]
    assert len(set(ends)) == len(IDS)
    assert all(90 * DAY * 0.98 <= end <= 90 * DAY for end in ends)
    assert max(ends) - min(ends) > DAY


def test_so_does_a_forked_one(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = [share_of_process(key_id, 1) for key_id in IDS]
    assert len({share_of_process(IDS[0], created) for created in range(50)}) == 50
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert all(0 <= share < 1 for share in shares)
    assert not set(shares) & {share_of_process(key_id, 1) for key_id in IDS}


def test_a_process_that_makes_no_system_keys_does_not_replace_them_early() -> None:
    assert CryptoPolicy(create_system_keys=False).wraps_until("_SK_s_p", 7) == 7 + 90 * DAY


def test_intermediate_keys_end_one_after_the_other_when_their_system_key_is_expired() -> None:
    young, ends = 80 * DAY, []
    for key_id in IDS:
        end = CryptoPolicy(early_rotation=0).encrypts_until(key_id, young, 0)
        # Every process says the same, but for the early ones, and none ends before the system key.
        assert 90 * DAY <= CryptoPolicy().encrypts_until(key_id, young, 0) <= end <= 97 * DAY
        ends.append(end)
    assert max(ends) - min(ends) > 5 * DAY
    assert 92 * DAY < sum(ends) / len(ends) < 95 * DAY


def test_the_spread_lets_no_key_live_longer_than_its_own_life() -> None:
    for key_id in IDS:
        assert CryptoPolicy(rotation_spread=1000 * DAY).encrypts_until(key_id, DAY, 0) <= 91 * DAY


def test_grace_counts_from_expiry_and_does_not_shorten_the_spread() -> None:
    policy = CryptoPolicy(rotation_grace=DAY)
    assert policy.wraps_in_grace_until(0) == 91 * DAY
    assert policy.encrypts_in_grace_until(IDS[0], 0, 0) == 91 * DAY
    for key_id in IDS:
        end = policy.encrypts_in_grace_until(key_id, 50 * DAY, 0)
        assert max(91 * DAY, policy.encrypts_until(key_id, 50 * DAY, 0)) <= end <= 97 * DAY


def test_checks_are_spread_over_a_fifth_of_the_interval_and_staleness_counts_from_the_full_one() -> None:
    policy = CryptoPolicy(check_interval=100, max_stale=50)
    assert [policy.next_check(1000, share) for share in (0, 0.5, 1)] == pytest.approx([1090, 1100, 1110])
    assert policy.stale_until(1000) == 1150
    assert CryptoPolicy(check_interval=0).next_check(1000, 1) == 1000


def test_the_size_of_a_cache_follows_from_its_switches() -> None:
    assert (CryptoPolicy().system_limit, CryptoPolicy().intermediate_limit) == (1000, 1000)
    assert CryptoPolicy(cache_eviction="simple").intermediate_limit is None
    off = CryptoPolicy(cache_system_keys=False, cache_intermediate_keys=False, cache_eviction="simple")
    assert (off.system_limit, off.intermediate_limit) == (0, 0)


@pytest.mark.parametrize("name", TIMES)
@pytest.mark.parametrize("seconds", [-1, float("inf"), float("nan")])
def test_times_out_of_range_are_refused(name: str, seconds: float) -> None:
    values: dict[str, Any] = {name: seconds}
    with pytest.raises(ConfigurationError, match=name):
        CryptoPolicy(**values)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("expire_after", 0),
        ("expire_after", 0.9),
        ("cache_size", 0),
        ("session_cache_size", 0),
        ("max_wraps", 0),
        ("early_rotation", 1),
        ("early_rotation", -0.1),
        ("early_rotation", float("nan")),
        ("cache_eviction", "slru"),
        ("cache_eviction", "tinylfu"),
        ("cache_eviction", "LRU"),
    ],
)
def test_values_that_stop_rotation_or_caching_are_refused(name: str, value: float) -> None:
    values: dict[str, Any] = {name: value}
    with pytest.raises(ConfigurationError, match=name):
        CryptoPolicy(**values)


def test_zero_means_every_time() -> None:
    assert CryptoPolicy(check_interval=0, max_stale=0, rotation_grace=0, precision=0).check_interval == 0
