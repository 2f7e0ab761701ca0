# SPDX-License-Identifier: Apache-2.0
"""When keys expire and give way, how they are dated, how long they stay in memory: every rule, in pure functions."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from hashlib import blake2b, sha256
from typing import TYPE_CHECKING

from sa_asherah.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["EVICTIONS", "CryptoPolicy", "share_of_process"]

EVICTIONS = ("lru", "simple")
"""How keys leave a full cache: the least recently used first, or never (and then the cache grows with the owners)."""

_DAY = 86_400
_AHEAD = 300
_TIMES = (
    "expire_after",
    "check_interval",
    "precision",
    "max_stale",
    "rotation_grace",
    "rotation_spread",
    "session_cache_duration",
)
_COUNTS = ("cache_size", "session_cache_size", "max_wraps")
_FOREIGN_EVICTIONS = ("lfu", "slru", "tinylfu")
_SALT = os.urandom(16)


def share_of_process(key_id: str, created: int) -> float:
    """Draw a number that is the same for one key in one process, and another one everywhere else.

    Args:
        key_id: Key id.
        created: The key's date.

    Returns:
        A number from 0 to 1, without 1.
    """
    # The process id: forked children share the salt.
    return _share(blake2b(f"{os.getpid()} {created} {key_id}".encode(), key=_SALT, digest_size=8).digest())


@dataclass(frozen=True, slots=True)
class CryptoPolicy:
    """The policy of one key hierarchy; times in seconds.

    Attributes:
        expire_after: A key older than this encrypts no more; it decrypts for ever.
        check_interval: How often a cached key's record is read again; 0 means at every use.
        precision: The date of a new key is rounded down to a multiple of this, so that processes which create the
            same key at the same time collide on the primary key; 0 means whole seconds.
        max_stale: How long past `check_interval` a cached key is used, to encrypt and to decrypt, while its record
            cannot be read again.
        rotation_grace: How long after its expiry a key still encrypts when a successor cannot be made; never a revoked
            one.
        rotation_spread: Over how long intermediate keys give way after their system key expired, each at its own time;
            0 for all at once, as in the reference implementation.
        early_rotation: By which part of its life, at most, a process replaces a key early. Each process draws its own
            part for each key, so that one of them moves first.
        max_wraps: How many data row keys one process wraps with one intermediate key, and how many intermediate keys
            with one system key, before it makes a new one.
        cache_size: How many intermediate keys stay in memory, and how many system keys.
        cache_eviction: `lru`, or `simple`: keep all.
        cache_system_keys: Whether system keys stay in memory. One that wraps a cached intermediate key does anyway.
        cache_intermediate_keys: Whether intermediate keys stay in memory.
        shared_intermediate_keys: Whether sessions share one cache of intermediate keys, or have one each.
        session_cache: Whether what a session has of its own is kept for the next one of the same partition.
        session_cache_size: For how many partitions.
        session_cache_duration: How long each is kept after its last use.
        create_system_keys: Whether this process may create system keys.
        clock: Gives the time in seconds since 1970-01-01 UTC.
        draw: Gives a process's own number from 0 to 1 for a key, from its id and date.
    """

    expire_after: float = 90 * _DAY
    check_interval: float = 3_600
    precision: float = 60
    max_stale: float = 3_600
    rotation_grace: float = _DAY
    rotation_spread: float = 7 * _DAY
    early_rotation: float = 0.02
    max_wraps: int = 1 << 22
    cache_size: int = 1_000
    cache_eviction: str = "lru"
    cache_system_keys: bool = True
    cache_intermediate_keys: bool = True
    shared_intermediate_keys: bool = True
    session_cache: bool = False
    session_cache_size: int = 1_000
    session_cache_duration: float = 7_200
    create_system_keys: bool = True
    clock: Callable[[], float] = time.time
    draw: Callable[[str, int], float] = share_of_process

    def __post_init__(self) -> None:
        """Refuse values that would stop rotation or caching.

        Raises:
            ConfigurationError: A value is out of range.
        """
        for name in _TIMES:
            seconds: float = getattr(self, name)
            if not math.isfinite(seconds) or seconds < 0:
                raise ConfigurationError(f"{name} is {seconds} seconds; give a finite time of 0 or more")
        if self.expire_after < 1:
            raise ConfigurationError(
                f"expire_after is {self.expire_after} seconds; give at least one second, 90 days are usual"
            )
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} is {getattr(self, name)}; give at least 1, or leave it out")
        if not 0 <= self.early_rotation < 1:
            raise ConfigurationError(
                f"early_rotation is {self.early_rotation}; give a part of a key's life, from 0 to below 1"
            )
        if self.cache_eviction in _FOREIGN_EVICTIONS:
            raise ConfigurationError(
                f"cache_eviction={self.cache_eviction!r} is not offered: the least recently used key goes first; set "
                "'lru' or leave it out"
            )
        if self.cache_eviction not in EVICTIONS:
            raise ConfigurationError(f"cache_eviction is {self.cache_eviction!r}; give {' or '.join(EVICTIONS)}")

    # Dates

    def truncate(self, now: float) -> int:
        """Date a new key.

        Args:
            now: The present, in seconds.

        Returns:
            The present rounded down to a multiple of the precision. A precision longer than `expire_after` counts
            as `expire_after`: else a key could be expired when it is made.
        """
        second = int(now)
        step = self._step
        return second - second % step if step else second

    @staticmethod
    def horizon(now: float) -> int:
        """Tell which dates in the future count when a key to encrypt with is chosen: other clocks may be ahead.

        Args:
            now: The present, in seconds.

        Returns:
            The latest date. Later keys decrypt, but do not take the place of others.
        """
        return int(now) + _AHEAD

    # Expiry

    def is_expired(self, created: int, now: float) -> bool:
        """Tell whether a key is too old to encrypt.

        Args:
            created: The key's date.
            now: The present, in seconds.

        Returns:
            True if it is.
        """
        return now > created + self.expire_after

    def wraps_until(self, key_id: str, created: int) -> float:
        """Tell until when a system key wraps new keys: its expiry, or earlier in a process that may replace it.

        Args:
            key_id: Its id.
            created: Its date.

        Returns:
            The end, in seconds.
        """
        return self._due(key_id, created) if self.create_system_keys else created + self.expire_after

    def encrypts_until(self, key_id: str, created: int, parent_created: int) -> float:
        """Tell until when an intermediate key encrypts: its own end, or some time after its system key's expiry.

        Args:
            key_id: Its id.
            created: Its date.
            parent_created: The date of its system key.

        Returns:
            The end, in seconds.
        """
        early = self.early_rotation * self.draw(key_id, created) if self.rotation_spread else 0
        spread = self._spread(key_id) * (1 - early)
        return min(self._due(key_id, created), parent_created + self.expire_after + spread)

    def wraps_in_grace_until(self, created: int) -> float:
        """Tell until when a system key wraps new keys while no successor can be made.

        Args:
            created: Its date.

        Returns:
            The end, in seconds.
        """
        return created + self.expire_after + self.rotation_grace

    def encrypts_in_grace_until(self, key_id: str, created: int, parent_created: int) -> float:
        """Tell until when an intermediate key encrypts while no successor can be made.

        Args:
            key_id: Its id.
            created: Its date.
            parent_created: The date of its system key.

        Returns:
            The end, in seconds.
        """
        own = created + self.expire_after + self.rotation_grace
        return min(own, parent_created + self.expire_after + max(self.rotation_grace, self._spread(key_id)))

    # Checks

    def next_check(self, now: float, share: float) -> float:
        """Tell when a key's record is to be read again.

        Args:
            now: When it was read, in seconds.
            share: A random number from 0 to 1, so that not all keys are due together.

        Returns:
            The time, in seconds: `check_interval` on, less or more by up to a tenth.
        """
        return now + self.check_interval * (0.9 + 0.2 * share)

    def stale_until(self, checked: float) -> float:
        """Tell how long a key is used while its record cannot be read.

        Args:
            checked: When it was read last, in seconds.

        Returns:
            The end, in seconds.
        """
        return checked + self.check_interval + self.max_stale

    @property
    def last_use_after(self) -> float:
        """How many seconds after a change of the key table a process may still use what it read before."""
        return 1.1 * self.check_interval + self.max_stale

    # Memory

    @property
    def intermediate_limit(self) -> int | None:
        """How many intermediate keys stay in memory; `None` for all."""
        return self._limit(is_on=self.cache_intermediate_keys)

    @property
    def system_limit(self) -> int | None:
        """How many system keys stay in memory; `None` for all."""
        return self._limit(is_on=self.cache_system_keys)

    def _limit(self, *, is_on: bool) -> int | None:
        if not is_on:
            return 0
        return None if self.cache_eviction == "simple" else self.cache_size

    @property
    def _step(self) -> int:
        return int(min(self.precision, self.expire_after))

    def _due(self, key_id: str, created: int) -> float:
        if not self.early_rotation:
            return created + self.expire_after
        life = self.expire_after * (1 - self.early_rotation * self.draw(key_id, created))
        # A new key may be dated one step back; it must not be due when it is made.
        return created + max(life, min(self._step, self.expire_after))

    def _spread(self, key_id: str) -> float:
        # The same in all processes: an owner's key is replaced once.
        return self.rotation_spread * _share(sha256(key_id.encode()).digest()[:8]) if self.rotation_spread else 0


def _share(digest: bytes) -> float:
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)
