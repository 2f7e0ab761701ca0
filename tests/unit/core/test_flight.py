# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import TYPE_CHECKING

import pytest

from sa_asherah.core.flight import Flights

if TYPE_CHECKING:
    from collections.abc import Collection


def run_together(count: int, work: object) -> None:
    threads = [threading.Thread(target=work, args=(n,)) for n in range(count)]  # type: ignore[arg-type]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)


def test_one_thread_works_and_the_others_look() -> None:
    flights, asked = Flights(), threading.Semaphore(0)
    done: list[int] = []
    looked: list[int] = []

    def claim(keys: Collection[str]) -> tuple[set[str], list[threading.Event]]:
        claimed = Flights.claim(flights, keys)
        asked.release()
        return claimed

    def work(n: int) -> None:
        with flights.turn("key") as waited:
            if waited:
                looked.append(n if done else -1)
                return
            assert all(asked.acquire(timeout=10) for _ in range(16)), "not everybody came"
            done.append(n)

    flights.claim = claim  # type: ignore[method-assign, assignment]
    run_together(16, work)
    assert sorted(done + looked) == list(range(16))
    assert len(done) == 1


def test_after_a_failure_each_works_for_itself() -> None:
    flights = Flights()
    started = time.monotonic()
    tries: list[int] = []

    def fail(n: int) -> None:
        with flights.turn("key"):
            tries.append(n)
            time.sleep(0.5)
            raise OSError("down")

    def work(n: int) -> None:
        with pytest.raises(OSError, match="down"):
            fail(n)

    run_together(16, work)
    assert len(tries) == 16
    assert time.monotonic() - started < 6, "one after the other they take 8 s, together 1 s"


def test_batches_that_overlap_do_not_wait_for_each_other_in_a_circle() -> None:
    flights = Flights()
    done: list[str] = []

    def work(n: int) -> None:
        keys = ("a", "b", "c") if n % 2 else ("c", "b", "a")
        for _ in range(50):
            mine, theirs = flights.claim(keys)
            done.extend(mine)
            flights.release(mine)
            flights.wait(theirs)

    run_together(8, work)
    assert done


def test_a_thread_with_an_event_loop_never_waits() -> None:
    flights = Flights()

    async def look() -> None:
        with flights.turn("key") as waited:
            assert not waited

    with flights.turn("key"):
        asyncio.run(asyncio.wait_for(look(), 5))


def test_it_does_not_block_those_with_other_keys() -> None:
    flights = Flights()
    with flights.turn("a"), flights.turn("b") as waited:
        assert not waited


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_does_not_wait_for_threads_it_does_not_have() -> None:
    flights = Flights()
    with flights._lock:
        flights._landed["key"] = threading.Event()
        child = os.fork()
        if child == 0:
            with flights.turn("key") as waited:
                os._exit(1 if waited else 0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
