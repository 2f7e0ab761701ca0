# SPDX-License-Identifier: Apache-2.0
"""Live data: old and new versions of the application write while workers convert, are killed, stopped and continued.

What is true is what the writers know: each keeps a log, outside of the database, of what it committed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from sa_asherah.reencrypt import tables
from sa_asherah.reencrypt.job import Job, require_finished
from sa_asherah.reencrypt.tables import asherah_range
from tests.endurance.process import command
from tests.reencrypt.programs import hog, measured, worker, writer
from tests.reencrypt.scene import NEW, Scene, first_note, plan

CELL = "sa1:"
Process = subprocess.Popen[str]


@contextmanager
def running(program: Any, *arguments: object) -> Generator[Process]:
    """Start a program; it is ended, if it has not."""
    process = subprocess.Popen(command(program, *arguments), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert read_line(process) == "ready"
        yield process
    finally:
        process.kill()
        process.communicate()


def read_line(process: Process) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def converted(scene: Scene) -> int:
    """Return how many rows the ranges say were looked at."""
    with scene.engine.connect() as connection:
        return int(connection.execute(sa.select(sa.func.coalesce(sa.func.sum(asherah_range.c.found), 0))).scalar_one())


def fill(scene: Scene, count: int) -> None:
    """Create the tables, those of progress too, so that it can be watched."""
    tables.create(scene.engine)
    scene.fill_many(count)


def truth_of(count: int) -> dict[int, tuple[str, str | None]]:
    """Return the rows of the beginning."""
    return {number: first_note(number) for number in range(1, count + 1)}


def truth(count: int, logs: list[Path]) -> dict[int, tuple[str, str | None]]:
    """Return what must be in the table: the rows of the beginning, and what the writers know that they committed."""
    changed: dict[int, Any] = {}
    for log in logs:
        for line in log.read_text(encoding="utf-8").splitlines():
            changed |= {number: row and tuple(row) for number, row in json.loads(line)}
    found = {number: row for number, row in {**truth_of(count), **changed}.items() if row is not None}
    assert len(changed) > count / 100, "the writers wrote too little"
    return found


def check(scene: Scene, expected: dict[int, tuple[str, str | None]]) -> None:
    """Every row is there, reads as what it was, and is not plaintext; nothing else is there."""
    with scene.engine.connect() as connection:
        require_finished(connection, plan().name)
        read = sa.select(NEW.c.id, NEW.c.tenant, NEW.c.body)
        found = {row.id: (row.tenant, row.body) for row in connection.execution_options(yield_per=1000).execute(read)}
        plaintext = sa.text("SELECT count(*) FROM notes WHERE body NOT LIKE 'sa1:%'")
        left = connection.execute(plaintext).scalar_one()
    lost = expected.keys() - found.keys()
    wrong = {number for number, row in found.items() if expected.get(number) != row}
    assert (len(lost), len(wrong), left) == (0, 0, 0)


def resident(process: Process) -> int:
    """Return the memory of a process that is in RAM, in MB; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * 4096 // 10**6
    except (FileNotFoundError, IndexError, ProcessLookupError):
        return 0


def live(scene: Scene, folder: Path, *, count: int, kills: int, pause: float) -> str:
    """Convert under writers of both versions, killing workers; then once more without writers. Tell how it went."""
    dice = random.Random(7)  # noqa: S311 -- when to kill, not a secret
    fill(scene, count)
    logs = [folder / version for version in ("old", "new")]
    began, most = time.monotonic(), 0
    with ExitStack() as stack:
        writers = [
            stack.enter_context(running(writer, scene.url, log.name, number, count, pause, log))
            for number, log in enumerate(logs)
        ]

        def start() -> Process:
            return stack.enter_context(running(worker, scene.url, 5, 200, "none"))

        crew = [start() for _ in range(4)]
        for kill in range(kills):
            threshold = count * (kill + 1) // (kills + 1)
            while converted(scene) < threshold and any(each.poll() is None for each in crew):
                most = max(most, *map(resident, crew))
                wait(crew[0], dice.random() / 5)
            victim = crew.pop(0)
            victim.kill()
            crew.append(start())
        while any(each.poll() is None for each in crew):
            most = max(most, *map(resident, crew))
            wait(next(each for each in crew if each.poll() is None), 1)
        seconds = time.monotonic() - began
        reports = [json.loads(read_line(each)) for each in crew]
        for each in writers:
            said, _ = each.communicate("stop\n")
            assert (said, each.returncode) == ("done\n", 0)
    assert all(report["quarantined"] == [] and report["ended"] for report in reports)
    report = Job(scene.engine, scene.asherah, plan()).run()
    assert report.is_complete
    expected = truth(count, logs)
    assert report.found == sum(text is not None for _, text in expected.values())
    check(scene, expected)
    return told(
        scene, count, seconds, reports[-1], sum(len(log.read_text(encoding="utf-8").splitlines()) for log in logs), most
    )


