# SPDX-License-Identifier: Apache-2.0
"""A healthy database of each kind, copied for every test."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pytest_postgresql.executors import NoopExecutor
from sqlalchemy import Engine, create_engine, event, text

from sa_asherah import StaticKeyWarning
from sa_asherah.kms.static import StaticKMS
from tests.doctor.clinic import build
from tests.doctor.surgery import COLUMNS
from tests.servers.database import postgresql_database
from tests.servers.mariadb import MariaDB
from tests.servers.postgresql import PostgreSQL

HEALTHY, COPY = "doctor_healthy", "doctor_copy"


@pytest.fixture(scope="session")
def kms() -> StaticKMS:
    """The key service: its keys can be opened without asking anybody."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StaticKeyWarning)
        return StaticKMS(bytes(range(32)), {})


def _built(url: str, kms: StaticKMS) -> None:
    engine = create_engine(url)
    build(engine, kms)
    engine.dispose()


@pytest.fixture(scope="session")
def sqlite_clinic(tmp_path_factory: pytest.TempPathFactory, kms: StaticKMS) -> Path:
    """A SQLite file that is healthy."""
    path = tmp_path_factory.mktemp("doctor") / "healthy.db"
    _built(f"sqlite:///{path}", kms)
    return path


@pytest.fixture(scope="session")
def postgresql_clinic(
    postgresql_server: PostgreSQL, postgresql_noproc: NoopExecutor, kms: StaticKMS
) -> Iterator[Engine]:
    """A PostgreSQL database whose schema `healthy` is."""
    with postgresql_database(postgresql_server, postgresql_noproc, "doctor") as url:
        _built(url, kms)
        engine = create_engine(url)
        with engine.begin() as connection:
            connection.execute(text("ALTER SCHEMA public RENAME TO healthy"))
            connection.execute(text("CREATE SCHEMA public"))
        _renew(engine, COLUMNS, _IN_POSTGRESQL)
        yield engine
        engine.dispose()


@pytest.fixture(scope="session")
def mariadb_clinic(mariadb_server: MariaDB, kms: StaticKMS) -> Iterator[Engine]:
    """A MariaDB server with a database that is healthy and one for copies."""
    mariadb_server.create(HEALTHY)
    mariadb_server.create(COPY)
    _built(mariadb_server.url(HEALTHY), kms)
    engine = create_engine(mariadb_server.url(COPY))
    _renew(engine, COLUMNS, _IN_MARIADB)
    yield engine
    engine.dispose()
    mariadb_server.drop(HEALTHY)
    mariadb_server.drop(COPY)


_IN_POSTGRESQL = (
    "DROP TABLE IF EXISTS {0} CASCADE",
    "CREATE TABLE {0} (LIKE healthy.{0} INCLUDING ALL)",
    "INSERT INTO {0} SELECT * FROM healthy.{0}",
)
_IN_MARIADB = (
    f"CREATE OR REPLACE TABLE {{0}} LIKE {HEALTHY}.{{0}}",
    f"INSERT INTO {{0}} SELECT * FROM {HEALTHY}.{{0}}",  # noqa: S608
)


def _renew(engine: Engine, names: Iterable[str], statements: Sequence[str]) -> None:
    with engine.begin() as connection:
        for name in names:
            for statement in statements:
                connection.execute(text(statement.format(name)))


@contextmanager
def _lent(engine: Engine, statements: Sequence[str]) -> Generator[Engine]:
    """Lend the copy, and renew the tables that were written to."""
    changed = {"encryption_key"}  # which engines of the package's own may have written to

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if not statement.startswith(("SELECT", "SHOW")):
            changed.update(name for name in COLUMNS if name in statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield engine
    finally:
        event.remove(engine, "before_cursor_execute", note)
        _renew(engine, changed, statements)


@pytest.fixture
def sqlite_copy(sqlite_clinic: Path, tmp_path: Path) -> Iterator[Engine]:
    """The healthy SQLite database, to be damaged."""
    shutil.copy(sqlite_clinic, tmp_path / "copy.db")
    engine = create_engine(f"sqlite:///{tmp_path / 'copy.db'}")
    yield engine
    engine.dispose()


@pytest.fixture
def postgresql_copy(postgresql_clinic: Engine) -> Iterator[Engine]:
    """The healthy PostgreSQL database, to be damaged."""
    with _lent(postgresql_clinic, _IN_POSTGRESQL) as engine:
        yield engine


@pytest.fixture
def mariadb_copy(mariadb_clinic: Engine) -> Iterator[Engine]:
    """The healthy MariaDB database, to be damaged."""
    with _lent(mariadb_clinic, _IN_MARIADB) as engine:
        yield engine


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """A copy of the healthy database of each kind in turn."""
    found: Engine = request.getfixturevalue(f"{request.param}_copy")
    return found
