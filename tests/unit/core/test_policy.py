# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest

from sa_asherah.core.policy import CryptoPolicy
from sa_asherah.errors import ConfigurationError


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
def test_a_new_key_is_not_expired(expire_after: int) -> None:
    policy = CryptoPolicy(expire_after=expire_after)
    for second in range(200):
        assert not policy.is_expired(policy.truncate(second), second)


def test_a_key_expires_after_its_last_second() -> None:
    policy = CryptoPolicy(expire_after=100)
    assert not policy.is_expired(1000, 1100)
    assert policy.is_expired(1000, 1100.001)
    assert not policy.is_expired(2000, 1100)


@pytest.mark.parametrize("name", ["expire_after", "check_interval", "precision", "max_stale", "rotation_grace"])
@pytest.mark.parametrize("seconds", [-1, float("inf"), float("nan")])
def test_times_out_of_range_are_refused(name: str, seconds: float) -> None:
    values: dict[str, Any] = {name: seconds}
    with pytest.raises(ConfigurationError, match=name):
        CryptoPolicy(**values)


@pytest.mark.parametrize(("name", "value"), [("expire_after", 0), ("expire_after", 0.9), ("cache_size", 0)])
def test_values_that_stop_rotation_or_caching_are_refused(name: str, value: float) -> None:
    values: dict[str, Any] = {name: value}
    with pytest.raises(ConfigurationError, match=name):
        CryptoPolicy(**values)


def test_zero_means_every_time() -> None:
    assert CryptoPolicy(check_interval=0, max_stale=0, rotation_grace=0, precision=0).check_interval == 0
