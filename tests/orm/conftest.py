# SPDX-License-Identifier: Apache-2.0
"""Run every test that asks for `app` on each database: sync, async, and sync against a real OpenBao."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import pytest

from sa_asherah import Asherah, StaticKeyWarning
from sa_asherah.kms.static import StaticKMS
from sa_asherah.kms.vault import VaultTransitKMS
from tests.orm.app import App, create_tables
from tests.servers.database import postgresql_database

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_postgresql.executors import NoopExecutor

    from tests.servers.mariadb import MariaDB
    from tests.servers.openbao import OpenBao
    from tests.servers.postgresql import PostgreSQL

NAME = "orm_suite"


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Let the application run the test, so that asynchronous drivers find their event loop and greenlet."""
    app = pyfuncitem.funcargs.get("app")
    if not isinstance(app, App):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    app.run(lambda: pyfuncitem.obj(**arguments))
    return True


@pytest.fixture(scope="session")
def static_kms() -> StaticKMS:
    """The key service of everything that is not about Vault."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StaticKeyWarning)  # it comes once per process: here, or somewhere earlier
        return StaticKMS(bytes(range(32)), {})


@pytest.fixture(scope="session")
def vault_kms(openbao: OpenBao) -> Iterator[VaultTransitKMS]:
    """OpenBao with a token that may only encrypt and decrypt with one key."""
    mount, key = openbao.new_transit()
    kms = VaultTransitKMS(addr=openbao.addr, key=key, token=openbao.transit_token(mount, key), mount=mount)
    yield kms
    kms.close()


@pytest.fixture(scope="session")
def sqlite_suite(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file for the whole suite; each test empties its tables."""
    return f"sqlite:///{tmp_path_factory.mktemp(NAME) / 'suite.db'}"


@pytest.fixture(scope="session")
def postgresql_suite(postgresql_server: PostgreSQL, postgresql_noproc: NoopExecutor) -> Iterator[str]:
    """A database for the whole suite; each test empties its tables."""
    with postgresql_database(postgresql_server, postgresql_noproc, NAME) as url:
        yield url


@pytest.fixture(scope="session")
def mariadb_suite(mariadb_server: MariaDB) -> Iterator[str]:
    """A database for the whole suite; each test empties its tables."""
    mariadb_server.create(NAME)
    yield mariadb_server.url(NAME)
    mariadb_server.drop(NAME)


@pytest.fixture(scope="session", params=["sqlite", "postgresql", "mariadb"])
def suite_url(request: pytest.FixtureRequest, static_kms: StaticKMS) -> str:
    """URL of a database with the suite's tables, for each supported kind in turn."""
    url: str = request.getfixturevalue(f"{request.param}_suite")
    create_tables(url, Asherah("records", "clinic", static_kms))
    return url


@pytest.fixture(params=["sync", "async", pytest.param("vault", marks=pytest.mark.long)])
def app(request: pytest.FixtureRequest, suite_url: str, static_kms: StaticKMS) -> App:
    """An application on a database with nothing in it but three clinics."""
    kms = request.getfixturevalue("vault_kms") if request.param == "vault" else static_kms
    return App(suite_url, kms, is_async=request.param == "async")
