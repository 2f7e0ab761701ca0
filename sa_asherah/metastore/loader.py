# SPDX-License-Identifier: Apache-2.0
"""Work for asynchronous drivers: inside SQLAlchemy's greenlet, and in a thread of its own where there is none."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy.util import concurrency

from sa_asherah.core.fork import ForkAware
from sa_asherah.errors import MetastoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Loader", "in_greenlet", "off_loop", "pause"]

T = TypeVar("T")


def in_greenlet() -> bool:
    """Tell whether SQLAlchemy runs this code in a greenlet, where an asynchronous driver can be called.

    Returns:
        True if so; always false where greenlet is not installed.
    """
    try:
        return bool(concurrency.in_greenlet())
    except (ImportError, ValueError):  # what SQLAlchemy 2.1 and 2.0 raise where greenlet is not installed
        return False


# SQLAlchemy 2.1 gets this ready when it is first asked, and two threads that ask first at once end in a RecursionError.
in_greenlet()


def off_loop(call: Callable[[], T]) -> T:
    """Make a call that blocks, in a thread if an event loop would stand still meanwhile.

    Args:
        call: The call.

    Returns:
        What it returned.
    """
    if in_greenlet():
        return concurrency.await_only(asyncio.to_thread(call))
    return call()


def pause(seconds: float) -> None:
    """Wait without stopping an event loop.

    Args:
        seconds: How long.
    """
    if in_greenlet():
        concurrency.await_only(asyncio.sleep(seconds))
    else:
        time.sleep(seconds)


class Loader(ForkAware):
    """An event loop in a daemon thread, for code that needs an asynchronous driver and cannot await.

    SQLAlchemy processes the results of Core statements outside its greenlet. A key that is not in memory is then
    read here, while the caller waits. The thread starts at first use, in a forked child again.
    """

    def reset_after_fork(self) -> None:
        """Forget the thread: it does not exist in this process."""
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def run(self, call: Callable[[], T]) -> T:
        """Run code in the loader's greenlet and wait for it.

        Args:
            call: The code.

        Returns:
            What it returned.

        Raises:
            MetastoreUnavailableError: The loader was closed meanwhile.
        """
        with self._lock:
            future = asyncio.run_coroutine_threadsafe(concurrency.greenlet_spawn(call), self._running())
        try:
            return future.result()
        except CancelledError:
            raise MetastoreUnavailableError("a key was being read when Asherah was closed; read before that") from None

    def close(self) -> None:
        """End the thread. The loader starts another one when it is used again."""
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is not None and thread is not None:
            asyncio.run_coroutine_threadsafe(_cancel_others(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="sa_asherah key loader", daemon=True)
            self._thread.start()
        return self._loop


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
