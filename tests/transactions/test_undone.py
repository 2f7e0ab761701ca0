# SPDX-License-Identifier: Apache-2.0
"""A tenant's first write is undone, in every way there is: what is committed afterwards can be read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import insert
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session

from tests.transactions.programs import notes
from tests.transactions.programs.notes import note, read_all
from tests.transactions.site import KILL, App, Site, assert_cached_keys_are_stored, own_number

Undoing = Callable[[Site, App], None]

SAVEPOINT = "SAVEPOINT here"


def finish(site: Site, app: App, *, before: tuple[str, ...] = ()) -> None:
    """Commit notes of the same tenant, and read everything as another process."""
    app.write("acme", "after")
    assert_cached_keys_are_stored(app)
    app.write("acme", "later")
    assert read_all(app.engine) == [*before, "after", "later"]
    assert site.restart_and_read() == [*before, "after", "later"]


def roll_back(_site: Site, app: App) -> None:
    with Session(app.engine) as session:
        session.add(note("acme", "undone"))
        session.flush()
        session.rollback()


def close_without_commit(_site: Site, app: App) -> None:
    with Session(app.engine) as session:
        session.add(note("acme", "undone"))
        session.flush()


def fail_in_the_same_flush(_site: Site, app: App) -> None:
    with Session(app.engine) as session:
        session.add(note("acme", "undone", id=1))
        session.flush()
        session.connection().exec_driver_sql("UPDATE notes SET clear = 'x'")
        session.add(note("acme", "undone", id=2))
        session.flush()
        session.expunge_all()
        session.add(note("acme", "undone", id=2))
        with pytest.raises(IntegrityError):
            session.commit()


def roll_the_driver_back(_site: Site, app: App) -> None:
    with Session(app.engine) as session:
        session.add(note("acme", "undone"))
        session.flush()
        session.connection().connection.rollback()
        session.commit()


def roll_back_in_sql(_site: Site, app: App) -> None:
    with Session(app.engine) as session:
        session.add(note("acme", "undone"))
        session.flush()
        session.connection().exec_driver_sql("ROLLBACK")
        session.rollback()


def roll_back_a_savepoint_alone(_site: Site, app: App) -> None:
    with Session(app.engine) as session:
        with session.begin_nested() as savepoint:
            session.add(note("acme", "undone"))
            session.flush()
            savepoint.rollback()
        session.commit()


def roll_back_to_in_sql(_site: Site, app: App) -> None:
    with Session(app.engine) as session:
        session.connection().exec_driver_sql(SAVEPOINT)
        session.add(note("acme", "undone"))
        session.flush()
        session.connection().exec_driver_sql("ROLLBACK TO SAVEPOINT here")
        session.commit()


def release_a_savepoint_and_roll_back(site: Site, app: App) -> None:
    with Session(app.engine) as session:
        if not site.undoes_savepoints:  # the sqlite3 module begins at the first write, not at the savepoint
            session.connection().exec_driver_sql("UPDATE notes SET clear = clear")
        with session.begin_nested():
            session.add(note("acme", "undone"))
        session.rollback()


def fail_at_commit(site: Site, app: App) -> None:
    if site.kind == "mariadb":
        drop_the_connection_at_commit(site, app)
        return
    site.sql("CREATE TABLE stay (id INTEGER PRIMARY KEY)")
    site.sql("CREATE TABLE bill (stay INTEGER REFERENCES stay (id) DEFERRABLE INITIALLY DEFERRED)")
    with Session(app.engine) as session:
        session.add(note("acme", "undone"))
        session.flush()
        session.connection().exec_driver_sql("INSERT INTO bill VALUES (7)")
        with pytest.raises(IntegrityError):
            session.commit()
        session.rollback()


def drop_the_connection_at_commit(site: Site, app: App) -> None:
    with Session(app.engine) as session:
        session.add(note("acme", "undone"))
        session.flush()
        site.sql(KILL[site.kind], number=own_number(session.connection()))
        with pytest.raises(DBAPIError):
            session.commit()


def drop_the_connection(site: Site, app: App) -> None:
    with Session(app.engine) as session:
        session.add(note("acme", "undone"))
        session.flush()
        site.sql(KILL[site.kind], number=own_number(session.connection()))
        session.add(note("acme", "undone too"))
        with pytest.raises(DBAPIError):
            session.flush()


def invalidate_the_connection(_site: Site, app: App) -> None:
    with Session(app.engine) as session:
        session.add(note("acme", "undone"))
        session.flush()
        session.invalidate()


def detach_the_connection(_site: Site, app: App) -> None:
    with app.engine.connect() as connection:
        connection.detach()
        connection.execute(insert(notes.Note), {"tenant": "acme", "clear": "undone", "secret": "undone"})


TRIGGERS = {
    "postgresql": [
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'refused'; END$$",
        "CREATE TRIGGER refused BEFORE INSERT ON notes FOR EACH ROW EXECUTE FUNCTION refuse()",
    ],
    "mariadb": ["CREATE TRIGGER refused BEFORE INSERT ON notes FOR EACH ROW SIGNAL SQLSTATE '45000'"],
}


def refuse_by_trigger(site: Site, app: App) -> None:
    for statement in TRIGGERS[site.kind]:
        site.sql(statement)
    with Session(app.engine) as session:
        session.add(note("acme", "undone"))
        with pytest.raises(DBAPIError):
            session.flush()
        session.rollback()
    site.sql("DROP TRIGGER refused" + (" ON notes" if site.kind == "postgresql" else ""))


@pytest.mark.parametrize(
    "undo",
    [
        roll_back,
        close_without_commit,
        fail_in_the_same_flush,
        roll_the_driver_back,
        roll_back_in_sql,
        roll_back_a_savepoint_alone,
        roll_back_to_in_sql,
        release_a_savepoint_and_roll_back,
    ],
)
def test_notes_after_an_undone_one_can_be_read(site: Site, undo: Undoing) -> None:
    app = site.start()
    undo(site, app)
    finish(site, app)


@pytest.mark.parametrize("undo", [fail_at_commit, invalidate_the_connection, detach_the_connection])
def test_notes_after_a_failed_commit_or_a_lost_connection_can_be_read(shared_site: Site, undo: Undoing) -> None:
    app = shared_site.start()
    undo(shared_site, app)
    finish(shared_site, app)


@pytest.mark.parametrize("undo", [drop_the_connection, drop_the_connection_at_commit, refuse_by_trigger])
def test_notes_after_what_the_server_dropped_or_refused_can_be_read(server_site: Site, undo: Undoing) -> None:
    app = server_site.start()
    undo(server_site, app)
    finish(server_site, app)


@pytest.mark.parametrize("sqlite_site", ["sqlite-memory", "sqlite-memory-begin"], indirect=True)
def test_a_failed_commit_in_memory_takes_no_later_note_along(sqlite_site: Site) -> None:
    app = sqlite_site.start()
    fail_at_commit(sqlite_site, app)
    finish(sqlite_site, app)


def test_a_savepoint_rolled_back_takes_no_note_of_its_transaction_along(site: Site) -> None:
    app = site.start()
    with Session(app.engine) as session:
        session.add(note("other", "before"))
        session.flush()
        with session.begin_nested() as savepoint:
            session.add(note("acme", "undone"))
            session.flush()
            savepoint.rollback()
        session.add(note("acme", "same transaction"))
        session.flush()
        with session.begin_nested():
            session.add(note("acme", "next savepoint"))
        session.commit()
    finish(site, app, before=("before", "same transaction", "next savepoint"))


def test_neither_does_a_roll_back_to_a_savepoint_in_sql(site: Site) -> None:
    app = site.start()
    with Session(app.engine) as session:
        session.add(note("other", "before"))
        session.flush()
        session.connection().exec_driver_sql(SAVEPOINT)
        session.add(note("acme", "undone"))
        session.flush()
        session.connection().exec_driver_sql("ROLLBACK TO SAVEPOINT here")
        session.add(note("acme", "same transaction"))
        session.commit()
    finish(site, app, before=("before", "same transaction"))


def test_neither_does_a_roll_back_of_the_driver_in_the_middle(site: Site) -> None:
    app = site.start()
    with Session(app.engine) as session:
        session.add(note("acme", "undone"))
        session.flush()
        session.connection().connection.rollback()
        if site.begins:
            session.connection().exec_driver_sql("BEGIN")
        session.add(note("acme", "same session"))
        session.commit()
    finish(site, app, before=("same session",))


def test_an_outer_test_transaction_thrown_away_takes_no_note_along(site: Site) -> None:
    app = site.start()
    with app.engine.connect() as connection:
        outer = connection.begin()
        if not site.undoes_savepoints:
            connection.exec_driver_sql("UPDATE notes SET clear = clear")
        for _ in range(2):
            with Session(connection, join_transaction_mode="create_savepoint") as session:
                session.add(note("acme", "undone"))
                session.commit()
                session.add(note("acme", "undone too"))
                session.rollback()
        assert read_all(connection) == ["undone", "undone"]
        outer.rollback()
    finish(site, app)


@pytest.mark.parametrize("reads", [True, False])
def test_a_key_that_another_process_put_in_place_of_a_lost_one_is_used_by_both(
    shared_site: Site, *, reads: bool
) -> None:
    """The rolled-back key of one process has id and date of the key that the other one committed."""
    first, second = shared_site.start(), shared_site.start()
    roll_back(shared_site, first)
    second.write("acme", "of the second")
    if reads:
        assert read_all(first.engine) == ["of the second"]
    first.write("acme", "of the first")
    assert_cached_keys_are_stored(first)
    assert read_all(second.engine) == ["of the second", "of the first"]
    assert shared_site.restart_and_read() == ["of the second", "of the first"]


@pytest.mark.parametrize("shared_site", ["sqlite-delete", "sqlite-wal", "postgresql", "mariadb"], indirect=True)
@pytest.mark.parametrize("undo", [roll_back, roll_back_a_savepoint_alone])
def test_another_program_reads_what_was_written_after_a_roll_back(shared_site: Site, undo: Undoing) -> None:
    app = shared_site.start()
    undo(shared_site, app)
    app.write("acme", "after")
    done = subprocess.run(
        [sys.executable, Path(notes.__file__), "read", shared_site.url],
        capture_output=True, text=True, check=False, env=dict(os.environ),
    )  # fmt: skip
    assert json.loads(done.stdout or "[]") == ["after"], done.stderr
