# SPDX-License-Identifier: Apache-2.0
"""The key table on SQLite, through a plain DBAPI cursor: no event, log or type of the caller's engine takes part."""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING, Any, Protocol

from sa_asherah.core.ports import KeyRow
from sa_asherah.metastore.table import seconds_of, text_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Connection

__all__ = ["Cursors", "SQLiteRows", "wait_for_writers"]

# The cast keeps `detect_types` from making a datetime of `created`. GLOB leaves out rows of other programs; of what
# passes, the order of the texts is the order in time.
_NEWEST = """
SELECT k.id, CAST(k.created AS TEXT), CAST(k.key_record AS TEXT)
FROM json_each(?) AS wanted JOIN encryption_key AS k ON k.id = wanted.value AND k.created = (
    SELECT max(created) FROM encryption_key WHERE id = wanted.value AND created <= ?
    AND created GLOB '[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9] [0-9][0-9]:[0-9][0-9]:[0-9][0-9]'
)
"""
_EXACT = """
SELECT k.id, CAST(k.created AS TEXT), CAST(k.key_record AS TEXT)
FROM json_each(?) AS wanted JOIN encryption_key AS k
ON k.id = json_extract(wanted.value, '$[0]') AND k.created = json_extract(wanted.value, '$[1]')
"""
_VERSIONS = """
SELECT id, CAST(created AS TEXT), CAST(key_record AS TEXT) FROM encryption_key WHERE id = ?
AND created GLOB '[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9] [0-9][0-9]:[0-9][0-9]:[0-9][0-9]' ORDER BY created DESC
"""
_REPLACE = """
UPDATE encryption_key SET key_record = ?
WHERE id = ? AND created = ? AND CAST(key_record AS TEXT) = ? COLLATE BINARY
"""
_INSERT = "INSERT INTO encryption_key (id, created, key_record) VALUES (?, ?, ?) ON CONFLICT (id, created) DO NOTHING"


def wait_for_writers(connection: Connection) -> None:
    """Take the write lock in an open transaction, as the caller's statement is about to.

    A transaction that read first is refused at once where one that starts by writing waits.

    Args:
        connection: The caller's connection.
    """
    proxied = connection.connection
    driver: Any = connection.dialect.get_driver_connection(proxied.dbapi_connection)  # type: ignore[arg-type]
    if driver.in_transaction:
        with closing(proxied.cursor()) as cursor:
            cursor.execute("DELETE FROM encryption_key WHERE 0")


class Cursors(Protocol):
    """A DBAPI connection, or SQLAlchemy's adapter of an asynchronous one."""

    def cursor(self) -> Any:
        """Open a cursor.

        Returns:
            The cursor.
        """
        ...


class SQLiteRows:
    """Rows as one SQLite connection sees them; its transaction is the caller's affair."""

    def __init__(self, connection: Cursors) -> None:
        """Use a connection.

        Args:
            connection: The connection.
        """
        self._connection = connection

    def newest(self, ids: Sequence[str], not_after: int) -> Mapping[str, KeyRow]:
        """Read the newest row of each id.

        Args:
            ids: Exact key ids.
            not_after: Rows with a later `created` (seconds) do not count.

        Returns:
            The rows found, by id.
        """
        return {row.id: row for row in self._select(_NEWEST, (json.dumps(ids), text_of(not_after)))}

    def exact(self, pairs: Sequence[tuple[str, int]]) -> Mapping[tuple[str, int], KeyRow]:
        """Read rows by exact id and `created`.

        Args:
            pairs: (id, created in seconds).

        Returns:
            The rows found, by pair.
        """
        wanted = json.dumps([(key_id, text_of(created)) for key_id, created in pairs])
        return {(row.id, row.created): row for row in self._select(_EXACT, (wanted,))}

    def versions(self, key_id: str) -> Sequence[KeyRow]:
        """Read all rows of one id.

        Args:
            key_id: Exact key id.

        Returns:
            The rows, newest first.
        """
        return self._select(_VERSIONS, (key_id,))

    def replace(self, row: KeyRow, text: str) -> bool:
        """Put another record in the place of one, if it is still exactly the one that was read.

        Args:
            row: The row as it was read.
            text: The new record, JSON.

        Returns:
            Whether it was.
        """
        with closing(self._connection.cursor()) as cursor:
            cursor.execute(_REPLACE, (text, row.id, text_of(row.created), row.text))
            return bool(cursor.rowcount)

    def insert(self, rows: Sequence[KeyRow]) -> None:
        """Insert the rows whose (id, created) is not taken; a taken one is left as it is and is no error.

        Args:
            rows: The rows.
        """
        values = [
            (row.id, text_of(row.created), row.text) for row in sorted(rows, key=lambda row: (row.id, row.created))
        ]
        with closing(self._connection.cursor()) as cursor:
            cursor.executemany(_INSERT, values)

    def _select(self, statement: str, values: Sequence[object]) -> list[KeyRow]:
        cursor = self._connection.cursor()
        try:
            cursor.execute(statement, values)
            found: list[tuple[str, str, str]] = cursor.fetchall()
        finally:
            cursor.close()
        rows: list[KeyRow] = []
        for key_id, created, text in found:
            seconds = seconds_of(created)
            if seconds is not None:
                rows.append(KeyRow(key_id, seconds, text))
        return rows
