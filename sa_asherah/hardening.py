# SPDX-License-Identifier: Apache-2.0
"""What a process can ask of Linux so that its memory, and the keys in it, does not leave it."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

__all__ = ["Hardening", "harden_process"]

_PR_GET_DUMPABLE = 3
_PR_SET_DUMPABLE = 4
_MCL_CURRENT = 1
_MCL_FUTURE = 2


@dataclass(frozen=True, slots=True)
class Hardening:
    """What took effect.

    Attributes:
        not_dumpable: No core dump is written, and no other process of the same user reads this one's memory. Root and
            whoever has CAP_SYS_PTRACE still do.
        no_core_files: The limit for the size of core files is 0, and only root can raise it again.
        locked: No page of this process, now or later, is written to swap.
    """

    not_dumpable: bool = False
    no_core_files: bool = False
    locked: bool = False


def harden_process(*, lock_memory: bool = False) -> Hardening:
    """Ask the operating system to keep the memory of this process to itself. Call it first thing in each process.

    Linux only; elsewhere nothing is done. A child made by `fork` without `exec` inherits all but the lock on memory,
    which ends at the fork; `exec` makes a process dumpable again.

    It protects against core dumps, debuggers and other processes of the same user, and swap. It does not make Python
    forget: copies of a key that the interpreter, OpenSSL or a TLS library made stay in freed memory until that is used
    again, plaintext is in `str` and `bytes` that nobody can overwrite, and whoever runs code in this process or is root
    reads all of it.

    Args:
        lock_memory: Whether to lock all memory into RAM, too. Done only where RLIMIT_MEMLOCK is unlimited: under a
            limit, memory that is asked for later would be refused.

    Returns:
        What took effect; nothing raises.
    """
    if sys.platform != "linux":
        return Hardening()
    return Hardening(_refuse_dumps(), _refuse_core_files(), lock_memory and _lock_memory())


def _refuse_dumps() -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    return bool(libc.prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0) == 0)


def _refuse_core_files() -> bool:
    import resource  # noqa: PLC0415 -- not on every platform

    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (OSError, ValueError):  # a sandbox may forbid it
        return False
    return resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)


def _lock_memory() -> bool:
    import resource  # noqa: PLC0415 -- not on every platform

    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft != resource.RLIM_INFINITY:
        return False
    return bool(ctypes.CDLL(None, use_errno=True).mlockall(_MCL_CURRENT | _MCL_FUTURE) == 0)
