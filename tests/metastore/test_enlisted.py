# SPDX-License-Identifier: Apache-2.0
"""Keys in SQLite: whatever is committed can be read, whatever was rolled back on the way."""

from __future__ import annotations

import logging
import sqlite3
import threading
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Connection, Engine, StaticPool, event, text
from sqlalchemy.exc import IntegrityError, OperationalError

from sa_asherah.core.session import Session
from sa_asherah.errors import ConfigurationError, MetastoreError, MetastoreUnavailableError, UsageError
from sa_asherah.metastore import create, open_metastore
from tests.metastore.backends import engine_of, hierarchy, memory_engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sa_asherah.core.hierarchy import Hierarchy


def prepare(engine: Engine) -> Engine:
    create(engine)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE notes (id INTEGER PRIMARY KEY, owner TEXT, note TEXT)"))
    return engine


@pytest.fixture
def file(sqlite_url: str) -> Iterator[Engine]:
    with engine_of(sqlite_url) as engine:
        yield prepare(engine)


@pytest.fixture
def memory() -> Iterator[Engine]:
    with memory_engine() as engine:
        yield prepare(engine)


def _begin_immediately(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def connected(connection: Any, _record: object) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


@pytest.fixture(params=["file", "memory", "wal", "begin immediate", "autocommit"])
def engine(request: pytest.FixtureRequest, sqlite_url: str) -> Iterator[Engine]:
    if request.param == "memory":
        with memory_engine() as engine:
            yield prepare(engine)
        return
    options: dict[str, Any] = {"isolation_level": "AUTOCOMMIT"} if request.param == "autocommit" else {}
    with engine_of(sqlite_url, **options) as engine:
        if request.param == "begin immediate":
            _begin_immediately(engine)
        elif request.param == "wal":
            with engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA journal_mode = WAL")
        yield prepare(engine)


def write(process: Hierarchy, connection: Connection, owner: str = "7", note: str = "note") -> None:
    """Insert an encrypted note as the plugin does: keys first, then the row, on the same connection."""
    record = Session(process, owner, connection).encrypt(note.encode())
    connection.execute(text("INSERT INTO notes (owner, note) VALUES (:owner, :note)"), {"owner": owner, "note": record})


def read_all(engine: Engine, process: Hierarchy | None = None) -> list[str]:
    """Read all notes, by default as a process that has seen no key."""
    process = process or hierarchy(engine)
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT owner, note FROM notes ORDER BY id")).all()
        return [Session(process, owner, connection).decrypt(note).decode() for owner, note in rows]


def test_a_roll_back_takes_no_later_row_along(engine: Engine) -> None:
    process = hierarchy(engine)
    with engine.connect() as connection:
        write(process, connection, note="rolled back")
        connection.rollback()
        write(process, connection, note="committed")
        connection.commit()
    with engine.begin() as connection:
        write(process, connection, note="later")
    assert read_all(engine)[-2:] == ["committed", "later"]


def test_neither_does_a_savepoints(engine: Engine) -> None:
    process = hierarchy(engine)
    with engine.connect() as connection:
        connection.execute(text("INSERT INTO notes (id) VALUES (1)"))
        connection.execute(text("DELETE FROM notes"))
        try:
            savepoint = connection.begin_nested()
            write(process, connection, note="rolled back")
            savepoint.rollback()
        except OperationalError as error:
            assert "no such savepoint" in str(error)  # noqa: PT017 - autocommit knows no savepoints
        write(process, connection, note="committed")
        connection.commit()
    assert read_all(engine) == ["committed"]


def rollback_to(connection: Connection) -> None:
    connection.exec_driver_sql("ROLLBACK TO here")


def insert_or_rollback(connection: Connection) -> None:
    with pytest.raises(IntegrityError):
        connection.exec_driver_sql("INSERT OR ROLLBACK INTO notes (id) VALUES (1)")


def roll_the_driver_back(connection: Connection) -> None:
    connection.connection.rollback()


@pytest.mark.parametrize("undo", [rollback_to, insert_or_rollback, roll_the_driver_back])
def test_neither_do_roll_backs_of_which_no_event_tells(
    file: Engine, memory: Engine, undo: Callable[[Connection], object]
) -> None:
    for engine in (file, memory):
        with engine.begin() as connection:
            connection.execute(text("INSERT INTO notes (id) VALUES (1)"))
        process = hierarchy(engine)
        with engine.connect() as connection:
            connection.exec_driver_sql("UPDATE notes SET owner = NULL")
            connection.exec_driver_sql("SAVEPOINT here")
            write(process, connection, note="undone")
            undo(connection)
            write(process, connection, note="committed")
            connection.commit()
        with engine.begin() as connection:
            connection.execute(text("DELETE FROM notes WHERE id = 1"))
        assert read_all(engine) == ["committed"]


def test_a_failed_commit_takes_no_later_row_along(file: Engine) -> None:
    with file.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE child (note INTEGER REFERENCES notes DEFERRABLE INITIALLY DEFERRED)")
    process = hierarchy(file)
    with file.connect() as connection:
        connection.exec_driver_sql("PRAGMA foreign_keys = ON")
        write(process, connection, note="never committed")
        connection.exec_driver_sql("INSERT INTO child VALUES (99)")
        with pytest.raises(IntegrityError):
            connection.commit()
        # SQLAlchemy takes the transaction for ended; the driver does not.
        connection.connection.rollback()
    with file.begin() as connection:
        write(process, connection, note="committed")
    assert read_all(file) == ["committed"]


def test_a_key_of_another_process_takes_the_place_of_one_rolled_back(file: Engine) -> None:
    process = hierarchy(file)
    with file.connect() as connection:
        write(process, connection, note="rolled back")
        connection.rollback()
    with file.begin() as connection:
        write(hierarchy(file), connection, owner="8", note="other process")
        write(hierarchy(file), connection, note="other process")
    with file.begin() as connection:
        write(process, connection, note="committed")
    expected = ["other process", "other process", "committed"]
    assert read_all(file) == expected
    assert read_all(file, process) == expected


def test_keys_come_and_go_with_the_tables_of_a_test_suite(memory: Engine) -> None:
    process = hierarchy(memory)
    for _ in range(3):
        with memory.connect() as connection:
            outer = connection.begin()
            write(process, connection)
            outer.rollback()
    with memory.begin() as connection:
        write(process, connection)
    assert read_all(memory) == ["note"]


def test_keys_travel_on_a_cursor_that_no_listener_sees(file: Engine, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[object] = []
    with caplog.at_level(logging.DEBUG, "sqlalchemy.engine"), file.connect() as connection:

        @event.listens_for(connection, "before_cursor_execute")
        def executing(*_args: object) -> None:
            seen.append(1)

        hierarchy(file).encryption_keys(["7"], connection)
        connection.commit()
    assert seen == []
    assert "encryption_key" not in caplog.text


def test_it_copes_with_what_the_application_sets_on_its_connections(sqlite_url: str) -> None:
    detect = sqlite3.PARSE_DECLTYPES | sqlite3.PARSE_COLNAMES
    with engine_of(sqlite_url, connect_args={"detect_types": detect}, native_datetime=True) as engine:
        create(engine)

        @event.listens_for(engine, "connect")
        def connected(connection: Any, _record: object) -> None:
            connection.row_factory = sqlite3.Row

        with engine.begin() as connection:
            process = hierarchy(engine)
            key = process.encryption_keys(["7"], connection)["7"]
            assert process.encryption_keys(["7"], connection)["7"] is key
            assert hierarchy(engine).decryption_key("7", key.created, connection).secret == key.secret


def test_uncommitted_reads_are_refused_for_writing(sqlite_url: str) -> None:
    with engine_of(sqlite_url, isolation_level="READ UNCOMMITTED") as engine:
        create(engine)
        with engine.connect() as connection, pytest.raises(ConfigurationError, match="READ UNCOMMITTED"):
            hierarchy(engine).encryption_keys(["7"], connection)


# Without the connection


def test_a_file_can_be_read_without_its_connection(file: Engine) -> None:
    process = hierarchy(file)
    with file.begin() as connection:
        key = process.encryption_keys(["7"], connection)["7"]
    assert hierarchy(file).decryption_key("7", key.created).secret == key.secret
    assert hierarchy(file).decryption_key("7", key.created, connection).secret == key.secret


def test_a_file_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a b").mkdir()
    monkeypatch.chdir(tmp_path)
    for database in ("a b/rel?.db", "file:a b/uri.db?mode=rwc&uri=true"):
        monkeypatch.chdir(tmp_path)
        with engine_of(f"sqlite:///{database}") as engine:
            create(engine)
            metastore = open_metastore(engine)
            with engine.begin() as connection:
                key = hierarchy(metastore).encryption_keys(["7"], connection)["7"]
            monkeypatch.chdir("/")
            assert hierarchy(metastore).decryption_key("7", key.created).secret == key.secret


@pytest.mark.parametrize(
    "url",
    ["sqlite://", "sqlite:///:memory:", "sqlite:///file::memory:?uri=true", "sqlite:///file:x?mode=memory&uri=true"],
)
def test_memory_is_read_within_the_life_of_its_connection(url: str) -> None:
    with engine_of(url, poolclass=StaticPool) as engine, engine.connect() as connection:
        create(connection)
        process = hierarchy(engine)
        key = process.encryption_keys(["7"], connection)["7"]
        assert hierarchy(engine).decryption_key("7", key.created, connection).secret == key.secret
        assert process.decryption_key("7", key.created) is key
        for call in (
            lambda: process.encryption_keys(["7"]),
            lambda: hierarchy(engine).decryption_key("7", key.created),
        ):
            with pytest.raises(UsageError, match="in memory"):
                call()


def test_without_a_connection_a_new_key_is_committed_on_its_own(file: Engine) -> None:
    record = Session(hierarchy(file), "7").encrypt(b"data")
    assert Session(hierarchy(file), "7").decrypt(record) == b"data"


def test_without_a_connection_an_open_transaction_stops_new_keys(file: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sa_asherah.metastore.enlisted._BUSY_TIMEOUT", 0.2)
    record = Session(hierarchy(file), "7").encrypt(b"data")
    with file.connect() as connection:
        connection.exec_driver_sql("INSERT INTO notes (id) VALUES (1)")
        process = hierarchy(file)
        assert Session(process, "7").decrypt(record) == b"data"
        assert Session(process, "7").encrypt(b"data")
        with pytest.raises(MetastoreUnavailableError, match="pass its connection"):
            Session(process, "8").encrypt(b"data")
        assert Session(process, "8", connection).encrypt(b"data")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with engine_of(f"sqlite:///{tmp_path / 'none.db'}") as engine:
        with pytest.raises(MetastoreUnavailableError, match="unable to open"):
            hierarchy(engine).decryption_key("7", 1_800_000_000)
        with pytest.raises(MetastoreUnavailableError):
            Session(hierarchy(engine), "7").encrypt(b"data")
    assert not (tmp_path / "none.db").exists()


def test_a_missing_table_is_named_with_the_remedy(sqlite_url: str) -> None:
    with (
        engine_of(sqlite_url) as engine,
        engine.connect() as connection,
        pytest.raises(MetastoreError, match="create_metastore"),
    ):
        hierarchy(engine).encryption_keys(["7"], connection)


# A file of its own for another engine's data


def test_a_key_file_apart_from_the_data(sqlite_url: str) -> None:
    with engine_of(sqlite_url) as engine:
        create(engine)
        metastore = open_metastore(engine, separate=True)
        process = hierarchy(metastore)
        with engine.connect() as connection:
            key = process.encryption_keys(["7"], connection)["7"]
            connection.rollback()
        assert process.encryption_keys(["7"])["7"] is key
        assert hierarchy(engine).decryption_key("7", key.created).secret == key.secret
        process.close()


def test_a_key_table_in_memory_serves_no_other_engine() -> None:
    with memory_engine() as engine, pytest.raises(ConfigurationError, match="in memory"):
        open_metastore(engine, separate=True)


# Many at once


def test_threads_with_transactions_of_their_own(file: Engine) -> None:
    with file.connect() as connection:
        connection.exec_driver_sql("PRAGMA journal_mode = WAL")
    _begin_immediately_after(file)
    process = hierarchy(file)
    errors: list[BaseException] = []

    def work(n: int) -> None:
        try:
            for turn in range(10):
                with file.connect() as connection:
                    write(process, connection, owner=str(turn % 3), note=f"{n}/{turn}")
                    if (n + turn) % 2:
                        connection.rollback()
                    else:
                        connection.commit()
        except BaseException as error:  # noqa: BLE001 - the test reports what a thread raised
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert len(read_all(file)) == 40


def _begin_immediately_after(engine: Engine) -> None:
    """Take the write lock at once, so that SQLite's own busy timeout orders the writers."""
    engine.dispose()
    _begin_immediately(engine)
