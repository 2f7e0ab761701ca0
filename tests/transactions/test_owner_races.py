# SPDX-License-Identifier: Apache-2.0
"""Two sessions write the same note, and one of them moves it to another tenant."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from sqlalchemy import update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError

from sa_asherah.errors import MetastoreUnavailableError, OwnerChangedError
from tests.transactions.programs.notes import Note, read_all
from tests.transactions.site import App, Site

ROUNDS = 20


def move(app: App, identity: int, tenant: str) -> None:
    with Session(app.engine) as session:
        session.get_one(Note, identity).tenant = tenant
        session.commit()


def change(each: Note, text: str) -> None:
    each.clear, each.secret = text, text


@pytest.fixture
def notes(shared_site: Site) -> App:
    """Two notes of one tenant."""
    app = shared_site.start()
    app.write("acme", "one", "two")
    with Session(app.engine) as session:
        for each in session.query(Note):
            each.remark = None
        session.commit()
    return app


def test_an_update_of_a_note_that_was_moved_meanwhile_is_refused(shared_site: Site, notes: App) -> None:
    with Session(notes.engine, expire_on_commit=False) as session:
        found = session.get_one(Note, 1)
        session.commit()
        move(notes, 1, "other")
        change(found, "lost")
        with pytest.raises(OwnerChangedError) as caught:
            session.flush()
        assert isinstance(caught.value, StaleDataError)
        session.rollback()
    assert shared_site.restart_and_read() == ["one", "two"]


@pytest.mark.parametrize("moved", [1, 2])
def test_so_are_two_in_one_flush_of_which_one_was_moved(shared_site: Site, notes: App, moved: int) -> None:
    with Session(notes.engine, expire_on_commit=False) as session:
        found = session.query(Note).order_by(Note.id).all()
        session.commit()
        move(notes, moved, "other")
        for each in found:
            change(each, f"lost {each.id}")
        with pytest.raises(OwnerChangedError):
            session.flush()
        session.rollback()
    assert shared_site.restart_and_read() == ["one", "two"]


def test_a_move_keeps_what_another_session_wrote_meanwhile(shared_site: Site, notes: App) -> None:
    with Session(notes.engine, expire_on_commit=False) as session:
        found = session.get_one(Note, 1)
        session.commit()
        with Session(notes.engine) as other:
            change(other.get_one(Note, 1), "newer")
            other.commit()
        found.tenant = "other"
        session.commit()
        assert found.secret == "newer"
    assert shared_site.restart_and_read() == ["newer", "two"]


def test_a_note_that_was_deleted_meanwhile_cannot_be_moved(shared_site: Site, notes: App) -> None:
    with Session(notes.engine, expire_on_commit=False) as session:
        found = session.get_one(Note, 1)
        session.commit()
        shared_site.sql("DELETE FROM notes WHERE id = 1")
        found.tenant = "other"
        with pytest.raises(OwnerChangedError):
            session.flush()
    assert shared_site.restart_and_read() == ["two"]


def test_a_note_moved_to_two_tenants_ends_with_one_of_them(shared_site: Site, notes: App) -> None:
    with Session(notes.engine, expire_on_commit=False) as session:
        found = session.get_one(Note, 1)
        session.commit()
        move(notes, 1, "other")
        found.tenant = "third"
        session.commit()
    assert shared_site.sql("SELECT tenant FROM notes WHERE id = 1") == [("third",)]
    assert shared_site.restart_and_read() == ["one", "two"]


@pytest.fixture
def moving(server_site: Site) -> Iterator[App]:
    """A note that another session has moved; it commits as soon as somebody waits for it."""
    app = server_site.start()
    app.write("acme", "one")
    with Session(app.engine) as mover:
        mover.get_one(Note, 1).tenant = "other"
        mover.flush()
        thread = threading.Thread(target=commit_when_waited_for, args=(server_site, mover))
        thread.start()
        yield app
        thread.join()


def commit_when_waited_for(site: Site, mover: Session) -> None:
    waiting = {
        "postgresql": "SELECT count(*) FROM pg_locks WHERE NOT granted",
        "mariadb": "SELECT CAST(variable_value AS SIGNED) FROM information_schema.global_status "
        "WHERE variable_name = 'innodb_row_lock_current_waits'",
    }[site.kind]
    while site.sql(waiting) == [(0,)]:
        pass
    mover.commit()


def test_a_statement_for_a_note_that_is_being_moved_is_refused(server_site: Site, moving: App) -> None:
    with Session(moving.engine) as session, pytest.raises(OwnerChangedError):
        session.execute(update(Note).where(Note.id == 1).values(secret="lost", clear="lost"))
    assert server_site.restart_and_read() == ["one"]


def test_a_statement_for_all_notes_does_not_write_one_that_is_being_moved(server_site: Site, moving: App) -> None:
    with Session(moving.engine) as session:
        session.execute(update(Note).where(Note.clear == "one").values(secret="lost", clear="lost"))
        session.commit()
    assert server_site.restart_and_read() == ["one"]


@pytest.mark.long
def test_no_note_becomes_unreadable_when_a_move_and_an_update_race(shared_site: Site, notes: App) -> None:
    barrier = threading.Barrier(2)
    unexpected: list[BaseException] = []

    def run(number: int) -> None:
        for turn in range(ROUNDS):
            with Session(notes.engine) as session:
                found = session.query(Note).order_by(Note.id).all()
                barrier.wait(60)
                try:
                    for each in found:
                        if number:
                            each.tenant = f"tenant {turn}"
                        else:
                            each.remark = f"about {each.clear}" if turn % 2 else None
                    session.commit()
                except (OwnerChangedError, MetastoreUnavailableError, OperationalError):
                    session.rollback()  # refused, deadlocked or locked out: the other one got through
                except BaseException as error:  # noqa: BLE001 - asserted below
                    unexpected.append(error)
                    session.rollback()
                barrier.wait(60)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not unexpected
    assert len(read_all(notes.engine)) == len(shared_site.restart_and_read()) == 2
