# SPDX-License-Identifier: Apache-2.0
"""Key services and key tables as they are, with every call measured if there is a meter."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from sa_asherah.core.ports import KeyManagementService, KeyRow, KeyRows, Metastore

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sa_asherah.core.events import Events
    from sa_asherah.errors import KmsError

__all__ = ["MeteredKMS", "MeteredMetastore"]

T = TypeVar("T")


class MeteredKMS(KeyManagementService):
    """A key service whose calls are measured as `kms.<kind>.encryptkey` and `kms.<kind>.decryptkey`.

    The kind is the name of its class: `static`, `vaulttransit`, `aws`.
    """

    def __init__(self, kms: KeyManagementService, events: Events) -> None:
        """Wrap a key service.

        Args:
            kms: The service.
            events: Has the meter, or none.
        """
        self.batch_size = kms.batch_size
        self._kms = kms
        self._events = events
        self._name = f"kms.{type(kms).__name__.lower().removesuffix('kms')}"

    def __repr__(self) -> str:
        """Show the service."""
        return repr(self._kms)

    def encrypt_key(self, key: bytes) -> bytes:
        """Wrap a system key.

        Args:
            key: The system key.

        Returns:
            The wrapped key.
        """
        with self._events.measure(f"{self._name}.encryptkey"):
            return self._kms.encrypt_key(key)

    def decrypt_key(self, blob: bytes) -> bytes:
        """Unwrap a system key.

        Args:
            blob: The wrapped key.

        Returns:
            The system key.
        """
        with self._events.measure(f"{self._name}.decryptkey"):
            return self._kms.decrypt_key(blob)

    def decrypt_keys(self, blobs: Sequence[bytes]) -> list[bytes | KmsError]:
        """Unwrap several system keys; measured as one.

        Args:
            blobs: The wrapped keys.

        Returns:
            A key or an error for each.
        """
        with self._events.measure(f"{self._name}.decryptkey"):
            return self._kms.decrypt_keys(blobs)

    def recognises(self, blob: bytes) -> bool:
        """Tell whether a wrapped key may be this service's.

        Args:
            blob: A wrapped system key.

        Returns:
            What the service says.
        """
        return self._kms.recognises(blob)

    def close(self) -> None:
        """Close the service."""
        self._kms.close()


class MeteredMetastore(Metastore):
    """A key table whose reads and writes are measured as `metastore.<kind>.load`, `.loadlatest` and `.store`.

    What only operators do, `versions`, `replace`, `remove` and `erase`, is not.
    """

    def __init__(self, metastore: Metastore, kind: str, events: Events) -> None:
        """Wrap a key table.

        Args:
            metastore: The key table.
            kind: `sql`, `dynamodb`.
            events: Has the meter, or none.
        """
        self.enlisted = metastore.enlisted
        self.keeps_all = metastore.keeps_all
        self._metastore = metastore
        self._events = events
        self._name = f"metastore.{kind}"

    def __repr__(self) -> str:
        """Show the key table."""
        return repr(self._metastore)

    def run(self, work: Callable[[KeyRows], T], connection: object | None = None, *, writing: bool = False) -> T:
        """Run code on the key table.

        Args:
            work: The code.
            connection: The caller's connection.
            writing: Whether it chooses keys for encryption.

        Returns:
            What `work` returned.
        """
        if self._events.meter is None:
            return self._metastore.run(work, connection, writing=writing)
        return self._metastore.run(
            lambda rows: work(_MeteredRows(rows, self._name, self._events)), connection, writing=writing
        )

    def off_loop(self, call: Callable[[], T]) -> T:
        """Make a call that blocks.

        Args:
            call: The call.

        Returns:
            What it returned.
        """
        return self._metastore.off_loop(call)

    def close(self) -> None:
        """Release the key table."""
        self._metastore.close()


class _MeteredRows(KeyRows):
    def __init__(self, rows: KeyRows, name: str, events: Events) -> None:
        self._rows = rows
        self._name = name
        self._events = events

    def newest(self, ids: Sequence[str], not_after: int) -> Mapping[str, KeyRow]:
        with self._events.measure(f"{self._name}.loadlatest"):
            return self._rows.newest(ids, not_after)

    def exact(self, pairs: Sequence[tuple[str, int]]) -> Mapping[tuple[str, int], KeyRow]:
        with self._events.measure(f"{self._name}.load"):
            return self._rows.exact(pairs)

    def versions(self, key_id: str) -> Sequence[KeyRow]:
        return self._rows.versions(key_id)

    def replace(self, row: KeyRow, text: str) -> bool:
        return self._rows.replace(row, text)

    def insert(self, rows: Sequence[KeyRow], parent: KeyRow | None = None) -> bool:
        with self._events.measure(f"{self._name}.store"):
            return self._rows.insert(rows, parent)

    def remove(self, row: KeyRow) -> bool:
        return self._rows.remove(row)

    def erase(self, tombstones: Sequence[KeyRow], ids: Sequence[str], text: Callable[[KeyRow], str]) -> list[KeyRow]:
        return self._rows.erase(tombstones, ids, text)
