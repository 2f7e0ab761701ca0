# SPDX-License-Identifier: Apache-2.0
"""Encrypts single values of one partition into data row records, which every Asherah implementation reads."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NoReturn, Self, TypeVar

from sa_asherah.core import aead
from sa_asherah.core.row_record import DataRowRecord, dump_data_row_record, parse_data_row_record
from sa_asherah.errors import DecryptionError, UsageError, WrongPartitionError

if TYPE_CHECKING:
    from types import TracebackType

    from sa_asherah.core.hierarchy import Hierarchy
    from sa_asherah.core.key import Key

__all__ = ["Session"]

K = TypeVar("K")
T = TypeVar("T")


class Session:
    """Encrypts and decrypts for one partition. Cheap to make; keys are kept by the hierarchy, not here."""

    def __init__(self, hierarchy: Hierarchy, partition: str, connection: object | None = None) -> None:
        """Open a session.

        Args:
            hierarchy: Where the keys come from.
            partition: The partition; whatever is encrypted belongs to it.
            connection: The SQLAlchemy `Connection` that will store the records. Needed on SQLite while it has a
                transaction open; ignored elsewhere.

        Raises:
            OwnerRequiredError: The partition is unusable.
        """
        self._hierarchy = hierarchy
        self._partition = partition
        self._key_id = hierarchy.ids.intermediate_key_id(partition)
        self._connection = connection
        self._closed = False

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} holds keys and cannot be pickled or copied; make another one")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._key_id!r}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the session; it refuses to work from now on."""
        self._closed = True

    def encrypt(self, data: bytes) -> str:
        """Encrypt bytes under a key of their own.

        Args:
            data: What to encrypt; empty bytes, too, become a real record.

        Returns:
            A data row record as JSON.

        Raises:
            UsageError: `data` is not bytes, or the session is closed.
            KeyExpiredError: The key is expired or revoked, and no successor could be made.
            KmsError: The KMS failed.
            MetastoreError: The key table failed, or a key record does not hold.
        """
        self._refuse_if_closed()
        if not isinstance(data, bytes):
            raise UsageError(f"a session encrypts bytes, not {type(data).__name__}; encode the value first")
        key = self._hierarchy.encryption_keys((self._partition,), self._connection)[self._partition]
        row_key = bytearray(os.urandom(aead.KEY_SIZE))
        try:
            record = DataRowRecord(
                created=int(self._hierarchy.policy.clock()),
                key=aead.seal(key.secret, bytes(row_key)),
                parent=(key.id, key.created),
                data=aead.seal(row_key, data),
            )
        finally:
            row_key[:] = bytes(len(row_key))
        return dump_data_row_record(record)

    def decrypt(self, record: str | Mapping[str, object]) -> bytes:
        """Decrypt what `encrypt` or another Asherah implementation wrote for this partition.

        Args:
            record: A data row record, as JSON or as an object with the same members.

        Returns:
            The data.

        Raises:
            UsageError: `record` is neither text nor an object, or the session is closed.
            MalformedCellError: It is not a data row record.
            WrongPartitionError: It belongs to another partition; no key is fetched.
            KeyNotFoundError: The key table lacks its key.
            DecryptionError: It was altered.
            KmsError: The KMS failed.
            MetastoreError: The key table failed, or a key record does not hold.
        """
        self._refuse_if_closed()
        if not isinstance(record, str | Mapping):
            raise UsageError(f"a data row record is JSON text or a mapping, not {type(record).__name__}")
        parsed = parse_data_row_record(record)
        key_id, created = parsed.parent
        if key_id != self._key_id:
            raise WrongPartitionError(
                f"the data row record belongs to the key {key_id!r}, this session to {self._key_id!r}; open a session "
                "for the record's own partition"
            )
        key = self._hierarchy.decryption_key(self._partition, created, self._connection)
        data = _open(key, parsed)
        if data is None:
            current = self._hierarchy.reload(key, self._connection)
            data = None if current is key else _open(current, parsed)
        if data is None:
            raise DecryptionError(
                f"a data row record of the key {key_id!r} created {created} does not open: it was altered or damaged; "
                "restore it from a backup"
            )
        return data

    def store(self, data: bytes, storer: Callable[[str], T]) -> T:
        """Encrypt bytes and pass the record on.

        Args:
            data: What to encrypt.
            storer: Stores the record.

        Returns:
            What `storer` returned, for example the key under which it stored the record.
        """
        return storer(self.encrypt(data))

    def load(self, key: K, loader: Callable[[K], str | None]) -> bytes | None:
        """Fetch a record and decrypt it.

        Args:
            key: The key under which the record is stored.
            loader: Fetches the record, or `None`.

        Returns:
            The data; `None` if there is no record.
        """
        record = loader(key)
        return None if record is None else self.decrypt(record)

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise UsageError("this session is closed; open another one with asherah.session(partition)")


def _open(key: Key, record: DataRowRecord) -> bytes | None:
    """Open a record; `None` if it does not open under this key."""
    try:
        row_key = bytearray(aead.open_(key.secret, record.key))
        try:
            return aead.open_(row_key, record.data)
        finally:
            row_key[:] = bytes(len(row_key))
    except aead.InvalidTag:
        return None
