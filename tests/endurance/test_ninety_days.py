# SPDX-License-Identifier: Apache-2.0
"""Keys that live 4 seconds instead of 90 days, 32 workers in 4 processes: nothing is lost, and no key is made twice.

The clock is the test's: it goes on when every worker has done its work. On a real one a process that stands still for
a second between looking for a key and storing a new one would date it a second late, and two keys would be right.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
import sys
from typing import NamedTuple

import pytest
from sqlalchemy import Text, cast, create_engine, select

from sa_asherah.metastore.table import encryption_key
from tests.endurance.process import command
from tests.endurance.programs import worker
from tests.endurance.programs.worker import EARLY, LIFE, SPREAD, START, STEP, TENANTS, THREADS
from tests.transactions.programs import notes
from tests.transactions.programs.notes import Base, asherah

pytestmark = pytest.mark.filterwarnings("ignore::sa_asherah.StaticKeyWarning")

PROCESSES = 4
SHORTEST = LIFE * (1 - EARLY)
"""A key is replaced no earlier, and its successor's date is rounded down to a whole second."""
LONGEST = LIFE + SPREAD + STEP


class StoredKey(NamedTuple):
    """A row of the key table; `parent` is the date of its system key."""

    id: str
    created: int
    parent: int | None


def stored_keys(url: str) -> list[StoredKey]:
    columns = encryption_key.c
    engine = create_engine(url)
    with engine.connect() as connection:
        rows = connection.execute(select(columns.id, cast(columns.key_record, Text))).all()
    engine.dispose()
    records = [(key_id, json.loads(text)) for key_id, text in rows]
    keys = [(key_id, record["Created"], record.get("ParentKeyMeta", {}).get("Created")) for key_id, record in records]
    return [StoredKey(*key) for key in sorted(keys)]


def run_processes(url: str, steps: int) -> None:
    with contextlib.ExitStack() as stack:
        pipes = [
            stack.enter_context(
                subprocess.Popen(command(worker, url), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            for _ in range(PROCESSES)
        ]
        for step in range(steps):
            for process in pipes:
                assert process.stdin is not None
                process.stdin.write(f"{START + step * STEP}\n")
                process.stdin.flush()
            for process in pipes:
                assert process.stdout is not None
                assert process.stdout.readline() == "done\n"


def assert_no_key_too_many(keys: list[StoredKey], seconds: float) -> None:
    """An owner's key follows the one before when that one's time is up, and once more for each system key."""
    system_keys = [key for key in keys if key.id.startswith("_SK_")]
    assert len(system_keys) >= seconds // LONGEST
    for before, after in itertools.pairwise(system_keys):
        assert after.created - before.created >= SHORTEST, (before, after)
    for _, group in itertools.groupby((key for key in keys if key.id.startswith("_IK_")), key=lambda key: key.id):
        owned = list(group)
        assert len(owned) >= seconds // LONGEST
        early = [pair for pair in itertools.pairwise(owned) if pair[1].created - pair[0].created < SHORTEST]
        assert all(before.parent != after.parent for before, after in early), early
        assert len({after.parent for _, after in early}) == len(early), early


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("kind", "periods"),
    [
        pytest.param("postgresql", 6, marks=pytest.mark.long),
        pytest.param("mariadb", 3, marks=pytest.mark.long),
        pytest.param("sqlite", 3, marks=pytest.mark.long),
        pytest.param("postgresql", 100, marks=pytest.mark.nightly),
        pytest.param("sqlite", 100, marks=pytest.mark.nightly),
    ],
)
def test_every_value_opens_and_keys_are_made_once(request: pytest.FixtureRequest, kind: str, periods: int) -> None:
    url: str = request.getfixturevalue(f"{kind}_url")
    engine = create_engine(url)
    asherah().create_metastore(engine)
    Base.metadata.create_all(engine)
    engine.dispose()
    steps = int(periods * LIFE / STEP)
    run_processes(url, steps)
    keys = stored_keys(url)
    owners = {f"_IK_{tenant}_records_clinic" for tenant in TENANTS}
    assert {key.id for key in keys if key.id.startswith("_IK_")} == owners
    # The last tenant came one period after the first.
    assert_no_key_too_many(keys, (periods - 1) * LIFE)
    read = [sys.executable, notes.__file__, "read", url]
    done = subprocess.run(read, capture_output=True, check=True, text=True, timeout=600)
    assert len(json.loads(done.stdout)) == PROCESSES * THREADS * steps