def told(scene: Scene, count: int, seconds: float, report: dict[str, Any], transactions: int, memory: int) -> str:
    names = ("passes", "converted", "skipped_by_writers", "left")
    return (
        f"{scene.kind}: {count} rows in {seconds:.0f} s = {count / seconds:.0f} rows/s beside {transactions} "
        f"transactions of writers, at most {memory} MB a worker; "
        + ", ".join(f"{name} {report[name]}" for name in names)
    )


def wait(process: Process, seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return


@pytest.mark.long
def test_live_data_survives_writers_and_kills(scene: Scene, tmp_path: Path) -> None:
    live(scene, tmp_path, count=20_000, kills=5, pause=0.005)


@pytest.mark.nightly
@pytest.mark.timeout(4 * 3600)
def test_a_million_rows_survive_writers_and_fifty_kills(scene: Scene, tmp_path: Path) -> None:
    count = 1_000_000 if scene.kind == "postgresql" else 100_000
    sys.stdout.write(live(scene, tmp_path, count=count, kills=50, pause=0) + "\n")


@pytest.mark.long
def test_memory_does_not_grow_with_the_table(scene: Scene) -> None:
    fill(scene, 20_000)
    with running(measured, scene.url, 20_000) as process:
        converted, tenths = json.loads(read_line(process))
    assert converted == 20_000
    assert max(tenths[2:]) - tenths[1] < 3_000, tenths  # KiB: 200 bytes for each of the 16,000 rows since


def test_a_worker_killed_between_swap_and_progress_has_done_neither(scene: Scene) -> None:
    fill(scene, 100)
    with running(worker, scene.url, 1, 30, "swapped") as process:
        assert read_line(process) == "swapped"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not any(stored.startswith(CELL) for stored in scene.stored())
    assert converted(scene) == 0
    assert Job(scene.engine, scene.asherah, plan(), batch=30).run().is_complete
    check(scene, truth_of(100))


def test_a_worker_stopped_for_longer_than_its_lease_changes_nothing_any_more(scene: Scene) -> None:
    """The others finish its work, and the application writes; then it goes on, with cells of values of long ago."""
    fill(scene, 100)
    with running(worker, scene.url, 1, 10, "sealed") as process:
        assert process.stdin is not None
        assert read_line(process) == "sealed"
        process.stdin.write("go on\n")
        process.stdin.flush()
        assert read_line(process) == "sealed"  # the second batch: it has a range, and cells that are not stored yet
        os.kill(process.pid, signal.SIGSTOP)
        try:
            report = Job(scene.engine, scene.asherah, plan(), batch=10).run()
            assert (report.converted, report.skipped_by_writers, report.is_complete) == (100, 0, True)
            scene.sql("UPDATE notes SET body = 'late' WHERE id IN (12, 99)")
            scene.sql("DELETE FROM notes WHERE id = 13")
            before = sorted(scene.stored())
        finally:
            os.kill(process.pid, signal.SIGCONT)
        process.stdin.write("go on\n" * 100)
        process.stdin.flush()
        said = [line for line in iter(lambda: read_line(process), "") if line != "sealed"]
    told = json.loads(said[-1])
    assert (told["converted"], told["found"], told["is_complete"]) == (100, 100, True)
    assert sorted(scene.stored()) == before
    assert Job(scene.engine, scene.asherah, plan()).run().converted == 2
    expected = truth_of(100) | {n: (first_note(n)[0], "late") for n in (12, 99)}
    check(scene, {n: row for n, row in expected.items() if n != 13})


def test_writers_without_a_pause_do_not_keep_a_job_from_sqlites_lock(sqlite_scene: Scene) -> None:
    fill(sqlite_scene, 300)
    file = sqlite_scene.engine.url.database
    with running(hog, file) as one, running(hog, file) as other:
        report = Job(sqlite_scene.engine, sqlite_scene.asherah, plan(), batch=50).run()
        written = [int(each.communicate("stop\n")[0]) for each in (one, other)]
    assert (report.converted, report.is_complete) == (300, True)
    assert min(written) > 0
    check(sqlite_scene, truth_of(300))


def test_two_jobs_at_once_share_the_work(scene: Scene) -> None:
    fill(scene, 300)
    with running(worker, scene.url, 30, 20, "none") as one, running(worker, scene.url, 30, 20, "none") as other:
        reports = [json.loads(read_line(each)) for each in (one, other)]
    assert all(report["is_complete"] for report in reports)
    assert [report["found"] for report in reports] == [300, 300]
    check(scene, truth_of(300))
