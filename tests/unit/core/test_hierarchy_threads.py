# SPDX-License-Identifier: Apache-2.0
"""Several threads, several event loops and forked processes with one hierarchy."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import TYPE_CHECKING

import pytest

from tests.unit.core.fakes import START, SYSTEM_ID, FakeKMS, World, key_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from sa_asherah.core.key import Key


@pytest.fixture
def world() -> World:
    world = World()
    world.kms = FakeKMS(delay=0.02)
    return world


def together(count: int, work: Callable[[int], Key]) -> list[Key]:
    """Run the work in threads that start at the same moment."""
    barrier = threading.Barrier(count)
    keys: list[Key] = []

    def run(n: int) -> None:
        barrier.wait(10)
        keys.append(work(n))

    threads = [threading.Thread(target=run, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(keys) == count
    return keys


def test_8_threads_make_one_first_key(world: World) -> None:
    process = world.process()
    keys = together(8, lambda _n: process.encryption_keys(["7"])["7"])
    assert len({id(key) for key in keys}) == 1
    assert sorted(world.table.texts) == [(key_id("7"), START), (SYSTEM_ID, START)]
    assert world.kms.calls == ["encrypt"]


def test_8_threads_with_different_owners_make_one_system_key(world: World) -> None:
    process = world.process()
    together(8, lambda n: process.encryption_keys([str(n)])[str(n)])
    assert world.table.created(SYSTEM_ID) == [START]
    assert world.kms.calls == ["encrypt"]


def test_64_cold_threads_unwrap_the_system_key_once(world: World) -> None:
    world.process().encryption_keys([str(n) for n in range(4)])
    process = world.process()
    world.table.taken_calls()
    together(64, lambda n: process.decryption_key(str(n % 4), START))
    assert world.kms.calls == ["encrypt", "decrypt"]
    assert len(world.table.calls) <= 8


def test_8_processes_agree_on_one_key(world: World) -> None:
    processes = [world.process() for _ in range(8)]
    keys = together(8, lambda n: processes[n].encryption_keys(["7"])["7"])
    assert len({bytes(key.secret) for key in keys}) == 1
    assert len(world.table.texts) == 2


def test_overlapping_batches_do_not_block_each_other(world: World) -> None:
    process = world.process(check_interval=0)

    def work(n: int) -> Key:
        keys: dict[str, Key] = {}
        for _ in range(20):
            keys = process.encryption_keys(["1", "2", "3"] if n % 2 else ["3", "2", "1"])
        return keys["1"]

    assert len({id(key) for key in together(8, work)}) == 1


def test_event_loops_in_two_threads_do_not_wait_for_each_other(world: World) -> None:
    process = world.process()

    async def fetch() -> Key:
        return process.encryption_keys(["7"])["7"]

    keys = together(4, lambda _n: asyncio.run(fetch()))
    assert len({bytes(key.secret) for key in keys}) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_children_forked_while_threads_fetch_keys_go_on(world: World) -> None:
    world.kms = FakeKMS(delay=0.001)
    process = world.process(check_interval=0)
    process.encryption_keys(["7"])
    stop = threading.Event()

    def work(n: int) -> None:
        while not stop.is_set():
            process.encryption_keys(["7", str(n)])
            world.table.calls.clear()

    threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(30):
            child = os.fork()
            if child == 0:
                # The table's lock is the test's own, not the hierarchy's.
                world.table._lock = threading.Lock()
                os._exit(0 if process.encryption_keys(["7", "8"])["7"].created == START else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join(10)
