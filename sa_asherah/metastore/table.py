# SPDX-License-Identifier: Apache-2.0
"""The key table."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from sqlalchemy import TIMESTAMP, Column, Connection, Engine, MetaData, String, Table, Text
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.exc import IntegrityError, ProgrammingError
from sqlalchemy.schema import CreateTable

__all__ = ["create", "encryption_key", "seconds_of", "text_of"]

_FORM = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", re.ASCII)

encryption_key = Table(
    "encryption_key",
    MetaData(),
    Column(
        "id",
        # A collation that takes `Bob` for `bob` would give both one key.
        String(255)
        .with_variant(Text(), "sqlite")
        .with_variant(mysql.VARCHAR(255, charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb"),
        primary_key=True,
        nullable=False,
    ),
    Column(
        "created",
        TIMESTAMP()
        .with_variant(TIMESTAMP(timezone=True), "postgresql")
        .with_variant(mysql.DATETIME(), "mysql", "mariadb"),
        primary_key=True,
        nullable=False,
    ),
    Column("key_record", Text().with_variant(postgresql.JSONB(), "postgresql"), nullable=False),
    mysql_engine="InnoDB",
    mysql_charset="utf8mb4",
    mysql_collate="utf8mb4_bin",
    mariadb_engine="InnoDB",
    mariadb_charset="utf8mb4",
    mariadb_collate="utf8mb4_bin",
)
"""The table as this package creates it; every Asherah implementation knows it by this name and these columns."""


def create(bind: Engine | Connection) -> None:
    """Create the key table if it is not there.

    Args:
        bind: An engine, then the table is committed on return; or a connection, then the caller commits, before
            anything is encrypted. With an asynchronous engine: `await connection.run_sync(create)`.
    """
    statement = CreateTable(encryption_key, if_not_exists=True)
    if isinstance(bind, Connection):
        bind.execute(statement)
        return
    try:
        with bind.begin() as connection:
            connection.execute(statement)
    except (IntegrityError, ProgrammingError):
        # PostgreSQL's IF NOT EXISTS can lose a race against another process, which has committed the table by now.
        with bind.begin() as connection:
            connection.execute(statement)


def text_of(created: int) -> str:
    """Write a date as SQLite and MySQL store it.

    Args:
        created: Seconds since 1970-01-01 UTC.

    Returns:
        `YYYY-MM-DD HH:MM:SS` in UTC.
    """
    return datetime.fromtimestamp(created, UTC).replace(tzinfo=None).isoformat(" ")


def seconds_of(text: object) -> int | None:
    """Read a date as SQLite and MySQL store it.

    Args:
        text: What the column holds.

    Returns:
        Seconds since 1970-01-01 UTC; `None` for any other form: then another program wrote the row.
    """
    if not isinstance(text, str) or not _FORM.fullmatch(text):
        return None
    try:
        return int(datetime.fromisoformat(text + "+00:00").timestamp())
    except ValueError:
        return None
