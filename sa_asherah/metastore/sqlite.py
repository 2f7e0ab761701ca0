# SPDX-License-Identifier: Apache-2.0
"""The key table on SQLite, through a plain DBAPI cursor: no event, log or type of the caller's engine takes part."""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING, Any, Protocol

from sa_asherah.core.ports import KeyRow
from sa_asherah.metastore.table import seconds_of, text_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

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

_INSERT_CHILD = """
INSERT INTO encryption_key (id, created, key_record) SELECT ?, ?, ? WHERE EXISTS (
    SELECT 1 FROM encryption_key WHERE id = ? AND created = ? AND CAST(key_record AS TEXT) = ? COLLATE BINARY
) ON CONFLICT (id, created) DO NOTHING
"""
_DELETE = "DELETE FROM encryption_key WHERE id = ? AND created = ? AND CAST(key_record AS TEXT) = ? COLLATE BINARY"
_OVERWRITE = "UPDATE encryption_key SET key_record = ? WHERE id = ? AND created = ?"


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

    def insert(self, rows: Sequence[KeyRow], parent: KeyRow | None = None) -> bool:
        """Insert the rows whose (id, created) is not taken; a taken one is left as it is and is no error.

        Args:
            rows: The rows.
            parent: The row of the key that wraps theirs, as it was read.

        Returns:
            Whether the parent is still as it was read.
        """
        # In the statement itself: it is what takes the write lock, and in autocommit mode gives it back.
        statement = _INSERT if parent is None else _INSERT_CHILD
        condition = () if parent is None else (parent.id, text_of(parent.created), parent.text)
        ordered = sorted(rows, key=lambda row: (row.id, row.created))
        values = [(row.id, text_of(row.created), row.text, *condition) for row in ordered]
        with closing(self._connection.cursor()) as cursor:
            cursor.executemany(statement, values)
        place = None if parent is None else (parent.id, parent.created)
        return place is None or self.exact((place,)).get(place) == parent

    def remove(self, row: KeyRow) -> bool:
        """Delete a row, if it is still exactly the one that was read.

        Args:
            row: The row as it was read.

        Returns:
            Whether it was.
        """
        with closing(self._connection.cursor()) as cursor:
            cursor.execute(_DELETE, (row.id, text_of(row.created), row.text))
            return bool(cursor.rowcount)

    def erase(self, tombstones: Sequence[KeyRow], ids: Sequence[str], text: Callable[[KeyRow], str]) -> list[KeyRow]:
        """Insert tombstones and overwrite every record of some ids.

        Args:
            tombstones: Rows to insert unless they are there.
            ids: Exact key ids.
            text: Gives the new record of a row.

        Returns:
            The rows as they are now.
        """
        if tombstones:
            SQLiteRows.insert(self, tombstones)
        found = [row for key_id in ids for row in self.versions(key_id)]
        new = [KeyRow(row.id, row.created, text(row)) for row in found]
        with closing(self._connection.cursor()) as cursor:
            cursor.executemany(_OVERWRITE, [(row.text, row.id, text_of(row.created)) for row in new])
        return new

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
