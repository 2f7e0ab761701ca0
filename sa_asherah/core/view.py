# SPDX-License-Identifier: Apache-2.0
"""What one pass over the key table saw, and how it writes: under a system key that stays, for owners that live."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NoReturn

from sa_asherah.core.erasure import erased, refuse_erased
from sa_asherah.core.ids import tombstone_of
from sa_asherah.errors import MetastoreError

if TYPE_CHECKING:
    from collections.abc import Collection

    from sa_asherah.core.key import Key
    from sa_asherah.core.keyring import Keyring
    from sa_asherah.core.ports import KeyRow, KeyRows

__all__ = ["ParentChangedError", "View"]

_logger = logging.getLogger("sa_asherah.hierarchy")


class ParentChangedError(Exception):
    """The system key of new keys is gone, retired or changed since it was read: the pass starts over."""


class View:
    """What a pass saw of the key table.

    Attributes:
        newest: The newest row of each id that was looked for, if there is one.
        seen: Every row that was read, by id and date.
    """

    def __init__(self, keyring: Keyring, rows: KeyRows, horizon: int) -> None:
        """Start with nothing seen.

        Args:
            keyring: Knows records that were read before.
            rows: The key table.
            horizon: The latest date that counts for being the newest.
        """
        self._keyring = keyring
        self._rows = rows
        self._horizon = horizon
        self._system_id = keyring.ids.system_key_id()
        self.newest: dict[str, KeyRow] = {}
        self.seen: dict[tuple[str, int], KeyRow] = {}

    def look(self, key_ids: Collection[str] = ()) -> None:
        """Read the newest row of the system key and of other ids, and of the tombstones of these.

        Args:
            key_ids: Ids of intermediate keys.

        Raises:
            OwnerErasedError: One of the owners was erased.
            MetastoreError: The key table cannot be read.
        """
        stones = (place[0] for place in self._tombstones(key_ids))
        found = self._rows.newest((self._system_id, *key_ids, *stones), self._horizon)
        self.newest.update(found)
        self.seen.update(((row.id, row.created), row) for row in found.values())
        if self._system_id in found:
            self._keyring.watch(found[self._system_id])
        self._refuse_erased(key_ids)

    def read(self, places: Collection[tuple[str, int]]) -> None:
        """Read rows by id and date.

        Args:
            places: Their ids and dates.

        Raises:
            MetastoreError: The key table cannot be read.
        """
        if places:
            self.seen.update(self._rows.exact(tuple(places)))

    def parent_of_newest(self, key_id: str) -> tuple[str, int] | None:
        """Name the system key of the newest row of an id.

        Args:
            key_id: Id of an intermediate key.

        Returns:
            Its id and date, if there are any.

        Raises:
            KeyRecordError: The row is no key record.
        """
        row = self.newest.get(key_id)
        return None if row is None else self._keyring.record(row).parent

    def insert(self, keys: Collection[Key], parent: Key | None, *, new: bool) -> None:
        """Insert records and read them back; take them back if their owner was erased meanwhile.

        Args:
            keys: The keys, all of one system key; or system keys.
            parent: Their system key; `None` for system keys.
            new: Whether nothing was encrypted with them yet.

        Raises:
            OwnerErasedError: One of the owners was erased.
            ParentChangedError: The system key is not as it was seen; nothing was inserted.
            MetastoreError: The key table cannot be read or written.
        """
        # What other implementations share has no retired keys, and no tombstones.
        is_guarded = parent is not None and not self._keyring.ids.peers
        row = self.seen.get((parent.id, parent.created)) if parent is not None and is_guarded else None
        if (is_guarded and row is None) or not self._rows.insert([key.row for key in keys], row):
            raise ParentChangedError
        owned = {key.id for key in keys if key.parent is not None}
        self.read([*((key.id, key.created) for key in keys), *self._tombstones(owned)])
        for key in keys:
            if key.id in owned and self._is_erased(key.id):
                self._take_back(key, new=new)
        self._refuse_erased(owned)

    def refuse_vanished(self, key_id: str, created: int) -> NoReturn:
        """Say that a row was inserted and is not there.

        Args:
            key_id: Its id.
            created: Its date.

        Raises:
            MetastoreError: Always.
        """
        raise MetastoreError(
            f"key record {key_id!r} created {created} was inserted and is not there; check the table encryption_key "
            "(asherah.check) and its triggers and row policies"
        )

    def _take_back(self, key: Key, *, new: bool) -> None:
        """Undo an insert. Tombstones may be forged, so only a key that nobody used is destroyed for one."""
        row = self.seen.get((key.id, key.created))
        if row is None or self._keyring.record(row).key != key.record.key:
            return  # another process was faster, and may have used its key
        try:
            if new:
                self._rows.replace(row, erased(row))
            else:
                self._rows.remove(row)
        except MetastoreError:
            # It may lack the right; the second sweep of the erasure does it.
            _logger.warning("key %s created %d of an erased owner stays until that is finished", key.id, key.created)

    def _tombstones(self, key_ids: Collection[str]) -> list[tuple[str, int]]:
        return [] if self._keyring.ids.peers else [tombstone_of(key_id) for key_id in key_ids]

    def _is_erased(self, key_id: str) -> bool:
        return not self._keyring.ids.peers and tombstone_of(key_id) in self.seen

    def _refuse_erased(self, key_ids: Collection[str]) -> None:
        if not self._keyring.ids.peers:
            refuse_erased(self.seen, key_ids)
