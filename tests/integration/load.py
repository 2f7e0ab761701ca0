# SPDX-License-Identifier: Apache-2.0
"""Work that goes on while something fails, in threads and in forked processes."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field

from sa_asherah.kms.vault import VaultTransitKMS

_PAUSE = 0.02
_PATIENCE = 60.0
_CHILD_SECONDS = 60


@dataclass
class Load:
    """What the threads have done so far.

    Attributes:
        rounds: How often each piece of work succeeded.
        failures: What went wrong.
        slowest: Seconds of the slowest round of all.
    """

    rounds: Counter[str] = field(default_factory=Counter[str])
    failures: list[str] = field(default_factory=list[str])
    slowest: float = 0.0

    def go_on(self, rounds: int = 20) -> None:
        """Return when each piece of work has succeeded so many times more, or one has failed."""
        goal = {name: done + rounds for name, done in self.rounds.items()}
        wait_until(lambda: bool(self.failures) or all(self.rounds[name] >= goal[name] for name in goal))


@contextlib.contextmanager
def load(work: Mapping[str, Callable[[], object]], threads: int) -> Generator[Load]:
    """Do each piece of work again and again, in this many threads each, until the context ends."""
    done, tally = threading.Event(), threading.Lock()
    seen = Load(Counter(dict.fromkeys(work, 0)))

    def repeat(name: str, call: Callable[[], object]) -> None:
        while not done.wait(_PAUSE):
            started = time.monotonic()
            try:
                call()
            except Exception as error:  # noqa: BLE001 # whatever it is, the test shows it
                seen.failures.append(f"{name}: {type(error).__name__}: {error}")
                continue
            with tally:
                seen.rounds[name] += 1
                seen.slowest = max(seen.slowest, time.monotonic() - started)

    running = [threading.Thread(target=repeat, args=item) for item in work.items() for _ in range(threads)]
    for thread in running:
        thread.start()
    try:
        yield seen
    finally:
        done.set()
        for thread in running:
            thread.join()


def round_trip(kms: VaultTransitKMS) -> Callable[[], object]:
    """Return work that wraps and unwraps a key of its own: what a process with nothing in its caches does."""

    def work() -> None:
        key = os.urandom(32)
        assert kms.decrypt_key(kms.encrypt_key(key)) == key

    return work


def in_children(count: int, call: Callable[[], str]) -> list[str]:
    """Call something in so many forked processes at once; return what each says, or its error."""
    return [_said(*child) for child in [_forked(call) for _ in range(count)]]


def wait_until(condition: Callable[[], bool], patience: float = _PATIENCE) -> None:
    """Return when the condition holds."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(_PAUSE)


def _forked(call: Callable[[], str]) -> tuple[int, int]:
    read, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        return child, read
    signal.alarm(_CHILD_SECONDS)  # ends a child that hangs
    try:
        said = call()
    except BaseException as error:  # noqa: BLE001 # the parent judges it
        said = f"{type(error).__name__}: {error}"
    os.write(write, said.encode()[:4000])
    os._exit(0)


def _said(child: int, read: int) -> str:
    with os.fdopen(read) as pipe:
        said = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return said if code == 0 else f"exit code {code}"
