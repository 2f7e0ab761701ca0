# SPDX-License-Identifier: Apache-2.0
"""A restored dump is examined where no Vault can be reached, and with the Vault of the application."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pytest_postgresql.executors import NoopExecutor
from sqlalchemy import Engine, create_engine, make_url

from sa_asherah.config import Settings
from sa_asherah.doctor import examine
from tests.doctor.clinic import metadata
from tests.doctor.surgery import COLUMNS, Surgery
from tests.doctor.test_online import Site
from tests.servers.database import postgresql_database
from tests.servers.mariadb import MariaDB
from tests.servers.openbao import OpenBao
from tests.servers.postgresql import ENVIRONMENT, PostgreSQL
from tests.servers.process import account

Restored = tuple[Site, Engine]
RESTORED = "doctor_restored"


@pytest.fixture
def sqlite_dump(openbao: OpenBao, tmp_path: Path) -> Iterator[Restored]:
    """A copy of the file."""
    site = Site(openbao, f"sqlite:///{tmp_path / 'clinic.db'}")
    site.engine.dispose()
    shutil.copy(tmp_path / "clinic.db", tmp_path / "restored.db")
    engine = create_engine(f"sqlite:///{tmp_path / 'restored.db'}")
    yield site, engine
    engine.dispose()


@pytest.fixture
def postgresql_dump(
    openbao: OpenBao, postgresql_server: PostgreSQL, postgresql_noproc: NoopExecutor, postgresql_url: str
) -> Iterator[Restored]:
    """What `pg_dump` wrote, in another database."""

    def call(program: str, url: str, stdin: str = "") -> str:
        address = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
        command: list[str | Path] = [postgresql_server._binaries / program, "--dbname", address]
        done = subprocess.run(
            command, env=ENVIRONMENT, cwd="/", input=stdin, capture_output=True, text=True, check=False, **account()
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    site = Site(openbao, postgresql_url)
    site.engine.dispose()
    with postgresql_database(postgresql_server, postgresql_noproc, RESTORED) as url:
        call("psql", url, call("pg_dump", postgresql_url))
        engine = create_engine(url)
        yield site, engine
        engine.dispose()


@pytest.fixture
def mariadb_dump(openbao: OpenBao, mariadb_server: MariaDB, mariadb_url: str) -> Iterator[Restored]:
    """What `mariadb-dump` would write, which does not come with the server, in another database."""
    site = Site(openbao, mariadb_url)
    site.engine.dispose()
    mariadb_server.create(RESTORED)
    engine = create_engine(mariadb_server.url(RESTORED))
    with site.engine.begin() as source, engine.begin() as target:
        target.exec_driver_sql("SET foreign_key_checks = 0")
        for statement in _statements(source.connection.cursor()):
            target.exec_driver_sql(statement)
    site.engine.dispose()
    yield site, engine
    engine.dispose()
    mariadb_server.drop(RESTORED)


def _statements(cursor: Any) -> Iterator[str]:
    for name in COLUMNS:
        cursor.execute(f"SHOW CREATE TABLE {name}")
        yield cursor.fetchone()[1]
        cursor.execute(f"SELECT * FROM {name}")  # noqa: S608 # our own names
        for row in cursor.fetchall():
            places = ", ".join(["%s"] * len(row))
            statement: str = cursor.mogrify(f"INSERT INTO {name} VALUES ({places})", row)  # noqa: S608 # the same
            yield statement.replace("%", "%%")


@pytest.mark.parametrize("kind", ["sqlite", "postgresql", "mariadb"])
def test_a_restored_dump_is_examined(request: pytest.FixtureRequest, kind: str) -> None:
    site, engine = request.getfixturevalue(f"{kind}_dump")
    nowhere = Settings.from_env(site.environ())
    findings = examine(engine, nowhere, metadata())
    assert [str(each) for each in findings.found] == []
    assert (findings.values > 0, findings.opened) == (True, 0)
    assert "Bind" in findings.not_checked[0]
    with site.asherah("encrypt", "decrypt") as keys:
        findings = examine(engine, keys, metadata(), online=True)
    assert findings.opened == findings.values
    assert set(findings.counts) == {"vault"}  # plain http
    with engine.begin() as connection:
        body = Surgery(connection)
        body.delete_keys("_IK_2_records_clinic")
        body.put("patients", body.rows("patients", clinic_id=1)[0], note="a plain note")
    assert set(examine(engine, nowhere, metadata()).counts) == {"key-missing", "plaintext"}
