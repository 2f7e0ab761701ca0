# SPDX-License-Identifier: Apache-2.0
"""What once depended on the application's engine, pool and transactions: rows S21 to S24 of the findings."""

from __future__ import annotations

import gc
import threading
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import (
    AssertionPool,
    QueuePool,
    SingletonThreadPool,
    StaticPool,
    create_engine,
    insert,
    select,
    text,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from sa_asherah.errors import ConfigurationError, MetastoreUnavailableError, NotAttachedError
from tests.attacks.registry import CANARY, Base, Clinic, Patient, Place, asherah_of, assert_silent, fill, place_of
from tests.integration.load import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection, Engine

    from sa_asherah import Asherah

Table: Any = Patient.__table__


@pytest.fixture
def empty(place: Place) -> Place:
    """Two clinics, no patient and no key."""
    Base.metadata.create_all(place.raw)
    place.sql("INSERT INTO clinics (id, name) VALUES (1, 'a'), (2, 'b')")
    asherah_of().create_metastore(place.raw)
    return place


@pytest.fixture(params=["postgresql", "mariadb"])
def server(request: pytest.FixtureRequest) -> Iterator[Place]:
    """A place whose keys are written on connections of their own."""
    with place_of(request.getfixturevalue(f"{request.param}_url")) as place:
        Base.metadata.create_all(place.raw)
        place.sql("INSERT INTO clinics (id, name) VALUES (1, 'a'), (2, 'b')")
        asherah_of().create_metastore(place.raw)
        yield place


@pytest.fixture
def on_sqlite(sqlite_url: str) -> Iterator[Place]:
    with place_of(sqlite_url) as place:
        Base.metadata.create_all(place.raw)
        asherah_of().create_metastore(place.raw)
        yield place


def add(connection: Connection, number: int, owner: int = 1) -> None:
    connection.execute(insert(Table), {"id": number, "clinic_id": owner, "ssn": f"{CANARY} {number}"})


def assert_readable(place: Place, *numbers: int) -> None:
    """A new process reads every row, and there are no others."""
    with Session(place.restart()) as session:
        found = session.execute(select(Patient.id, Patient.ssn).order_by(Patient.id)).all()
    assert [tuple(row) for row in found] == [(number, f"{CANARY} {number}") for number in sorted(numbers)]


def keys_of(place: Place) -> list[str]:
    return [row[0] for row in place.sql("SELECT id FROM encryption_key ORDER BY id")]


# S21: key transactions apart from the application's engine

LEVELS = ["SERIALIZABLE", "REPEATABLE READ", "READ COMMITTED", "READ UNCOMMITTED", "AUTOCOMMIT"]


@pytest.mark.parametrize("level", LEVELS)
def test_keys_are_made_whatever_the_isolation_level_of_the_engine(empty: Place, level: str) -> None:
    # S21: the engine's level survived in the key transaction
    if empty.name == "sqlite" and level not in {"SERIALIZABLE", "AUTOCOMMIT"}:
        level = "SERIALIZABLE"
    engine = empty.restart(engine_options={"isolation_level": level})
    with engine.connect() as connection:
        add(connection, 1)
        add(connection, 2, owner=2)
        connection.commit()
    assert_readable(empty, 1, 2)


def test_uncommitted_reads_are_refused_where_keys_share_the_transaction(
    on_sqlite: Place, caplog: pytest.LogCaptureFixture
) -> None:
    # S21: on SQLite a key could vanish under what it encrypted
    engine = on_sqlite.restart(engine_options={"isolation_level": "READ UNCOMMITTED"})
    with engine.connect() as connection:
        with pytest.raises(ConfigurationError) as caught:
            add(connection, 1)
        assert_silent(caught.value, caplog)
        connection.commit()
    assert_readable(on_sqlite)


@pytest.mark.parametrize("level", ["SERIALIZABLE", "REPEATABLE READ", "AUTOCOMMIT"])
def test_a_lost_race_for_a_key_is_no_error_at_any_isolation_level(server: Place, level: str) -> None:
    # S21: under SERIALIZABLE it was a serialization failure, which nobody took for a lost race
    threads = 6
    start = threading.Barrier(threads)
    errors: list[BaseException] = []

    def work(number: int) -> None:
        engine = server.restart(engine_options={"isolation_level": level})
        try:
            with engine.connect() as connection:
                connection.execute(select(Clinic.id).where(Clinic.id == 99)).all()
                connection.rollback()
                start.wait(30)
                add(connection, number)
                connection.commit()
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(1, threads + 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert errors == []
    assert_readable(server, *range(1, threads + 1))
    assert keys_of(server) == ["_IK_1_records_clinic", "_SK_records_clinic"]


POOLS: list[dict[str, Any]] = [
    {"poolclass": QueuePool, "pool_size": 1, "max_overflow": 0, "pool_timeout": 2},
    {"poolclass": StaticPool},
    {"poolclass": SingletonThreadPool},
    {"poolclass": AssertionPool},
]


@pytest.mark.parametrize("pool", POOLS, ids=["one", "static", "thread", "assertion"])
def test_a_key_takes_nothing_from_the_applications_pool(empty: Place, pool: dict[str, Any]) -> None:
    # S21: it waited for itself, or rolled back the caller's work on the one connection
    engine = empty.restart(engine_options=pool)
    with engine.connect() as connection:
        connection.execute(insert(Table), {"id": 1, "clinic_id": 1, "ssn": f"{CANARY} 1"})
        connection.execute(text("INSERT INTO patients (id, clinic_id, name) VALUES (9, 1, 'before')"))
        add(connection, 2, owner=2)
        assert connection.in_transaction()
        connection.execute(text("DELETE FROM patients WHERE id = 9 AND name = 'before'"))
        connection.commit()
    assert_readable(empty, 1, 2)


@pytest.mark.long
def test_a_lock_on_the_key_table_ends_in_a_typed_error(server: Place, caplog: pytest.LogCaptureFixture) -> None:
    # S21: the INSERT waited for ever
    lock = {"postgresql": "LOCK TABLE encryption_key IN ACCESS EXCLUSIVE MODE"}.get(
        server.name, "LOCK TABLES encryption_key WRITE"
    )
    engine = server.restart()
    with engine.connect() as other:
        add(other, 9, owner=2)
        other.rollback()
    with server.raw.connect() as holder, engine.connect() as connection:
        holder.exec_driver_sql(lock)
        with pytest.raises(MetastoreUnavailableError) as caught:
            add(connection, 1)
        assert_silent(caught.value, caplog)
        connection.commit()
        add(connection, 2, owner=2)
        connection.commit()
        holder.rollback()
        holder.invalidate()
        add(connection, 3)
        connection.commit()
    assert_readable(server, 2, 3)


CONNECTIONS = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()",
    "mysql": "SELECT count(*) FROM information_schema.processlist WHERE db = database()",
    "mariadb": "SELECT count(*) FROM information_schema.processlist WHERE db = database()",
}


def is_alone(connection: Connection) -> bool:
    """Tell whether the server knows no other connection; it takes a moment to see that one was closed."""
    with connection.begin():
        return connection.exec_driver_sql(CONNECTIONS[connection.dialect.name]).scalar() == 1


def test_no_connection_is_left_open_and_keys_work_after_dispose(server: Place) -> None:
    # S21: dispose did not reach the second pool
    engine = server.restart()
    for number in (1, 2):
        with engine.connect() as connection:
            add(connection, number, owner=number)
            connection.commit()
            wait_until(partial(is_alone, connection))
        engine.dispose()
    assert_readable(server, 1, 2)


def test_the_key_connection_keeps_what_the_applications_engine_says(postgresql_url: str) -> None:
    # S21: schema_translate_map was lost
    with place_of(postgresql_url) as place:
        place.sql("CREATE SCHEMA tenant")
        options = {"execution_options": {"schema_translate_map": {None: "tenant"}}}
        engine = create_engine(place.url, **options)
        asherah = asherah_of()
        asherah.attach(engine)
        with engine.begin() as connection:
            asherah.create_metastore(connection)
            Base.metadata.create_all(connection)
        fill(engine)
        assert place.sql("SELECT count(*) FROM tenant.encryption_key") == [(3,)]
        assert place.sql("SELECT to_regclass('public.encryption_key')") == [(None,)]
        with Session(place.restart(engine_options=options)) as session:
            assert session.get_one(Patient, 1).ssn == f"{CANARY} ssn 1"
        asherah.close()
        engine.dispose()


def test_key_records_are_in_no_log(empty: Place, caplog: pytest.LogCaptureFixture) -> None:
    # S21: hide_parameters was lost
    with empty.restart(engine_options={"echo": True}).connect() as connection:
        add(connection, 1)
        connection.commit()
    assert "INSERT INTO patients" in caplog.text
    column = "key_record ->> 'Key'" if empty.name == "postgresql" else "key_record"
    for (key,) in empty.sql(f"SELECT {column} FROM encryption_key"):  # noqa: S608
        found = key if empty.name == "postgresql" else key.split('"Key":"')[1].split('"')[0]
        assert len(found) > 40
        assert found not in caplog.text
    assert CANARY not in caplog.text


# S22: SQLite rolls back, and SQLAlchemy does not hear of it


def or_rollback(connection: Connection) -> None:
    with pytest.raises(IntegrityError):
        connection.exec_driver_sql("INSERT OR ROLLBACK INTO clinics (id, name) VALUES (1, 'again')")


def or_rollback_clause(connection: Connection) -> None:
    with pytest.raises(IntegrityError):
        connection.exec_driver_sql("INSERT INTO strict (id) VALUES (1)")


def raw_rollback(connection: Connection) -> None:
    connection.exec_driver_sql("ROLLBACK")


def driver_rollback(connection: Connection) -> None:
    connection.connection.rollback()


@pytest.mark.parametrize("undo", [or_rollback, or_rollback_clause, raw_rollback, driver_rollback])
@pytest.mark.parametrize("attached", ["file", "memory"])
def test_a_key_that_was_rolled_back_unseen_encrypts_nothing_more(
    on_sqlite: Place, undo: Callable[[Connection], None], attached: str
) -> None:
    # S22: SQLAlchemy believed in the transaction, and the next row was committed without its key
    options: dict[str, Any] = {"poolclass": StaticPool} if attached == "memory" else {}
    engine = on_sqlite.restart(engine_options=options)
    on_sqlite.sql("INSERT INTO clinics (id, name) VALUES (1, 'a'), (2, 'b')")
    on_sqlite.sql("CREATE TABLE strict (id INTEGER PRIMARY KEY ON CONFLICT ROLLBACK)")
    on_sqlite.sql("INSERT INTO strict VALUES (1)")
    with engine.connect() as connection:
        add(connection, 1)
        undo(connection)
        assert keys_of(on_sqlite) == []
        add(connection, 2)
        add(connection, 3, owner=2)
        connection.commit()
        add(connection, 4)
        connection.commit()
    assert_readable(on_sqlite, 2, 3, 4)


def test_a_key_rolled_back_to_a_savepoint_by_hand_encrypts_nothing_more(on_sqlite: Place) -> None:
    # S22: exec_driver_sql("ROLLBACK TO a") fires no event
    engine = on_sqlite.restart()
    on_sqlite.sql("INSERT INTO clinics (id, name) VALUES (1, 'a'), (2, 'b')")
    with engine.connect() as connection:
        add(connection, 1)
        connection.exec_driver_sql("SAVEPOINT a")
        add(connection, 2, owner=2)
        connection.exec_driver_sql("ROLLBACK TO a")
        add(connection, 3, owner=2)
        connection.exec_driver_sql("RELEASE a")
        add(connection, 4, owner=2)
        connection.commit()
    assert_readable(on_sqlite, 1, 3, 4)


# S23: who keeps whom alive


def test_a_temporary_asherah_stays_with_its_engine(filled: Place) -> None:
    # S23: a weak value died with the caller's last reference
    engine = create_engine(filled.url)
    asherah_of().attach(engine)
    gc.collect()
    with Session(engine) as session:
        assert session.get_one(Patient, 1).ssn == f"{CANARY} ssn 1"
        session.get_one(Patient, 1).ssn = "new"
        session.commit()
    engine.dispose()


def test_an_attached_engine_can_be_freed(filled: Place) -> None:
    # S23: the registry of dialects kept it for ever; that SQLAlchemy's caches keep the dialect must not matter
    kept = asherah_of()
    freed: list[weakref.ref[Engine]] = []

    def use(asherah: Asherah) -> None:
        engine = create_engine(filled.url)
        asherah.attach(engine)
        with Session(engine) as session:
            session.get_one(Patient, 1).ssn = "new"
            session.commit()
        engine.dispose()
        freed.append(weakref.ref(engine))

    use(kept)
    use(asherah_of())
    gc.collect()
    assert [reference() for reference in freed] == [None, None]
    assert list(kept._engines) == []
    kept.close()


# S24: option clones


def by_base(engine: Engine) -> list[Engine]:
    return [engine]


def by_clone(engine: Engine) -> list[Engine]:
    return [engine.execution_options(isolation_level="AUTOCOMMIT")]


def by_both(engine: Engine) -> list[Engine]:
    clone = engine.execution_options(logging_token="x")
    return [engine, clone, clone.execution_options(stream_results=False), engine]


@pytest.mark.parametrize("attached", [by_base, by_clone, by_both])
def test_base_and_option_clones_are_one_engine(
    filled: Place, attached: Callable[[Engine], list[Engine]], caplog: pytest.LogCaptureFixture
) -> None:
    # S24: listeners ran on the clone only, or twice
    engine = create_engine(filled.url)
    asherah = asherah_of()
    for each in attached(engine):
        asherah.attach(each)
    clone = engine.execution_options(logging_token="y")
    for number, each in ((50, engine), (51, clone)):
        with Session(each) as session:
            session.add(Patient(id=number, clinic_id=1, ssn=f"{CANARY} {number}"))
            session.commit()
            assert session.get_one(Patient, 1).ssn == f"{CANARY} ssn 1"
    with Session(filled.restart()) as session:
        assert [session.get_one(Patient, number).ssn for number in (50, 51)] == [f"{CANARY} 50", f"{CANARY} 51"]
    assert len(list(engine.dispatch.before_execute)) == 1
    assert CANARY not in repr(filled.content())
    asherah.detach(clone)
    for each in (engine, clone):
        with Session(each) as session, pytest.raises(NotAttachedError):
            session.get_one(Patient, 1)
    with Session(engine) as session:
        session.add(Patient(id=52, clinic_id=1, ssn=CANARY))
        with pytest.raises(NotAttachedError) as caught:
            session.flush()
        assert_silent(caught.value, caplog)
    assert list(engine.dispatch.before_execute) == []
    asherah.close()
    engine.dispose()
