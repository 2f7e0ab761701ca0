# SPDX-License-Identifier: Apache-2.0
"""Databases for the transactions: SQLite as files and in memory, with its two journals and both ways to begin."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.transactions.site import Site

if TYPE_CHECKING:
    from collections.abc import Iterator

SQLITE = ["sqlite-delete", "sqlite-wal", "sqlite-begin", "sqlite-memory", "sqlite-memory-begin"]
SERVERS = ["postgresql", "mariadb"]


def _site(name: str, request: pytest.FixtureRequest) -> Iterator[Site]:
    words = name.split("-")
    memory = "memory" in words
    url: str = "sqlite://" if memory else request.getfixturevalue(f"{words[0]}_url")
    journal = "memory" if memory else "wal" if "wal" in words or "begin" in words else "delete"
    site = Site(url, journal=journal, begins="begin" in words, memory=memory).create()
    yield site
    site.close()


@pytest.fixture(params=[*SQLITE, *SERVERS])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """Each database in turn."""
    yield from _site(request.param, request)


@pytest.fixture(params=SQLITE)
def sqlite_site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """SQLite in each way in turn."""
    yield from _site(request.param, request)


@pytest.fixture(params=["sqlite-delete", "sqlite-wal", "sqlite-begin", *SERVERS])
def shared_site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """Each database that several connections and processes can use."""
    yield from _site(request.param, request)


@pytest.fixture(params=SERVERS)
def server_site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """Each database server in turn."""
    yield from _site(request.param, request)
