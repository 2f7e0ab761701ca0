# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import sys
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, NoReturn

import pytest

from sa_asherah.core.cache import KeyCache
from sa_asherah.core.key import Key, Secret
from sa_asherah.core.key_record import KeyRecord

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def make(created: int, key_id: str = "_IK_7_s_p", text: str = "") -> Key:
    return Key(KeyRecord(key_id, created, "a2V5"), text, Secret(range(32)), "7")


def held(cache: KeyCache, dates: Sequence[int]) -> list[int]:
    return [created for created in dates if cache.get("_IK_7_s_p", created) is not None]


def test_keys_are_found_by_exact_id_and_date() -> None:
    cache = KeyCache(10)
    key = make(1)
    cache.put(key)
    assert cache.get("_IK_7_s_p", 1) is key
    assert cache.get("_IK_7_s_p", 2) is None
    assert cache.get("_IK_70_s_p", 1) is None


def test_the_least_recently_used_key_goes_first() -> None:
    cache = KeyCache(3)
    for created in (1, 2, 3):
        cache.put(make(created))
    cache.get("_IK_7_s_p", 1)
    cache.put(make(4))
    assert held(cache, range(5)) == [1, 3, 4]
    assert len(cache) == 3


def test_a_key_that_encrypts_counts_as_used() -> None:
    cache = KeyCache(2)
    key = make(1)
    cache.put(key)
    cache.put_newest(key)
    cache.put(make(2))
    assert cache.newest("_IK_7_s_p") is key
    cache.put(make(3))
    assert held(cache, range(4)) == [1, 3]


def test_without_a_size_nothing_goes() -> None:
    cache = KeyCache(None)
    for created in range(5_000):
        cache.put(make(created))
    assert len(cache) == 5_000


def test_a_dropped_key_is_wiped_unless_it_is_in_use() -> None:
    wiped: list[int] = []

    class Watched(Secret):
        def __del__(self) -> None:
            super().__del__()
            wiped.append(sum(self))

    cache = KeyCache(1)
    in_use = make(1)
    cache.put(in_use)
    cache.put(Key(in_use.record, "", Watched(b"secret"), "7"))
    assert wiped == []
    cache.put(make(3))
    assert wiped == [0]
    assert bytes(in_use.secret) == bytes(range(32))


def test_the_newest_key_goes_with_the_key() -> None:
    cache = KeyCache(1)
    key = make(1)
    cache.put(key)
    cache.put_newest(key)
    cache.put(make(2))
    assert cache.newest("_IK_7_s_p") is None


def test_only_a_key_that_is_here_can_be_the_newest() -> None:
    cache = KeyCache(10)
    cache.put(make(1))
    cache.put_newest(make(1))
    assert cache.newest("_IK_7_s_p") is None


def test_a_key_takes_the_place_of_another_one() -> None:
    cache = KeyCache(10)
    old, new = make(1, text="old"), make(1, text="new")
    cache.put(old)
    cache.put_newest(old)
    cache.put(new)
    assert cache.get("_IK_7_s_p", 1) is new
    assert cache.newest("_IK_7_s_p") is None
    cache.forget(old)
    assert cache.get("_IK_7_s_p", 1) is new
    cache.forget(new)
    assert len(cache) == 0


def test_clearing_drops_all() -> None:
    cache = KeyCache(10)
    key = make(1)
    cache.put(key)
    cache.put_newest(key)
    cache.clear()
    assert (len(cache), cache.newest("_IK_7_s_p")) == (0, None)


@pytest.fixture
def _busy_threads() -> Iterator[None]:
    """Threads take turns as often as the interpreter can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("_busy_threads")
def test_threads_may_share_a_cache() -> None:
    cache = KeyCache(5)
    keys = [make(created) for created in range(17)]
    done = threading.Event()

    def write() -> None:
        for key in keys * 3000:
            cache.put(key)
            cache.put_newest(key)

    def read() -> None:
        while not done.is_set():
            held(cache, range(17))
            cache.newest("_IK_7_s_p")
            assert all(type(key) is Key for key in cache.snapshot())

    with ThreadPoolExecutor(5) as threads:
        readers = [threads.submit(read) for _ in range(3)]
        writers = [threads.submit(write) for _ in range(2)]
        wait(writers)
        done.set()
    assert [future.exception() for future in (*readers, *writers)] == [None] * 5
    assert len(cache) <= 5


@pytest.mark.usefixtures("_busy_threads")
def test_keys_are_listed_while_readers_reorder_them() -> None:
    cache = KeyCache(None)
    for created in range(1_000):
        cache.put(make(created))
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            held(cache, range(0, 1_000, 7))

    with ThreadPoolExecutor(3) as threads:
        readers = [threads.submit(read) for _ in range(3)]
        for _ in range(2_000):
            assert len(cache.snapshot()) == 1_000
        done.set()
    assert [future.exception() for future in readers] == [None] * 3


def test_listing_the_keys_does_not_depend_on_the_order_of_use() -> None:
    """An iterator over the order breaks when a reader changes it; the list must not be made with one."""

    class Reordered(OrderedDict[tuple[str, int], Key]):
        def values(self) -> NoReturn:
            raise AssertionError("iterates in the order of use")

        __iter__ = items = keys = values

    cache = KeyCache(None)
    cache._keys = Reordered()
    keys = [make(created) for created in range(3)]
    for key in keys:
        cache.put(key)
    assert cache.get("_IK_7_s_p", 0) is keys[0]
    assert sorted(key.created for key in cache.snapshot()) == [0, 1, 2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_gets_a_free_lock() -> None:
    cache = KeyCache(5)
    cache.put(make(1))
    with cache._lock:
        child = os.fork()
        if child == 0:
            cache.put(make(2))
            os._exit(0 if held(cache, (1, 2)) == [1, 2] else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
