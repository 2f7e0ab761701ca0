# SPDX-License-Identifier: Apache-2.0
"""An epoch while other processes write for owners old and new: backups open nothing, and the living lose nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from sa_asherah import KmsCiphertextError, MetastoreUnavailableError, OwnerErasedError
from sa_asherah.core.rewrap import Renewal
from sa_asherah.shred.epoch import Epoch, State
from tests.cli.site import BASE, run
from tests.endurance.process import command
from tests.integration.records import Note
from tests.shred import creator
from tests.shred.creator import CLOCKED
from tests.shred.scene import errors_of, keys_of

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from tests.integration.records import Process
    from tests.shred.scene import Scene


class Creator:
    """A process that makes owners, and what it says."""

    def __init__(self, scene: Scene, name: str, file: Path, pause: float) -> None:
        self.file = file
        self.process = subprocess.Popen(
            command(creator, scene.url, name, file, pause),
            stdin=subprocess.PIPE,
            env={**os.environ, **scene.environ},
        )

    def count(self) -> int:
        """Count the notes that it has committed."""
        return self.file.read_text(encoding="utf-8").count("\n") if self.file.exists() else 0

    def end(self) -> tuple[list[list[str]], list[str]]:
        """End it; return its notes, and what failed."""
        self.process.communicate()
        *notes, errors = map(json.loads, self.file.read_text(encoding="utf-8").splitlines())
        return notes, errors


class Life:
    """Creators, and an operator who ends an epoch meanwhile."""

    def __init__(self, scene: Scene, creators: list[Creator], process: Process, tmp_path: Path) -> None:
        self.scene = scene
        self.creators = creators
        self.process = process
        self.export = tmp_path / "second-place.jsonl"
        self.steps: Counter[int] = Counter()

    def goes_on(self, notes: int) -> None:
        """Wait until every creator has committed some more notes."""
        before = [one.count() for one in self.creators]
        end = time.monotonic() + 200
        while any(one.count() < start + notes for one, start in zip(self.creators, before, strict=True)):
            assert time.monotonic() < end, "a creator does not go on"
            time.sleep(0.02)

    def end_epoch(self, notes: int) -> None:
        """End an epoch, with so many notes of each creator between any two steps and a rewrap after step 4."""
        process = self.process
        running = Epoch(
            process.engine, process.asherah, self.scene.environ["VAULT_TRANSIT_KEY"], soak=timedelta(seconds=1)
        )
        original: Any = running._save

        def save(row: Any, state: State) -> None:
            original(row, state)
            self.steps[state.step] += 1
            self.goes_on(notes)
            if state.step == 4:
                self._rewrap(state)

        running._save = save  # type: ignore[method-assign]
        state = running.state() or running.run()
        while state.step < 9:
            time.sleep(max(0.0, state.until - time.time()))
            state = running.run(snapshot_taken=True, export=self.export, trim=True)

    def _rewrap(self, state: State) -> None:
        environ = {**BASE, **self.scene.environ, "KMS": "vault", "ASHERAH_DATABASE_URL": self.scene.url}
        refused = run(environ, "vault", "rewrap")
        assert (refused.status, "an epoch is being ended" in refused.err) == (2, True)
        # One that began before the epoch, and so was not refused.
        kms: Any = self.process.kms
        system_keys = keys_of(self.process)
        report = Renewal(system_keys.ids, system_keys.metastore, kms, kms.rewrap_key).run(system_keys.events)
        assert report.skipped >= len(state.old)
        assert report.is_complete


@contextmanager
def living(scene: Scene, tmp_path: Path, number: int, pause: float, tolerated: tuple[str, ...] = ()) -> Generator[Life]:
    """Erase an owner and let others live; in the end each note that was committed is read."""
    process = scene.start(clock=time.time, **CLOCKED)
    notes = [["old", process.write("old")], ["bob", process.write("bob")]]
    process.write("ann")
    before = scene.dump()
    with scene.shred(process, "ann") as shredding:
        pending = shredding.begin()
        time.sleep(max(0.0, pending.until - time.time()))
        shredding.finish()
    errors: list[str] = []
    with ExitStack() as stack:
        creators = [Creator(scene, f"new{n}", tmp_path / f"notes {n}", pause) for n in range(number)]
        for one in creators:
            stack.callback(one.process.kill)
        life = Life(scene, creators, process, tmp_path)
        life.goes_on(3)
        yield life
        life.goes_on(3)
        for one in creators:
            committed, failed = one.end()
            notes += committed
            errors += failed
    assert not [error for error in errors if not error.startswith(tolerated)]
    fresh = scene.start(clock=time.time)
    assert stored(fresh) == Counter(map(tuple, notes))
    assert list(errors_of(fresh, ["ann"])) == [OwnerErasedError]
    today = scene.dump()
    scene.restore(before)
    assert set(errors_of(scene.start(clock=time.time), ["ann", "bob", "old"])) == {KmsCiphertextError}
    # The data of before with today's key table.
    scene.restore(today)
    assert list(errors_of(scene.start(clock=time.time), ["ann", "bob", "old"])) == [OwnerErasedError, None, None]


def stored(process: Process) -> Counter[tuple[str, str | None]]:
    """Read the notes of all owners but the erased one."""
    with Session(process.engine) as session:
        found = session.execute(select(Note.tenant, Note.text).where(Note.tenant != "ann"))
        return Counter((tenant, text) for tenant, text in found)


@pytest.mark.long
def test_an_epoch_under_processes_that_make_owners_through_every_step(scene: Scene, tmp_path: Path) -> None:
    with living(scene, tmp_path, 2, 0.05) as life:
        life.end_epoch(2)
        assert set(life.steps) == {2, 3, 4, 5, 6, 7, 8}


def stopped(life: Life) -> Creator:
    """Stop a creator, but not where it locks all others out, as SQLite's writers do."""
    sleeper = life.creators.pop()
    while True:
        sleeper.process.send_signal(signal.SIGSTOP)
        try:
            with life.process.engine.begin() as connection:
                connection.exec_driver_sql("UPDATE notes SET tenant = tenant WHERE 1 = 0")
        except OperationalError:
            sleeper.process.send_signal(signal.SIGCONT)
        else:
            return sleeper


@pytest.mark.nightly
@pytest.mark.timeout(1_800)
def test_three_epochs_under_processes_that_make_thousands_of_owners_and_are_stopped_for_long(
    scene: Scene, tmp_path: Path
) -> None:
    # Who is stopped may hold a lock for which others wait in vain.
    with living(scene, tmp_path, 3, 0.0, ("MetastoreUnavailableError", "OperationalError")) as life:
        for _ in range(3):
            sleeper = stopped(life)
            try:
                life.end_epoch(40)
            except MetastoreUnavailableError:  # it was stopped in a transaction that locks a system key
                sleeper.process.send_signal(signal.SIGCONT)
                life.end_epoch(40)
            sleeper.process.send_signal(signal.SIGCONT)
            life.creators.insert(0, sleeper)
            life.goes_on(10)
