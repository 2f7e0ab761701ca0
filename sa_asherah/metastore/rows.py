# SPDX-License-Identifier: Apache-2.0
"""The key table on a server, through a connection of our own; every call is one short, committed transaction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError

from sa_asherah.core.ports import KeyRow
from sa_asherah.metastore import failure

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence

    from sqlalchemy import Connection, Executable

__all__ = ["ServerRows"]


class ServerRows(ABC):
    """Rows of the key table; between two calls no transaction is open, so the KMS may take its time."""

    def __init__(self, connection: Connection) -> None:
        """Use a connection on which nothing is going on.

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

        Raises:
            MetastoreError: The table cannot be read.
        """
        return {row.id: row for row in self._newest(ids, not_after)}

    def exact(self, pairs: Sequence[tuple[str, int]]) -> Mapping[tuple[str, int], KeyRow]:
        """Read rows by exact id and `created`.

        Args:
            pairs: (id, created in seconds).

        Returns:
            The rows found, by pair.

        Raises:
            MetastoreError: The table cannot be read.
        """
        return {(row.id, row.created): row for row in self._exact(pairs)}

    def versions(self, key_id: str) -> Sequence[KeyRow]:
        """Read all rows of one id.

        Args:
            key_id: Exact key id.

        Returns:
            The rows, newest first.

        Raises:
            MetastoreError: The table cannot be read.
        """
        return list(self._versions(key_id))

    def replace(self, row: KeyRow, text: str) -> bool:
        """Put another record in the place of one, if it is still exactly the one that was read, and commit.

        Args:
            row: The row as it was read.
            text: The new record, JSON.

        Returns:
            Whether it was.

        Raises:
            MetastoreError: The table cannot be written.
        """
        with self._transaction():
            return self._replace(row, text)

    def insert(self, rows: Sequence[KeyRow], parent: KeyRow | None = None) -> bool:
        """Insert the rows whose (id, created) is not taken, and commit.

        Args:
            rows: The rows.
            parent: The row of the key that wraps theirs, as it was read; it is locked against changes meanwhile.

        Returns:
            Whether the parent is still as it was read; if not, nothing was inserted.

        Raises:
            MetastoreError: The table cannot be written.
        """
        # In one order everywhere, so that two writers wait for each other and do not deadlock.
        ordered = sorted(rows, key=lambda row: (row.id, row.created))
        with self._transaction():
            if parent is not None and self._locked_text(parent) != parent.text:
                return False
            self._insert(ordered)
            return True

    def remove(self, row: KeyRow) -> bool:
        """Delete a row, if it is still exactly the one that was read, and commit.

        Args:
            row: The row as it was read.

        Returns:
            Whether it was.

        Raises:
            MetastoreError: The table cannot be written.
        """
        with self._transaction():
            if self._locked_text(row, write=True) != row.text:
                return False
            self._delete(row)
            return True

    def erase(self, tombstones: Sequence[KeyRow], ids: Sequence[str], text: Callable[[KeyRow], str]) -> list[KeyRow]:
        """Insert tombstones, overwrite every record of some ids, and commit.

        Args:
            tombstones: Rows to insert unless they are there.
            ids: Exact key ids.
            text: Gives the new record of a row.

        Returns:
            The rows as they are now.

        Raises:
            MetastoreError: The table cannot be written.
        """
        with self._transaction():
            if tombstones:
                self._insert(tombstones)
            found = [row for key_id in ids for row in self._versions(key_id)]
            new = [KeyRow(row.id, row.created, text(row)) for row in found]
            for row in new:
                self._overwrite(row)
            return new

    @abstractmethod
    def _newest(self, ids: Sequence[str], not_after: int) -> Iterator[KeyRow]: ...

    @abstractmethod
    def _exact(self, pairs: Sequence[tuple[str, int]]) -> Iterator[KeyRow]: ...

    @abstractmethod
    def _versions(self, key_id: str) -> Iterator[KeyRow]: ...

    @abstractmethod
    def _replace(self, row: KeyRow, text: str) -> bool: ...

    @abstractmethod
    def _insert(self, rows: Sequence[KeyRow]) -> None: ...

    @abstractmethod
    def _overwrite(self, row: KeyRow) -> None: ...

    @abstractmethod
    def _delete(self, row: KeyRow) -> None: ...

    @abstractmethod
    def _locked_text(self, row: KeyRow, *, write: bool = False) -> str | None:
        """Lock a row against changes until the end of the transaction, and read its record."""

    @abstractmethod
    def _prepare(self) -> None:
        """Set what holds for one transaction."""

    @contextmanager
    def _transaction(self) -> Generator[None]:
        try:
            with self._connection.begin():
                self._prepare()
                yield
        except (DBAPIError, OSError) as error:
            raise failure.of_server(error, self._connection.dialect) from error

    def _read(self, statement: Executable, parameters: Mapping[str, object]) -> list[tuple[str, object, str]]:
        if self._connection.in_transaction():
            return self._fetched(statement, parameters)
        with self._transaction():
            return self._fetched(statement, parameters)

    def _fetched(self, statement: Executable, parameters: Mapping[str, object]) -> list[tuple[str, object, str]]:
        return [(row[0], row[1], row[2]) for row in self._connection.execute(statement, parameters)]
