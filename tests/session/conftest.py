# SPDX-License-Identifier: Apache-2.0
"""Key services that can be held up, and an Asherah on each kind of engine and key table."""

from __future__ import annotations

import threading
import warnings
from contextlib import AsyncExitStack, ExitStack
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Engine, create_engine
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from sa_asherah import Asherah, StaticKeyWarning
from sa_asherah.core.ports import KeyManagementService
from sa_asherah.kms import StaticKMS
from tests.cloud.conftest import aws, metastore, running_aws
from tests.servers.database import async_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

__all__ = ["aws", "metastore", "running_aws"]


class Gate(KeyManagementService):
    """The static key service behind a gate that can be shut.

    Attributes:
        calls: How many calls got through.
        reached: Set when somebody waits at the gate.
        is_open: Whether calls get through.
    """

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", StaticKeyWarning)  # it comes once per process: here, or somewhere earlier
            self._kms = StaticKMS(bytes(range(32)), {})
        self.calls = 0
        self.reached = threading.Event()
        self.is_open = threading.Event()
        self.is_open.set()

    def encrypt_key(self, key: bytes) -> bytes:
        self._pass()
        return self._kms.encrypt_key(key)

    def decrypt_key(self, blob: bytes) -> bytes:
        self._pass()
        return self._kms.decrypt_key(blob)

    def close(self) -> None:
        self._kms.close()

    def _pass(self) -> None:
        self.reached.set()
        assert self.is_open.wait(10), "nobody opened the gate: the event loop stood still"
        self.calls += 1


@pytest.fixture
def kms() -> Gate:
    """A key service whose gate is open."""
    return Gate()


@pytest.fixture
def engine(sqlite_url: str) -> Iterator[Engine]:
    """A synchronous engine on a file."""
    engine = create_engine(sqlite_url)
    yield engine
    engine.dispose()


@pytest.fixture
def asherah(kms: Gate, engine: Engine) -> Iterator[Asherah]:
    """Attached, with a key table."""
    with Asherah("records", "clinic", kms) as asherah:
        asherah.attach(engine)
        asherah.create_metastore(engine)
        yield asherah


KINDS = ["sqlite", "aiosqlite", "dynamodb", "async-dynamodb", "psycopg", "asyncpg", "pymysql", "asyncmy"]
SERVERS = {"psycopg": "postgresql_url", "asyncpg": "postgresql_url", "pymysql": "mariadb_url", "asyncmy": "mariadb_url"}


@pytest.fixture(params=KINDS)
async def anywhere(request: pytest.FixtureRequest, kms: Gate) -> AsyncIterator[Asherah]:
    """An Asherah attached to a synchronous or asynchronous engine, with its key table there or in DynamoDB."""
    kind: str = request.param
    url: str = request.getfixturevalue(SERVERS.get(kind, "sqlite_url"))
    external = request.getfixturevalue("metastore") if "dynamodb" in kind else None
    with Asherah("records", "clinic", kms, metastore=external) as asherah:
        if kind in {"aiosqlite", "async-dynamodb", "asyncpg", "asyncmy"}:
            async with AsyncExitStack() as stack:
                engine: AsyncEngine = create_async_engine(async_url(url))
                stack.push_async_callback(engine.dispose)
                asherah.attach(engine)
                async with engine.begin() as connection:
                    await connection.run_sync(asherah.create_metastore)
                yield asherah
        else:
            with ExitStack() as stack:
                blocking = create_engine(url)
                stack.callback(blocking.dispose)
                asherah.attach(blocking)
                asherah.create_metastore(blocking)
                yield asherah
