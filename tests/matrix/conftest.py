# SPDX-License-Identifier: Apache-2.0
"""One database of each kind for the whole matrix; each case gets an application on one driver."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sa_asherah import Asherah
from tests.matrix.registration import ASYNCHRONOUS, DRIVERS
from tests.orm.app import App, create_tables
from tests.orm.conftest import static_kms
from tests.servers.database import postgresql_database

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_postgresql.executors import NoopExecutor

    from sa_asherah.kms.static import StaticKMS
    from tests.servers.mariadb import MariaDB
    from tests.servers.postgresql import PostgreSQL

__all__ = ["static_kms"]

NAME = "matrix"


@pytest.fixture(scope="session")
def sqlite_matrix(tmp_path_factory: pytest.TempPathFactory, static_kms: StaticKMS) -> str:
    """A file with the tables of the suite."""
    return _with_tables(f"sqlite:///{tmp_path_factory.mktemp(NAME) / 'matrix.db'}", static_kms)


@pytest.fixture(scope="session")
def postgresql_matrix(
    postgresql_server: PostgreSQL, postgresql_noproc: NoopExecutor, static_kms: StaticKMS
) -> Iterator[str]:
    """A database with the tables of the suite."""
    with postgresql_database(postgresql_server, postgresql_noproc, NAME) as url:
        yield _with_tables(url, static_kms)


@pytest.fixture(scope="session")
def mariadb_matrix(mariadb_server: MariaDB, static_kms: StaticKMS) -> Iterator[str]:
    """A database with the tables of the suite."""
    mariadb_server.create(NAME)
    yield _with_tables(mariadb_server.url(NAME), static_kms)
    mariadb_server.drop(NAME)


@pytest.fixture
def app(request: pytest.FixtureRequest, static_kms: StaticKMS) -> App:
    """An application on the driver that the test's parameter names."""
    driver: str = request.param
    url: str = request.getfixturevalue(f"{DRIVERS[driver]}_matrix")
    options = {"connect_args": {"ssl_disabled": True}} if driver == "pymysql" else {}  # it would prepare TLS each time
    return App(url, static_kms, is_async=driver in ASYNCHRONOUS, options=options)


def _with_tables(url: str, kms: StaticKMS) -> str:
    create_tables(url, Asherah("records", "clinic", kms))
    return url
