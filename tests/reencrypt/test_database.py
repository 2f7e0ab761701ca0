# SPDX-License-Identifier: Apache-2.0
"""Transactions: what a server calls temporary is done again in a new transaction, and everything else is not."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
import sqlalchemy as sa

from sa_asherah.errors import ReencryptionError
from sa_asherah.reencrypt.database import Database
from tests.reencrypt.scene import Scene

_RAISE = "DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{}'; END $$"
_SIGNAL = "BEGIN NOT ATOMIC SIGNAL SQLSTATE '{}' SET MYSQL_ERRNO = {}; END"
_MARIADB = [_SIGNAL.format("40001", 1213), _SIGNAL.format("HY000", 1205)]
TEMPORARY = {
    "sqlite": [],
    "postgresql": [*map(_RAISE.format, ("40P01", "40001")), "SELECT pg_terminate_backend(pg_backend_pid())"],
    "mysql": _MARIADB,
    "mariadb": _MARIADB,
}


def test_deadlocks_serialization_failures_and_lost_connections_are_tried_again(scene: Scene) -> None:
    scene.sql("CREATE TABLE counted (number INTEGER)")
    failures = list(TEMPORARY[scene.kind])
    expected = len(failures) + 1
    tries: list[int] = []

    def work(connection: sa.Connection) -> None:
        tries.append(1)
        connection.exec_driver_sql("INSERT INTO counted VALUES (1)")
        if failures:
            connection.exec_driver_sql(failures.pop())

    Database(scene.engine).write(work)
    assert len(tries) == expected
    assert scene.sql("SELECT count(*) FROM counted")[0][0] == 1


def test_other_errors_are_told_at_once_without_what_the_server_said(scene: Scene) -> None:
    with pytest.raises(ReencryptionError) as caught:
        Database(scene.engine).read(lambda connection: connection.exec_driver_sql("SELECT canary FROM nowhere"))
    assert "canary" not in str(caught.value)
    assert caught.value.__context__ is None


def test_a_locked_sqlite_file_is_waited_for(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = sa.create_engine(sqlite_url, connect_args={"timeout": 0})
    with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        monkeypatch.setattr(
            "sa_asherah.reencrypt.database.time.sleep", lambda _: other.in_transaction and other.execute("COMMIT")
        )
        Database(engine).write(lambda connection: connection.exec_driver_sql("CREATE TABLE made (number INTEGER)"))
    assert sa.inspect(engine).has_table("made")
    engine.dispose()
