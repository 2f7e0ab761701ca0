# SPDX-License-Identifier: Apache-2.0
"""Erasing owners while processes write for them: no key comes back."""

from __future__ import annotations

import json
import os
import subprocess
import time
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from sa_asherah import OwnerErasedError
from sa_asherah.shred import shred
from tests.endurance.process import command
from tests.shred import writer
from tests.shred.scene import errors_of, keys_of, living_keys

if TYPE_CHECKING:
    from collections.abc import Generator

    from tests.integration.records import Process
    from tests.shred.scene import Scene

OWNERS = ("ann", "bob", "cid")
ERASED = OWNERS[:2]


@contextmanager
def writing(scene: Scene, seed: int) -> Generator[list[dict[str, Any]]]:
    """Run a writer, and add what it told when it is over."""
    told: list[dict[str, Any]] = []
    with subprocess.Popen(
        command(writer, scene.url, seed, *OWNERS),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **scene.environ},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield told
        finally:
            out, _ = process.communicate()
            told.append(json.loads(out))


def wait_for_notes(process: Process, number: int) -> None:
    """Wait until the writers have committed some more."""
    before = process.count()
    end = time.monotonic() + 200
    while process.count() < before + number:
        assert time.monotonic() < end, "the writers do not go on"
        time.sleep(0.05)


def lose(process: Process, owner: str) -> None:
    """Delete an owner's keys, as a failover does: processes that hold one put it back."""
    with process.engine.begin() as connection:
        connection.execute(text("DELETE FROM encryption_key WHERE id = :id"), {"id": f"_IK_{owner}_records_clinic"})


@pytest.mark.long
def test_no_key_of_an_erased_owner_comes_back_under_writers_of_the_same_owner(scene: Scene) -> None:
    process = scene.start(clock=time.time, check_interval=timedelta(seconds=1), max_stale=timedelta(0))
    with ExitStack() as stack:
        told = [stack.enter_context(writing(scene, seed)) for seed in range(2)]
        for owner in ERASED:
            wait_for_notes(process, 6)

            def wait(seconds: float, losing: list[str] = [owner]) -> None:  # noqa: B006 # of this turn
                while losing:
                    lose(process, losing.pop())
                time.sleep(seconds)

            receipt = shred(process.engine, process.asherah, owner, wait=wait)
            assert receipt.finished >= receipt.begun + 2
        wait_for_notes(process, 6)
    assert all(one["written"] and one["refused"] for (one,) in told), told
    system_keys = keys_of(process)
    assert [living_keys(system_keys, owner) for owner in ERASED] == [[], []]
    assert len(living_keys(system_keys, "cid")) > 1
    assert list(errors_of(scene.start(), OWNERS)) == [OwnerErasedError, OwnerErasedError, None]
