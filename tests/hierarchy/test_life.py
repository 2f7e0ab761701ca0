# SPDX-License-Identifier: Apache-2.0
"""Random histories of several processes: nothing gets lost, no key encrypts that may not, no key is made in vain."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.hierarchy.life import EnlistedLife, Life

NIGHTLY = (pytest.mark.nightly, pytest.mark.timeout(3_600))


@pytest.mark.parametrize(
    ("life", "histories"),
    [
        pytest.param(Life, 400, marks=pytest.mark.long),
        pytest.param(EnlistedLife, 200, marks=pytest.mark.long),
        pytest.param(Life, 10_000, marks=NIGHTLY),
        pytest.param(EnlistedLife, 5_000, marks=NIGHTLY),
    ],
)
def test_nothing_is_lost_and_no_key_encrypts_that_may_not(life: type[Life], histories: int) -> None:
    run_state_machine_as_test(
        life,
        settings=settings(
            max_examples=histories,
            stateful_step_count=40,
            deadline=None,
            phases=set(Phase) - {Phase.explain},
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
        ),
    )
