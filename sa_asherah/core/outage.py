# SPDX-License-Identifier: Apache-2.0
"""What is known about the state of a key table: when it was read, when it failed, what it lacks, when to try again."""

from __future__ import annotations

import math

__all__ = ["PAUSE", "Outage"]

PAUSE = 10.0
"""Seconds until what failed is tried again, and for which a key that was not found is not looked for again."""


class Outage:
    """The state of one key table, shared by all who read it.

    Attributes:
        suspect_since: When a connection was lost last, or none was had: the primary may be another server now.
        read_at: When the table was read last.
        failed_at: When the table could not be read last.
        try_again_at: Until when keys are used without another try, after a failure.
        absent: Ids and dates of keys that are not there, and until when they are not looked for again.
        is_closed: Whether nobody may use the table any more.
    """

    __slots__ = ("absent", "failed_at", "is_closed", "read_at", "suspect_since", "try_again_at")

    def __init__(self) -> None:
        """Start without a failure."""
        self.suspect_since = -math.inf
        self.read_at = -math.inf
        self.failed_at = -math.inf
        self.try_again_at = -math.inf
        self.absent: dict[tuple[str, int], float] = {}
        self.is_closed = False

    @property
    def is_on(self) -> bool:
        """Whether the table could not be read when that was tried last."""
        return self.failed_at > self.read_at

    def suspect(self, now: float) -> None:
        """Note that a connection was lost: no key encrypts before the table was read again, or a try to do so failed.

        Args:
            now: The present, in seconds.
        """
        self.suspect_since = now
        self.try_again_at = -math.inf

    def begin(self, now: float, check_interval: float) -> None:
        """Note that the table could not be read.

        Args:
            now: The present, in seconds.
            check_interval: How often keys are checked; the pause is not longer.
        """
        self.suspect_since = self.failed_at = now
        self.try_again_at = now + min(PAUSE, check_interval)
