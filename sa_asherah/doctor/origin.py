# SPDX-License-Identifier: Apache-2.0
"""Finds where a value that does not open in its place came from, by opening it elsewhere on trial, within bounds."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sa_asherah.core import cell
from sa_asherah.core.aead import InvalidTag
from sa_asherah.errors import DecryptionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sqlalchemy import Connection

    from sa_asherah.core.key import Key
    from sa_asherah.doctor.chest import Chest
    from sa_asherah.doctor.layout import Slot
    from sa_asherah.doctor.notebook import Notebook
    from sa_asherah.doctor.subject import Subject

__all__ = ["Origin", "Spot", "Traces"]

_TRIALS = 20_000
"""How often a whole examination tries a key or a place."""
_MAX_PARTITIONS = 500
_MAX_DATES = 16
_MAX_HEADS = 4096


class Spot(NamedTuple):
    """Where a value was found.

    Attributes:
        slot: The column.
        primary_key: The row's primary key.
        partition: The partition of the row's owner; `None` where the column has no owner.
        row: Text of the primary key for row-bound values.
    """

    slot: Slot
    primary_key: tuple[str, ...]
    partition: str | None
    row: str


class Origin(NamedTuple):
    """Where a value belongs.

    Attributes:
        partition: Its partition.
        slot: Its column, `None` if no column that is known opens it.
        row: Text of its primary key; empty if it is not row-bound.
        plaintext: What was opened; only whoever asks for the type of it looks at it.
    """

    partition: str
    slot: Slot | None
    row: str
    plaintext: bytes

    def __repr__(self) -> str:
        """Show no plaintext."""
        return "<Origin>"


class Traces:
    """Opens cells on trial. The whole examination has one budget."""

    def __init__(
        self, connection: Connection, subject: Subject, chest: Chest, notebook: Notebook, slots: Sequence[Slot]
    ) -> None:
        """Prepare.

        Args:
            connection: To the database of the data.
            subject: The names in the settings.
            chest: Opens keys.
            notebook: Knows the keys of each date.
            slots: The columns that a value may have been made for.
        """
        self._connection = connection
        self._subject = subject
        self._chest = chest
        self._notebook = notebook
        self._slots = slots
        self._left = _TRIALS
        self._of_date: dict[int, list[Key]] = {}
        self._heads: dict[bytes, tuple[Key, cell.Decrypt]] = {}

    @property
    def is_exhausted(self) -> bool:
        """Whether the budget is spent."""
        return self._left <= 0

    def is_complete(self, created: int) -> bool:
        """Tell whether all keys of a date are tried, so that a value that none of them opens is damaged.

        Args:
            created: The date.
        """
        is_bounded = self.is_exhausted or len(self._partitions(created)) >= _MAX_PARTITIONS
        return not is_bounded and not self._notebook.has_closed_key(created)

    def renew(self) -> None:
        """Forget which keys of a date there are: more were found."""
        self._of_date.clear()

    def find(self, spot: Spot, stored: bytes, header: cell.Header, keys: Iterable[Key]) -> Origin | None:
        """Find where a cell belongs: first where it is, then in other places of its owner, then with others.

        Args:
            spot: Where it was found.
            stored: The cell.
            header: Its header.
            keys: The keys of its row's owner and of its date.

        Returns:
            Its origin; `None` if no key that is known opens it.
        """
        head = stored[: cell.HEAD_SIZE]
        found = self._heads.get(head)  # cells of one statement share their head
        if found is None:
            found = self._opener(head, self._candidates(spot, header.created, keys))
            if found is None:
                return None
            if len(self._heads) >= _MAX_HEADS:
                self._heads.clear()
            self._heads[head] = found
            self._prefer(found[0], header.created)
        return self._place(spot, found[0], stored, header.flags, found[1])

    @staticmethod
    def _opener(head: bytes, keys: Iterable[Key]) -> tuple[Key, cell.Decrypt] | None:
        """Find the key that a head was made with."""
        for key in keys:
            try:
                return key, cell.opener(key.cell_key, head)
            except DecryptionError:
                continue
        return None

    def _candidates(self, spot: Spot, created: int, keys: Iterable[Key]) -> Iterator[Key]:
        yield from keys
        for key in self._strangers(created):
            self._left -= spot.partition is not None
            yield key

    def _prefer(self, key: Key, created: int) -> None:
        """Try a key first from now on: neighbouring rows often have the same owner."""
        keys = self._of_date.get(created, [])
        if key in keys:
            keys.remove(key)
            keys.insert(0, key)

    def _partitions(self, created: int) -> list[str]:
        return self._notebook.partitions_of_date(created, _MAX_PARTITIONS)

    def _strangers(self, created: int) -> list[Key]:
        """Open the keys of a date, of whatever owner, and keep them: many values have the same date."""
        if self.is_exhausted:
            return []
        found = self._of_date.get(created)
        if found is None:
            if len(self._of_date) >= _MAX_DATES:
                self._of_date.clear()
            places = [
                (key_id, created)
                for partition in self._partitions(created)
                for key_id in self._subject.key_ids(partition)
            ]
            good = [place for place, state in self._notebook.states(places).items() if state == "good"]
            self._of_date[created] = found = list(self._chest.open(good).values())
        return found

    def _place(self, spot: Spot, key: Key, stored: bytes, flags: int, decrypt: cell.Decrypt) -> Origin:
        ids, partition = self._subject.ids, key.partition or ""
        for slot, row in self._places(spot, partition, is_bound=bool(flags & cell.ROW_BOUND)):
            context = cell.context(ids.service, ids.product, partition, slot.column.label, row)
            try:
                opened = decrypt(stored[cell.HEAD_SIZE : cell.NONCE_END], stored[cell.NONCE_END :], context)
            except (InvalidTag, ValueError):
                continue
            return Origin(partition, slot, row, opened)
        return Origin(partition, None, "", b"")

    def _places(self, spot: Spot, partition: str, *, is_bound: bool) -> Iterator[tuple[Slot, str]]:
        """List the places to try: the first one, where the value is, is free."""
        yield spot.slot, spot.row if is_bound else ""
        for slot in (spot.slot, *self._slots):
            rows = slot.row_texts(self._connection, partition) if is_bound else iter(("",))
            for row in rows if not self.is_exhausted else ():
                self._left -= 1
                yield slot, row
