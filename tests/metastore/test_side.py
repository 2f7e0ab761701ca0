# SPDX-License-Identifier: Apache-2.0
"""Keys on a server: on connections of our own, committed before use, whatever the application does with its own."""

from __future__ import annotations

import gc
import json
import logging
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, QueuePool, create_engine, event, exc, make_url, text

from sa_asherah.errors import KmsError, MetastoreError, MetastoreUnavailableError
from sa_asherah.metastore import create, failure, open_metastore
from sa_asherah.metastore.rows import ServerRows
from tests.metastore.backends import engine_of, hierarchy, row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sa_asherah.core.ports import KeyRows

START = 1_800_000_000
DIALECT = create_engine("postgresql+psycopg://").dialect


@pytest.fixture(params=["postgresql_url", "mariadb_url"])
def url(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    with engine_of(url) as engine:
        create(engine)
        yield engine


@pytest.fixture
def postgresql(postgresql_url: str) -> Iterator[Engine]:
    with engine_of(postgresql_url) as engine:
        create(engine)
        yield engine


@pytest.fixture
def mariadb(mariadb_url: str) -> Iterator[Engine]:
    with engine_of(mariadb_url) as engine:
        create(engine)
        yield engine


def key_rows(engine: Engine) -> int:
    with engine.connect() as connection:
        return len(connection.execute(text("SELECT id FROM encryption_key")).all())


def wait_for_a_lock(engine: Engine) -> None:
    """Return when some transaction of the server waits for a lock."""
    waiting = {
        "postgresql": "SELECT count(*) FROM pg_locks WHERE NOT granted",
        "mariadb": "SELECT CAST(variable_value AS SIGNED) FROM information_schema.global_status "
        "WHERE variable_name = 'innodb_row_lock_current_waits'",
    }[engine.dialect.name]
    end = time.monotonic() + 10
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        while not connection.scalar(text(waiting)):
            assert time.monotonic() < end
            time.sleep(0.01)


def scalar(rows: KeyRows, statement: str) -> Any:
    assert isinstance(rows, ServerRows)
    with rows._transaction():
        return rows._connection.execute(text(statement)).scalar()


def test_a_key_outlives_the_roll_back_of_the_applications_transaction(engine: Engine) -> None:
    process = hierarchy(engine)
    with engine.connect() as connection:
        key = process.encryption_keys(["7"], connection)["7"]
        connection.rollback()
    assert key_rows(engine) == 2
    assert hierarchy(engine).decryption_key("7", key.created).secret == key.secret


def test_it_works_while_the_application_holds_its_only_connection(url: str) -> None:
    with engine_of(url, pool_size=1, max_overflow=0, pool_timeout=1) as engine:
        create(engine)
        with engine.begin() as connection:
            connection.execute(text("SELECT 1"))
            hierarchy(engine).encryption_keys(["7"], connection)
        assert isinstance(engine.pool, QueuePool)
        assert engine.pool.checkedout() == 0


@pytest.mark.parametrize("level", ["AUTOCOMMIT", "SERIALIZABLE", "REPEATABLE READ"])
def test_the_applications_isolation_level_plays_no_part(url: str, level: str) -> None:
    with engine_of(url, isolation_level=level) as engine:
        create(engine)
        metastore = open_metastore(engine)
        is_postgresql = engine.dialect.name == "postgresql"
        setting = "SHOW transaction_isolation" if is_postgresql else "SELECT @@transaction_isolation"
        found = metastore.run(lambda rows: scalar(rows, setting.replace("@@transaction", "@@tx")))
        assert found.replace("-", " ").lower() == "read committed"
        processes = [hierarchy(engine) for _ in range(2)]
        with engine.connect() as connection:
            connection.execute(text("SELECT 1")).all()
            first = processes[0].encryption_keys(["7"], connection)["7"]
            assert processes[1].encryption_keys(["7"], connection)["7"].secret == first.secret


def test_commits_are_durable_on_postgresql(postgresql_url: str) -> None:
    for mode, expected in (("off", "on"), ("local", "on"), ("remote_apply", "remote_apply")):
        options = {"options": f"-c synchronous_commit={mode}"}
        with engine_of(postgresql_url, connect_args=options, isolation_level="AUTOCOMMIT") as engine:
            metastore = open_metastore(engine)
            assert metastore.run(lambda rows: scalar(rows, "SHOW synchronous_commit")) == expected
            assert metastore.run(lambda rows: scalar(rows, "SHOW lock_timeout")) == "5s"


def test_a_server_that_may_lose_commits_is_warned_of_once(mariadb: Engine, caplog: pytest.LogCaptureFixture) -> None:
    with mariadb.connect() as connection:
        connection.execute(text("SET GLOBAL innodb_flush_log_at_trx_commit = 2"))
        try:
            metastore = open_metastore(mariadb)
            for _ in range(3):
                assert metastore.run(lambda rows: scalar(rows, "SELECT @@innodb_lock_wait_timeout")) == 5
        finally:
            connection.execute(text("SET GLOBAL innodb_flush_log_at_trx_commit = 1"))
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "innodb_flush_log_at_trx_commit is 2" in caplog.text


def test_between_two_calls_no_transaction_is_open(postgresql: Engine) -> None:
    def work(rows: KeyRows) -> list[Any]:
        rows.newest(["x"], START)
        rows.insert([row("x", START)])
        with postgresql.connect() as connection:
            return list(
                connection.execute(text("SELECT state FROM pg_stat_activity WHERE query LIKE '%COMMIT%'")).all()
            )

    states = open_metastore(postgresql).run(work)
    assert ("idle in transaction",) not in states


def test_connect_hooks_and_arguments_of_the_application_take_part(engine: Engine) -> None:
    metastore = open_metastore(engine)
    seen: list[str] = []

    @event.listens_for(engine, "connect")
    def connected(*_args: object) -> None:
        seen.append("connect")

    @event.listens_for(engine, "do_connect")
    def connecting(*_args: object) -> None:
        seen.append("do_connect")

    @event.listens_for(engine, "before_cursor_execute")
    def executing(*_args: object) -> None:
        seen.append("execute")

    metastore.run(lambda rows: rows.newest(["x"], START))
    assert seen == ["do_connect", "connect"]


def test_the_engine_is_held_weakly(url: str) -> None:
    engine = create_engine(url)
    create(engine)
    metastore = open_metastore(engine)
    metastore.run(lambda rows: rows.newest(["x"], START))
    engine.dispose()
    gone = weakref.ref(engine)
    del engine
    gc.collect()
    assert gone() is None
    with pytest.raises(MetastoreError, match="engine of the key table is gone"):
        metastore.run(lambda rows: rows.newest(["x"], START))


def test_the_schema_of_the_application_is_used(postgresql_url: str) -> None:
    with engine_of(postgresql_url) as plain:
        with plain.begin() as connection:
            connection.execute(text("CREATE SCHEMA tenant"))
        engine = plain.execution_options(schema_translate_map={None: "tenant"})
        create(engine)
        key = hierarchy(engine).encryption_keys(["7"])["7"]
        assert hierarchy(engine).decryption_key("7", key.created).secret == key.secret
        with plain.connect() as connection:
            assert connection.execute(text("SELECT count(*) FROM tenant.encryption_key")).scalar() == 2


def test_the_other_database_of_the_application_is_used(mariadb_url: str) -> None:
    with engine_of(mariadb_url) as plain:
        tenant = f"{plain.url.database}_tenant"
        with plain.begin() as connection:
            connection.execute(text(f"CREATE DATABASE {tenant} CHARACTER SET utf8mb4"))
        try:
            engine = plain.execution_options(schema_translate_map={None: tenant})
            create(engine)
            key = hierarchy(engine).encryption_keys(["7"])["7"]
            assert hierarchy(engine).decryption_key("7", key.created).secret == key.secret
            with plain.connect() as connection:
                count = text(f"SELECT count(*) FROM {tenant}.encryption_key")  # noqa: S608 # a name of the test's own
                assert connection.execute(count).scalar() == 2
        finally:
            with plain.begin() as connection:
                connection.execute(text(f"DROP DATABASE {tenant}"))


def test_the_applications_json_serializer_takes_no_part(postgresql_url: str) -> None:
    def refuse(*_args: object) -> Any:
        raise AssertionError("the application's serializer was called")

    with engine_of(postgresql_url, json_serializer=refuse, json_deserializer=refuse) as engine:
        create(engine)
        key = hierarchy(engine).encryption_keys(["7"])["7"]
        assert hierarchy(engine).encryption_keys(["7"])["7"].secret == key.secret


@pytest.mark.parametrize("column", ["JSON", "JSONB"])
def test_a_peers_table_may_have_json(postgresql_url: str, column: str) -> None:
    with engine_of(postgresql_url) as engine:
        with engine.begin() as connection:
            connection.execute(
                text(
                    f"CREATE TABLE encryption_key (id TEXT NOT NULL, created TIMESTAMPTZ NOT NULL, "
                    f"key_record {column} NOT NULL, PRIMARY KEY (id, created))"
                )
            )
        process = hierarchy(engine, check_interval=0)
        key = process.encryption_keys(["7"])["7"]
        assert process.encryption_keys(["7"])["7"] is key
        assert hierarchy(engine).decryption_key("7", key.created).secret == key.secret


def test_the_sessions_time_zone_plays_no_part(postgresql_url: str) -> None:
    zones = ("UTC", "Asia/Tokyo", "America/St_Johns")
    created: set[tuple[int, bytes]] = set()
    for zone in zones:
        with engine_of(postgresql_url, connect_args={"options": f"-c TimeZone={zone}"}) as engine:
            create(engine)
            key = hierarchy(engine).encryption_keys(["7"])["7"]
            created.add((key.created, bytes(key.secret)))
    assert len(created) == 1


# Faults


def test_a_lost_connection_is_retried_from_the_start(engine: Engine) -> None:
    metastore = open_metastore(engine)
    own = "SELECT pg_backend_pid()" if engine.dialect.name == "postgresql" else "SELECT CONNECTION_ID()"
    kill = "SELECT pg_terminate_backend({})" if engine.dialect.name == "postgresql" else "KILL {}"
    tries: list[int] = []

    def work(rows: KeyRows) -> int:
        tries.append(len(rows.exact([("x", START)])))
        rows.insert([row("x", START)])
        if len(tries) < 3:
            number = scalar(rows, own)
            with engine.connect() as connection:
                connection.execute(text(kill.format(number)))
            rows.newest(["x"], START)
        return 5

    assert metastore.run(work) == 5
    assert tries == [0, 1, 1]


def test_a_deadlock_is_retried(engine: Engine) -> None:
    metastore = open_metastore(engine)
    metastore.run(lambda rows: rows.insert([row("a", START), row("b", START)]))
    lock = text("SELECT id FROM encryption_key WHERE id = :id FOR UPDATE")
    tries: list[int] = []
    held, asked = threading.Event(), threading.Event()

    def application() -> None:
        with engine.connect() as connection:
            # MariaDB's victim is the transaction that changed less; PostgreSQL's the one that looks first.
            if engine.dialect.name == "postgresql":
                connection.execute(text("SET LOCAL deadlock_timeout = '30s'"))
            connection.execute(text("UPDATE encryption_key SET key_record = '{}' WHERE id = 'a'"))
            held.set()
            asked.wait(10)
            wait_for_a_lock(engine)
            connection.execute(lock, {"id": "b"})

    def work(rows: KeyRows) -> int:
        assert isinstance(rows, ServerRows)
        tries.append(1)
        with rows._transaction():
            rows._connection.execute(lock, {"id": "b"})
            if len(tries) == 1:
                held.wait(10)
                asked.set()
            rows._connection.execute(lock, {"id": "a"})
        return len(tries)

    thread = threading.Thread(target=application)
    thread.start()
    try:
        assert metastore.run(work) == 2
    finally:
        thread.join(20)


def test_errors_that_do_not_end_are_reported_without_parameters(engine: Engine) -> None:
    tries: list[int] = []

    def work(_rows: KeyRows) -> None:
        tries.append(1)
        raise failure.TransientError("deadlock")

    with pytest.raises(MetastoreUnavailableError) as caught:
        open_metastore(engine).run(work)
    assert type(caught.value) is MetastoreUnavailableError
    assert len(tries) == 4


def test_other_errors_pass_at_once(engine: Engine) -> None:
    tries: list[int] = []

    def work(_rows: KeyRows) -> None:
        tries.append(1)
        raise KmsError("the KMS is down")

    with pytest.raises(KmsError):
        open_metastore(engine).run(work)
    assert tries == [1]


def test_a_database_that_cannot_be_reached(url: str) -> None:
    elsewhere = make_url(url).set(port=1)
    with engine_of(elsewhere.render_as_string(hide_password=False)) as engine:
        started = time.monotonic()
        with pytest.raises(MetastoreUnavailableError, match="cannot be reached") as caught:
            hierarchy(engine).encryption_keys(["7"])
        assert time.monotonic() - started < 2
        assert caught.value.__cause__ is not None
        assert not isinstance(caught.value.__cause__, exc.SQLAlchemyError)
        assert str(elsewhere.password) not in str(caught.value)


def test_a_database_that_may_only_be_read(engine: Engine, url: str) -> None:
    hierarchy(engine).encryption_keys(["7"])
    with engine_of(url) as reader:

        @event.listens_for(reader, "connect")
        def read_only(connection: Any, _record: object) -> None:
            if reader.dialect.name == "postgresql":
                connection.execute("SET default_transaction_read_only = on")
                connection.commit()
            else:
                connection.cursor().execute("SET SESSION TRANSACTION READ ONLY")

        process = hierarchy(reader)
        assert process.encryption_keys(["7"])
        with pytest.raises(MetastoreError) as caught:
            process.encryption_keys(["8"])
        assert not isinstance(caught.value, MetastoreUnavailableError)


def test_a_lock_on_the_key_table_is_waited_for(postgresql: Engine) -> None:
    locked = threading.Event()

    def application() -> None:
        with postgresql.begin() as connection:
            connection.execute(text("LOCK TABLE encryption_key IN ACCESS EXCLUSIVE MODE"))
            locked.set()
            wait_for_a_lock(postgresql)

    thread = threading.Thread(target=application)
    thread.start()
    locked.wait(10)
    assert hierarchy(postgresql).encryption_keys(["7"])
    thread.join()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ({"sqlstate": "40001"}, failure.TransientError),
        ({"sqlstate": "55P03"}, failure.TransientError),
        ({"errno": 1020}, failure.TransientError),
        ({"errno": 1205}, failure.TransientError),
        ({"sqlstate": "57014"}, MetastoreUnavailableError),
        ({"sqlstate": "53300"}, MetastoreUnavailableError),
        ({"errno": 1047}, MetastoreUnavailableError),
        ({"sqlstate": "42P01"}, MetastoreError),
        ({"errno": 1146}, MetastoreError),
        ({"sqlstate": "42501"}, MetastoreError),
        ({"errno": 1142}, MetastoreError),
    ],
    ids=str,
)
def test_errors_are_told_apart(error: dict[str, Any], expected: type[MetastoreError]) -> None:
    class Driver(Exception):  # noqa: N818 - as drivers name theirs
        sqlstate = error.get("sqlstate")

    cause = Driver(error.get("errno", "text"), "secret parameters")
    found = failure.of_server(exc.DBAPIError("INSERT", {"p": "secret"}, cause), DIALECT)
    assert type(found) is expected
    assert found.__cause__ is cause
    assert "secret" not in str(found)


