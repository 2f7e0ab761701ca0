# SPDX-License-Identifier: Apache-2.0
"""The same with asynchronous drivers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from sa_asherah.errors import OwnerChangedError
from tests.servers.database import async_url
from tests.transactions.programs.notes import Base, Note, asherah, note
from tests.transactions.site import KILL, OWN_NUMBER, Site

if TYPE_CHECKING:
    from sa_asherah import Asherah

Undoing = Callable[[Site, AsyncEngine], Awaitable[None]]


@pytest.fixture
async def engines() -> AsyncIterator[list[tuple[AsyncEngine, Asherah]]]:
    """What a test has started; everything is closed at its end."""
    started: list[tuple[AsyncEngine, Asherah]] = []
    yield started
    for engine, keys in started:
        await engine.dispose()
        keys.close()


@pytest.fixture
def start(shared_site: Site, engines: list[tuple[AsyncEngine, Asherah]]) -> Callable[..., AsyncEngine]:
    """Starts a process with an asynchronous driver."""

    def starting(**options: Any) -> AsyncEngine:
        engine = create_async_engine(async_url(shared_site.url), **options)
        keys = asherah()
        keys.attach(engine)
        engines.append((engine, keys))
        return engine

    return starting


async def write(engine: AsyncEngine, tenant: str, *texts: str) -> None:
    async with AsyncSession(engine) as session:
        session.add_all(note(tenant, each) for each in texts)
        await session.commit()


async def texts(engine: AsyncEngine) -> list[tuple[str, str]]:
    """Read as Core does, whose results are processed outside SQLAlchemy's greenlet."""
    async with engine.connect() as connection:
        found = await connection.execute(select(Note.clear, Note.secret, Note.id).order_by(Note.id))
        return [(clear, secret) for clear, secret, _ in found]


async def roll_back(_site: Site, engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session:
        session.add(note("acme", "undone"))
        await session.flush()
        await session.rollback()


async def roll_back_a_savepoint(_site: Site, engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session:
        async with session.begin_nested() as savepoint:
            session.add(note("acme", "undone"))
            await session.flush()
            await savepoint.rollback()
        await session.commit()


async def cancel(_site: Site, engine: AsyncEngine) -> None:
    flushed = asyncio.Event()

    async def write_and_wait() -> None:
        async with AsyncSession(engine) as session:
            session.add(note("acme", "undone"))
            await session.flush()
            flushed.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(write_and_wait())
    await flushed.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def lose_the_connection(site: Site, engine: AsyncEngine) -> None:
    if site.kind == "sqlite":
        await roll_back(site, engine)
        return
    async with AsyncSession(engine) as session:
        session.add(note("acme", "undone"))
        await session.flush()
        number = await session.scalar(text(OWN_NUMBER[site.kind]))
        await asyncio.to_thread(site.sql, KILL[site.kind], number=number)
        with pytest.raises((DBAPIError, OSError)):
            await session.commit()


@pytest.mark.parametrize("undo", [roll_back, roll_back_a_savepoint, cancel, lose_the_connection])
async def test_notes_after_an_undone_one_can_be_read(
    shared_site: Site, start: Callable[..., AsyncEngine], undo: Undoing
) -> None:
    engine = start()
    await undo(shared_site, engine)
    await write(engine, "acme", "after")
    await write(engine, "acme", "later")
    expected = ["after", "later"]
    assert await texts(engine) == await texts(start()) == [(each, each) for each in expected]
    assert shared_site.restart_and_read() == expected


@pytest.mark.parametrize("level", ["AUTOCOMMIT", "SERIALIZABLE"])
async def test_notes_can_be_read_whatever_the_isolation_level_and_with_one_connection(
    shared_site: Site, start: Callable[..., AsyncEngine], level: str
) -> None:
    engine = start(isolation_level=level, pool_size=1, max_overflow=0, pool_timeout=0.01)
    async with AsyncSession(engine) as session:
        session.add(note("acme", "undone"))
        await session.flush()
        await session.rollback()
    await write(engine, "acme", "after")
    assert shared_site.restart_and_read() == (["undone"] if level == "AUTOCOMMIT" else []) + ["after"]


@pytest.mark.parametrize("moved", [1, 2])
async def test_two_updates_in_one_flush_of_which_one_note_was_moved_are_refused(
    shared_site: Site, start: Callable[..., AsyncEngine], moved: int
) -> None:
    """The driver asyncpg does not count the rows of an executemany."""
    engine = start()
    await write(engine, "acme", "one", "two")
    async with AsyncSession(engine, expire_on_commit=False) as session:
        found = (await session.scalars(select(Note).order_by(Note.id))).all()
        await session.commit()
        async with AsyncSession(engine) as mover:
            (await mover.get_one(Note, moved)).tenant = "other"
            await mover.commit()
        for each in found:
            each.clear, each.secret = "lost", "lost"
        with pytest.raises(OwnerChangedError):
            await session.flush()
        await session.rollback()
    assert shared_site.restart_and_read() == ["one", "two"]


async def test_tasks_that_create_the_same_tenant_at_once_share_a_key(
    shared_site: Site, start: Callable[..., AsyncEngine]
) -> None:
    engine = start(pool_size=8)
    await asyncio.gather(*(write(engine, "acme", f"note {number}") for number in range(8)))
    assert shared_site.sql("SELECT count(*) FROM encryption_key") == [(2,)]
    assert sorted(shared_site.restart_and_read()) == [f"note {number}" for number in range(8)]


async def test_a_database_in_memory_keeps_what_was_written_after_a_roll_back() -> None:
    engine = create_async_engine("sqlite+aiosqlite://")
    keys = asherah()
    keys.attach(engine)
    async with engine.begin() as connection:
        await connection.run_sync(keys.create_metastore)
        await connection.run_sync(Base.metadata.create_all)
    async with AsyncSession(engine) as session:
        session.add(note("acme", "undone"))
        await session.flush()
        await session.rollback()
    await write(engine, "acme", "after")
    assert await texts(engine) == [("after", "after")]
    keys.detach(engine)
    other = asherah()
    other.attach(engine)
    async with AsyncSession(engine) as session:
        assert [each.secret for each in await session.scalars(select(Note))] == ["after"]
    await engine.dispose()
    other.close()
    keys.close()
