# SPDX-License-Identifier: Apache-2.0
"""The key table: its definition, and the checks of tables that others made."""

from __future__ import annotations

import logging
import re
import threading
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Engine, make_url, text
from sqlalchemy.schema import CreateTable

from sa_asherah.errors import ConfigurationError, MetastoreError
from sa_asherah.metastore import check, create, open_metastore
from sa_asherah.metastore.enlisted import EnlistedMetastore, SeparateFile
from sa_asherah.metastore.side import SideMetastore
from sa_asherah.metastore.table import encryption_key, seconds_of, text_of
from tests.metastore.backends import engine_of, memory_engine

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    with engine_of(database_url) as engine:
        yield engine


def ddl(name: str) -> str:
    dialect = make_url(f"{name}://").get_dialect()()
    return " ".join(str(CreateTable(encryption_key).compile(dialect=dialect)).split())


def test_the_definition_is_the_agreed_one() -> None:
    assert ddl("sqlite") == (
        "CREATE TABLE encryption_key ( id TEXT NOT NULL, created TIMESTAMP NOT NULL, key_record TEXT NOT NULL, "
        "PRIMARY KEY (id, created) )"
    )
    assert ddl("postgresql") == (
        "CREATE TABLE encryption_key ( id VARCHAR(255) NOT NULL, created TIMESTAMP WITH TIME ZONE NOT NULL, "
        "key_record JSONB NOT NULL, PRIMARY KEY (id, created) )"
    )
    assert ddl("mysql") == (
        "CREATE TABLE encryption_key ( id VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL, created "
        "DATETIME NOT NULL, key_record TEXT NOT NULL, PRIMARY KEY (id, created) )ENGINE=InnoDB CHARSET=utf8mb4 COLLATE "
        "utf8mb4_bin"
    )


def test_creating_it_twice_is_harmless_and_it_passes_the_check(engine: Engine) -> None:
    create(engine)
    create(engine)
    with engine.begin() as connection:
        create(connection)
        check(connection, peers=False)
        check(connection, peers=True)


def test_several_processes_may_create_it_at_once(engine: Engine) -> None:
    errors: list[BaseException] = []
    barrier = threading.Barrier(6)

    def work() -> None:
        barrier.wait(10)
        try:
            create(engine)
        except BaseException as error:  # noqa: BLE001 - the test reports what a thread raised
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert errors == []


def test_a_missing_table_is_named_with_the_remedy(engine: Engine) -> None:
    with engine.connect() as connection, pytest.raises(MetastoreError, match="create_metastore"):
        check(connection, peers=False)


BASE = {"id": "VARCHAR(255)", "created": "TIMESTAMPTZ", "key_record": "JSONB", "key": "PRIMARY KEY (id, created)"}
MYSQL = {"id": "VARCHAR(255) COLLATE utf8mb4_bin", "created": "DATETIME", "key_record": "TEXT"}


UNSAFE: dict[str, list[tuple[dict[str, str], str]]] = {
    "postgresql": [
        ({"created": "TIMESTAMP"}, "TYPE TIMESTAMPTZ"),
        ({"created": "BIGINT"}, "TYPE TIMESTAMPTZ"),
        ({"key_record": "TEXT"}, "TYPE JSONB"),
        ({"key": "PRIMARY KEY (id)"}, "primary key is not (id, created)"),
        ({"key": "UNIQUE (id, created)"}, "primary key is not (id, created)"),
    ],
    "mariadb": [
        ({"id": "VARCHAR(255) COLLATE utf8mb4_general_ci"}, "COLLATE utf8mb4_bin"),
        ({"id": "VARCHAR(100) COLLATE utf8mb4_bin"}, "VARCHAR(255)"),
        ({"created": "TIMESTAMP"}, "created DATETIME"),
        ({"created": "BIGINT"}, "created DATETIME"),
        ({"key": "PRIMARY KEY (id)"}, "primary key is not (id, created)"),
    ],
    "sqlite": [({"key": "PRIMARY KEY (id)"}, "primary key is not (id, created)")],
}


