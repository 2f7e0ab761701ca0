# SPDX-License-Identifier: Apache-2.0
"""Leases: one worker at a time, by the database's clock; whoever lost a range changes nothing of it."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

import pytest
import sqlalchemy as sa

from sa_asherah.reencrypt import tables
from sa_asherah.reencrypt.database import Database
from sa_asherah.reencrypt.lease import Counts, LeaseLostError, Leases, sums
from sa_asherah.reencrypt.rounds import _EMPTY
from tests.reencrypt.scene import Scene

NO_KEYS = Counter[str](), Counter[str]()
HOUR = timedelta(hours=1)


def ranges(scene: Scene, count: int) -> Database:
    tables.create(scene.engine)
    with scene.engine.begin() as connection:
        rows = [{**_EMPTY, "job": "job", "number": 1, "part": part, "high": None} for part in range(count)]
        connection.execute(tables.asherah_range.insert(), rows)
    return Database(scene.engine)


def let_run_out(scene: Scene) -> None:
    scene.sql("UPDATE asherah_range SET lease_until = lease_until - 3600001")


def unexpected(_: sa.Connection) -> Counts:
    pytest.fail("rows would be changed")


def one_row(_: sa.Connection) -> Counts:
    return Counts(found=1, converted=1)


def test_a_range_belongs_to_one_worker_until_its_lease_runs_out(scene: Scene) -> None:
    database = ranges(scene, 2)
    mine, other = (Leases(database, "job", HOUR) for _ in range(2))
    first, second = mine.take(1), other.take(1)
    assert first is not None
    assert second is not None
    assert {first.part, second.part} == {0, 1}
    assert mine.take(1) is None
    let_run_out(scene)
    again = other.take(1)
    assert again is not None
    assert again.epoch == 2


def test_what_is_nobodys_is_taken_before_what_a_slow_worker_has(scene: Scene) -> None:
    database = ranges(scene, 2)
    slow, other = (Leases(database, "job", HOUR) for _ in range(2))
    first = slow.take(1)
    let_run_out(scene)
    second = other.take(1)
    assert first is not None
    assert second is not None
    assert (first.part, second.part) == (0, 1)
    slow.commit(first, (7,), one_row, NO_KEYS, is_last=True)


def test_a_lease_gets_longer_each_time_it_is_lost(scene: Scene) -> None:
    """Or workers that need longer for a batch would take it from each other for ever."""
    database = ranges(scene, 1)
    hours: list[int] = []
    for _ in range(10):
        assert Leases(database, "job", HOUR).take(1) is not None
        until, now = scene.sql("SELECT lease_until FROM asherah_range")[0][0], database.now()
        hours.append(round((until - now) / 3_600_000))
        scene.sql("UPDATE asherah_range SET lease_until = 0")
    assert hours == [1, 2, 3, 4, 5, 6, 7, 8, 8, 8]


def test_whoever_lost_a_range_neither_notes_nor_changes_anything(scene: Scene) -> None:
    database = ranges(scene, 1)
    mine, other = (Leases(database, "job", HOUR) for _ in range(2))
    lease = mine.take(1)
    assert lease is not None
    mine.commit(lease, (7,), one_row, NO_KEYS, is_last=False)
    let_run_out(scene)
    stolen = other.take(1)
    assert stolen is not None
    assert stolen.position == (7,)
    for act in (
        lambda: mine.commit(lease, (9,), unexpected, NO_KEYS, is_last=True),
        lambda: mine.renew(lease),
    ):
        with pytest.raises(LeaseLostError):
            act()
    mine.release(lease)
    other.renew(stolen)
    other.commit(stolen, (8,), one_row, NO_KEYS, is_last=True)
    assert mine.take(1) is None
    counts, found, done = database.read(lambda connection: sums(connection, "job", (1, 1)))
    assert (counts.converted, found, done) == (2, 1, 1)


def test_a_batch_whose_commit_got_lost_on_the_way_back_is_counted_once(scene: Scene) -> None:
    """The commit succeeded, its answer did not arrive: the same batch is sent again."""
    database = ranges(scene, 1)
    leases = Leases(database, "job", HOUR)
    lease = leases.take(1)
    assert lease is not None
    leases.commit(lease, ("a",), one_row, NO_KEYS, is_last=False)
    lease.position = None
    assert not leases.commit(lease, ("a",), unexpected, NO_KEYS, is_last=False)
    assert database.read(lambda connection: sums(connection, "job", (1, 1)))[0].converted == 1
    leases.commit(lease, ("b",), one_row, NO_KEYS, is_last=True)
    assert database.read(lambda connection: sums(connection, "job", (1, 1)))[0].converted == 2


def test_a_range_that_was_given_back_is_free_at_once(scene: Scene) -> None:
    database = ranges(scene, 1)
    mine, other = (Leases(database, "job", HOUR) for _ in range(2))
    lease = mine.take(1)
    assert lease is not None
    mine.release(lease)
    assert other.take(1) is not None


def test_what_fails_in_a_batch_undoes_its_progress(scene: Scene) -> None:
    database = ranges(scene, 1)
    leases = Leases(database, "job", HOUR)
    lease = leases.take(1)
    assert lease is not None

    def fail(connection: sa.Connection) -> Counts:
        connection.execute(tables.asherah_range.update().values(found=99))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        leases.commit(lease, (1,), fail, NO_KEYS, is_last=True)
    assert scene.sql("SELECT found, position FROM asherah_range") == [(0, None)]
    leases.commit(lease, (1,), one_row, NO_KEYS, is_last=True)
