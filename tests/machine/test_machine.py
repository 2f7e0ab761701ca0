# SPDX-License-Identifier: Apache-2.0
"""Histories of many thousand steps on each database; the twins never differ."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RULE_MARKER, run_state_machine_as_test

from tests.machine.machine import TwinMachine
from tests.machine.model import World

STEPS_OF_A_HISTORY = 50
STEPS_OF_ALL_RULES = 5_000
NIGHTLY = (pytest.mark.nightly, pytest.mark.timeout(3 * 3600))
"""Ten times as many steps as in CI."""


@pytest.fixture
def world(request: pytest.FixtureRequest, driver: str) -> Iterator[World]:
    """A database with both twins."""
    url: str = request.getfixturevalue("postgresql_url" if driver == "postgresql" else "sqlite_url")
    world = World(url, begins=driver != "sqlite")
    gc.freeze()
    gc.disable()
    yield world
    gc.enable()
    gc.unfreeze()
    world.close()


@pytest.mark.parametrize(
    ("driver", "steps"),
    [
        pytest.param("sqlite", 5_000, marks=pytest.mark.long),
        pytest.param("sqlite-begin", 5_000, marks=pytest.mark.long),
        pytest.param("postgresql", 1_000, marks=pytest.mark.long),
        pytest.param("sqlite", 50_000, marks=NIGHTLY),
        pytest.param("sqlite-begin", 50_000, marks=NIGHTLY),
        pytest.param("postgresql", 10_000, marks=NIGHTLY),
    ],
)
def test_an_encrypted_column_never_differs_from_a_plain_one(world: World, steps: int) -> None:
    run_state_machine_as_test(
        lambda: TwinMachine(world),  # type: ignore[arg-type] # any callable does
        settings=settings(
            max_examples=steps // STEPS_OF_A_HISTORY * 5 // 2,
            stateful_step_count=STEPS_OF_A_HISTORY,
            deadline=None,
            phases=set(Phase) - {Phase.explain},  # it traces every line
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
        ),
    )
    assert world.steps.total() >= steps
    rules = {name for name, member in vars(TwinMachine).items() if hasattr(member, RULE_MARKER)}
    # In a short run a rare rule, as leaving a savepoint, may find nothing to do.
    assert len(rules - world.steps.keys()) <= (0 if steps >= STEPS_OF_ALL_RULES else 2)