@pytest.mark.parametrize("database", UNSAFE)
def test_unsafe_tables_are_refused_with_the_remedy(request: pytest.FixtureRequest, database: str) -> None:
    with engine_of(request.getfixturevalue(f"{database}_url")) as engine, engine.begin() as connection:
        for change, remedy in UNSAFE[database]:
            parts = BASE | (MYSQL if database == "mariadb" else {}) | change
            columns = ", ".join(f"{name} {parts[name]} NOT NULL" for name in ("id", "created", "key_record"))
            connection.execute(text(f"CREATE TABLE encryption_key ({columns}, {parts['key']})"))
            with pytest.raises(ConfigurationError, match=re.escape(remedy)):
                check(connection, peers=False)
            connection.execute(text("DROP TABLE encryption_key"))


def test_a_table_without_our_columns_is_refused(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE encryption_key (id INTEGER)"))
        with pytest.raises(ConfigurationError, match="no column created, key_record"):
            check(connection, peers=False)


def test_peers_on_mysql_may_have_timestamp_and_json(mariadb_url: str, caplog: pytest.LogCaptureFixture) -> None:
    with engine_of(mariadb_url) as engine, engine.begin() as connection:
        connection.execute(
            text(
                "CREATE TABLE encryption_key (id VARBINARY(255) NOT NULL, created TIMESTAMP NOT NULL DEFAULT "
                "CURRENT_TIMESTAMP, key_record JSON NOT NULL, PRIMARY KEY (id, created), INDEX (created))"
            )
        )
        with caplog.at_level(logging.WARNING, "sa_asherah.metastore"):
            check(connection, peers=True)
    assert "DATETIME is safe" in caplog.text


def test_sqlite_must_hold_utf_8() -> None:
    with memory_engine() as engine, engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA encoding = 'UTF-16'")
        create(connection)
        with pytest.raises(ConfigurationError, match="UTF-16"):
            check(connection, peers=False)


def test_sqlite_without_synchronous_is_warned_of(sqlite_url: str, caplog: pytest.LogCaptureFixture) -> None:
    with engine_of(sqlite_url) as engine, engine.connect() as connection:
        create(connection)
        connection.commit()
        check(connection, peers=False)
        assert caplog.records == []
        connection.exec_driver_sql("PRAGMA synchronous = OFF")
        check(connection, peers=False)
    assert "synchronous is OFF" in caplog.text


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0, "1970-01-01 00:00:00"), (1_800_000_007, "2027-01-15 08:00:07"), (253_402_300_799, "9999-12-31 23:59:59")],
)
def test_dates_as_text(seconds: int, written: str) -> None:
    assert text_of(seconds) == written
    assert seconds_of(written) == seconds


@pytest.mark.parametrize(
    "other",
    [
        "",
        "2027-01-15T08:00:07",
        "2027-01-15 08:00:0x",
        "2027-02-30 08:00:00",
        "0000-00-00 00:00:00",
        None,
        5,
        b"x",
        "٢027-01-15 08:00:07",
        "2027-W02-5 08:00:00",
    ],
)
def test_other_texts_are_no_dates(other: object) -> None:
    assert seconds_of(other) is None


def test_the_database_decides_how_keys_are_reached(database_url: str) -> None:
    with engine_of(database_url) as engine:
        kind = type(open_metastore(engine))
        apart = type(open_metastore(engine, separate=True))
    if database_url.startswith("sqlite"):
        assert (kind, apart) == (EnlistedMetastore, SeparateFile)
    else:
        assert kind is apart is SideMetastore


def test_other_databases_are_refused() -> None:
    class Oracle:
        name = "oracle"

    class OracleEngine:
        dialect = Oracle()

    with pytest.raises(ConfigurationError, match="oracle"):
        open_metastore(OracleEngine())  # type: ignore[arg-type]
