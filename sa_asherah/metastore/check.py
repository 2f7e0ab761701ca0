# SPDX-License-Identifier: Apache-2.0
"""Checks of the key table that save data from being lost later."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Inspector, inspect, text

from sa_asherah.errors import ConfigurationError, MetastoreError
from sa_asherah.metastore import failure
from sa_asherah.metastore.root import root_engine
from sa_asherah.metastore.sqlite import wait_for_writers

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["check", "check_data"]

_COLUMNS = ("id", "created", "key_record")
_ID_LENGTH = 255

# Not from SHOW CREATE TABLE, which leaves out what the table's default says.
_MYSQL_TYPES = text(
    "SELECT column_name, data_type, character_maximum_length, collation_name FROM information_schema.columns "
    "WHERE table_schema = COALESCE(:schema, DATABASE()) AND table_name = 'encryption_key'"
)

_logger = logging.getLogger("sa_asherah.metastore")


def check(connection: Connection, *, peers: bool, writing: bool = False) -> None:
    """Make sure that the key table can hold keys without losing or mixing them up.

    Args:
        connection: A connection to the database of the key table.
        peers: Whether other Asherah implementations use the table; then their column types are tolerated.
        writing: Whether the caller's transaction is about to write.

    Raises:
        MetastoreError: The table is missing.
        ConfigurationError: A column, the primary key or a setting of the database is unsafe; the text says which.
    """
    schema = _schema_of_keys(connection)
    if writing and connection.dialect.name == "sqlite":
        with contextlib.suppress(
            connection.dialect.loaded_dbapi.OperationalError
        ):  # no such table, or locked: both are told below
            wait_for_writers(connection)
    inspector = inspect(connection)
    if not inspector.has_table("encryption_key", schema=schema):
        raise MetastoreError(failure.NO_TABLE)
    faults = list(_table_faults(inspector, schema))
    if not faults and connection.dialect.name in {"mysql", "mariadb"}:
        faults += _mysql_faults(connection, schema, peers=peers)
    if connection.dialect.name == "sqlite":
        faults += _sqlite_faults(connection)
    if faults:
        raise ConfigurationError("the table encryption_key is unsafe: " + "; ".join(faults))


def check_data(connection: Connection) -> None:
    """Make sure that a database whose keys are elsewhere can hold encrypted data.

    Args:
        connection: A connection to the database of the data.

    Raises:
        ConfigurationError: A setting of the database is unsafe.
    """
    faults = _encoding_faults(connection) if connection.dialect.name == "sqlite" else []
    if faults:
        raise ConfigurationError("the database is unsafe: " + "; ".join(faults))


def _schema_of_keys(connection: Connection) -> str | None:
    """Find where keys are: an option clone or a connection may translate schemas, but keys go with the root engine."""
    options: Any = root_engine(connection.engine).get_execution_options()
    translation: dict[str | None, str | None] = options.get("schema_translate_map") or {}
    return translation.get(None)


def _table_faults(inspector: Inspector, schema: str | None) -> Iterator[str]:
    columns = {column["name"]: column["type"] for column in inspector.get_columns("encryption_key", schema=schema)}
    absent = [name for name in _COLUMNS if name not in columns]
    if absent:
        yield f"it has no column {', '.join(absent)}; create it with asherah.create_metastore(engine)"
        return
    key = inspector.get_pk_constraint("encryption_key", schema=schema)["constrained_columns"]
    if set(key) != {"id", "created"}:
        yield "its primary key is not (id, created), so that keys made at the same time are not noticed; make it so"
    if inspector.dialect.name == "postgresql":
        yield from _postgresql_faults(columns)


def _postgresql_faults(columns: dict[str, Any]) -> Iterator[str]:
    if not getattr(columns["created"], "timezone", False):
        yield (
            "created has no time zone, so keys are not found when the session's zone changes; "
            "ALTER TABLE encryption_key ALTER created TYPE TIMESTAMPTZ USING created AT TIME ZONE 'UTC'"
        )
    if columns["key_record"].__visit_name__ not in {"JSON", "JSONB"}:
        yield (
            "key_record is neither JSONB nor JSON; ALTER TABLE encryption_key ALTER key_record TYPE JSONB USING "
            "key_record::jsonb"
        )


def _mysql_faults(connection: Connection, schema: str | None, *, peers: bool) -> Iterator[str]:
    types = {name: tuple(rest) for name, *rest in connection.execute(_MYSQL_TYPES, {"schema": schema})}
    _, length, collation = types["id"]
    # Binary columns have no collation; they compare bytes.
    if collation is not None and not collation.endswith("_bin"):
        yield (
            f"the collation of id is {collation}, which takes different owners for one; ALTER TABLE encryption_key "
            "MODIFY id VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL"
        )
    if length < _ID_LENGTH:
        yield f"id is shorter than {_ID_LENGTH} characters, so ids may be cut off; make it VARCHAR({_ID_LENGTH})"
    created = types["created"][0].upper()
    if created == "TIMESTAMP" and peers:
        _logger.warning(
            "created of encryption_key is TIMESTAMP: a client that sets the session's time_zone finds no keys; "
            "DATETIME is safe for every Asherah implementation"
        )
    elif created != "DATETIME":
        yield (
            f"created is {created} and not DATETIME, so keys are not found when the session's time_zone changes; ALTER "
            "TABLE encryption_key MODIFY created DATETIME NOT NULL while the session's time_zone is '+00:00'"
        )


def _sqlite_faults(connection: Connection) -> list[str]:
    if connection.exec_driver_sql("PRAGMA synchronous").scalar() == 0:
        _warn_of_synchronous_off()
    return _encoding_faults(connection)


def _encoding_faults(connection: Connection) -> list[str]:
    encoding = connection.exec_driver_sql("PRAGMA encoding").scalar()
    if encoding == "UTF-8":
        return []
    return [f"the database's encoding is {encoding}; copy it into one with PRAGMA encoding = 'UTF-8'"]


def _warn_of_synchronous_off() -> None:
    _logger.warning(
        "PRAGMA synchronous is OFF: a crash may lose keys, and with them all data they encrypted; use NORMAL or FULL"
    )
