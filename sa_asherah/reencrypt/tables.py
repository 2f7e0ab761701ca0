# SPDX-License-Identifier: Apache-2.0
"""The tables of progress, in the database of the data: a batch and the note that it is done are one transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, Boolean, Column, Connection, Integer, MetaData, String, Table, Text
from sqlalchemy.dialects import mysql
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

if TYPE_CHECKING:
    from sqlalchemy import Engine

__all__ = ["asherah_job", "asherah_quarantine", "asherah_range", "create", "metadata"]

metadata = MetaData()
_OPTIONS: dict[str, Any] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}
_TEXT = Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")

asherah_job = Table(
    "asherah_job",
    metadata,
    Column("name", String(200), primary_key=True),
    # What the plan says, hashed: processes that share a name must do the same.
    Column("plan", String(64), nullable=False),
    Column("state", String(10), nullable=False),  # running or ended
    Column("kind", String(10), nullable=False),  # convert or count
    Column("first_pass", Integer, nullable=False),
    Column("pass", Integer, key="number", nullable=False),
    Column("total", BigInteger, nullable=False),
    Column("left_over", BigInteger, nullable=False),
    # Milliseconds since 1970 by the database's clock, here and below.
    Column("started", BigInteger, nullable=False),
    Column("ended", BigInteger),
    **_OPTIONS,
)

asherah_range = Table(
    "asherah_range",
    metadata,
    Column("job", String(200), primary_key=True),
    Column("pass", Integer, key="number", primary_key=True, autoincrement=False),
    Column("part", Integer, primary_key=True, autoincrement=False),
    # Positions: primary keys as text. Work is done after `position` and up to `high`.
    Column("high", _TEXT),
    Column("position", _TEXT),
    Column("worker", String(200)),
    Column("lease_until", BigInteger, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("done", Boolean, nullable=False),
    Column("found", BigInteger, nullable=False),
    Column("already", BigInteger, nullable=False),
    Column("converted", BigInteger, nullable=False),
    Column("skipped", BigInteger, nullable=False),
    Column("quarantined", BigInteger, nullable=False),
    Column("left_over", BigInteger, nullable=False),
    Column("keys_before", _TEXT, nullable=False),
    Column("keys_after", _TEXT, nullable=False),
    **_OPTIONS,
)

asherah_quarantine = Table(
    "asherah_quarantine",
    metadata,
    Column("job", String(200), primary_key=True),
    Column("pass", Integer, key="number", primary_key=True, autoincrement=False),
    # Of table and primary key, which are too long for an index.
    Column("digest", String(64), primary_key=True),
    Column("column_name", String(200), primary_key=True),
    Column("table_name", String(200), nullable=False),
    Column("primary_key", _TEXT, nullable=False),
    Column("reason", _TEXT, nullable=False),
    **_OPTIONS,
)


def create(bind: Engine | Connection) -> None:
    """Create the tables of progress where they do not exist.

    Args:
        bind: Engine or connection of the database that holds the data.
    """
    if isinstance(bind, Connection):
        metadata.create_all(bind)
        return
    try:
        with bind.begin() as connection:
            metadata.create_all(connection)
    except (IntegrityError, OperationalError, ProgrammingError):
        # Another process created them between the look and the act.
        with bind.begin() as connection:
            metadata.create_all(connection)
