# SPDX-License-Identifier: Apache-2.0
"""Asynchronous drivers: inside SQLAlchemy's greenlet, and outside it, where Core's results are processed."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import StaticPool, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from sa_asherah.core.hierarchy import Hierarchy
from sa_asherah.core.policy import CryptoPolicy
from sa_asherah.errors import KeyNotFoundError, MetastoreUnavailableError, UsageError
from sa_asherah.metastore import create, open_metastore
from sa_asherah.metastore.loader import Loader, in_greenlet, off_loop, pause
from tests.metastore.backends import IDS, hierarchy
from tests.servers.database import async_url
from tests.unit.core.fakes import FakeKMS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sa_asherah.core.key import Key


@pytest.fixture(params=["postgresql_url", "mariadb_url"])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(async_url(request.getfixturevalue(request.param)))
    async with engine.begin() as connection:
        await connection.run_sync(create)
    yield engine
    await engine.dispose()


@pytest.fixture
async def file(sqlite_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(async_url(sqlite_url))
    async with engine.begin() as connection:
        await connection.run_sync(create)
    yield engine
    await engine.dispose()


@pytest.fixture
async def memory() -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
    async with engine.begin() as connection:
        await connection.run_sync(create)
    yield engine
    await engine.dispose()


async def encryption_key(process: Hierarchy, connection: AsyncConnection, partition: str = "7") -> Key:
    keys = await connection.run_sync(lambda inner: process.encryption_keys([partition], inner))
    return keys[partition]


async def test_keys_are_made_in_the_greenlet(server: AsyncEngine) -> None:
    process = hierarchy(server.sync_engine)
    async with server.connect() as connection:
        key = await encryption_key(process, connection)
        await connection.rollback()
    async with server.connect() as connection:
        other = await encryption_key(hierarchy(server.sync_engine), connection)
        assert other.secret == key.secret
    process.close()


async def test_a_cold_key_is_read_outside_the_greenlet(server: AsyncEngine) -> None:
    async with server.connect() as connection:
        key = await encryption_key(hierarchy(server.sync_engine), connection)
    process = hierarchy(server.sync_engine)
    for _ in range(2):
        assert process.decryption_key("7", key.created).secret == key.secret
    with pytest.raises(KeyNotFoundError):
        process.decryption_key("8", key.created)
    assert "sa_asherah key loader" in {thread.name for thread in threading.enumerate()}
    process.close()
    assert "sa_asherah key loader" not in {thread.name for thread in threading.enumerate()}
    process.close()


async def test_many_tasks_race_and_agree(server: AsyncEngine) -> None:
    process = hierarchy(server.sync_engine)

    async def work(partition: str) -> bytes:
        async with server.connect() as connection:
            return bytes((await encryption_key(process, connection, partition)).secret)

    secrets = await asyncio.wait_for(asyncio.gather(*(work(str(n % 2)) for n in range(12))), 30)
    assert len(set(secrets)) == 2
    async with server.connect() as connection:
        assert await connection.scalar(text("SELECT count(DISTINCT id) FROM encryption_key")) == 3


async def test_two_loops_race_and_agree(server: AsyncEngine) -> None:
    process = hierarchy(server.sync_engine)
    url = server.url

    async def elsewhere() -> bytes:
        engine = create_async_engine(url)
        try:
            async with engine.connect() as connection:
                return bytes((await encryption_key(hierarchy(engine.sync_engine), connection)).secret)
        finally:
            await engine.dispose()

    async def here() -> bytes:
        async with server.connect() as connection:
            return bytes((await encryption_key(process, connection)).secret)

    other = asyncio.to_thread(lambda: asyncio.run(elsewhere()))
    assert len(set(await asyncio.gather(here(), other))) == 1


async def test_a_slow_kms_does_not_stop_the_loop(server: AsyncEngine, file: AsyncEngine) -> None:
    for engine in (server, file):
        process = Hierarchy(IDS, CryptoPolicy(), FakeKMS(delay=0.4), open_metastore(engine.sync_engine))
        pauses: list[float] = []

        async def heart(pauses: list[float] = pauses) -> None:
            while True:
                before = time.monotonic()
                await asyncio.sleep(0.01)
                pauses.append(time.monotonic() - before)

        beating = asyncio.create_task(heart())
        async with engine.connect() as connection:
            await encryption_key(process, connection)
            await connection.commit()
        beating.cancel()
        assert max(pauses) < 0.3
        process.close()


async def test_sqlite_enlists_on_the_asynchronous_connection(file: AsyncEngine, memory: AsyncEngine) -> None:
    for engine in (file, memory):
        process = hierarchy(engine.sync_engine)
        async with engine.connect() as connection:
            rolled_back = await encryption_key(process, connection)
            await connection.rollback()
            assert await connection.scalar(text("SELECT count(*) FROM encryption_key")) == 0
            key = await encryption_key(process, connection)
            assert key is rolled_back
            await connection.commit()
        async with engine.connect() as connection:
            assert await connection.scalar(text("SELECT count(*) FROM encryption_key")) == 2
            read = hierarchy(engine.sync_engine).decryption_key
            found = await connection.run_sync(lambda inner: read("7", rolled_back.created, inner))  # noqa: B023
            assert found.secret == key.secret


async def test_sqlite_reads_a_file_outside_the_greenlet(file: AsyncEngine) -> None:
    async with file.connect() as connection:
        key = await encryption_key(hierarchy(file.sync_engine), connection)
        await connection.commit()
        fresh = hierarchy(file.sync_engine)
        assert fresh.decryption_key("7", key.created, connection.sync_connection).secret == key.secret


async def test_sqlite_in_memory_keeps_all_its_keys(memory: AsyncEngine) -> None:
    process = hierarchy(memory.sync_engine, cache_size=1)
    async with memory.connect() as connection:
        keys = await connection.run_sync(lambda inner: process.encryption_keys([str(n) for n in range(20)], inner))
        await connection.commit()
    assert [process.decryption_key(str(n), keys["0"].created).id for n in range(20)] == [
        keys[str(n)].id for n in range(20)
    ]
    with pytest.raises(UsageError, match="in memory"):
        hierarchy(memory.sync_engine).decryption_key("7", keys["0"].created)


# The loader


def test_the_loader_runs_code_in_a_greenlet_and_starts_again() -> None:
    loader = Loader()
    assert not in_greenlet()
    for _ in range(2):
        assert loader.run(in_greenlet)
        loader.close()
    loader.close()


def test_the_loader_passes_errors_on() -> None:
    loader = Loader()

    def fail() -> None:
        raise KeyNotFoundError("gone")

    with pytest.raises(KeyNotFoundError, match="gone"):
        loader.run(fail)
    loader.close()


def test_closing_the_loader_ends_what_it_does() -> None:
    loader = Loader()
    errors: list[BaseException] = []

    def wait() -> None:
        with pytest.raises(MetastoreUnavailableError, match="closed") as caught:
            loader.run(lambda: pause(30))
        errors.append(caught.value)

    waiting = threading.Thread(target=wait)
    waiting.start()
    while loader._loop is None or not asyncio.all_tasks(loader._loop):
        time.sleep(0.01)
    loader.close()
    waiting.join(10)
    assert len(errors) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_a_loader_of_its_own() -> None:
    loader = Loader()
    thread = loader.run(threading.get_ident)
    assert thread != threading.get_ident()
    child = os.fork()
    if child == 0:
        os._exit(0 if loader.run(in_greenlet) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    loader.close()


def test_off_loop_is_a_plain_call_where_no_loop_runs() -> None:
    assert off_loop(threading.get_ident) == threading.get_ident()
