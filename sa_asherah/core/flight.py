# SPDX-License-Identifier: Apache-2.0
"""Single flight: of several threads that need the same thing at once, one fetches it and the others wait."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, TypeVar

from sa_asherah.core.fork import ForkAware

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Hashable, Iterable

__all__ = ["Flights"]

_PATIENCE = 30.0

K = TypeVar("K", bound="Hashable")


class Flights(ForkAware):
    """The work under way, by key.

    Whoever does not get the flight waits for its end, looks whether the result is there now, and else does the work
    itself, beside others: a failure is nobody else's. A thread that runs an event loop never waits: the flight may
    need that very loop, or wait for another loop that waits here. It does the work, and the first result is kept.
    """

    def reset_after_fork(self) -> None:
        """Forget the flights: their threads do not exist in this process."""
        self._lock = threading.Lock()
        self._landed: dict[Hashable, threading.Event] = {}

    def claim(self, keys: Collection[K]) -> tuple[set[K], list[threading.Event]]:
        """Take the flights that nobody has; never claim again before these are released.

        Args:
            keys: What is needed.

        Returns:
            The keys whose flights are the caller's (release them), and the ends of the others, for `wait`. A thread
            that runs an event loop gets neither.
        """
        if _runs_a_loop():
            return set(), []
        with self._lock:
            mine = {key for key in keys if key not in self._landed}
            theirs = [self._landed[key] for key in keys if key not in mine]
            landing = threading.Event()
            self._landed.update(dict.fromkeys(mine, landing))
        return mine, theirs

    def release(self, keys: Iterable[Hashable]) -> None:
        """End the caller's flights and wake those who wait for them.

        Args:
            keys: What `claim` gave.
        """
        with self._lock:
            for key in keys:
                landed = self._landed.pop(key, None)
                if landed is not None:
                    landed.set()

    @staticmethod
    def wait(flights: Iterable[threading.Event]) -> None:
        """Wait for other threads' flights to end, but not for ever.

        Args:
            flights: Ends that `claim` gave.
        """
        for flight in flights:
            flight.wait(_PATIENCE)

    @contextlib.contextmanager
    def turn(self, key: Hashable) -> Generator[bool]:
        """Take one flight, or wait for its end.

        Args:
            key: What is needed.

        Yields:
            Whether somebody else fetched it meanwhile: then look first.
        """
        mine, theirs = self.claim((key,))
        self.wait(theirs)
        try:
            yield bool(theirs)
        finally:
            self.release(mine)


def _runs_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
