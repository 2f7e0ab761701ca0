# SPDX-License-Identifier: Apache-2.0
"""Keys to decrypt with: found by exact id and date, looked at again from time to time."""

from __future__ import annotations

import contextlib
import logging
import os
from typing import TYPE_CHECKING

from sa_asherah.core.erasure import owner_erased, refuse_erased
from sa_asherah.core.flight import Flights
from sa_asherah.core.ids import tombstone_of
from sa_asherah.core.outage import PAUSE
from sa_asherah.errors import (
    KeyNotFoundError,
    KeyRecordError,
    KmsError,
    MetastoreUnavailableError,
    OwnerErasedError,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Iterable, Mapping

    from sa_asherah.core.events import Events
    from sa_asherah.core.key import Key
    from sa_asherah.core.keyring import Keyring
    from sa_asherah.core.outage import Outage
    from sa_asherah.core.policy import CryptoPolicy
    from sa_asherah.core.ports import KeyRow, KeyRows, Metastore

__all__ = ["Lookup", "random_share"]

_BATCH = 1_000
_MAX_ABSENT = 1_024

_logger = logging.getLogger("sa_asherah.hierarchy")


def random_share() -> float:
    """Draw a random number.

    Returns:
        A number from 0 to 1.
    """
    return int.from_bytes(os.urandom(2), "big") / 65_535


class Lookup:
    """Finds keys by exact id and date. Expired and revoked ones decrypt, too.

    Every `check_interval` a key's record is read again, and with it those of up to 1,000 other keys that are due soon:
    so a revocation is seen in processes that only read. A key whose record is gone decrypts on, and an error is logged;
    a key that another one took the place of does not.
    """

    def __init__(  # noqa: PLR0917 -- what it is made of
        self,
        keyring: Keyring,
        policy: CryptoPolicy,
        metastore: Metastore,
        outage: Outage,
        on_check: Callable[[], None],
        events: Events,
    ) -> None:
        """Start with nothing looked for yet.

        Args:
            keyring: The unwrapped keys.
            policy: How often records are read again.
            metastore: The key table.
            outage: The table's state.
            on_check: Called when records were read again, or are not to be relied upon.
            events: Counts the keys that were here, missing, or due for a look.
        """
        self._keyring = keyring
        self._policy = policy
        self._metastore = metastore
        self._outage = outage
        self._on_check = on_check
        self._events = events
        self._flights = Flights()
        self._erased: set[tuple[str, int]] = set()

    def find(self, place: tuple[str, int], partition: str, connection: object | None) -> Key:
        """Find a key.

        Args:
            place: Its id and date.
            partition: The partition it must belong to.
            connection: The SQLAlchemy `Connection` that read the value, if it is still there.

        Returns:
            The key.

        Raises:
            KeyNotFoundError: The key table has no such key, or not the system key that wraps it.
            KeyRecordError: A key record does not hold.
            KmsError: The KMS failed.
            MetastoreError: The key table failed.
        """
        key = self._keyring.intermediate.get(*place)
        if key is None:
            self._events.count("cache.miss", cache="meta")
            return self._load_once(place, partition, connection)
        if self._needs_no_look(key):
            self._events.count("cache.hit", cache="meta")
            return key
        self._refuse_if_closed()
        self._events.count("cache.stale", cache="meta")
        return self._look_again(key, connection)

    def is_here(self, place: tuple[str, int]) -> bool:
        """Tell whether a key is in memory.

        Args:
            place: Its id and date.

        Returns:
            Whether it is.
        """
        return self._keyring.intermediate.get(*place) is not None

    def load(self, place: tuple[str, int], partition: str, connection: object | None) -> Key:
        """Read a key's record, whether it is in memory or not.

        Args:
            place: Its id and date.
            partition: The partition it must belong to.
            connection: The SQLAlchemy `Connection` that read the value, if it is still there.

        Returns:
            The key.

        Raises:
            KeyNotFoundError: The record is not there, or that of its system key.
            KeyRecordError: A key record does not hold.
            KmsError: The KMS failed.
            MetastoreError: The key table failed.
        """
        key = self._read(place, partition, connection)
        if key is None:
            raise _missing(place)
        return key

    def note(self, keys: Iterable[Key]) -> None:
        """Note that the records of these keys were read just now.

        Args:
            keys: The keys.
        """
        now = self._policy.clock()
        self._outage.read_at = now
        for key in keys:
            key.seen = now
            key.look_again = self._policy.next_check(now, random_share())

    def note_writing(self) -> None:
        """Note that this process chose keys to encrypt with, and may have made what was absent before."""
        self._outage.absent = {}  # another one: a look that is under way must not note what it did not find
        self._on_check()

    def forget_absent(self, places: Collection[tuple[str, int]]) -> bool:
        """Look again for keys that were not found lately.

        Args:
            places: Their ids and dates.

        Returns:
            Whether there were any.
        """
        return bool([place for place in places if self._outage.absent.pop(place, None)])

    def _load_once(self, place: tuple[str, int], partition: str, connection: object | None) -> Key:
        self._refuse_if_closed()
        if self._policy.intermediate_limit == 0:
            self._on_check()
        if self._metastore.enlisted:
            return self.load(place, partition, connection)
        absent = self._outage.absent
        if absent.get(place, 0) > self._policy.clock():
            raise owner_erased(place[0]) if place in self._erased else _missing(place)
        with self._flights.turn(place):
            key = self._keyring.intermediate.get(*place)
            return key or self._noting_absence(absent, place, partition)

    def _noting_absence(self, absent: dict[tuple[str, int], float], place: tuple[str, int], partition: str) -> Key:
        erased: OwnerErasedError | None = None
        key: Key | None = None
        try:
            key = self._read(place, partition, None)
        except OwnerErasedError as error:
            erased = error
        if key is not None:
            return key
        if len(absent) >= _MAX_ABSENT:
            absent.clear()
            self._erased.clear()
        # A page of an erased owner's rows must not ask for each of them.
        (self._erased.add if erased else self._erased.discard)(place)
        absent[place] = self._policy.clock() + PAUSE
        raise erased or _missing(place)

    def _read(self, place: tuple[str, int], partition: str, connection: object | None) -> Key | None:
        def work(rows: KeyRows) -> Key | None:
            row = rows.exact((place,)).get(place)
            with self._erased_told_apart(rows, place[0]):
                if row is not None:
                    return self._unwrapped(rows, row, partition)
            self._refuse_erased(rows, place[0])
            return None

        key = self._metastore.run(work, connection)
        self.note(() if key is None else (key,))
        return key

    @contextlib.contextmanager
    def _erased_told_apart(self, rows: KeyRows, key_id: str) -> Generator[None]:
        """Tell an erased owner from a damaged record. A tombstone alone takes no key away: it may be forged."""
        try:
            yield
        except (KeyRecordError, KeyNotFoundError):
            self._refuse_erased(rows, key_id)
            raise

    def _refuse_erased(self, rows: KeyRows, key_id: str) -> None:
        if not self._keyring.ids.peers:  # other implementations know no tombstones
            refuse_erased(rows.exact((tombstone_of(key_id),)), (key_id,))

    def _unwrapped(self, rows: KeyRows, row: KeyRow, partition: str) -> Key:
        parent_place = self._keyring.record(row).parent
        if parent_place is None:
            raise KeyRecordError(f"key record {row.id!r} created {row.created} names no system key; restore the row")
        parent = self._keyring.system.get(*parent_place)
        if parent is None:
            parent_row = _existing(rows, parent_place)
            self._keyring.fetch_system_keys(rows, parent_place[0])
            return self._keyring.intermediate_key(row, partition, self._keyring.system_key(parent_row))
        try:
            return self._keyring.intermediate_key(row, partition, parent)
        except KeyRecordError:
            # The system key may be one that was rolled back, and another one has its place now.
            current = self._keyring.system_key(_existing(rows, parent_place))
            if current is parent:
                raise
            return self._keyring.intermediate_key(row, partition, current)

    # Looking again

    def _is_fresh(self, key: Key) -> bool:
        return key.seen <= self._policy.clock() < key.look_again and not self._outage.is_closed

    def _may_be_stale(self, key: Key) -> bool:
        return key.seen <= self._policy.clock() <= self._policy.stale_until(key.seen)

    def _needs_no_look(self, key: Key) -> bool:
        if self._is_fresh(key):
            return True
        now = self._policy.clock()
        return now < self._outage.try_again_at and self._may_be_stale(key) and not self._outage.is_closed

    def _look_again(self, key: Key, connection: object | None) -> Key:
        place = (key.id, key.created)
        with contextlib.nullcontext() if self._metastore.enlisted else self._flights.turn("look again"):
            current = self._keyring.intermediate.get(*place) or key
            if self._needs_no_look(current):  # somebody else looked, or tried to
                return current
            due = self._due(current)
            try:
                self._metastore.run(lambda rows: self._compare(rows, due), connection)
            except OwnerErasedError:
                self._keyring.intermediate.forget(current)
                self._on_check()
                raise
            except (MetastoreUnavailableError, UsageError) as error:
                self._use_on(current, error)
                return current
        self._on_check()
        return self._keyring.intermediate.get(*place) or key

    def _use_on(self, key: Key, error: Exception) -> None:
        """Decide whether a key is used although its record cannot be read."""
        now = self._policy.clock()
        if self._metastore.enlisted:
            # The database has just given the value; only its connection is out of reach by now.
            key.seen, key.look_again = now, now + PAUSE
            return
        if not self._may_be_stale(key):
            raise error
        self._outage.begin(now, self._policy.check_interval)
        _logger.warning("the key table cannot be read; keys in memory decrypt on for a while")

    def _due(self, key: Key) -> list[Key]:
        """List the key and others whose turn comes soon: they share the query."""
        interval = self._policy.check_interval
        if not interval:
            return [key]
        soon = self._policy.clock() + interval / 10
        known = self._keyring.intermediate.snapshot()
        others = [other for other in known if other.look_again <= soon and other is not key]
        return [key, *others[: _BATCH - 1]]

    def _compare(self, rows: KeyRows, keys: list[Key]) -> None:
        places = {place: None for key in keys for place in ((key.id, key.created), key.record.parent) if place}
        found = rows.exact(tuple(places))
        for key in keys:
            try:
                self._confirm(rows, key, found)
            except (KeyRecordError, OwnerErasedError):
                if key is keys[0]:
                    with self._erased_told_apart(rows, key.id):
                        raise
                continue  # not noted: who needs this key looks at it, and is told
            self.note((key,))

    def _confirm(self, rows: KeyRows, key: Key, found: Mapping[tuple[str, int], KeyRow]) -> None:
        row = found.get((key.id, key.created))
        if row is None:
            self._refuse_erased(rows, key.id)
            _logger.error(
                "the record of key %s created %d is gone; what it encrypted can be read only while the key stays in "
                "memory: restore the row from a backup",
                key.id,
                key.created,
            )
            return
        if key.parent is not None:
            self._confirm_parent(key.parent, found.get((key.parent.id, key.parent.created)))
        if row.text != key.text:
            self._keyring.record(row)
        if row.text != key.text:
            # Another key may have its place, and another system key wrap it. If that cannot be had now, this key
            # decrypts on: what it does not open is looked at once more.
            with contextlib.suppress(KmsError, KeyNotFoundError):
                self._unwrapped(rows, row, key.partition or "")

    def _confirm_parent(self, parent: Key, row: KeyRow | None) -> None:
        if row is None or row.text == parent.text:
            return
        if self._keyring.system.get(parent.id, parent.created) is None:
            self._keyring.system.put(parent)  # it was evicted: its record is compared all the same
        self._keyring.record(row, parent)
        if row.text != parent.text:
            with contextlib.suppress(KmsError):  # wrapped anew: the next one who needs it asks again
                self._keyring.system_key(row)

    def _refuse_if_closed(self) -> None:
        if self._outage.is_closed:
            raise UsageError("this Asherah is closed or detached from the engine; make a new one and attach it")


def _existing(rows: KeyRows, place: tuple[str, int]) -> KeyRow:
    row = rows.exact((place,)).get(place)
    if row is None:
        raise _missing(place)
    return row


def _missing(place: tuple[str, int]) -> KeyNotFoundError:
    return KeyNotFoundError(
        f"key {place[0]!r} created {place[1]} is not in the table encryption_key. If the table was restored or "
        "replaced, restore the newest copy of it; nothing else reads what this key encrypted"
    )
