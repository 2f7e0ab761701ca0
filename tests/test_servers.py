# SPDX-License-Identifier: Apache-2.0
"""The test databases themselves: each answers, is empty, and speaks through both drivers."""

from __future__ import annotations

import pytest
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.ext.asyncio import create_async_engine

from tests.servers.database import async_url


@pytest.mark.parametrize("attempt", [1, 2])
def test_database_is_fresh(database_url: str, attempt: int) -> None:
    engine = create_engine(database_url)
    with engine.begin() as connection:
        assert inspect(connection).get_table_names() == [], f"attempt {attempt} sees the tables of another test"
        connection.execute(text("CREATE TABLE t (a INTEGER)"))
        connection.execute(text("INSERT INTO t VALUES (:a)"), {"a": attempt})
        assert connection.scalar(text("SELECT a FROM t")) == attempt
    engine.dispose()


async def test_async_driver_reaches_the_same_database(database_url: str) -> None:
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (a VARCHAR(20))"))
        connection.execute(text("INSERT INTO t VALUES (:a)"), {"a": "grün 🔑"})
    engine.dispose()
    async_engine = create_async_engine(async_url(database_url))
    async with async_engine.connect() as async_connection:
        assert await async_connection.scalar(text("SELECT a FROM t")) == "grün 🔑"
    await async_engine.dispose()
