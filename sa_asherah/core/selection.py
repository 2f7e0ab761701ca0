# SPDX-License-Identifier: Apache-2.0
"""Which keys encrypt: the decisions, in one pass over the key table."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, NoReturn

from sa_asherah.core.events import Events
from sa_asherah.core.validity import Validity
from sa_asherah.core.view import ParentChangedError, View
from sa_asherah.errors import KeyExpiredError, KeyRecordError, KmsError, MetastoreError, MetastoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from sa_asherah.core.flight import Flights
    from sa_asherah.core.key import Key
    from sa_asherah.core.key_record import KeyRecord
    from sa_asherah.core.keyring import Keyring
    from sa_asherah.core.policy import CryptoPolicy
    from sa_asherah.core.ports import KeyRow, KeyRows

__all__ = ["Selection"]

_TRIES = 5

_logger = logging.getLogger("sa_asherah.hierarchy")


class Selection:
    """Finds or makes the intermediate keys that may encrypt now, for several partitions at once.

    The newest record of an id counts, and only that. It encrypts if neither it nor its system key is revoked or too
    old, which the policy tells; else a new key takes over. A record that does not hold is an error, never a reason for
    a new key.

    Attributes:
        now: When the pass began, in seconds.
        chosen: The keys found or made, by intermediate key id.
        degraded: Whether an expired one is among them because no successor could be made.
    """

    def __init__(  # noqa: PLR0917 -- what it is made of
        self,
        keyring: Keyring,
        policy: CryptoPolicy,
        rows: KeyRows,
        partitions: Mapping[str, str],
        flights: Flights | None,
        events: Events | None = None,
    ) -> None:
        """Prepare a pass.

        Args:
            keyring: The unwrapped keys.
            policy: Expiry, dates, grace.
            rows: The key table.
            partitions: The partitions by intermediate key id.
            flights: Single flight for creating a system key; `None` if the rows are in the caller's transaction, where
                nobody may wait for anybody.
            events: Who is told of keys made.
        """
        self._events = events or Events()
        self._keyring = keyring
        self._policy = policy
        self._rows = rows
        self._partitions = partitions
        self._flights = flights
        self._valid = Validity(policy, keyring)
        self.now = self._valid.now
        self._horizon = policy.horizon(self.now)
        self._system_id = keyring.ids.system_key_id()
        self._view = View(keyring, rows, self._horizon)
        self._named: set[tuple[str, int]] = set()
        self.chosen: dict[str, Key] = {}
        self.degraded = False

    def run(self) -> None:
        """Make the pass; `chosen` holds the keys then.

        Raises:
            OwnerErasedError: One of the owners was erased.
            KeyRecordError: A record does not hold.
            KeyExpiredError: No successor could be made, and the grace is over.
            KmsError: The KMS failed.
            MetastoreError: The key table failed.
        """
        for _ in range(_TRIES):
            self._view = View(self._keyring, self._rows, self._horizon)
            with contextlib.suppress(ParentChangedError):
                return self._run()
        raise MetastoreError("the newest system key is changed all the time; let others end and try again")

    def _run(self) -> None:
        self._view.look(self._partitions)
        others = [key_id for key_id in self._partitions if not self._is_as_before(key_id)]
        if others:
            self._bring_back(others)
            missing = [key_id for key_id in others if not self._is_valid_now(key_id)]
            if missing:
                self.chosen.update(self._replace(missing))

    # What decides whether a key may encrypt

    def _is_as_before(self, key_id: str) -> bool:
        """Choose the key that encrypted last, if its record and its system key's are still exactly the same."""
        key = self._keyring.intermediate.newest(key_id)
        row = self._view.newest.get(key_id)
        if key is None or key.parent is None:
            return False
        parent = key.parent
        parent_row = self._view.seen.get((parent.id, parent.created))
        if parent_row is not None:
            with contextlib.suppress(KeyRecordError):  # told where the record is needed
                self._keyring.record(parent_row, parent)
        if row is None or row.text != key.text or row.created != key.created:
            return False
        if parent_row is None or parent_row.text != parent.text or not self._valid.encrypts(key.record, parent.record):
            return False
        self.chosen[key_id] = key
        return True

    def _is_valid_now(self, key_id: str) -> bool:
        key = self._valid_key(key_id)
        if key is not None:
            self.chosen[key_id] = key
        return key is not None

    def _valid_key(self, key_id: str, may: Callable[[KeyRecord, KeyRecord], bool] | None = None) -> Key | None:
        """Unwrap the newest key if it may encrypt."""
        may = may or self._valid.encrypts
        row = self._view.newest.get(key_id)
        if row is None:
            return None
        record = self._keyring.record(row)
        parent_row = None if record.parent is None else self._view.seen.get(record.parent)
        if parent_row is None or not may(record, self._keyring.record(parent_row)):
            return None
        parent = self._keyring.system_key(parent_row)
        return self._keyring.intermediate_key(row, self._partitions[key_id], parent)

    def _valid_system_key(self, may: Callable[[KeyRecord], bool] | None = None) -> Key | None:
        row = self._view.newest.get(self._system_id)
        if row is None or not (may or self._valid.wraps)(self._keyring.record(row)):
            return None
        key = self._keyring.system_key(row)
        self._keyring.system.put_newest(key)
        return key

    # Records that the table lost

    def _bring_back(self, key_ids: Collection[str]) -> None:
        """Insert again what this process holds and the table lost: after a failover, a restore, a roll-back."""
        lost = [
            key for key in map(self._keyring.intermediate.newest, key_ids) if key is not None and self._is_lost(key)
        ]
        self._named = {place for place in map(self._view.parent_of_newest, key_ids) if place is not None}
        self._named.update(key.record.parent for key in lost if key.record.parent is not None)
        self._view.read(self._named.difference(self._view.seen))
        parents = {key.parent for key in lost if key.parent is not None}
        parents.update(key for key in map(self._parent_in_memory, key_ids) if key is not None)
        parents = {key for key in parents if (key.id, key.created) not in self._view.seen and not key.record.retired}
        newest = self._keyring.system.newest(self._system_id)
        if newest is not None and self._is_lost(newest) and (newest.id, newest.created) not in self._named:
            parents.add(newest)
        self._insert_again(parents)
        self._insert_children_again(lost)

    def _is_lost(self, key: Key) -> bool:
        row = self._view.newest.get(key.id)
        return key.created <= self._horizon and (row is None or row.created < key.created)

    def _parent_in_memory(self, key_id: str) -> Key | None:
        """Find the system key that opens the newest record, if the table lacks it."""
        row = self._view.newest.get(key_id)
        place = self._view.parent_of_newest(key_id)
        parent = None if place is None or place in self._view.seen else self._keyring.system.get(*place)
        if row is None or parent is None:
            return None
        with contextlib.suppress(KeyRecordError):
            self._keyring.intermediate_key(row, self._partitions[key_id], parent)
            return parent
        return None

    def _insert_children_again(self, lost: Collection[Key]) -> None:
        by_parent: dict[Key | None, list[Key]] = {}
        for key in lost:
            row = None if key.record.parent is None else self._view.seen.get(key.record.parent)
            if row is not None and key.parent is not None:
                self._keyring.record(row, key.parent)
            if key.parent is not None and key.parent.record.retired:
                # Under that one nobody would look for it any more.
                current = self._system_key()
                by_parent.setdefault(current, []).append(self._keyring.wrapped_anew(key, current))
            elif self._opens_again(key):
                by_parent.setdefault(key.parent, []).append(key)
        for parent, keys in by_parent.items():
            self._insert_again(keys, parent)

    def _opens_again(self, key: Key) -> bool:
        """Tell whether the table has the lost key's system key, and not another one in its place."""
        row = None if key.record.parent is None else self._view.seen.get(key.record.parent)
        if row is not None and key.parent is not None and self._keyring.system_key(row).has_same_secret(key.parent):
            return True
        self._keyring.intermediate.forget(key)
        return False

    def _insert_again(self, keys: Collection[Key], parent: Key | None = None) -> None:
        if not keys:
            return
        # In the caller's transactions a roll-back is the usual cause.
        level = logging.DEBUG if self._flights is None else logging.ERROR
        for key in keys:
            _logger.log(level, "the record of key %s created %d was lost and is inserted again", key.id, key.created)
        absent = list(keys)
        for _ in range(_TRIES):
            self._view.insert(absent, parent, new=False)
            absent = [key for key in absent if (key.id, key.created) not in self._view.seen]
            if not absent:
                break
        else:
            # A new key must not take the place of this one, which has encrypted already.
            self._view.refuse_vanished(absent[0].id, absent[0].created)
        for key in keys:
            row = self._view.seen[key.id, key.created]
            newest = self._view.newest.get(key.id)
            # One from the far future is there for reading only, as if `newest` had found it.
            if row.created <= self._horizon and (newest is None or newest.created < row.created):
                self._view.newest[key.id] = row

    # New keys

    def _replace(self, missing: Collection[str]) -> dict[str, Key]:
        try:
            return self._make(missing, self._system_key())
        except (MetastoreUnavailableError, KeyRecordError):
            raise
        except (KmsError, MetastoreError) as error:
            return self._hold_over(missing, error)

    def _system_key(self) -> Key:
        """Find the system key that wraps new keys, or make one."""
        key = self._valid_system_key()
        if key is not None:
            return key
        flight = (
            contextlib.nullcontext(enter_result=False) if self._flights is None else self._flights.turn(self._system_id)
        )
        with flight as waited:
            if waited:
                self._view.look()
                key = self._valid_system_key()
            return key or self.make_system_key()

    def newest_system_key(self) -> Key | None:
        """Find the newest system key, whether it may encrypt or not.

        Returns:
            The key, if there is one.

        Raises:
            KeyRecordError: Its record does not hold.
            KmsError: The KMS failed.
            MetastoreError: The key table failed.
        """
        self._view.look()
        row = self._view.newest.get(self._system_id)
        return None if row is None else self._keyring.system_key(row)

    def make_system_key(self) -> Key:
        """Make a system key, newer than the newest.

        Returns:
            The key, or the one that another process made at the same time.

        Raises:
            KeyExpiredError: This process may not make system keys.
            KmsError: The KMS failed.
            MetastoreError: The key table failed.
        """
        if not self._policy.create_system_keys:
            raise KeyExpiredError(
                f"there is no system key {self._system_id!r} that may encrypt, and this process may not make one "
                "(create_system_keys=False); run the rotation with the officer's token"
            )
        made = self._store(
            {self._system_id},
            lambda _key_id, created: self._keyring.new_system_key(created),
            lambda _key_id: self._valid_system_key(),
        )
        key = made[self._system_id]
        self._keyring.system.put_newest(key)
        return key

    def _make(self, missing: Collection[str], parent: Key) -> dict[str, Key]:
        def make(key_id: str, created: int) -> Key:
            return self._keyring.new_intermediate_key(self._partitions[key_id], created, parent)

        def winner(key_id: str) -> Key | None:
            parent = self._view.parent_of_newest(key_id)
            self._view.read(() if parent is None or parent in self._view.seen else (parent,))
            return self._valid_key(key_id)

        return self._store(missing, make, winner, parent)

    def _store(
        self,
        key_ids: Collection[str],
        make: Callable[[str, int], Key],
        winner: Callable[[str], Key | None],
        parent: Key | None = None,
    ) -> dict[str, Key]:
        """Insert new keys and read back who won; a lost race against a key that may not encrypt goes one second on."""
        stored: dict[str, Key] = {}
        pending = {key_id: self._next_created(key_id) for key_id in key_ids}
        for _ in range(_TRIES):
            drafts = {key_id: make(key_id, created) for key_id, created in pending.items()}
            self._view.insert(drafts.values(), parent, new=True)
            for key_id, draft in drafts.items():
                row = self._view.seen.get((key_id, draft.created))
                if row is None:
                    self._view.refuse_vanished(key_id, draft.created)
                previous, self._view.newest[key_id] = self._view.newest.get(key_id), row
                key = self._keyring.keep(draft, row)
                if key is not None:
                    self._tell(key, previous)
                key = key or winner(key_id)
                if key is None:
                    pending[key_id] = draft.created + 1
                else:
                    stored[key_id] = key
                    del pending[key_id]
            if not pending:
                return stored
        raise MetastoreError(
            f"{len(pending)} keys could not be made in {_TRIES} tries, the first is {min(pending)!r}: every date tried "
            "holds a revoked or expired key. Try again in a minute"
        )

    def _tell(self, key: Key, previous: KeyRow | None) -> None:
        _logger.info("key %s created %d is new", key.id, key.created)
        self._events.emit("key_created", id=key.id, created=key.created)
        if previous is not None:
            before = {"previous": previous.created, "previous_revoked": self._keyring.record(previous).revoked}
            self._events.emit("key_rotated", id=key.id, created=key.created, **before)

    def _next_created(self, key_id: str) -> int:
        dates = [self._policy.truncate(self.now)]
        if key_id in self._view.newest:
            dates.append(self._view.newest[key_id].created + 1)
        # The place of a system key that is missing stays free: it may come back from a backup.
        dates += [created + 1 for named_id, created in self._named if named_id == key_id and created <= self._horizon]
        return max(dates)

    # When no successor can be made

    def _hold_over(self, missing: Collection[str], error: Exception) -> dict[str, Key]:
        self.degraded = True
        held: dict[str, Key] = {}
        without: list[str] = []
        for key_id in missing:
            key = self._valid_key(key_id, self._valid.encrypts_in_grace)
            if key is None:
                without.append(key_id)
            else:
                held[key_id] = key
        if held:
            _logger.warning("%d keys that are due encrypt on, no successor could be made: %s", len(held), error)
        if without:
            row = self._view.newest.get(self._system_id)
            # With a valid system key the fault lies elsewhere.
            is_other = row is not None and self._valid.wraps(self._keyring.record(row))
            parent = None if is_other else self._valid_system_key(self._valid.wraps_in_grace)
            if parent is None:
                self._refuse(without, error)
            held.update(self._make(without, parent))
        return held

    def _refuse(self, without: Collection[str], error: Exception) -> NoReturn:
        rows = [self._view.newest[key_id] for key_id in (*without, self._system_id) if key_id in self._view.newest]
        records = [self._keyring.record(row) for row in rows]
        old = [one.id for one in records if one.revoked or self._policy.is_expired(one.created, self.now)]
        if not old or isinstance(error, KeyExpiredError):
            raise error
        raise KeyExpiredError(
            f"the newest key {old[0]!r} is expired or revoked, and no successor could be made: {error}"
        ) from error
