# SPDX-License-Identifier: Apache-2.0
"""Unwrapped keys in memory."""

from __future__ import annotations

import atexit
import contextlib
import threading
import weakref
from collections import OrderedDict

from sa_asherah.core.fork import ForkAware
from sa_asherah.core.key import Key

__all__ = ["KeyCache"]


class KeyCache(ForkAware):
    """Keys by (id, created), the least recently used dropped first, and the newest one of each id.

    A dropped key wipes itself when its last user lets go of it, so a key is never wiped under a running encryption.
    """

    def __init__(self, size: int | None) -> None:
        """Start empty.

        Args:
            size: How many keys to keep, 0 for none; `None` keeps all.
        """
        self._size = size
        self._keys: OrderedDict[tuple[str, int], Key] = OrderedDict()
        self._newest: dict[str, Key] = {}
        super().__init__()
        _caches.add(self)

    def reset_after_fork(self) -> None:
        """Make the lock anew; the keys stay."""
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._keys)

    def snapshot(self) -> list[Key]:
        """List the keys that are here.

        Returns:
            The keys, in no order.
        """
        with self._lock:
            # The order, which readers change without the lock, is not followed: an iterator over it would break.
            return list(dict[tuple[str, int], Key].values(self._keys))

    def get(self, key_id: str, created: int) -> Key | None:
        """Find a key.

        Args:
            key_id: Key id.
            created: Date of the key in seconds.

        Returns:
            The key, if it is here.
        """
        place = (key_id, created)
        key = self._keys.get(place)
        if key is not None:
            self._touch(place)
        return key

    def newest(self, key_id: str) -> Key | None:
        """Find the key of this id that encrypted last.

        Args:
            key_id: Key id.

        Returns:
            The key, if it is here.
        """
        key = self._newest.get(key_id)
        if key is not None:
            self._touch((key.id, key.created))
        return key

    def put(self, key: Key) -> None:
        """Keep a key in place of the one with the same id and date.

        Args:
            key: A key whose record held.
        """
        with self._lock:
            self._forget((key.id, key.created))
            self._keys[key.id, key.created] = key
            while self._size is not None and len(self._keys) > self._size:
                self._drop(self._keys.popitem(last=False)[1])  # one step: readers reorder without the lock

    def put_newest(self, key: Key) -> None:
        """Say that this key encrypts for its id.

        Args:
            key: A key that is in the cache; any other is ignored.
        """
        with self._lock:
            if self._keys.get((key.id, key.created)) is key:
                self._keys.move_to_end((key.id, key.created))
                self._newest[key.id] = key

    def forget(self, key: Key) -> None:
        """Drop a key.

        Args:
            key: The key; another one with its id and date stays.
        """
        with self._lock:
            if self._keys.get((key.id, key.created)) is key:
                self._forget((key.id, key.created))

    def clear(self) -> None:
        """Drop all keys."""
        with self._lock:
            self._newest.clear()
            self._keys.clear()

    def _touch(self, place: tuple[str, int]) -> None:
        with contextlib.suppress(KeyError):  # dropped meanwhile
            self._keys.move_to_end(place)

    def _forget(self, place: tuple[str, int]) -> None:
        key = self._keys.pop(place, None)
        if key is not None:
            self._drop(key)

    def _drop(self, key: Key) -> None:
        if self._newest.get(key.id) is key:
            del self._newest[key.id]


_caches: weakref.WeakSet[KeyCache] = weakref.WeakSet()


@atexit.register
def _clear_all() -> None:
    """Wipe the keys at the interpreter's exit, which deletes few objects by itself."""
    for cache in list(_caches):
        cache.clear()
