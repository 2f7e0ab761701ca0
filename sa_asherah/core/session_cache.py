# SPDX-License-Identifier: Apache-2.0
"""Intermediate keys of sessions, where each session has its own: kept for the next session of the partition."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from typing import TYPE_CHECKING

from sa_asherah.core.fork import ForkAware

if TYPE_CHECKING:
    from sa_asherah.core.hierarchy import Hierarchy
    from sa_asherah.core.policy import CryptoPolicy

__all__ = ["Lease", "SessionCache"]


class Lease:
    """One session's use of a hierarchy.

    Attributes:
        hierarchy: Where the session's keys come from.
    """

    def __init__(self, hierarchy: Hierarchy) -> None:
        """Lend a hierarchy that needs nothing done at the session's end.

        Args:
            hierarchy: Shared by all sessions.
        """
        self.hierarchy = hierarchy

    def end(self) -> None:
        """End the use; a second time does no harm."""


class SessionCache(ForkAware):
    """Lends a hierarchy to each session, the same one to sessions of the same partition while it is kept.

    One that is dropped while sessions use it goes with the last of them, closed or forgotten; its keys are wiped then.
    """

    def __init__(self, policy: CryptoPolicy) -> None:
        """Start empty.

        Args:
            policy: How many partitions to keep, and how long after their last use.
        """
        self._policy = policy
        self._size = policy.session_cache_size if policy.session_cache else 0
        self._kept: OrderedDict[str, _Branch] = OrderedDict()
        self._living: weakref.WeakSet[_Branch] = weakref.WeakSet()
        super().__init__()

    def reset_after_fork(self) -> None:
        """Make the lock anew; what is kept stays."""
        self._lock = threading.RLock()  # the end of a forgotten session may come in the middle of anything

    def lend(self, hierarchy: Hierarchy, partition: str) -> Lease:
        """Lend a hierarchy to a session.

        Args:
            hierarchy: The hierarchy that this cache belongs to.
            partition: The session's partition.

        Returns:
            The lease, to be ended with the session.
        """
        if self._policy.shared_intermediate_keys:
            return Lease(hierarchy)
        now = self._policy.clock()
        with self._lock:
            self._drop_old(now)
            branch = self._kept.pop(partition, None) or _Branch(hierarchy)
            self._living.add(branch)
            branch.users += 1
            branch.used = now
            self._kept[partition] = branch
            while len(self._kept) > self._size:
                self._let_go(self._kept.popitem(last=False)[1])
            return _BranchLease(self, partition, branch)

    def clear(self) -> None:
        """Drop everything, the keys of running sessions, too; a key still in use is wiped after its use."""
        with self._lock:
            for branch in list(self._living):
                branch.wipe()
            self._kept.clear()

    def take_back(self, partition: str, branch: _Branch) -> None:
        """Take note of the end of a lease.

        Args:
            partition: The session's partition.
            branch: What was lent.
        """
        with self._lock:
            branch.users -= 1
            if self._kept.get(partition) is branch:
                branch.used = self._policy.clock()
                self._kept.move_to_end(partition)
            else:
                self._let_go(branch)

    def _drop_old(self, now: float) -> None:
        while self._kept:
            # Taken out and put back: while one iterates, the end of a forgotten session may reorder them.
            partition, branch = self._kept.popitem(last=False)
            if branch.used <= now <= branch.used + self._policy.session_cache_duration:
                self._kept[partition] = branch
                self._kept.move_to_end(partition, last=False)
                return
            self._let_go(branch)

    @staticmethod
    def _let_go(branch: _Branch) -> None:
        if not branch.users:
            branch.wipe()


class _Branch:
    """A hierarchy with intermediate keys of its own, its users, and when one of them came or went last."""

    def __init__(self, root: Hierarchy) -> None:
        self.hierarchy = root.branch()
        self.users = 0
        self.used = 0.0
        self._root = weakref.ref(root)

    def wipe(self) -> None:
        root = self._root()
        if root is not None:
            root.drop(self.hierarchy)


class _BranchLease(Lease):
    def __init__(self, cache: SessionCache, partition: str, branch: _Branch) -> None:
        super().__init__(branch.hierarchy)
        self._end = weakref.finalize(self, cache.take_back, partition, branch)
        self._end.atexit = False

    def end(self) -> None:
        self._end()
