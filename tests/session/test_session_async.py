# SPDX-License-Identifier: Apache-2.0
"""The awaitable sessions: the same records as the others, and an event loop that never stands still."""

from __future__ import annotations

import asyncio
import base64
import pickle
import shutil
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import StaticPool, make_url, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from sa_asherah import Asherah, UsageError, WrongPartitionError, partition_scope
from tests.interop.test_reference_records import REFERENCE, VECTORS, asherah_for
from tests.servers.database import async_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from sqlalchemy import Engine

    from sa_asherah.session_async import SessionAsync
    from tests.session.conftest import Gate


async def echo(record: str) -> str:
    return record


USES: dict[str, Callable[[SessionAsync, str], Awaitable[object]]] = {
    "encrypt": lambda session, _: session.encrypt(b"data"),
    "decrypt": lambda session, record: session.decrypt(record),
    "store": lambda session, _: session.store(b"data", echo),
    "load": lambda session, record: session.load(record, echo),
}


@pytest.fixture(params=["file", "memory"])
async def connection(request: pytest.FixtureRequest, sqlite_url: str, kms: Gate) -> AsyncIterator[AsyncConnection]:
    """A connection of an attached engine, with a key table; a transaction is open."""
    url, options = async_url(sqlite_url), dict[str, Any]()
    if request.param == "memory":
        url, options = "sqlite+aiosqlite://", {"poolclass": StaticPool}
    engine = create_async_engine(url, **options)
    with Asherah("records", "clinic", kms) as asherah:
        asherah.attach(engine)
        async with engine.connect() as connection:
            await connection.run_sync(asherah.create_metastore)
            await connection.execute(text("CREATE TABLE box (record TEXT)"))
            await connection.commit()
            await connection.execute(text("INSERT INTO box VALUES ('')"))
            connection.info["asherah"] = asherah
            yield connection
    await engine.dispose()


async def test_what_one_kind_encrypts_the_other_decrypts(anywhere: Asherah) -> None:
    async with anywhere.session_async("7") as session:
        there, here = anywhere.session_async("7"), anywhere.session("7")
        record = ""
        for data in (b"", b"\0", b"data" * 1000):
            record = await session.encrypt(data)
            assert await there.decrypt(record) == data
            assert await asyncio.to_thread(here.decrypt, record) == data
            assert await session.decrypt(await asyncio.to_thread(here.encrypt, data)) == data
        with pytest.raises(WrongPartitionError):
            await anywhere.session_async("8").decrypt(record)


async def test_the_loop_turns_while_the_key_service_is_asked(anywhere: Asherah, kms: Gate) -> None:
    kms.is_open.clear()
    tasks = [asyncio.create_task(anywhere.session_async(owner).encrypt(b"data")) for owner in ("7", "8", "9")]
    await asyncio.to_thread(kms.reached.wait, 10)
    kms.is_open.set()  # what could not happen if the loop waited for the key service
    assert len(await asyncio.gather(*tasks)) == 3


async def test_the_loop_turns_while_the_key_table_is_locked(
    asherah: Asherah, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = asherah.session_async("7")
    with closing(sqlite3.connect(make_url(engine.url).database or "", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        asked, connect = threading.Event(), sqlite3.connect

        def told(*args: Any, **options: Any) -> Any:
            asked.set()
            return connect(*args, **options)

        monkeypatch.setattr(sqlite3, "connect", told)
        task = asyncio.create_task(session.encrypt(b"data"))
        assert await asyncio.to_thread(asked.wait, 10)
        assert not task.done()
        other.execute("COMMIT")  # what could not happen if the loop waited for the lock
        assert await session.decrypt(await task) == b"data"


async def test_records_and_keys_share_the_open_transaction(connection: AsyncConnection, kms: Gate) -> None:
    asherah: Asherah = connection.info["asherah"]
    kms.is_open.clear()
    async with asherah.session_async("7", connection=connection) as session:
        task = asyncio.create_task(session.encrypt(b"data"))
        await asyncio.to_thread(kms.reached.wait, 10)
        kms.is_open.set()
        record = await task
        assert await session.decrypt(record) == b"data"
    assert (await connection.execute(text("SELECT count(*) FROM encryption_key"))).scalar() == 2
    await connection.rollback()
    assert (await connection.execute(text("SELECT count(*) FROM encryption_key"))).scalar() == 0


async def test_a_cancelled_call_leaves_the_session_usable(anywhere: Asherah, kms: Gate) -> None:
    session = anywhere.session_async("7")
    kms.is_open.clear()
    task = asyncio.create_task(session.encrypt(b"data"))
    await asyncio.to_thread(kms.reached.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    kms.is_open.set()
    assert await session.decrypt(await session.encrypt(b"data")) == b"data"


@pytest.mark.parametrize("use", USES)
async def test_a_closed_session_refuses(asherah: Asherah, use: str) -> None:
    async with asherah.session_async("7") as session:
        record = await session.encrypt(b"data")
        await USES[use](session, record)
    with pytest.raises(UsageError, match="closed"):
        await USES[use](session, record)
    await session.close()


@pytest.mark.parametrize("use", USES)
async def test_the_partition_scope_of_the_task_holds(asherah: Asherah, use: str) -> None:
    session = asherah.session_async("7")
    record = await session.encrypt(b"data")
    with partition_scope("8"), pytest.raises(WrongPartitionError, match="partition_scope"):
        await USES[use](session, record)
    await USES[use](session, record)


async def test_many_tasks_share_a_session(anywhere: Asherah, kms: Gate) -> None:
    async with anywhere.session_async("7") as session:
        await session.encrypt(b"")

        async def work(number: int) -> None:
            assert await session.decrypt(await session.encrypt(b"%d" % number)) == b"%d" % number

        await asyncio.gather(*map(work, range(60)))
    assert kms.calls == 1


async def test_loaders_and_storers_are_awaited(asherah: Asherah, tmp_path: Path) -> None:
    path = tmp_path / "scan.json"

    async def store(record: str) -> Path:
        await asyncio.to_thread(path.write_text, record)
        return path

    async def load(place: Path) -> str | None:
        return await asyncio.to_thread(place.read_text) if place == path else None

    async with asherah.session_async("7") as session:
        assert await session.store(b"data", store) == path
        assert await session.load(path, load) == b"data"
        assert await session.load(tmp_path / "none", load) is None


@pytest.mark.filterwarnings("ignore::sa_asherah.StaticKeyWarning")
async def test_records_of_the_reference_package_are_read(tmp_path: Path) -> None:
    shutil.copy(REFERENCE / "keys.sqlite", tmp_path)
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/keys.sqlite")
    for vector in VECTORS:
        with asherah_for(vector) as asherah:
            asherah.attach(engine)
            async with asherah.session_async(vector["partition"]) as session:
                assert await session.decrypt(vector["drr"]) == base64.b64decode(vector["plaintext"])
    await engine.dispose()


async def test_a_synchronous_connection_is_refused(asherah: Asherah, engine: Engine) -> None:
    with engine.connect() as connection, pytest.raises(UsageError, match=r"session\(\)"):
        asherah.session_async("7", connection=connection)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


async def test_a_session_shows_its_key_id_and_cannot_be_pickled(asherah: Asherah) -> None:
    session = asherah.session_async("7")
    assert repr(session) == "<SessionAsync around <Session of '_IK_7_records_clinic'>>"
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(session)


def test_a_session_outlives_its_loop(asherah: Asherah) -> None:
    session = asherah.session_async("7")
    record = asyncio.run(session.encrypt(b"data"))
    assert asyncio.run(session.decrypt(record)) == b"data"
