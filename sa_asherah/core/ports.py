# SPDX-License-Identifier: Apache-2.0
"""What the core needs from outside: a key management service and a key table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar

from sa_asherah.errors import KmsError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["ExternalMetastore", "KeyManagementService", "KeyRow", "KeyRows", "Metastore"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class KeyRow:
    """One row of the `encryption_key` table.

    Attributes:
        id: Key id, for example `_IK_7_records_clinic`.
        created: The `created` column as seconds since 1970-01-01 UTC.
        text: The `key_record` column, JSON as the database returns it.
    """

    id: str
    created: int
    text: str = field(repr=False)


class KeyManagementService(Protocol):
    """Wraps system keys under a master key that never leaves the service. Safe to share between threads.

    A service of your own inherits from this class: what has a body here then need not be written.

    Attributes:
        batch_size: How many keys one call of `decrypt_keys` to the service unwraps.
    """

    batch_size: int = 1

    def encrypt_key(self, key: bytes) -> bytes:
        """Wrap a 32-byte system key.

        Args:
            key: The system key.

        Returns:
            The wrapped key as it is stored, before base64.

        Raises:
            KmsError: The service failed.
        """
        ...

    def decrypt_key(self, blob: bytes) -> bytes:
        """Unwrap what `encrypt_key` returned.

        Args:
            blob: The wrapped key.

        Returns:
            The 32-byte system key.

        Raises:
            KmsError: The service failed or refuses the blob.
        """
        ...

    def decrypt_keys(self, blobs: Sequence[bytes]) -> list[bytes | KmsError]:
        """Unwrap several system keys, in as few calls as the service allows.

        Args:
            blobs: What `encrypt_key` returned, in any order.

        Returns:
            For each blob its key, or the error that says why it does not open: one bad blob spoils no other.
        """
        return [self._decrypted(blob) for blob in blobs]

    def _decrypted(self, blob: bytes) -> bytes | KmsError:
        try:
            return self.decrypt_key(blob)
        except KmsError as error:
            return error

    def recognises(self, blob: bytes) -> bool:
        """Tell by its form whether this service may have wrapped a blob; asks nobody.

        Args:
            blob: A wrapped system key.

        Returns:
            False only if the blob has the form of another service.
        """
        del blob
        return True

    def close(self) -> None:
        """Close connections. Calling it twice is harmless."""
        ...


class KeyRows(Protocol):
    """The key table, as one database connection sees it."""

    def newest(self, ids: Sequence[str], not_after: int) -> Mapping[str, KeyRow]:
        """Read the newest row of each id.

        Args:
            ids: Exact key ids.
            not_after: Rows with a later `created` (seconds) do not count.

        Returns:
            The rows found, by id.
        """
        ...

    def exact(self, pairs: Sequence[tuple[str, int]]) -> Mapping[tuple[str, int], KeyRow]:
        """Read rows by exact id and `created`.

        Args:
            pairs: (id, created in seconds).

        Returns:
            The rows found, by pair.
        """
        ...

    def versions(self, key_id: str) -> Sequence[KeyRow]:
        """Read all rows of one id.

        Args:
            key_id: Exact key id.

        Returns:
            The rows, newest first.
        """
        ...

    def replace(self, row: KeyRow, text: str) -> bool:
        """Put another record in the place of one, if it is still exactly the one that was read.

        In side mode the change is committed when this returns.

        Args:
            row: The row as it was read.
            text: The new record, JSON.

        Returns:
            Whether the row was as it was read and holds the new record now.
        """
        ...

    def insert(self, rows: Sequence[KeyRow], parent: KeyRow | None = None) -> bool:
        """Insert the rows whose (id, created) is not taken; a taken one is left as it is and is no error.

        In side mode the rows are committed when this returns. Who won is told by reading back with `exact`.

        Args:
            rows: The rows, in one statement.
            parent: The row of the key that wraps theirs, as it was read. While it is not there any more, or retired,
                or otherwise changed where that is easier to tell, nothing is inserted; nobody changes it meanwhile.

        Returns:
            Whether the parent was as it must be.
        """
        ...

    def remove(self, row: KeyRow) -> bool:
        """Delete a row, if it is still exactly the one that was read.

        Args:
            row: The row as it was read.

        Returns:
            Whether it was.
        """
        ...

    def erase(self, tombstones: Sequence[KeyRow], ids: Sequence[str], text: Callable[[KeyRow], str]) -> list[KeyRow]:
        """Insert tombstones and overwrite every record of some ids in its place, whatever it holds, in one transaction.

        In side mode the change is committed when this returns.

        Args:
            tombstones: Rows to insert unless they are there.
            ids: Exact key ids.
            text: Gives the new record of a row.

        Returns:
            The rows as they are now.
        """
        ...


class Metastore(Protocol):
    """Gives access to the key table of one database.

    Attributes:
        enlisted: True where key records are written on the caller's own connection (SQLite): such a record may
            encrypt only while the very statement sees it, so nothing about "newest" may be cached.
        keeps_all: True where a key may be out of reach when it is needed again, so that none may leave the cache.
    """

    enlisted: bool
    keeps_all: bool

    def run(self, work: Callable[[KeyRows], T], connection: object | None = None, *, writing: bool = False) -> T:
        """Run `work` with the key table; in side mode on a connection of its own, with retries of transient errors.

        Args:
            work: Starts by reading and may be called again from the start after a transient error.
            connection: The caller's SQLAlchemy `Connection`, if there is one. Side mode ignores it.
            writing: Whether `work` chooses keys for encryption, and so may insert some.

        Returns:
            What `work` returned.

        Raises:
            MetastoreUnavailableError: The table cannot be reached.
            MetastoreError: The table cannot be used.
        """
        ...

    def off_loop(self, call: Callable[[], T]) -> T:
        """Make a call that blocks, in a thread where it would stop an event loop.

        Args:
            call: A call to the key management service.

        Returns:
            What it returned.
        """
        ...

    def close(self) -> None:
        """Release what the metastore holds open."""
        ...


class ExternalMetastore(Metastore, Protocol):
    """A key table that is in no database of SQLAlchemy's, shared by all engines of an `Asherah`.

    It is used again after `close`, which each engine calls that is detached from it.
    """

    def check(self) -> None:
        """Make sure that the key table is there and can hold keys.

        Raises:
            MetastoreError: It is not there, or cannot be reached.
            ConfigurationError: It is unsafe.
        """
        ...

    def create(self) -> None:
        """Create the key table if it does not exist, and wait until it can be used.

        Raises:
            MetastoreError: It cannot be created.
        """
        ...
