# SPDX-License-Identifier: Apache-2.0
"""Erases one owner: a tombstone, the owner's keys overwritten where they lie, and once more when nobody uses them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from sqlalchemy import MetaData

from sa_asherah.core.erasure import changed, erased, tombstone
from sa_asherah.core.strict_json import StrictJsonError, load_object
from sa_asherah.errors import ConfigurationError, MetastoreError, UsageError
from sa_asherah.shred.children import Children
from sa_asherah.shred.loss import losses
from sa_asherah.shred.receipt import Receipt

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy import Engine

    from sa_asherah.asherah import Asherah
    from sa_asherah.core.ports import KeyRow, KeyRows
    from sa_asherah.shred.loss import Loss

__all__ = ["OwnerShred", "Pending"]

_TRIES = 5
_AHEAD = 300
_BEGUN = "Erased"
"""Member of a tombstone: when the erasure began, in seconds. Who may write tombstones may write this, too."""


@dataclass(frozen=True, slots=True)
class Pending:
    """An erasure that has begun.

    Attributes:
        partition: The owner.
        begun: When its keys were destroyed, in seconds.
        until: Until when running processes may still use a copy in memory, in seconds.
        keys: Id and date of every key that is destroyed.
    """

    partition: str
    begun: int
    until: int
    keys: tuple[tuple[str, int], ...]


class OwnerShred:
    """The erasure of one owner. Every step may be repeated, by any process, and begins where the last one ended."""

    def __init__(
        self, engine: Engine, asherah: Asherah, partition: str, metadata: Iterable[MetaData] | MetaData = ()
    ) -> None:
        """Prepare; nothing is read or written yet.

        Args:
            engine: The engine of the database that holds data and keys; it need not be attached.
            asherah: The keys.
            partition: The owner: its id as text, in the columns' template if they have one (`user-7`).
            metadata: The tables, to tell what becomes unreadable.

        Raises:
            ConfigurationError: Other Asherah implementations share the key table, or it is in memory.
            OwnerRequiredError: The partition is unusable.
        """
        self._engine = engine
        self._metadata = (metadata,) if isinstance(metadata, MetaData) else tuple(metadata)
        self._system_keys = asherah.system_keys(engine)
        self._children = Children(engine, self._system_keys)
        self.partition = partition
        if self._system_keys.ids.peers:
            raise ConfigurationError(
                "other Asherah implementations share this key table (peers=True), and they would make the owner new "
                "keys, since they know no tombstones: stop sharing the table first"
            )
        regions = self._system_keys.regions
        self._key_ids = [ids.intermediate_key_id(partition) for ids in regions]
        self._ids = [*self._key_ids, *(ids.index_key_id(partition) for ids in regions)]

    def __enter__(self) -> Self:
        """Use as a context manager that closes at the end."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Release what serves an asynchronous driver, if any."""
        self._system_keys.close()

    def now(self) -> float:
        """Tell the time by which the erasure goes.

        Returns:
            Seconds since 1970-01-01 UTC.
        """
        return self._system_keys.policy.clock()

    def losses(self) -> list[Loss]:
        """Count what becomes unreadable. Nothing is written.

        Returns:
            A line for each encrypted column that has values of the owner, or may have.
        """
        with self._engine.connect() as connection:
            return [loss for metadata in self._metadata for loss in losses(connection, metadata, self.partition)]

    def keys(self) -> tuple[tuple[str, int], ...]:
        """List the owner's keys, destroyed ones too. Nothing is written.

        Returns:
            Their ids and dates.
        """
        return tuple((row.id, row.created) for row in self._system_keys.metastore.run(self._rows))

    def pending(self) -> Pending | None:
        """Tell whether the erasure has begun. Nothing is written.

        Returns:
            What is known of it; `None` if the owner has no tombstone.
        """
        found = self._system_keys.metastore.run(self._tombstones)
        return self._pending(self._begun(found) or self._second(), self.keys()) if found else None

    def begin(self) -> Pending:
        """Destroy the owner's keys: from the commit on nobody reads them from the key table, and nobody makes new ones.

        Begun again, it destroys what came back; the time to wait begins anew only if some key could still be used.

        Returns:
            Until when running processes may have a copy in memory.

        Raises:
            MetastoreError: The key table cannot be read or written.
        """
        destroyed: list[KeyRow] = []

        def destroy(row: KeyRow) -> str:
            destroyed.append(row)
            return changed(erased(row), **{_BEGUN: None})

        def work(rows: KeyRows) -> int:
            destroyed.clear()
            begun = self._begun(self._tombstones(rows))
            stones = [tombstone(key_id) for key_id in self._key_ids]
            # When it began is taken out, too: killed here, the next one counts from its own time.
            rows.erase(stones, [*(stone.id for stone in stones), *self._ids], destroy)
            return begun

        begun = self._system_keys.metastore.run(work, writing=True)
        # Whoever made a key while this was not committed did not see the tombstone, and may use the key.
        keys = self.sweep()
        if not begun or any(map(self._children.is_living, destroyed)):
            begun = self._second()
            for key_id in self._key_ids:
                self._system_keys.events.emit("owner_erased", id=key_id, created=begun)
        self._system_keys.metastore.run(lambda rows: self._stamp(rows, begun), writing=True)
        return self._pending(begun, keys)

    def _stamp(self, rows: KeyRows, begun: int) -> None:
        for row in self._tombstones(rows):
            rows.replace(row, changed(row.text, **{_BEGUN: begun}))

    def finish(self, found: Iterable[Loss] = ()) -> Receipt:
        """Destroy what processes made or brought back meanwhile, make sure of it, and write the receipt.

        Args:
            found: What `losses` said before, for the receipt; left out, it is counted now.

        Returns:
            The receipt.

        Raises:
            UsageError: The erasure has not begun, or running processes may still use a key.
            MetastoreError: The key table cannot be read or written, or gives other records than were written.
            KmsError: The receipt cannot be authenticated.
        """
        if self.pending() is None:
            raise UsageError("there is nothing to finish: the erasure of this owner has not begun")
        pending = self.begin()
        now = int(self.now())
        if now < pending.until:
            raise UsageError(
                f"the keys are destroyed, but until {pending.until} (seconds since 1970, {pending.until - now} s from "
                "now) a running process may use one from memory, or bring one back: finish after that"
            )
        ids = self._system_keys.ids
        losses = tuple(found or self.losses())
        receipt = Receipt(ids.service, ids.product, self.partition, pending.keys, losses, pending.begun, now)
        return receipt.signed(self._system_keys.newest_key())

    def sweep(self) -> tuple[tuple[str, int], ...]:
        """Destroy the owner's keys once more, and read back that no other record is left.

        Returns:
            Id and date of each.

        Raises:
            MetastoreError: The key table cannot be read or written, or gives other records than were written.
        """

        def work(rows: KeyRows) -> tuple[tuple[str, int], ...]:
            for _ in range(_TRIES):
                written = {(row.id, row.created): _key(row) for row in rows.erase((), self._ids, erased)}
                if {(row.id, row.created): _key(row) for row in self._rows(rows)} == written:
                    return tuple(written)
            raise MetastoreError(
                "the owner's keys were overwritten, and read back they are others: a process or a trigger writes them "
                "again. Find out which, and finish the erasure then"
            )

        return self._system_keys.metastore.run(work, writing=True)

    def _rows(self, rows: KeyRows) -> list[KeyRow]:
        return [row for key_id in self._ids for row in rows.versions(key_id)]

    def _tombstones(self, rows: KeyRows) -> list[KeyRow]:
        places = [(row.id, row.created) for row in map(tombstone, self._key_ids)]
        return [*rows.exact(places).values()]

    def _second(self) -> int:
        """Tell the second from which the time to wait counts; with nothing to wait for, this one will do."""
        return math.ceil(self.now()) if self._system_keys.policy.last_use_after else int(self.now())

    def _begun(self, stones: Sequence[KeyRow]) -> int:
        """Read in tombstones when the keys were destroyed; 0 if one does not say, or names a moment to come."""
        begun = [self._noted(stone) for stone in stones]
        return max(begun) if len(begun) == len(self._key_ids) and all(begun) else 0

    def _noted(self, stone: KeyRow) -> int:
        try:
            value = load_object(stone.text, len(stone.text)).get(_BEGUN)
        except StrictJsonError:
            return 0
        return value if type(value) is int and 0 < value <= self.now() + _AHEAD else 0

    def _pending(self, begun: int, keys: Iterable[tuple[str, int]]) -> Pending:
        policy = self._system_keys.policy
        return Pending(self.partition, begun, begun + math.ceil(policy.last_use_after), tuple(keys))


def _key(row: KeyRow) -> object:
    try:
        return load_object(row.text, len(row.text)).get("Key")
    except StrictJsonError:
        return None
