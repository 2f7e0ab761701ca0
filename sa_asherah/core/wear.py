# SPDX-License-Identifier: Apache-2.0
"""How worn keys are: how many others this process wrapped with each, which outlives a key's stay in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sa_asherah.core.key import Wraps

if TYPE_CHECKING:
    from sa_asherah.core.key import Key

__all__ = ["Wear"]

_MAX_COUNTERS = 1 << 14


class Wear:
    """The counts of all keys that were in memory."""

    def __init__(self) -> None:
        """Start with none."""
        self._wraps: dict[tuple[str, int], Wraps] = {}

    def follow(self, key: Key) -> None:
        """Let a key count on from where it was when it left memory.

        Args:
            key: A key that comes into memory.
        """
        key.wraps = self._wraps.setdefault((key.id, key.created), key.wraps)
        if len(self._wraps) > _MAX_COUNTERS:
            self._forget_low_counts()

    def of(self, place: tuple[str, int]) -> int:
        """Tell how many keys were wrapped with one.

        Args:
            place: Id and date of the key.

        Returns:
            The number.
        """
        wraps = self._wraps.get(place)
        return 0 if wraps is None else wraps.number

    def _forget_low_counts(self) -> None:
        """Keep the higher half: keys that wrapped little may start again."""
        none = Wraps()
        places = [*self._wraps]  # at once: other threads add some
        ranked = sorted(places, key=lambda place: self._wraps.get(place, none).number, reverse=True)
        for place in ranked[_MAX_COUNTERS // 2 :]:
            self._wraps.pop(place, None)
