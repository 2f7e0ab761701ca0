# SPDX-License-Identifier: Apache-2.0
"""What only SQLite does: statements that end the transaction, uncommitted reads, one writer at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from sa_asherah.errors import ConfigurationError
from tests.transactions.programs.notes import note, read_all
from tests.transactions.site import App, Site, assert_cached_keys_are_stored

Abort = Callable[[Connection], None]


def insert_or_roll_back(connection: Connection) -> None:
    connection.exec_driver_sql("INSERT OR ROLLBACK INTO lock VALUES (1)")


def conflict_clause(connection: Connection) -> None:
    connection.exec_driver_sql("INSERT INTO strict_lock VALUES (1)")


def trigger(connection: Connection) -> None:
    connection.exec_driver_sql("INSERT INTO wire VALUES (1)")


def prepare(site: Site) -> App:
    site.sql("CREATE TABLE lock (id INTEGER PRIMARY KEY)")
    site.sql("INSERT INTO lock VALUES (1)")
    site.sql("CREATE TABLE strict_lock (id INTEGER PRIMARY KEY ON CONFLICT ROLLBACK)")
    site.sql("INSERT INTO strict_lock VALUES (1)")
    site.sql("CREATE TABLE wire (id INTEGER)")
    site.sql("CREATE TRIGGER tripped BEFORE INSERT ON wire BEGIN SELECT RAISE(ROLLBACK, 'tripped'); END")
    return site.start()


@pytest.mark.parametrize("abort", [insert_or_roll_back, conflict_clause, trigger])
def test_a_statement_that_ends_the_transaction_takes_no_later_note_along(sqlite_site: Site, abort: Abort) -> None:
    app = prepare(sqlite_site)
    with Session(app.engine) as session:
        session.add(note("acme", "undone"))
        session.flush()
        with pytest.raises(IntegrityError):
            abort(session.connection())
        # No event told SQLAlchemy: for it the transaction goes on.
        if sqlite_site.begins:
            session.connection().exec_driver_sql("BEGIN")
        session.add(note("acme", "same session"))
        session.commit()
    app.write("acme", "later")
    assert_cached_keys_are_stored(app)
    assert read_all(app.engine) == ["same session", "later"]
    assert sqlite_site.restart_and_read() == ["same session", "later"]


@pytest.mark.parametrize("abort", [insert_or_roll_back, conflict_clause, trigger])
def test_neither_does_one_without_a_new_begin(sqlite_site: Site, abort: Abort) -> None:
    app = prepare(sqlite_site)
    with Session(app.engine) as session:
        session.add(note("acme", "undone"))
        session.flush()
        with pytest.raises(IntegrityError):
            abort(session.connection())
        # Under our own BEGIN there is no transaction any more: every statement is its own.
        session.add(note("acme", "same session"))
        session.flush()
        session.connection().connection.commit()
    app.write("acme", "later")
    assert_cached_keys_are_stored(app)
    assert sqlite_site.restart_and_read() == ["same session", "later"]


def test_a_trigger_that_ends_the_transaction_of_the_note_itself_takes_no_later_note_along(sqlite_site: Site) -> None:
    app = sqlite_site.start()
    sqlite_site.sql(
        "CREATE TRIGGER refused BEFORE INSERT ON notes WHEN NEW.clear = 'refused' "
        "BEGIN SELECT RAISE(ROLLBACK, 'refused'); END"
    )
    with Session(app.engine) as session:
        session.add(note("acme", "refused"))
        with pytest.raises(IntegrityError):
            session.flush()
        session.rollback()
    with app.engine.connect() as connection:
        connection.exec_driver_sql("DROP TRIGGER refused")
        connection.commit()
    app.write("acme", "after")
    assert_cached_keys_are_stored(app)
    assert sqlite_site.restart_and_read() == ["after"]


def test_uncommitted_reads_are_refused_before_anything_is_written(sqlite_url: str) -> None:
    site = Site(sqlite_url).create()
    app = site.start(isolation_level="READ UNCOMMITTED")
    with Session(app.engine) as session:
        session.add(note("acme", "refused"))
        with pytest.raises(ConfigurationError, match="READ UNCOMMITTED"):
            session.commit()
    assert site.sql("SELECT count(*) FROM encryption_key") == [(0,)]
    site.start().write("acme", "accepted")
    assert site.restart_and_read() == ["accepted"]
    site.close()


@pytest.mark.parametrize("first", [["first"], []], ids=["warm", "cold"])
def test_writers_wait_for_each_other_as_they_do_without_encryption(shared_site: Site, first: list[str]) -> None:
    """Each writes in a transaction that it began before it asked for the key, or had the key table checked."""
    app = shared_site.start(**({"connect_args": {"timeout": 60}} if shared_site.kind == "sqlite" else {}), pool_size=8)
    app.write("acme", *first)
    barrier = threading.Barrier(8)
    failures: list[Exception] = []

    def write(number: int) -> None:
        barrier.wait()
        try:
            for _ in range(10):
                app.write("acme", f"note {number}")
        except Exception as error:  # noqa: BLE001 - asserted below
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(shared_site.restart_and_read()) == 80 + len(first)
