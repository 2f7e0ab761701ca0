# SPDX-License-Identifier: Apache-2.0
"""Objects that a forked child must set up anew: a lock that another thread held at the fork stays held for ever."""

from __future__ import annotations

import os
import weakref
from abc import ABC, abstractmethod

__all__ = ["ForkAware"]


class ForkAware(ABC):
    """Has `reset_after_fork` called in a child process; held weakly."""

    def __init__(self) -> None:
        """Set the object up and remember it."""
        self.reset_after_fork()
        _living.add(self)

    @abstractmethod
    def reset_after_fork(self) -> None:
        """Make locks and threads anew. Runs once at construction, too."""


_living: weakref.WeakSet[ForkAware] = weakref.WeakSet()


def _reset_all() -> None:
    for instance in list(_living):
        instance.reset_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_all)
