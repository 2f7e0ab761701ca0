# SPDX-License-Identifier: Apache-2.0
"""Rounds: processes that begin, go on or end at the same moment agree, and whoever is late changes nothing."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from datetime import timedelta

import pytest

from sa_asherah.errors import ReencryptionError
from sa_asherah.reencrypt import tables
from sa_asherah.reencrypt.conversion import conversions_of
from sa_asherah.reencrypt.converter import Converter
from sa_asherah.reencrypt.database import Database
from sa_asherah.reencrypt.lease import Counts, Leases
from sa_asherah.reencrypt.rounds import Rounds, Turn
from tests.reencrypt.scene import NEW, OLD, Scene, plan, rows

THREADS = 4


def rounds(scene: Scene, *, passes: int = 3, fingerprint: str = "plan") -> Rounds:
    database = Database(scene.engine)
    converter = Converter(database, NEW, conversions_of(plan(), scene.engine.dialect))
    return Rounds(database, converter, "job", fingerprint=fingerprint, passes=passes)


def turn_of(those: Rounds) -> Turn:
    turn = those.turn()
    assert turn is not None
    return turn


def finish(scene: Scene, turn: Turn, counts: Counts) -> None:
    """Finish all ranges of a pass; the first one has the counts."""
    leases = Leases(Database(scene.engine), "job", timedelta(hours=1))
    told = [counts]
    while (lease := leases.take(turn.number)) is not None:
        no_keys = Counter[str](), Counter[str]()
        leases.commit(lease, None, lambda _: told.pop() if told else Counts(), no_keys, is_last=True)


def at_once(work: Callable[[], object]) -> list[object]:
    """Let threads do the same at the same moment; return what they raised."""
    barrier, errors = threading.Barrier(THREADS), list[object]()

    def act() -> None:
        barrier.wait()
        try:
            work()
        except ReencryptionError as error:
            errors.append(error)

    threads = [threading.Thread(target=act) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_those_who_begin_at_once_begin_one_job(scene: Scene) -> None:
    tables.create(scene.engine)
    scene.fill(OLD, rows(30))
    assert at_once(lambda: rounds(scene).begin(batch=2)) == []
    assert turn_of(rounds(scene))[:3] == (1, 1, "convert")
    parts = [row[0] for row in scene.sql("SELECT part FROM asherah_range ORDER BY part")]
    assert parts == list(range(len(parts)))
    assert len(parts) == 30 // 8 + 1


def test_those_who_go_on_at_once_begin_one_pass(scene: Scene) -> None:
    tables.create(scene.engine)
    scene.fill(OLD, rows(30))
    rounds(scene).begin(batch=2)
    turn = turn_of(rounds(scene))
    finish(scene, turn, Counts(found=30, converted=30))
    assert at_once(lambda: rounds(scene).advance(turn)) == []
    assert turn_of(rounds(scene))[:3] == (2, 1, "convert")
    assert scene.sql("SELECT count(*) FROM asherah_range WHERE pass = 2")[0][0] == 30 // 8 + 1


def test_whoever_is_late_changes_nothing(scene: Scene) -> None:
    tables.create(scene.engine)
    scene.fill(NEW, rows(5))
    late = rounds(scene)
    late.begin(batch=2)
    turn = turn_of(late)
    finish(scene, turn, Counts(found=5, already=5))
    assert rounds(scene).advance(turn)
    assert late.turn() is None
    rounds(scene).begin(batch=2)  # anew, by another process
    before = scene.sql("SELECT * FROM asherah_job"), scene.sql("SELECT * FROM asherah_range")
    assert late.advance(turn)
    assert (scene.sql("SELECT * FROM asherah_job"), scene.sql("SELECT * FROM asherah_range")) == before


def test_a_pass_is_over_when_its_last_range_is(scene: Scene) -> None:
    tables.create(scene.engine)
    scene.fill(NEW, rows(30))
    here = rounds(scene)
    here.begin(batch=2)
    turn = turn_of(here)
    leases = Leases(Database(scene.engine), "job", timedelta(hours=1))
    lease = leases.take(turn.number)
    assert lease is not None
    finish(scene, turn, Counts(found=22, already=22))
    assert not here.advance(turn)
    assert here.turn() == turn
    no_keys = Counter[str](), Counter[str]()
    leases.commit(lease, None, lambda _: Counts(found=8, already=8), no_keys, is_last=True)
    assert here.advance(turn)
    assert here.turn() is None


@pytest.mark.parametrize(
    ("counts", "ends"),
    [
        (Counts(found=5, already=5), True),
        (Counts(found=5, already=4, quarantined=1), True),
        (Counts(found=5, already=4, converted=1), False),
        (Counts(found=5, already=4, skipped=1), False),
    ],
    ids=["nothing to do", "quarantined", "converted", "skipped"],
)
def test_only_a_pass_that_changed_nothing_and_lost_no_race_ends_a_job(
    sqlite_scene: Scene, counts: Counts, *, ends: bool
) -> None:
    tables.create(sqlite_scene.engine)
    sqlite_scene.fill(NEW, rows(5))
    here = rounds(sqlite_scene)
    here.begin(batch=2)
    turn = turn_of(here)
    finish(sqlite_scene, turn, counts)
    assert here.advance(turn)
    assert (here.turn() is None) is ends


def test_after_the_passes_that_change_rows_one_more_counts(sqlite_scene: Scene) -> None:
    tables.create(sqlite_scene.engine)
    sqlite_scene.fill(OLD, rows(5))
    here = rounds(sqlite_scene, passes=2)
    here.begin(batch=2)
    kinds: list[str] = []
    while (turn := here.turn()) is not None:
        kinds.append(turn.kind)
        counts = Counts(found=5, converted=5) if turn.kind == "convert" else Counts(found=5, left_over=5)
        finish(sqlite_scene, turn, counts)
        here.advance(turn)
    assert kinds == ["convert", "convert", "count"]
    assert sqlite_scene.sql("SELECT left_over FROM asherah_job") == [(5,)]


def test_another_plan_of_the_same_name_has_to_wait(sqlite_scene: Scene) -> None:
    tables.create(sqlite_scene.engine)
    sqlite_scene.fill(OLD, rows(5))
    rounds(sqlite_scene).begin(batch=2)
    with pytest.raises(ReencryptionError, match="another plan"):
        rounds(sqlite_scene, fingerprint="other").begin(batch=2)
