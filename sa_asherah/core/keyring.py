# SPDX-License-Identifier: Apache-2.0
"""Unwraps key records and keeps the keys: nothing gets in whose record does not hold."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
from typing import TYPE_CHECKING

from sa_asherah.core import aead
from sa_asherah.core.cache import KeyCache
from sa_asherah.core.events import Events
from sa_asherah.core.flight import Flights
from sa_asherah.core.key import Key, Secret
from sa_asherah.core.key_record import KeyRecord, Level, bind, check_bind, dump_key_record, parse_key_record
from sa_asherah.core.strict_json import base64_text
from sa_asherah.core.wear import Wear
from sa_asherah.errors import ConfigurationError, KeyRecordError, KmsUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence

    from sa_asherah.core.ids import KeyIds
    from sa_asherah.core.policy import CryptoPolicy
    from sa_asherah.core.ports import KeyManagementService, KeyRow, KeyRows, Metastore

__all__ = ["Keyring"]


class Keyring:
    """The unwrapped keys of one key table.

    (id, created) does not identify a key: a rolled-back record and its successor can share it. So every key is
    compared with the text of its record whenever that record is read.

    Attributes:
        ids: The ids of this service and product in this region.
        regions: The ids of all regions whose keys may be read, this one's first.
        system: System keys.
        intermediate: Intermediate keys.
    """

    def __init__(
        self,
        ids: KeyIds,
        kms: KeyManagementService,
        metastore: Metastore,
        policy: CryptoPolicy,
        on_change: Callable[[], None],
        *,
        read_suffixes: Iterable[str] = (),
        events: Events | None = None,
    ) -> None:
        """Start empty.

        Args:
            ids: The ids of this service and product.
            kms: Wraps system keys.
            metastore: Says how to call the KMS, and whether keys may be dropped.
            policy: How many keys of each level to keep, and how much each may wrap.
            on_change: Called when a key gives way to another one with the same id and date.
            read_suffixes: Suffixes of other regions whose keys may be read.
            events: Who is told of keys loaded, revoked and refused.

        Raises:
            ConfigurationError: The suffixes are unusable, or keys must stay in memory and the policy forbids it.
        """
        self.ids = ids
        self.regions = ids.regions(read_suffixes)
        self._kms = kms
        self._policy = policy
        self._off_loop = metastore.off_loop
        self._on_change = on_change
        self._events = events or Events()
        self._flights = Flights()
        self._fetched: set[str] = set()
        self._newest_dates: dict[str, int] = {}
        self._wear = Wear()
        self._keeps_all = metastore.keeps_all
        if self._keeps_all and 0 in {policy.system_limit, policy.intermediate_limit}:
            raise ConfigurationError(
                "the keys of a database in memory with an asynchronous driver must stay in memory: remove "
                "cache_system_keys=False and cache_intermediate_keys=False"
            )
        self.system = KeyCache(None if self._keeps_all else policy.system_limit)
        self.intermediate = self._new_cache()

    def private(self, on_change: Callable[[], None]) -> Keyring:
        """Make a keyring with intermediate keys of its own; system keys and counts are shared.

        Args:
            on_change: Called when one of its keys gives way to another one with the same id and date.

        Returns:
            The other keyring.
        """
        other: Keyring = copy.copy(self)
        other.intermediate = self._new_cache()
        other._on_change = on_change
        return other

    def _new_cache(self) -> KeyCache:
        return KeyCache(None if self._keeps_all else self._policy.intermediate_limit)

    def region_of(self, key_id: str) -> KeyIds:
        """Tell of which region a key is; `KeyIds.regions` sees to it that an id says so.

        Args:
            key_id: Key id.

        Returns:
            The region's ids.
        """
        return next((ids for ids in self.regions if key_id.endswith(ids.tail)), self.ids)

    def record(self, row: KeyRow, held: Key | None = None) -> KeyRecord:
        """Read a row's record, from memory if the text is known.

        Args:
            row: A row of one of our ids.
            held: The key with this id and date that the caller holds; it may have left the cache.

        Returns:
            The record. It holds only if `system_key` or `intermediate_key` took it.

        Raises:
            KeyRecordError: The row is no key record, or its parent is not our system key.
        """
        known = held or self.intermediate.get(row.id, row.created) or self.system.get(row.id, row.created)
        if known is not None and known.text == row.text:
            return known.record
        with self._telling(row):
            record = self._parsed(row)
        if known is not None and _is_same(record, known.record):
            # It was revoked or retired, or that was undone; all that its Bind covers is as it was.
            is_news = record.revoked and not known.record.revoked
            known.record = record
            known.text = row.text
            if is_news:
                self._events.emit("key_revoked", id=row.id, created=row.created)
        return record

    def _parsed(self, row: KeyRow) -> KeyRecord:
        record = parse_key_record(row)
        if record.parent is not None and record.parent[0] != self.region_of(row.id).system_key_id():
            raise KeyRecordError(
                f"key record {row.id!r} created {row.created} is refused: it names a system key of another service, "
                "product or region. Find out who writes to the key table, and restore the row from a backup"
            )
        return record

    @contextlib.contextmanager
    def _telling(self, row: KeyRow) -> Generator[None]:
        """Tell that a record is refused."""
        try:
            yield
        except KeyRecordError as error:
            self._events.emit("key_refused", id=row.id, created=row.created, reason=str(error))
            raise

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
                try:
                    wrapped = record.wrapped
                    secret = Secret(self._off_loop(lambda: self._kms.decrypt_key(wrapped)))
                except KmsUnavailableError:
                    if known is None or record.bind is None or record.bind != known.record.bind:
                        raise
                    # Wrapped anew, says its Bind: an outage of the service is no reason to lose the key.
                    return known
            return self._admit(Key(record, row.text, secret), "SK")

    def fetch_system_keys(self, rows: KeyRows, system_id: str) -> None:
        """Unwrap all versions of a system key in one go, once: a process that starts after years needs many.

        Does nothing where the service unwraps one key a call. What does not open is left to `system_key`.

        Args:
            rows: The key table.
            system_id: Its id.

        Raises:
            KmsUnavailableError: The service cannot be reached.
            MetastoreError: The key table failed.
        """
        if self._kms.batch_size == 1 or system_id in self._fetched or self._policy.system_limit == 0:
            return
        with self._flights.turn(system_id):
            if system_id not in self._fetched:
                cold = [row for row in rows.versions(system_id) if self.system.get(row.id, row.created) is None]
                if len(cold) > 1:
                    self._fetch(cold)
                self._fetched.add(system_id)

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
        with self._telling(row):
            secret = self._unwrapped(record, parent)
        return self._admit(Key(record, row.text, secret, partition, parent), "IK")

    @staticmethod
    def _unwrapped(record: KeyRecord, parent: Key) -> Secret:
        try:
            return Secret(aead.open_(parent.secret, record.wrapped))
        except aead.InvalidTag:
            raise KeyRecordError(
                f"key record {record.id!r} created {record.created} is refused: its system key created "
                f"{parent.created} does not open it. One of the two rows was altered; restore both from the same backup"
            ) from None

    def is_worn(self, place: tuple[str, int]) -> bool:
        """Tell whether this process wrapped so many keys with one that it should make a new one.

        Args:
            place: Id and date of the key.

        Returns:
            Whether it did.
        """
        key = self.intermediate.get(*place) or self.system.get(*place)
        return (self._wear.of(place) if key is None else key.wraps.number) >= self._policy.max_wraps

    def watch(self, row: KeyRow) -> None:
        """Tell the audit log when another process's system key becomes the newest.

        That is expected when a rotation is due; else somebody with the right to encrypt may have planted it.

        Args:
            row: The row of the newest system key.
        """
        known = self._newest_dates.setdefault(row.id, row.created)
        if known < row.created:
            self._newest_dates[row.id] = row.created
            self._events.emit("system_key_appeared", id=row.id, created=row.created)

    def new_system_key(self, created: int) -> Key:
        """Make a system key; `keep` takes it once it is stored.

        Args:
            created: Its date in seconds.

        Returns:
            The key.

        Raises:
            KmsError: The KMS failed.
        """
        system_id = self.ids.system_key_id()
        self._newest_dates[system_id] = max(created, self._newest_dates.get(system_id, 0))
        secret = Secret(os.urandom(aead.KEY_SIZE))
        wrapped = self._off_loop(lambda: self._kms.encrypt_key(bytes(secret)))
        record = KeyRecord(system_id, created, base64_text(wrapped))
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
        return self._wrapped(Secret(os.urandom(aead.KEY_SIZE)), partition, created, parent)

    def wrapped_anew(self, key: Key, parent: Key) -> Key:
        """Wrap an intermediate key with another system key; `keep` takes it once it is stored.

        Args:
            key: The intermediate key.
            parent: The system key to wrap it with.

        Returns:
            A key with the same bytes, id and date.
        """
        return self._wrapped(Secret(key.secret), key.partition or "", key.created, parent)

    def _wrapped(self, secret: Secret, partition: str, created: int, parent: Key) -> Key:
        key_id, place = self.ids.intermediate_key_id(partition), (parent.id, parent.created)
        record = KeyRecord(key_id, created, base64_text(parent.wrap(bytes(secret))), place)
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
        with self._telling(key.row):
            check_bind(key.record, level, self.region_of(key.id), key.partition, key.secret)
        kept = self._settle(key)
        if kept is key:
            self._events.emit("key_loaded", id=key.id, created=key.created, revoked=key.record.revoked)
        return kept

    def _settle(self, key: Key) -> Key:
        """Keep a key whose record held: the one that is here already if its bytes are the same, else the new one."""
        cache = self.system if key.parent is None else self.intermediate
        known = cache.get(key.id, key.created)
        if known is not None and known.has_same_secret(key):
            known.record = key.record
            known.text = key.text
            known.parent = key.parent
            return known
        self._wear.follow(key)
        cache.put(key)
        if known is not None:
            self._on_change()
        return key


def _is_same(record: KeyRecord, known: KeyRecord) -> bool:
    return dataclasses.replace(record, revoked=known.revoked, retired=known.retired) == known
