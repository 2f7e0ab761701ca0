# SPDX-License-Identifier: Apache-2.0
"""Who asked for it is told how many values of whom each statement decrypted: one event for each owner and column."""

from __future__ import annotations

import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from weakref import finalize

if TYPE_CHECKING:
    from sa_asherah.core.events import Events

__all__ = ["Audit"]


class Audit:
    """Counts for one engine. Safe to share between threads: each, and each task, counts for itself.

    A statement's counts are told when its result is let go, when the same thread or task begins another statement, and
    at the latest when the process ends: nothing that was decrypted stays untold.
    """

    def __init__(self, events: Events) -> None:
        """Start with no statement.

        Args:
            events: Who is told.
        """
        self._events = events
        self._current: ContextVar[_Tally | None] = ContextVar("sa_asherah_tally", default=None)

    def begin(self, context: Any) -> None:
        """Begin to count for a statement; what the one before counted so far is told.

        Args:
            context: Its execution context, which goes when the result is let go.
        """
        before = self._open()
        if before is not None:
            before.tell()
        tally = _Tally(self._events, before)
        finalize(context, tally.end)
        self._current.set(tally)

    def count(self, partition: str, label: str | None) -> None:
        """Count a value that was decrypted.

        Args:
            partition: The owner's partition.
            label: The column's label.
        """
        tally = self._open()
        if tally is None:  # fetched in another thread than it was asked for: nobody knows when the last one comes
            tally = _Tally(self._events)
            tally.is_done = True
        tally.add((partition, label or ""))

    def _open(self) -> _Tally | None:
        """Find the last statement here whose result is still held: a stream outlives those begun after it."""
        tally = self._current.get()
        while tally is not None and tally.is_done:
            tally = tally.before
        return tally


class _Tally:
    """What the results of one statement, or of those around it, gave so far."""

    __slots__ = ("_counts", "_events", "_lock", "before", "is_done")

    def __init__(self, events: Events, before: _Tally | None = None) -> None:
        self._events = events
        self._counts: dict[tuple[str, str], int] = {}
        self._lock = threading.RLock()  # the end may come in the middle of anything
        self.before = before
        self.is_done = False

    def add(self, place: tuple[str, str]) -> None:
        with self._lock:
            self._counts[place] = self._counts.pop(place, 0) + 1
        if self.is_done:
            self.tell()

    def end(self) -> None:
        self.is_done = True
        self.tell()

    def tell(self) -> None:
        while self._counts:
            with self._lock:
                (partition, label), number = self._counts.popitem() if self._counts else (("", ""), 0)
            if number:
                table, _, column = label.rpartition(".")
                self._events.emit("values_decrypted", partition=partition, table=table, column=column, count=number)
