# SPDX-License-Identifier: Apache-2.0
"""What the command line does, from Python: on every database and driver, attached or not."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta

import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from sa_asherah import Asherah
from sa_asherah.errors import ConfigurationError, UsageError
from sa_asherah.kms import Succession
from tests.metastore.backends import engine_of
from tests.rewrap.services import Versioned, static
from tests.servers.database import async_url


def test_the_operations_on_each_database(database_url: str) -> None:
    old, new = static(), Versioned()
    with engine_of(database_url) as engine, Asherah("records", "clinic", old) as asherah:
        asherah.create_metastore(engine)
        asherah.attach(engine)
        assert asherah.system_keys(engine).rotate().made
        assert not asherah.system_keys(engine).rotate(ahead=timedelta(days=30)).made
    with engine_of(database_url) as engine, Asherah("records", "clinic", Succession(new, old)) as asherah:
        operations = asherah.system_keys(engine)
        assert operations.rotate(force=True).made
        report = operations.migrate(old)
        assert (report.found, report.already, report.moved, report.is_complete) == (2, 1, 1, True)
        new.rotate()
        assert operations.rewrap().moved == 2


def test_an_asynchronous_engine_serves_from_a_thread_and_from_its_own_loop(database_url: str) -> None:
    async def main() -> list[bool]:
        engine = create_async_engine(async_url(database_url))
        asherah = Asherah("records", "clinic", static())

        def rotate() -> bool:
            with asherah.system_keys(engine) as operations:
                return operations.rotate(force=True).made

        async with engine.begin() as connection:
            await connection.run_sync(asherah.create_metastore)
        made = [await asyncio.to_thread(rotate)]
        async with engine.connect() as connection:
            made.append(await connection.run_sync(lambda _connection: rotate()))
        await engine.dispose()
        return made

    before = threading.active_count()
    assert asyncio.run(main()) == [True, True]
    assert threading.active_count() == before


def test_a_key_table_in_memory_or_nowhere_is_refused() -> None:
    asherah = Asherah("records", "clinic", static())
    with pytest.raises(ConfigurationError, match="in memory"):
        asherah.system_keys(create_engine("sqlite://"))
    with pytest.raises(UsageError, match="which database"):
        asherah.system_keys()
