# SPDX-License-Identifier: Apache-2.0
"""Time as the life of a token sees it; a test puts another one in its place."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Clock"]


@dataclass(frozen=True, slots=True)
class Clock:
    """Tells the time and spends it.

    Attributes:
        now: Seconds on a clock that is never set; leases and deadlines count on it.
        wall: Seconds since 1970-01-01 UTC, for what several processes read.
        pause: Waits a number of seconds.
        wait: Waits for an event, a number of seconds at most; tells whether it came.
        between: Chooses a random number between two others.
    """

    now: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    pause: Callable[[float], None] = time.sleep
    wait: Callable[[threading.Event, float], bool] = threading.Event.wait
    between: Callable[[float, float], float] = random.SystemRandom().uniform
