# SPDX-License-Identifier: Apache-2.0
"""Holding a job back: so many rows per second, and not while a replica is behind."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

from sa_asherah.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MAX_LAG", "Throttle"]

MAX_LAG: Final = 5.0
"""Seconds that a replica may be behind."""
_LOOK_AGAIN = 1.0


class Throttle:
    """What the workers of one process may do together. Thread-safe."""

    def __init__(
        self,
        rows_per_second: float | None = None,
        lag: Callable[[], float] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        """Set the limits.

        Args:
            rows_per_second: How many rows are read each second at most, on average; `None` for no limit.
            lag: Tells how many seconds the replica that is furthest behind is behind.
            clock: Seconds that only grow.
            wait: Waits for some seconds.

        Raises:
            ConfigurationError: The number is not above 0.
        """
        if rows_per_second is not None and not rows_per_second > 0:
            raise ConfigurationError("rows_per_second= must be above 0; leave it out for no limit")
        self._rate = rows_per_second
        self._lag = lag
        self._clock = clock
        self._wait = wait or threading.Event().wait
        self._lock = threading.Lock()
        self._free_at = clock()

    def admit(self, rows: int, keep: Callable[[], object], every: float) -> None:
        """Wait until so many more rows may be worked on.

        Args:
            rows: How many.
            keep: Called now and then meanwhile, to keep what would run out.
            every: Seconds between two such calls, at most.
        """
        kept = self._clock()
        while (pause := self._pause(rows)) > 0:
            self._wait(min(pause, every))
            if self._clock() - kept >= every:
                keep()
                kept = self._clock()
        if self._rate is not None:
            with self._lock:
                self._free_at = max(self._free_at, self._clock()) + rows / self._rate

    def _pause(self, rows: int) -> float:
        if self._lag is not None and rows and self._lag() > MAX_LAG:
            return _LOOK_AGAIN
        with self._lock:
            return self._free_at - self._clock() if self._rate is not None else 0.0
