# SPDX-License-Identifier: Apache-2.0
"""More owners than the cache holds: memory does not grow, and keys that left it are overwritten."""

from __future__ import annotations

import json
import subprocess

import pytest
from sqlalchemy import create_engine

from tests.endurance.process import command
from tests.endurance.programs import crowd
from tests.transactions.programs.notes import Base, asherah

pytestmark = pytest.mark.filterwarnings("ignore::sa_asherah.StaticKeyWarning")

TOLERANCE = 2_048
"""KiB: what the interpreter's arenas come and go by."""


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "seconds", [pytest.param(60, marks=pytest.mark.long), pytest.param(600, marks=pytest.mark.nightly)]
)
def test_memory_is_flat_and_dropped_keys_are_wiped(postgresql_url: str, seconds: int) -> None:
    engine = create_engine(postgresql_url)
    asherah().create_metastore(engine)
    Base.metadata.create_all(engine)
    engine.dispose()
    done = subprocess.run(
        command(crowd, postgresql_url, seconds),
        capture_output=True,
        check=True,
        text=True,
    )
    report = json.loads(done.stdout)
    rounds = report["memory"]
    assert report["largest"] == crowd.CACHE
    # The look into memory sees the keys that are there.
    assert report["present"] == crowd.CACHE * len(rounds)
    assert (report["dropped"], report["closed"]) == (0, 0)
    half = len(rounds) // 2
    assert max(rounds[half:]) <= max(rounds[:half]) + TOLERANCE, rounds
