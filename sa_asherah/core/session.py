# SPDX-License-Identifier: Apache-2.0
"""Encrypts single values of one partition into data row records, which every Asherah implementation reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar

from sa_asherah.core.row_record import DataRowRecord, Request, open_data, opener, parse_data_row_record, seal
from sa_asherah.core.session_cache import Lease
from sa_asherah.errors import DecryptionError, UsageError

if TYPE_CHECKING:
    from types import TracebackType

    from sa_asherah.core.hierarchy import Hierarchy
    from sa_asherah.core.key import Key
    from sa_asherah.core.row_record import Decrypt

__all__ = ["Session"]

K = TypeVar("K")
T = TypeVar("T")


def _allow(_partition: str) -> None:
    """Let every partition pass."""


def _call(call: Callable[[], T]) -> T:
    """Make a call here and now."""
    return call()


class Session:
    """Encrypts and decrypts for one partition. Cheap to make; keys are kept by the hierarchy, not here."""

    def __init__(
        self,
        source: Hierarchy | Lease,
        partition: str,
        connection: object | None = None,
        *,
        guard: Callable[[str], None] = _allow,
        compute: Callable[[Callable[[], T]], T] = _call,
    ) -> None:
        """Open a session.

        Args:
            source: Where the keys come from; a lease ends with the session.
            partition: The partition; whatever is encrypted belongs to it.
            connection: The SQLAlchemy `Connection` that will store the records. Needed on SQLite while it has a
                transaction open; ignored elsewhere.
            guard: Called with the partition at every use; raises where it may not be touched.
            compute: Makes the calls that take long for much data, in a thread where that would stop an event loop.

        Raises:
            OwnerRequiredError: The partition is unusable.
        """
        self._lease = source if isinstance(source, Lease) else Lease(source)
        self._partition = partition
        self._key_id = self._lease.hierarchy.ids.intermediate_key_id(partition)
        self._connection = connection
        self._guard = guard
        self._compute: Callable[[Callable[[], Any]], Any] = compute
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
        self._lease.end()

    def require_open(self) -> None:
        """See that the session may be used, here and now.

        Raises:
            UsageError: It is closed.
            WrongPartitionError: The partition is outside the current `partition_scope`.
        """
        if self._closed:
            raise UsageError("this session is closed; open another one with asherah.session(partition)")
        self._guard(self._partition)

    def encrypt(self, data: bytes) -> str:
        """Encrypt bytes under a key of their own.

        Args:
            data: What to encrypt; empty bytes, too, become a real record.

        Returns:
            A data row record as JSON.

        Raises:
            UsageError: `data` is not bytes, or the session is closed.
            UnsupportedValueError: `data` is too long to be read again.
            WrongPartitionError: The partition is outside the current `partition_scope`.
            KeyExpiredError: The key is expired or revoked, and no successor could be made.
            KmsError: The KMS failed.
            MetastoreError: The key table failed, or a key record does not hold.
        """
        self.require_open()
        if not isinstance(data, bytes):
            raise UsageError(f"a session encrypts bytes, not {type(data).__name__}; encode the value first")
        hierarchy = self._lease.hierarchy
        with hierarchy.events.measure("drr.encrypt", via="session", partition=self._partition):
            key = hierarchy.encryption_keys((self._partition,), self._connection)[self._partition]
            now = int(hierarchy.policy.clock())
            record: str = self._compute(lambda: seal([Request(key, data)], now)[0])
        return record

    def decrypt(self, record: str | Mapping[str, object]) -> bytes:
        """Decrypt what `encrypt` or another Asherah implementation wrote for this partition.

        Args:
            record: A data row record, as JSON or as an object with the same members.

        Returns:
            The data.

        Raises:
            UsageError: `record` is neither text nor an object, or the session is closed.
            MalformedCellError: It is not a data row record.
            WrongPartitionError: It belongs to another partition, or that is outside the current `partition_scope`; no
                key is fetched.
            KeyNotFoundError: The key table lacks its key.
            DecryptionError: It was altered.
            KmsError: The KMS failed.
            MetastoreError: The key table failed, or a key record does not hold.
        """
        self.require_open()
        if not isinstance(record, str | Mapping):
            raise UsageError(
                f"a data row record is JSON text or a mapping, not {type(record).__name__}; give what encrypt() gave"
            )
        events = self._lease.hierarchy.events
        with events.measure("drr.decrypt", via="session", partition=self._partition):
            parsed: DataRowRecord = self._compute(lambda: parse_data_row_record(record))
            data = self._open(parsed)
        if events.decrypts:
            events.emit("values_decrypted", partition=self._partition, count=1)
        return data

    def store(self, data: bytes, storer: Callable[[str], T]) -> T:
        """Encrypt bytes and pass the record on.

        Args:
            data: What to encrypt.
            storer: Stores the record.

        Returns:
            What `storer` returned, for example the key under which it stored the record.

        Raises:
            AsherahError: As `encrypt` does; `storer` was not called then.
        """
        return storer(self.encrypt(data))

    def load(self, key: K, loader: Callable[[K], str | None]) -> bytes | None:
        """Fetch a record and decrypt it.

        Args:
            key: The key under which the record is stored.
            loader: Fetches the record, or `None`.

        Returns:
            The data; `None` if there is no record.

        Raises:
            AsherahError: As `decrypt` does.
        """
        self.require_open()
        record = loader(key)
        return None if record is None else self.decrypt(record)

    def _open(self, record: DataRowRecord) -> bytes:
        key_id, created = record.parent

        def unlock(key: Key) -> Decrypt | None:
            return opener(key.secret, record.key)

        decrypt = self._lease.hierarchy.unlock(self._partition, created, unlock, self._connection, key_id=key_id)
        if decrypt is None:
            raise DecryptionError(
                f"a data row record of the key {key_id!r} created {created} does not open: it was altered or damaged; "
                "restore it from a backup"
            )
        data: bytes = self._compute(lambda: open_data(decrypt, record.data))
        return data
