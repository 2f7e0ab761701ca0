# SPDX-License-Identifier: Apache-2.0
"""The throttle: an average over time, a pause while a replica is behind, and leases kept meanwhile."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sa_asherah.reencrypt.throttle import MAX_LAG, Throttle


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


@given(st.lists(st.integers(1, 500), min_size=2, max_size=30), st.floats(0.5, 5000))
def test_on_average_no_more_rows_than_allowed(batches: list[int], rate: float) -> None:
    clock = Clock()
    throttle = Throttle(rate, clock=clock, wait=clock.wait)
    for rows in batches:
        throttle.admit(rows, lambda: None, 20)
    assert clock.now >= sum(batches[:-1]) / rate * 0.999


def test_without_limits_nobody_waits() -> None:
    clock = Clock()
    Throttle(clock=clock, wait=clock.wait).admit(10**6, lambda: None, 20)
    assert clock.now == 0


def test_leases_are_kept_while_waiting() -> None:
    clock = Clock()
    throttle = Throttle(1, clock=clock, wait=clock.wait)
    kept: list[float] = []
    throttle.admit(100, lambda: kept.append(clock.now), 20)
    throttle.admit(1, lambda: kept.append(clock.now), 20)
    assert clock.now == 100
    assert len(kept) >= 4
    assert max(after - before for before, after in zip([0.0, *kept], [*kept, clock.now], strict=True)) <= 20


def test_it_pauses_while_a_replica_is_behind() -> None:
    clock = Clock()
    lags = iter([MAX_LAG * 3, MAX_LAG + 1, MAX_LAG])
    Throttle(lag=lambda: next(lags), clock=clock, wait=clock.wait).admit(1, lambda: None, 20)
    assert clock.now == 2
