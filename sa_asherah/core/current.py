# SPDX-License-Identifier: Apache-2.0
"""Keys to encrypt with: remembered for a while, looked at again, used on in an outage."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from sa_asherah.core.flight import Flights
from sa_asherah.core.lookup import random_share
from sa_asherah.core.outage import PAUSE
from sa_asherah.core.selection import Selection
from sa_asherah.core.validity import Validity
from sa_asherah.errors import MetastoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from sa_asherah.core.events import Events
    from sa_asherah.core.key import Key
    from sa_asherah.core.keyring import Keyring
    from sa_asherah.core.lookup import Lookup
    from sa_asherah.core.outage import Outage
    from sa_asherah.core.policy import CryptoPolicy
    from sa_asherah.core.ports import KeyRows, Metastore

__all__ = ["CurrentKeys"]

_logger = logging.getLogger("sa_asherah.hierarchy")


class CurrentKeys:
    """The keys that may encrypt now, by intermediate key id.

    A metastore of its own connections commits keys before they are used, so which key encrypts is known for
    `check_interval` (less or more by up to a tenth). A metastore in the caller's transaction cannot know that: there
    every call reads the records, and only what the transaction sees encrypts.
    """

    def __init__(  # noqa: PLR0917 -- what it is made of
        self,
        keyring: Keyring,
        policy: CryptoPolicy,
        metastore: Metastore,
        outage: Outage,
        lookup: Lookup,
        events: Events,
    ) -> None:
        """Start with nothing looked at yet.

        Args:
            keyring: The unwrapped keys.
            policy: Expiry, checks, grace.
            metastore: The key table.
            outage: The table's state.
            lookup: Learns which records were read, and that this process may have written some.
            events: Who is told of keys made.
        """
        self._keyring = keyring
        self._policy = policy
        self._metastore = metastore
        self._outage = outage
        self._lookup = lookup
        self._events = events
        self._flights = Flights()

    def find(self, wanted: Mapping[str, str], connection: object | None) -> dict[str, Key]:
        """Find or make the keys that may encrypt now, all in one go.

        Args:
            wanted: The partitions by intermediate key id.
            connection: The SQLAlchemy `Connection` that will execute what is encrypted.

        Returns:
            The keys by intermediate key id.

        Raises:
            KeyRecordError: A key record does not hold.
            KeyExpiredError: A key is expired or revoked, and no successor could be made.
            KmsError: The KMS failed.
            MetastoreError: The key table failed.
        """
        if self._metastore.enlisted:
            return self._select(wanted, connection)
        chosen = self._remembered(wanted)
        if self._events.meter is not None:
            self._count(wanted, chosen)
        if len(chosen) < len(wanted):
            chosen.update(self._check({key_id: wanted[key_id] for key_id in wanted if key_id not in chosen}))
        return chosen

    def newest(self, key_ids: Sequence[str], connection: object | None) -> dict[str, int]:
        """Find the dates of the keys that may encrypt now, without making or unwrapping any.

        Args:
            key_ids: Intermediate key ids.
            connection: The SQLAlchemy `Connection` to read on, if there is one.

        Returns:
            Dates in seconds by id; none where a key would have to be made.

        Raises:
            KeyRecordError: A key record is malformed.
            MetastoreError: The key table failed.
        """
        valid = Validity(self._policy, self._keyring)

        def work(rows: KeyRows) -> dict[str, int]:
            newest = rows.newest(key_ids, self._policy.horizon(valid.now))
            records = {key_id: self._keyring.record(row) for key_id, row in newest.items()}
            parents = rows.exact(list({record.parent for record in records.values() if record.parent is not None}))
            found: dict[str, int] = {}
            for key_id, record in records.items():
                parent = None if record.parent is None else parents.get(record.parent)
                if parent is not None and valid.encrypts(record, self._keyring.record(parent)):
                    found[key_id] = record.created
            return found

        return self._metastore.run(work, connection) if key_ids else {}

    def seconds_left(self) -> float:
        """Tell how long writing would go on if neither the key table nor the key service answered from now on.

        Returns:
            Seconds until the first owner cannot be written for, of those that were written for since the last check
            and whose keys are in memory; infinity if there are none.
        """
        cache = self._keyring.intermediate
        ends = [
            self._last_end(key)
            for key in map(cache.newest, {key.id for key in cache.snapshot()})
            if key is not None and not key.revoked and key.usable_until >= self._outage.read_at
        ]
        return max(0.0, min(ends) - self._policy.clock()) if ends else math.inf

    def _last_end(self, key: Key) -> float:
        """Tell until when a key encrypts if nobody answers any more."""
        end = self._grace_end(key)
        return end if self._metastore.enlisted else min(end, self._policy.stale_until(key.checked))

    # Without a look at the key table

    def _remembered(self, key_ids: Iterable[str]) -> dict[str, Key]:
        """Find the keys that were looked at lately and may encrypt still."""
        now = self._policy.clock()
        found: dict[str, Key] = {}
        for key_id in key_ids:
            key = self._keyring.intermediate.newest(key_id)
            if key is not None and self._may_go_on(key, now):
                found[key_id] = key
        return found

    def _count(self, wanted: Iterable[str], chosen: Collection[str]) -> None:
        for key_id in wanted:
            absent = "miss" if self._keyring.intermediate.newest(key_id) is None else "stale"
            self._events.count(f"cache.{'hit' if key_id in chosen else absent}", cache="latest")

    def _may_go_on(self, key: Key, now: float) -> bool:
        # A date of the last look in the future means that the clock was set back.
        was_checked = self._outage.suspect_since < key.checked <= now < key.usable_until
        return was_checked and not key.revoked and key.wraps.number < key.max_wraps

    def _stale(self, wanted: Mapping[str, str]) -> dict[str, Key] | None:
        """Find keys that may encrypt on although their records cannot be read now; `None` unless all can."""
        now = self._policy.clock()
        stale: dict[str, Key] = {}
        for key_id in wanted:
            key = self._keyring.intermediate.newest(key_id)
            if key is None or key.revoked or not self._may_be_stale(key, now):
                return None
            stale[key_id] = key
        return stale

    def _may_be_stale(self, key: Key, now: float) -> bool:
        return key.checked <= now <= min(self._policy.stale_until(key.checked), self._grace_end(key))

    # With one

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
        now = self._policy.clock()
        stale = self._stale(wanted) if now < self._outage.try_again_at else None
        if stale is not None:
            return stale
        try:
            return self._select(wanted, None)
        except MetastoreUnavailableError:
            self._outage.begin(now, self._policy.check_interval)
            stale = self._stale(wanted)
            if stale is None:
                raise
            _logger.warning("the key table cannot be read; %d keys encrypt on for a while", len(stale))
            return stale

    def _select(self, wanted: Mapping[str, str], connection: object | None) -> dict[str, Key]:
        enlisted = self._metastore.enlisted
        flights = None if enlisted else self._flights

        def work(rows: KeyRows) -> Selection:
            selection = Selection(self._keyring, self._policy, rows, wanted, flights, self._events)
            selection.run()
            return selection

        selection = self._metastore.run(work, connection, writing=True)
        for key in selection.chosen.values():
            self._keyring.intermediate.put_newest(key)
        self._note(selection)
        self._lookup.note(selection.chosen.values())
        if not enlisted:
            self._lookup.note_writing()
        return selection.chosen

    def _note(self, selection: Selection) -> None:
        policy = self._policy
        for key in selection.chosen.values():
            key.checked = selection.now
            end = policy.encrypts_until(key.id, key.created, _parent_date(key))
            if end < selection.now:
                end = self._grace_end(key)
            check = policy.next_check(selection.now, random_share())
            if selection.degraded:
                check = min(check, selection.now + PAUSE)
            key.usable_until = min(check, end)
            key.max_wraps = math.inf if selection.degraded else policy.max_wraps

    def _grace_end(self, key: Key) -> float:
        return self._policy.encrypts_in_grace_until(key.id, key.created, _parent_date(key))


def _parent_date(key: Key) -> int:
    return key.created if key.parent is None else key.parent.created
