# SPDX-License-Identifier: Apache-2.0
"""What the core needs from outside: a key management service and a key table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["KeyManagementService", "KeyRow", "KeyRows", "Metastore"]

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
    text: str


class KeyManagementService(Protocol):
    """Wraps system keys under a master key that never leaves the service. Safe to share between threads."""

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

    def insert(self, rows: Sequence[KeyRow]) -> None:
        """Insert the rows whose (id, created) is not taken; a taken one is left as it is and is no error.

        In side mode the rows are committed when this returns. Who won is told by reading back with `exact`.

        Args:
            rows: The rows, in one statement.
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
