# SPDX-License-Identifier: Apache-2.0
"""Turns what drivers raise into this package's errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sa_asherah.errors import MetastoreError, MetastoreUnavailableError

if TYPE_CHECKING:
    from sqlalchemy.engine import Dialect
    from sqlalchemy.exc import DBAPIError

__all__ = ["NO_TABLE", "TransientError", "of_server", "of_sqlite"]

_LOST = "the connection to the key table was lost; try again when the database is back"
NO_TABLE = (
    "the table encryption_key does not exist; run asherah.create_metastore(engine) or the migration that creates it, "
    "commit, and try again"
)
_NO_RIGHT = (
    "the database user may not do this with the table encryption_key; an application needs, given by the owner of the "
    "table: GRANT SELECT, INSERT, UPDATE (created) ON encryption_key TO <user>. Who revokes, rewraps or erases keys "
    "needs UPDATE on the whole table, and shred --epoch DELETE"
)
_NO_TABLE_SQLSTATE = "42P01"
_NO_TABLE_ERRNO = 1146
_NO_RIGHT_SQLSTATE = "42501"
_NO_RIGHT_ERRNOS = frozenset({1044, 1142, 1143})
_CHANGED_SQLSTATES = frozenset({"40001", "40P01", "55P03"})
_CHANGED_ERRNOS = frozenset({1020, 1205, 1213})
_DOWN_CLASSES = frozenset({"08", "53", "57", "58"})
_DOWN_ERRNOS = frozenset({1040, 1047, 1053, 1203, 1969, 3024})
_SQLITE_DOWN = frozenset({5, 6, 10, 13, 14})


class TransientError(MetastoreUnavailableError):
    """Deadlock, serialization failure, lock timeout or lost connection: the same work may succeed at once."""


def of_server(error: DBAPIError | OSError, dialect: Dialect) -> MetastoreError:
    """Classify an error of PostgreSQL, MySQL or MariaDB.

    Args:
        error: What SQLAlchemy raised.
        dialect: The dialect, which knows what a lost connection looks like.

    Returns:
        The error to raise, caused by the driver's.
    """
    if isinstance(error, OSError):
        lost = TransientError(_LOST)
        lost.__cause__ = error
        return lost
    cause = error.orig
    sqlstate = str(getattr(cause, "sqlstate", None) or "")
    errno = cause.args[0] if cause is not None and cause.args and isinstance(cause.args[0], int) else 0
    found: MetastoreError
    if error.connection_invalidated or _is_disconnect(cause, dialect):
        found = TransientError(_LOST)
    elif sqlstate in _CHANGED_SQLSTATES or errno in _CHANGED_ERRNOS:
        found = TransientError("the key table is locked or being changed by others; try again")
    elif sqlstate[:2] in _DOWN_CLASSES or errno in _DOWN_ERRNOS:
        found = MetastoreUnavailableError(
            f"the key table cannot be used now ({_code(sqlstate, errno)}); try again later"
        )
    elif sqlstate == _NO_TABLE_SQLSTATE or errno == _NO_TABLE_ERRNO:
        found = MetastoreError(NO_TABLE)
    elif sqlstate == _NO_RIGHT_SQLSTATE or errno in _NO_RIGHT_ERRNOS:
        found = MetastoreError(_NO_RIGHT)
    else:
        found = MetastoreError(
            f"the database refused to read or write the table encryption_key ({_code(sqlstate, errno)}); check the "
            "rights of the database user, and the table with asherah.check(connection)"
        )
    found.__cause__ = cause
    return found


def of_sqlite(error: Exception) -> MetastoreError:
    """Classify an error of SQLite.

    Args:
        error: What the driver raised.

    Returns:
        The error to raise, caused by the driver's.
    """
    found: MetastoreError
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in _SQLITE_DOWN:
        found = MetastoreUnavailableError(
            f"the key table cannot be used now ({error}). If this program has a transaction open on the database, pass "
            "its connection; else try again"
        )
    elif "no such table" in str(error):
        found = MetastoreError(NO_TABLE)
    else:
        found = MetastoreError(f"the key table cannot be used ({error}); check it with asherah.check(connection)")
    found.__cause__ = error
    return found


def _is_disconnect(cause: BaseException | None, dialect: Dialect) -> bool:
    return isinstance(cause, dialect.loaded_dbapi.Error) and bool(dialect.is_disconnect(cause, None, None))


def _code(sqlstate: str, errno: int) -> str:
    return f"error {errno}" if errno else f"SQLSTATE {sqlstate}"
