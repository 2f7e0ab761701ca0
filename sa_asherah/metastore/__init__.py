# SPDX-License-Identifier: Apache-2.0
"""The key table `encryption_key` in the application's database."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sa_asherah.errors import ConfigurationError
from sa_asherah.metastore.check import check, check_data
from sa_asherah.metastore.enlisted import EnlistedMetastore, SeparateFile
from sa_asherah.metastore.root import root_engine
from sa_asherah.metastore.side import SideMetastore
from sa_asherah.metastore.table import create

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from sa_asherah.core.ports import Metastore

__all__ = ["check", "check_data", "create", "open_metastore", "root_engine"]


def open_metastore(engine: Engine, *, separate: bool = False) -> Metastore:
    """Choose how to reach the key table of an engine's database; nothing is connected yet.

    Args:
        engine: The engine, the synchronous one of an asynchronous engine.
        separate: Whether the encrypted data are written through another engine, so that keys cannot be written in
            the same transaction.

    Returns:
        Access to the key table.

    Raises:
        ConfigurationError: The database is not supported.
    """
    name = engine.dialect.name
    if name == "sqlite":
        return SeparateFile(engine) if separate else EnlistedMetastore(engine)
    if name in {"postgresql", "mysql", "mariadb"}:
        return SideMetastore(engine)
    raise ConfigurationError(f"the database {name!r} is not supported; use PostgreSQL, MySQL, MariaDB or SQLite")
