# SPDX-License-Identifier: Apache-2.0
"""When keys expire, how they are dated, how long they stay in memory."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sa_asherah.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CryptoPolicy"]

_DAY = 86_400


@dataclass(frozen=True, slots=True)
class CryptoPolicy:
    """The policy of one key hierarchy; times in seconds.

    Attributes:
        expire_after: A key older than this encrypts no more; it decrypts for ever.
        check_interval: How often a cached key's record is read again; 0 means at every use.
        precision: The date of a new key is rounded down to a multiple of this, so that processes which create the
            same key at the same time collide on the primary key; 0 means whole seconds.
        max_stale: How long a cached key is used while its record cannot be read again.
        rotation_grace: How long after its expiry a key still encrypts when a successor cannot be made.
        cache_size: How many keys stay in memory.
        create_system_keys: Whether this process may create system keys.
        clock: Gives the time in seconds since 1970-01-01 UTC.
    """

    expire_after: float = 90 * _DAY
    check_interval: float = 3_600
    precision: float = 60
    max_stale: float = 3_600
    rotation_grace: float = _DAY
    cache_size: int = 1_000
    create_system_keys: bool = True
    clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        """Refuse values that would stop rotation or caching.

        Raises:
            ConfigurationError: A value is out of range.
        """
        for name in ("expire_after", "check_interval", "precision", "max_stale", "rotation_grace"):
            seconds: float = getattr(self, name)
            if not math.isfinite(seconds) or seconds < 0:
                raise ConfigurationError(f"{name} is {seconds} seconds; give a finite time of 0 or more")
        if self.expire_after < 1:
            raise ConfigurationError(
                f"expire_after is {self.expire_after} seconds; give at least one second, 90 days are usual"
            )
        if self.cache_size < 1:
            raise ConfigurationError(f"cache_size is {self.cache_size}; give at least 1, 1000 are usual")

    def truncate(self, now: float) -> int:
        """Date a new key.

        Args:
            now: The present, in seconds.

        Returns:
            The present rounded down to a multiple of the precision. A precision longer than `expire_after` counts
            as `expire_after`: else a key could be expired when it is made.
        """
        second = int(now)
        step = int(min(self.precision, self.expire_after))
        return second - second % step if step else second

    def is_expired(self, created: int, now: float) -> bool:
        """Tell whether a key is too old to encrypt.

        Args:
            created: The key's date.
            now: The present, in seconds.

        Returns:
            True if it is.
        """
        return now > created + self.expire_after
