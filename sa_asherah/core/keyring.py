# SPDX-License-Identifier: Apache-2.0
"""Unwraps key records and keeps the keys: nothing gets in whose record does not hold."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from typing import TYPE_CHECKING

from sa_asherah.core import aead
from sa_asherah.core.cache import KeyCache
from sa_asherah.core.flight import Flights
from sa_asherah.core.key import Key, Secret
from sa_asherah.core.key_record import KeyRecord, Level, bind, check_bind, dump_key_record, parse_key_record
from sa_asherah.core.strict_json import base64_text
from sa_asherah.errors import KeyRecordError, KmsUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sa_asherah.core.ids import KeyIds
    from sa_asherah.core.ports import KeyManagementService, KeyRow, KeyRows, Metastore

__all__ = ["Keyring"]

_audit = logging.getLogger("sa_asherah.audit")


class Keyring:
    """The unwrapped keys of one key table.

    (id, created) does not identify a key: a rolled-back record and its successor can share it. So every key is
    compared with the text of its record whenever that record is read.

    Attributes:
        ids: The ids of this service and product.
        system: System keys.
        intermediate: Intermediate keys.
    """

    def __init__(
        self, ids: KeyIds, kms: KeyManagementService, metastore: Metastore, size: int, on_change: Callable[[], None]
    ) -> None:
        """Start empty.

        Args:
            ids: The ids of this service and product.
            kms: Wraps system keys.
            metastore: Says how to call the KMS, and whether keys may be dropped.
            size: How many keys of each level to keep.
            on_change: Called when a key gives way to another one with the same id and date.
        """
        self.ids = ids
        self._kms = kms
        self._off_loop = metastore.off_loop
        self._on_change = on_change
        self._flights = Flights()
        self._has_fetched = False
        self._newest_date: int | None = None
        limit = None if metastore.keeps_all else size
        self.system = KeyCache(limit)
        self.intermediate = KeyCache(limit)

    def record(self, row: KeyRow) -> KeyRecord:
        """Read a row's record, from memory if the text is known.

        Args:
            row: A row of one of our ids.

        Returns:
            The record. It holds only if `system_key` or `intermediate_key` took it.

        Raises:
            KeyRecordError: The row is no key record, or its parent is not our system key.
        """
        known = self.intermediate.get(row.id, row.created) or self.system.get(row.id, row.created)
        if known is not None and known.text == row.text:
            return known.record
        record = parse_key_record(row)
        if record.parent is not None and record.parent[0] != self.ids.system_key_id():
            raise KeyRecordError(
                f"key record {row.id!r} created {row.created} is refused: it names a system key of another service or "
                "product. Find out who writes to the key table, and restore the row from a backup"
            )
        if known is not None and dataclasses.replace(record, revoked=known.record.revoked) == known.record:
            # It was revoked, or that was undone; all that its Bind covers is as it was.
            known.record = record
            known.text = row.text
        return record

    def system_key(self, row: KeyRow) -> Key:
        """Unwrap a system key, unless it is known.

        Args:
            row: The key's row.

        Returns:
            The key.

        Raises:
            KeyRecordError: The record does not hold.
            KmsError: The KMS failed.
        """
        known = self.system.get(row.id, row.created)
        if known is not None and known.text == row.text:
            return known
        with self._flights.turn((row.id, row.created, row.text)):
            known = self.system.get(row.id, row.created)
            if known is not None and known.text == row.text:
                return known
            record = self.record(row)
            if known is not None and known.record.key == record.key:
                secret = Secret(known.secret)
            else:
                wrapped = record.wrapped
                secret = Secret(self._off_loop(lambda: self._kms.decrypt_key(wrapped)))
            return self._admit(Key(record, row.text, secret), "SK")

    def fetch_system_keys(self, rows: KeyRows) -> None:
        """Unwrap all versions of the system key in one go, once: a process that starts after years needs many.

        Does nothing where the service unwraps one key a call. What does not open is left to `system_key`.

        Args:
            rows: The key table.

        Raises:
            KmsUnavailableError: The service cannot be reached.
            MetastoreError: The key table failed.
        """
        if self._kms.batch_size == 1 or self._has_fetched:
            return
        with self._flights.turn(self.ids.system_key_id()):
            if not self._has_fetched:
                cold = [
                    row
                    for row in rows.versions(self.ids.system_key_id())
                    if self.system.get(row.id, row.created) is None
                ]
                if len(cold) > 1:
                    self._fetch(cold)
                self._has_fetched = True

    def _fetch(self, rows: Sequence[KeyRow]) -> None:
        records: list[tuple[KeyRow, KeyRecord]] = []
        for row in rows:
            with contextlib.suppress(KeyRecordError):
                records.append((row, self.record(row)))
        wrapped = [record.wrapped for _, record in records]
        opened = self._off_loop(lambda: self._kms.decrypt_keys(wrapped))
        for (row, record), key in zip(records, opened, strict=True):
            if isinstance(key, KmsUnavailableError):
                raise key
            if isinstance(key, bytes):
                with contextlib.suppress(KeyRecordError):
                    self._admit(Key(record, row.text, Secret(key)), "SK")

    def intermediate_key(self, row: KeyRow, partition: str, parent: Key) -> Key:
        """Unwrap an intermediate key, unless it is known.

        Args:
            row: The key's row.
            partition: The partition it must belong to.
            parent: The system key that its record names.

        Returns:
            The key.

        Raises:
            KeyRecordError: The record does not hold.
        """
        known = self.intermediate.get(row.id, row.created)
        if known is not None and known.text == row.text and known.parent is parent:
            return known
        record = self.record(row)
        try:
            secret = Secret(aead.open_(parent.secret, record.wrapped))
        except aead.InvalidTag:
            raise KeyRecordError(
                f"key record {row.id!r} created {row.created} is refused: its system key created {parent.created} does "
                "not open it. One of the two rows was altered; restore both from the same backup"
            ) from None
        return self._admit(Key(record, row.text, secret, partition, parent), "IK")

    def watch(self, row: KeyRow) -> None:
        """Tell the audit log when another process's system key becomes the newest.

        That is expected when a rotation is due; else somebody with the right to encrypt may have planted it.

        Args:
            row: The row of the newest system key.
        """
        known = self._newest_date
        if known is None or known < row.created:
            self._newest_date = row.created
        if known is not None and known < row.created:
            _audit.warning("system_key_appeared: %s created %d was made by another process", row.id, row.created)

    def new_system_key(self, created: int) -> Key:
        """Make a system key; `keep` takes it once it is stored.

        Args:
            created: Its date in seconds.

        Returns:
            The key.

        Raises:
            KmsError: The KMS failed.
        """
        self._newest_date = max(created, self._newest_date or 0)
        secret = Secret(os.urandom(aead.KEY_SIZE))
        wrapped = self._off_loop(lambda: self._kms.encrypt_key(bytes(secret)))
        record = KeyRecord(self.ids.system_key_id(), created, base64_text(wrapped))
        return self._bound(record, "SK", secret)

    def new_intermediate_key(self, partition: str, created: int, parent: Key) -> Key:
        """Make an intermediate key; `keep` takes it once it is stored.

        Args:
            partition: Its partition.
            created: Its date in seconds.
            parent: The system key to wrap it with.

        Returns:
            The key.
        """
        secret = Secret(os.urandom(aead.KEY_SIZE))
        wrapped = aead.seal(parent.secret, bytes(secret))
        place = (parent.id, parent.created)
        record = KeyRecord(self.ids.intermediate_key_id(partition), created, base64_text(wrapped), place)
        return self._bound(record, "IK", secret, partition, parent)

    def keep(self, key: Key, row: KeyRow) -> Key | None:
        """Take a key that was made here, if the table holds it.

        Args:
            key: The new key.
            row: What the table holds for its id and date.

        Returns:
            The key, or `None` if another process was faster and the row holds another key.

        Raises:
            KeyRecordError: The row is no key record.
        """
        if self.record(row) != key.record:
            return None
        # The database may write JSON in its own way (JSONB): the text that comes back is the one to compare with.
        key.text = row.text
        return self._settle(key)

    def clear(self) -> None:
        """Drop all keys."""
        self.intermediate.clear()
        self.system.clear()

    def _bound(
        self,
        record: KeyRecord,
        level: Level,
        secret: Secret,
        partition: str | None = None,
        parent: Key | None = None,
    ) -> Key:
        mac = bind(level, self.ids, partition, record.id, record.created, record.parent, secret)
        record = dataclasses.replace(record, bind=mac)
        return Key(record, dump_key_record(record), secret, partition, parent)

    def _admit(self, key: Key, level: Level) -> Key:
        check_bind(key.record, level, self.ids, key.partition, key.secret)
        return self._settle(key)

    def _settle(self, key: Key) -> Key:
        """Keep a key whose record held: the one that is here already if its bytes are the same, else the new one."""
        cache = self.system if key.parent is None else self.intermediate
        known = cache.get(key.id, key.created)
        if known is not None and known.has_same_secret(key):
            known.record = key.record
            known.text = key.text
            known.parent = key.parent
            return known
        cache.put(key)
        if known is not None:
            self._on_change()
        return key
