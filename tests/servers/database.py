# SPDX-License-Identifier: Apache-2.0
"""The test databases and their URLs."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from pytest_postgresql.janitor import DatabaseJanitor
from sqlalchemy.engine import make_url

if TYPE_CHECKING:
    from collections.abc import Generator

    from pytest_postgresql.executors import NoopExecutor

    from tests.servers.postgresql import PostgreSQL

ASYNC_DRIVERS: Final = {
    "sqlite": "sqlite+aiosqlite",
    "postgresql": "postgresql+asyncpg",
    "mariadb": "mariadb+asyncmy",
}


def async_url(url: str) -> str:
    """Return the URL of the same database for its asynchronous driver."""
    parsed = make_url(url)
    driver = ASYNC_DRIVERS[parsed.get_backend_name()]
    return parsed.set(drivername=driver).render_as_string(hide_password=False)


@contextmanager
def postgresql_database(server: PostgreSQL, executor: NoopExecutor, name: str) -> Generator[str]:
    """Make a database of a server for the time of the block; yields its URL."""
    with DatabaseJanitor(
        user=executor.user,
        host=executor.host,
        port=executor.port,
        password=executor.password,
        dbname=name,
        template_dbname=executor.template_dbname,
    ):
        yield server.url(name)
