# SPDX-License-Identifier: Apache-2.0
"""Fixtures that every test may use.

Databases (each test gets a fresh, empty one; servers start on first use, once per session, and end with it):

`sqlite_url`, `postgresql_url`, `mariadb_url`
    URL of a database, for the synchronous driver: a file in the test's folder, psycopg, PyMySQL.
`database_url`
    Each of the three in turn (test ids `sqlite`, `postgresql`, `mariadb`).
    `tests.servers.database.async_url` turns such a URL into the one of the asynchronous driver.
`postgresql_server`, `mariadb_server`, `openbao`
    The servers themselves. Tests that stop, seal or restart a server start one of their own:
    `with PostgreSQL() as server:`.

A server that cannot be had skips the test, but fails it where `CI=true` or `SA_ASHERAH_REQUIRE_BACKENDS=1`.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import itertools
import os
import signal
from typing import TYPE_CHECKING, TypeVar

import hypothesis
import pytest
from pytest_postgresql import factories

from tests.servers.database import postgresql_database
from tests.servers.mariadb import MariaDB
from tests.servers.postgresql import PostgreSQL
from tests.servers.process import ServerUnavailableError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from pytest_postgresql.executors import NoopExecutor

    from tests.servers.openbao import OpenBao

# A plain `kill` (a time limit, say) ends the run like Ctrl-C, so that the fixtures still end their servers.
signal.signal(signal.SIGTERM, signal.default_int_handler)

# Where CI=true, hypothesis takes its own profile `ci` (the same examples every time) unless one is named.
hypothesis.settings.register_profile("nightly", max_examples=2000, deadline=None)
if os.environ.get("CI") != "true":
    hypothesis.settings.register_profile("local", deadline=None)
    hypothesis.settings.load_profile("local")

T = TypeVar("T")
_numbers = itertools.count(1)


@pytest.hookimpl(trylast=True)  # after pytest-randomly
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the long tests, so that no process has one left when the others have ended."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_report_header() -> str:
    """Say which SQLAlchemy is under test."""
    return f"sqlalchemy: {importlib.metadata.version('sqlalchemy')}"


@contextlib.contextmanager
def _started(server: AbstractContextManager[T]) -> Generator[T]:
    with contextlib.ExitStack() as stack:
        try:
            running = stack.enter_context(server)
        except ServerUnavailableError as error:
            if os.environ.get("CI") == "true" or os.environ.get("SA_ASHERAH_REQUIRE_BACKENDS") == "1":
                pytest.fail(str(error))
            pytest.skip(str(error))
        yield running


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgreSQL]:
    """A running PostgreSQL server."""
    with _started(PostgreSQL()) as server:
        yield server


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[MariaDB]:
    """A running MariaDB server."""
    with _started(MariaDB()) as server:
        yield server


@pytest.fixture(scope="session")
def openbao() -> Iterator[OpenBao]:
    """A running OpenBao server in development mode; isolate tests by mounts and policies of their own."""
    from tests.servers.openbao import OpenBao  # noqa: PLC0415

    with _started(OpenBao()) as server:
        yield server


postgresql_noproc = factories.postgresql_noproc(  # pyright: ignore[reportUnknownMemberType] # its `load` is a bare list
    depends_on="postgresql_server"
)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """URL of a SQLite file that does not exist yet."""
    return f"sqlite:///{tmp_path / 'test.db'}"


@pytest.fixture
def postgresql_url(postgresql_server: PostgreSQL, postgresql_noproc: NoopExecutor) -> Iterator[str]:
    """URL of an empty PostgreSQL database."""
    name = f"test_{next(_numbers)}"
    with postgresql_database(postgresql_server, postgresql_noproc, name) as url:
        yield url


@pytest.fixture
def mariadb_url(mariadb_server: MariaDB) -> Iterator[str]:
    """URL of an empty MariaDB database."""
    name = f"test_{next(_numbers)}"
    mariadb_server.create(name)
    try:
        yield mariadb_server.url(name)
    finally:
        mariadb_server.drop(name)


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def database_url(request: pytest.FixtureRequest) -> str:
    """URL of an empty database, for each supported kind in turn."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url
