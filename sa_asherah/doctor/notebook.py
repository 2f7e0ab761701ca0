# SPDX-License-Identifier: Apache-2.0
"""What the examination remembers of millions of keys: names and dates, in a temporary SQLite file, not in memory."""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Notebook"]

_TABLES = """
CREATE TABLE key (id TEXT, created INTEGER, level TEXT, partition TEXT, state TEXT, PRIMARY KEY (id, created))
    WITHOUT ROWID;
CREATE INDEX key_date ON key (created, level);
CREATE INDEX key_partition ON key (partition, level);
CREATE INDEX key_revoked ON key (state) WHERE state = 'revoked';
CREATE TABLE wrapped (digest BLOB PRIMARY KEY, id TEXT, created INTEGER) WITHOUT ROWID;
CREATE TABLE tombstone (partition TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE used (partition TEXT PRIMARY KEY) WITHOUT ROWID;
"""


class Notebook:
    """Keys by id and date with what became of them (`good`, `bad`, `erased`), tombstones, whose values there are.

    A key is `revoked` until `settle` tells.
    """

    def __init__(self) -> None:
        """Start empty; the file has no name and is gone when this is closed."""
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.executescript(f"PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; {_TABLES} BEGIN;")

    def __enter__(self) -> Self:
        """Use as a context manager that closes at the end."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close."""
        self._database.close()

    def add(self, key_id: str, created: int, level: str, partition: str | None) -> bool:
        """Note a key.

        Args:
            key_id: Its id.
            created: Its date in seconds.
            level: Its level.
            partition: Its partition.

        Returns:
            Whether its id and date were not noted before.
        """
        place = (key_id, created, level, partition)
        return self._run("INSERT OR IGNORE INTO key VALUES (?, ?, ?, ?, 'good')", *place) == 1

    def mark(self, key_id: str, created: int, state: str) -> None:
        """Note what became of a key.

        Args:
            key_id: Its id.
            created: Its date.
            state: `bad`, `erased`, or `revoked` where it cannot be tried.
        """
        self._run("UPDATE key SET state = ? WHERE id = ? AND created = ?", state, key_id, created)

    def states(self, places: Iterable[tuple[str, int]]) -> dict[tuple[str, int], str]:
        """Tell what became of keys.

        Args:
            places: Ids and dates.

        Returns:
            The state of each that there is.
        """
        query = "SELECT state FROM key WHERE id = ? AND created = ?"
        found = ((place, self._database.execute(query, place).fetchone()) for place in places)
        return {place: row[0] for place, row in found if row is not None}

    def same_wrapped(self, wrapped: bytes, key_id: str, created: int) -> tuple[str, int] | None:
        """Note a wrapped key by its hash.

        Args:
            wrapped: The wrapped key.
            key_id: Its id.
            created: Its date.

        Returns:
            Id and date of another record that holds the same one.
        """
        digest = hashlib.sha256(wrapped).digest()
        if self._run("INSERT OR IGNORE INTO wrapped VALUES (?, ?, ?)", digest, key_id, created):
            return None
        found = list(self._rows("SELECT id, created FROM wrapped WHERE digest = ?", digest))
        return next((place for place in found if place != (key_id, created)), None)

    def bury(self, partition: str) -> None:
        """Note a tombstone.

        Args:
            partition: The partition erased.
        """
        self._run("INSERT OR IGNORE INTO tombstone VALUES (?)", partition)

    def settle(self, otherwise: str) -> None:
        """Decide on the `revoked` keys, now that all tombstones are noted: where there is one, they are erased.

        Args:
            otherwise: What they are where there is none.
        """
        self._run(
            "UPDATE key SET state = CASE WHEN partition IN (SELECT partition FROM tombstone) THEN 'erased' "
            "ELSE ? END WHERE state = 'revoked'",
            otherwise,
        )

    def use(self, partitions: Iterable[str]) -> None:
        """Note that there are values of partitions.

        Args:
            partitions: The partitions.
        """
        self._database.executemany("INSERT OR IGNORE INTO used VALUES (?)", ((each,) for each in partitions))

    def partitions_of_date(self, created: int, most: int) -> list[str]:
        """List partitions that have a key of a date.

        Args:
            created: The date.
            most: How many to list.

        Returns:
            Partitions, each once.
        """
        query = "SELECT DISTINCT partition FROM key WHERE created = ? AND level = 'IK' ORDER BY partition LIMIT ?"
        return [partition for (partition,) in self._rows(query, created, most)]

    def has_closed_key(self, created: int) -> bool:
        """Tell whether a key of a date is bad or erased, so that it could not be tried.

        Args:
            created: The date.
        """
        query = "SELECT 1 FROM key WHERE created = ? AND level = 'IK' AND state <> 'good' LIMIT 1"
        return any(True for _ in self._rows(query, created))

    def survivors(self) -> Iterator[tuple[str, int]]:
        """List the keys of erased partitions that were not destroyed.

        Yields:
            Id and date.
        """
        return self._rows(
            "SELECT id, created FROM key JOIN tombstone USING (partition) WHERE level <> 'XK' AND state <> 'erased'"
        )

    def without_tombstone(self) -> Iterator[tuple[str, int]]:
        """List the destroyed keys of partitions that have no tombstone.

        Yields:
            Id and date.
        """
        return self._rows(
            "SELECT id, created FROM key WHERE state = 'erased' AND partition NOT IN (SELECT partition FROM tombstone)"
        )

    def orphans(self) -> Iterator[tuple[str, int]]:
        """List the partitions that have keys, and neither values nor a tombstone.

        Yields:
            The id and date of the newest key of each.
        """
        return self._rows(
            "SELECT id, max(created) FROM key WHERE level = 'IK' AND partition NOT IN (SELECT partition FROM used) "
            "AND partition NOT IN (SELECT partition FROM tombstone) GROUP BY partition"
        )

    def _run(self, statement: str, *values: object) -> int:
        with closing(self._database.execute(statement, values)) as cursor:
            return cursor.rowcount

    def _rows(self, query: str, *values: object) -> Iterator[Any]:
        with closing(self._database.execute(query, values)) as cursor:
            yield from cursor