def test_a_broken_socket_is_a_lost_connection() -> None:
    found = failure.of_server(ConnectionResetError("reset"), DIALECT)
    assert type(found) is failure.TransientError


# Many at once


def test_8_processes_with_8_threads_agree_on_every_key(engine: Engine) -> None:
    processes = [hierarchy(engine) for _ in range(4)]
    barrier = threading.Barrier(8)
    found: list[dict[str, tuple[int, bytes]]] = []

    def work(n: int) -> None:
        barrier.wait(10)
        partitions = ["1", "2", "3"] if n % 2 else ["3", "2", "1"]
        keys = processes[n % 4].encryption_keys(partitions)
        found.append({partition: (key.created, bytes(key.secret)) for partition, key in keys.items()})

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == 8
    assert all(keys == found[0] for keys in found)
    assert key_rows(engine) == 4


def test_a_thousand_owners_take_a_handful_of_statements(engine: Engine) -> None:
    process = hierarchy(engine, cache_size=2_000)
    process.encryption_keys(["first"])
    started = time.monotonic()
    keys = process.encryption_keys([str(n) for n in range(1_000)])
    assert len({bytes(key.secret) for key in keys.values()}) == 1_000
    assert time.monotonic() - started < 5
    assert key_rows(engine) == 1_002
    other = hierarchy(engine)
    assert {key.created for key in other.encryption_keys([str(n) for n in range(1_000)]).values()} == {
        keys["1"].created
    }


def test_what_is_stored_is_the_record_and_nothing_else(engine: Engine) -> None:
    hierarchy(engine).encryption_keys(["7"])
    with engine.connect() as connection:
        records = [json.loads(str(found)) for (found,) in connection.execute(_RECORDS)]
    assert [sorted(record) for record in records] == [
        ["Bind", "Created", "Key", "ParentKeyMeta"],
        ["Bind", "Created", "Key"],
    ]


_RECORDS = text("SELECT CAST(key_record AS CHAR(2000)) FROM encryption_key ORDER BY id")
