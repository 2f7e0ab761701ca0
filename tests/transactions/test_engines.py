# SPDX-License-Identifier: Apache-2.0
"""Engines as applications configure them: isolation levels, small pools, several databases."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy.orm import Session

from tests.transactions.programs.notes import note, read_all
from tests.transactions.site import Site, assert_cached_keys_are_stored


@pytest.mark.parametrize("level", ["AUTOCOMMIT", "READ UNCOMMITTED", "SERIALIZABLE"])
def test_notes_can_be_read_whatever_the_isolation_level(shared_site: Site, level: str) -> None:
    if shared_site.kind == "sqlite" and level == "READ UNCOMMITTED":
        level = "SERIALIZABLE"  # refused: tests/transactions/test_sqlite.py
    if shared_site.begins and level == "AUTOCOMMIT":
        shared_site.begins = False
    app = shared_site.start(isolation_level=level)
    with Session(app.engine) as session:
        session.add(note("acme", "undone"))
        session.flush()
        session.rollback()
    kept = ["undone"] if level == "AUTOCOMMIT" else []
    app.write("acme", "after")
    assert_cached_keys_are_stored(app)
    assert read_all(app.engine) == [*kept, "after"]
    assert shared_site.restart_and_read() == [*kept, "after"]


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_two_open_transactions_make_the_same_tenants_first_key(server_site: Site, level: str) -> None:
    """Both took their snapshot before the key was there."""
    server_site.sql("CREATE TABLE calm (id INTEGER)")
    first, second = (server_site.start(isolation_level=level) for _ in range(2))
    with Session(first.engine) as one, Session(second.engine) as other:
        for session in (one, other):
            session.connection().exec_driver_sql("SELECT count(*) FROM calm")
        one.add(note("acme", "one"))
        one.flush()
        other.add(note("acme", "other"))
        other.flush()
        one.commit()
        other.commit()
    assert server_site.sql("SELECT count(*) FROM encryption_key WHERE id LIKE '%acme%'") == [(1,)]
    assert sorted(server_site.restart_and_read()) == ["one", "other"]


def test_two_open_transactions_that_meet_tenants_in_opposite_order_do_not_deadlock(server_site: Site) -> None:
    app = server_site.start()
    with Session(app.engine) as one, Session(app.engine) as other:
        for session, tenant in ((one, "a"), (other, "b"), (one, "b"), (other, "a")):
            session.add(note(tenant, tenant))
            session.flush()
        one.rollback()
        other.commit()
    assert server_site.restart_and_read() == ["b", "a"]


def test_a_pool_of_one_connection_suffices(shared_site: Site) -> None:
    app = shared_site.start(pool_size=1, max_overflow=0, pool_timeout=0.01)
    with Session(app.engine) as session:
        session.add(note("acme", "first"))
        session.flush()
        session.add(note("other", "second"))
        session.commit()
    with Session(shared_site.start(pool_size=1, max_overflow=0, pool_timeout=0.01).engine) as session:
        assert read_all(session.connection()) == ["first", "second"]


def test_keys_are_made_while_every_connection_of_the_pool_is_taken(server_site: Site) -> None:
    app = server_site.start(pool_size=4, max_overflow=0, pool_timeout=0.01)
    barrier = threading.Barrier(4)
    failures: list[Exception] = []

    def write(number: int) -> None:
        try:
            with Session(app.engine) as session:
                session.connection()
                barrier.wait(20)
                session.add(note(f"tenant {number}", f"note {number}"))
                session.flush()
                barrier.wait(20)
                session.commit()
        except Exception as error:  # noqa: BLE001 - asserted below
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert sorted(server_site.restart_and_read()) == [f"note {number}" for number in range(4)]


def test_one_asherah_serves_two_databases_with_the_same_tenant_at_the_same_second(
    site: Site, sqlite_url: str, postgresql_url: str
) -> None:
    """Id and date of the keys are equal, their bytes are not."""
    elsewhere = Site(sqlite_url + ".other" if site.kind != "sqlite" else postgresql_url).create()
    app = site.start()
    other = elsewhere.engine()
    app.asherah.attach(other)
    try:
        for number in range(2):
            for engine in (app.engine, other):
                with Session(engine) as session:
                    session.add(note("acme", f"note {number}"))
                    session.flush()
                    if number:
                        session.rollback()
                        session.add(note("acme", "again"))
                    session.commit()
        both = [
            {(str(key), str(created)[:19]) for key, created in each.sql("SELECT id, created FROM encryption_key")}
            for each in (site, elsewhere)
        ]
        assert both[0] == both[1]
        assert len(both[0]) == 2
        expected = ["note 0", "again"]
        assert read_all(app.engine) == read_all(other) == expected
        assert site.restart_and_read() == elsewhere.restart_and_read() == expected
    finally:
        elsewhere.close()
