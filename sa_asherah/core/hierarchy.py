# SPDX-License-Identifier: Apache-2.0
"""The key hierarchy of one key table: keys to encrypt with, keys to decrypt with."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any, NoReturn

from sa_asherah.core.flight import Flights
from sa_asherah.core.keyring import Keyring
from sa_asherah.core.selection import Selection
from sa_asherah.errors import KeyNotFoundError, KeyRecordError, MetastoreUnavailableError, UsageError

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Iterable, Mapping

    from sa_asherah.core.ids import KeyIds
    from sa_asherah.core.key import Key
    from sa_asherah.core.policy import CryptoPolicy
    from sa_asherah.core.ports import KeyManagementService, KeyRow, KeyRows, Metastore

__all__ = ["Hierarchy"]

_PAUSE = 10.0

_logger = logging.getLogger("sa_asherah.hierarchy")


class Hierarchy:
    """System and intermediate keys of one service and product in one key table. Safe to share between threads.

    A metastore of its own connections commits keys before they are used, so which key encrypts is known for
    `check_interval` (less or more by up to a tenth). A metastore in the caller's transaction cannot know that: there
    every call reads the records, and only what the transaction sees encrypts.

    Attributes:
        ids: The ids of the keys.
        policy: Expiry, checks, grace.
        row_keys: Dictionaries of data row keys that readers fill; emptied in place when keys change.
    """

    def __init__(self, ids: KeyIds, policy: CryptoPolicy, kms: KeyManagementService, metastore: Metastore) -> None:
        """Start with no keys; nothing is read or made yet.

        Args:
            ids: The ids of the keys.
            policy: Expiry, checks, grace.
            kms: Wraps system keys.
            metastore: The key table.
        """
        self.ids = ids
        self.policy = policy
        self.row_keys: dict[Hashable, dict[bytes, Any]] = {}
        self._metastore = metastore
        self._keyring = Keyring(ids, kms, metastore, policy.cache_size, self._forget_row_keys)
        self._flights = Flights()
        self._suspect_since = float("-inf")
        self._try_again_at = float("-inf")
        self._closed = False

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} holds keys and cannot be pickled or copied; make another one")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.ids.system_key_id()!r}>"

    # Keys to encrypt with

    def encryption_keys(self, partitions: Collection[str], connection: object | None = None) -> dict[str, Key]:
        """Find or make the keys that may encrypt now, all in one go.

        Args:
            partitions: The partitions.
            connection: The SQLAlchemy `Connection` that will execute what is encrypted.

        Returns:
            The keys by partition.

        Raises:
            OwnerRequiredError: A partition is unusable.
            KeyRecordError: A key record does not hold.
            KeyExpiredError: A key is expired or revoked, and no successor could be made.
            KmsError: The KMS failed.
            MetastoreError: The key table failed.
        """
        wanted = {self.ids.intermediate_key_id(partition): partition for partition in partitions}
        if self._metastore.enlisted:
            chosen = self._select(wanted, connection)
        else:
            chosen = self._remembered(wanted)
            if len(chosen) < len(wanted):
                chosen.update(self._check({key_id: wanted[key_id] for key_id in wanted if key_id not in chosen}))
        return {wanted[key_id]: key for key_id, key in chosen.items()}

    def distrust(self) -> None:
        """Have every key's record read again before it encrypts: call it after a connection was lost."""
        self._suspect_since = self.policy.clock()

    def _remembered(self, key_ids: Iterable[str]) -> dict[str, Key]:
        """Find the keys that were looked at lately and may encrypt still."""
        now = self.policy.clock()
        found: dict[str, Key] = {}
        for key_id in key_ids:
            key = self._keyring.intermediate.newest(key_id)
            # A date of the last look in the future means that the clock was set back.
            if key is not None and self._suspect_since < key.checked <= now < key.usable_until and not key.revoked:
                found[key_id] = key
        return found

    def _check(self, wanted: Mapping[str, str]) -> dict[str, Key]:
        """Look at the key table for keys that were not looked at lately; other threads' looks count."""
        mine, theirs = self._flights.claim(wanted)
        try:
            chosen = self._renew({key_id: wanted[key_id] for key_id in mine}) if mine else {}
        finally:
            self._flights.release(mine)
        self._flights.wait(theirs)
        chosen |= self._remembered(key_id for key_id in wanted if key_id not in chosen)
        rest = {key_id: partition for key_id, partition in wanted.items() if key_id not in chosen}
        return chosen | self._renew(rest) if rest else chosen

    def _renew(self, wanted: Mapping[str, str]) -> dict[str, Key]:
        now = self.policy.clock()
        stale = self._stale(wanted) if now < self._try_again_at else None
        if stale is not None:
            return stale
        try:
            return self._select(wanted, None)
        except MetastoreUnavailableError:
            self.distrust()
            stale = self._stale(wanted)
            if stale is None:
                raise
            self._try_again_at = now + min(_PAUSE, self.policy.check_interval)
            _logger.warning("the key table cannot be read; %d keys encrypt on for a while", len(stale))
            return stale

    def _select(self, wanted: Mapping[str, str], connection: object | None) -> dict[str, Key]:
        self._refuse_if_closed()
        enlisted = self._metastore.enlisted
        flights = None if enlisted else self._flights

        def work(rows: KeyRows) -> Selection:
            selection = Selection(self._keyring, self.policy, rows, wanted, flights)
            selection.run()
            return selection

        selection = self._metastore.run(work, connection, writing=True)
        for key in selection.chosen.values():
            self._keyring.intermediate.put_newest(key)
        if not enlisted:
            self._note_check(selection)
        return selection.chosen

    def _note_check(self, selection: Selection) -> None:
        policy = self.policy
        interval = policy.check_interval * (0.9 + 0.2 * int.from_bytes(os.urandom(2), "big") / 65_535)
        if selection.degraded:
            interval = min(interval, _PAUSE)
        for key in selection.chosen.values():
            key.checked = selection.now
            end = _oldest_date(key) + policy.expire_after
            if end < selection.now:
                end += policy.rotation_grace
            key.usable_until = min(selection.now + interval, end)
        self._forget_row_keys()

    def _stale(self, wanted: Mapping[str, str]) -> dict[str, Key] | None:
        """Find keys that may encrypt on although their records cannot be read now; `None` unless all can."""
        now = self.policy.clock()
        stale: dict[str, Key] = {}
        for key_id in wanted:
            key = self._keyring.intermediate.newest(key_id)
            if key is None or key.revoked or not self._may_be_stale(key, now):
                return None
            stale[key_id] = key
        return stale

    def _may_be_stale(self, key: Key, now: float) -> bool:
        policy = self.policy
        return (
            key.checked <= now <= key.checked + policy.check_interval + policy.max_stale
            and now <= _oldest_date(key) + policy.expire_after + policy.rotation_grace
        )

    # Keys to decrypt with

    def decryption_key(self, partition: str, created: int, connection: object | None = None) -> Key:
        """Find the key that a value names; expired and revoked ones decrypt, too.

        Args:
            partition: The partition, from the row's owner.
            created: Date of the key in seconds, from the value.
            connection: The SQLAlchemy `Connection` that read the value, if it is still there.

        Returns:
            The key.

        Raises:
            OwnerRequiredError: The partition is unusable.
            KeyNotFoundError: The key table has no such key, or not the system key that wraps it.
            KeyRecordError: A key record does not hold.
            KmsError: The KMS failed.
            MetastoreError: The key table failed.
        """
        key_id = self.ids.intermediate_key_id(partition)
        key = self._keyring.intermediate.get(key_id, created)
        if key is not None:
            return key
        self._refuse_if_closed()
        if self._metastore.enlisted:
            return self._load(key_id, created, partition, connection)
        with self._flights.turn((key_id, created)):
            key = self._keyring.intermediate.get(key_id, created)
            return key or self._load(key_id, created, partition, connection)

    def reload(self, key: Key, connection: object | None = None) -> Key:
        """Read a key's record once more: a value that it should open did not open.

        Args:
            key: A key that this hierarchy gave.
            connection: The SQLAlchemy `Connection` that read the value, if it is still there.

        Returns:
            The same key, or another one if the record holds other bytes now.

        Raises:
            KeyNotFoundError: The record is gone; the key is dropped.
            KeyRecordError: The record does not hold.
            KmsError: The KMS failed.
            MetastoreError: The key table failed.
        """
        try:
            return self._load(key.id, key.created, key.partition or "", connection)
        except KeyNotFoundError:
            self._keyring.intermediate.forget(key)
            self._forget_row_keys()
            raise

    def _load(self, key_id: str, created: int, partition: str, connection: object | None) -> Key:
        def work(rows: KeyRows) -> Key:
            row = _existing(rows, (key_id, created))
            place = self._keyring.record(row).parent
            if place is None:
                raise KeyRecordError(f"key record {key_id!r} created {created} names no system key; restore the row")
            parent = self._keyring.system.get(*place)
            if parent is None:
                parent_row = _existing(rows, place)
                self._keyring.fetch_system_keys(rows)
                return self._keyring.intermediate_key(row, partition, self._keyring.system_key(parent_row))
            try:
                return self._keyring.intermediate_key(row, partition, parent)
            except KeyRecordError:
                # The system key may be one that was rolled back, and another one has its place now.
                current = self._keyring.system_key(_existing(rows, place))
                if current is parent:
                    raise
                return self._keyring.intermediate_key(row, partition, current)

        return self._metastore.run(work, connection)

    # The end

    def close(self) -> None:
        """Drop all keys and release the metastore; the KMS stays open. A key still in use is wiped after its use."""
        self._closed = True
        self._keyring.clear()
        self._forget_row_keys()
        self._metastore.close()

    def _forget_row_keys(self) -> None:
        for known in list(self.row_keys.values()):
            known.clear()

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise UsageError("this Asherah is closed or detached from the engine; make a new one and attach it")


def _oldest_date(key: Key) -> int:
    """Date the key by the older of itself and its system key: what expires first."""
    return key.created if key.parent is None else min(key.created, key.parent.created)


def _existing(rows: KeyRows, place: tuple[str, int]) -> KeyRow:
    row = rows.exact((place,)).get(place)
    if row is None:
        raise KeyNotFoundError(
            f"key {place[0]!r} created {place[1]} is not in the table encryption_key. If the table was restored or "
            "replaced, restore the newest copy of it; nothing else reads what this key encrypted"
        )
    return row
