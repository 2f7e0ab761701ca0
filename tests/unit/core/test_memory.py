# SPDX-License-Identifier: Apache-2.0
"""Keys in memory: overwritten when they leave it, and in no text on the way."""

from __future__ import annotations

import gc
import pickle
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sa_asherah.core import key as key_module
from sa_asherah.core import keyring as keyring_module
from sa_asherah.core.cell import derive_cell_key
from sa_asherah.core.key import Secret
from sa_asherah.core.session import Session
from sa_asherah.core.session_cache import SessionCache
from tests.unit.core.fakes import START, World

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sa_asherah.core.hierarchy import Hierarchy

made: list[tuple[str, bytes]] = []
"""The keys that were made or unwrapped, with the level or use of each."""

left: list[bytes] = []
"""What their memory held when it was given back."""


class Watched(Secret):
    def __init__(self, *arguments: bytes) -> None:
        super().__init__(*arguments)
        made.append((hex(id(self)), bytes(self)))

    def __del__(self) -> None:
        super().__del__()
        left.append(bytes(self))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """All keys of this world are watched."""
    monkeypatch.setattr(keyring_module, "Secret", Watched)
    monkeypatch.setattr(key_module, "Secret", Watched)
    gc.collect()
    made.clear()
    left.clear()
    yield World()
    made.clear()
    left.clear()


def use(world: World, owners: int, **policy: Any) -> tuple[Hierarchy, Hierarchy]:
    """Have a process use keys in every way; return what must keep them in memory."""
    names = [str(n) for n in range(owners)]
    writer = world.process(**policy)
    writer.encryption_keys(names)
    process = world.process(**policy)
    for name in names:
        assert len(process.decryption_key(name, START).cell_key) == 64
        with Session(process, name) as session:
            assert session.decrypt(session.encrypt(b"data")) == b"data"
    return process, writer


def test_keys_are_wiped_when_they_leave_the_cache(world: World) -> None:
    held = use(world, 40, cache_size=5)
    gc.collect()
    # Of each process a system key and 5 others are here, and in one of them the others' cell keys.
    assert len(made) >= 40 * 3 + 2
    assert len(made) - len(left) <= 2 * (1 + 5) + 5
    assert set(left) == {bytes(32), bytes(64)}
    del held


@pytest.mark.parametrize("size", [1, 1_000])
def test_closing_wipes_all_keys(world: World, size: int) -> None:
    held = use(world, 10, cache_size=size)
    for process in held:
        process.close()
    gc.collect()
    assert len(left) == len(made) > 20
    assert set(left) == {bytes(32), bytes(64)}


def test_a_key_in_use_is_wiped_after_its_use(world: World) -> None:
    process = world.process()
    key = process.encryption_keys(["7"])["7"]
    secret = bytes(key.secret)
    process.close()
    gc.collect()
    assert bytes(key.secret) == secret
    assert left == []
    del key
    assert left == [bytes(32)] * 2


def test_no_text_shows_a_key(world: World) -> None:
    held = use(world, 2)
    process, _ = held
    key = process.decryption_key("0", START)
    cache = SessionCache(process.policy)
    shown = [
        *(process, process._keyring, process._keyring.intermediate, process._lookup, process._outage, process.policy),
        *(key, key.parent, key.record, key.row, key.wraps, key.secret, key.cell_key, [key], {"key": key.secret}),
        *(cache, cache.lend(process, "0"), Session(process, "0"), process.row_keys, process.events),
    ]
    texts = "".join(f"{each!r} {each} {each!a}" for each in shown)
    assert f"{START}" in texts
    for _, secret in made:
        for form in (repr(secret)[2:-1], secret.hex(), repr(list(secret))[1:-1]):
            assert form not in texts
    assert key.record.key not in texts


def test_a_secret_is_neither_pickled_nor_mistaken_for_another_one() -> None:
    secret = Secret(range(32))
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(secret)
    twin = Secret(range(32))
    assert len({secret: 1, twin: 2}) == 2
    assert secret == twin
    assert derive_cell_key(secret) == derive_cell_key(bytes(range(32)))


def test_keys_are_wiped_when_the_interpreter_ends() -> None:
    """A process that never closes anything, and whose last words come after the wiping."""
    script = """
import atexit
left = []
atexit.register(lambda: print(len(left), {bytes(each).hex() for each in left}))
from sa_asherah.core import keyring
from sa_asherah.core.key import Secret

class Watched(Secret):
    def __del__(self):
        super().__del__()
        left.append(bytes(self))

keyring.Secret = Watched
from tests.unit.core.fakes import World
process = World().process()
keys = process.encryption_keys(["7", "8"])
del keys
assert not left
"""
    # The last place to import from: `tests` is found there, and `sa_asherah` where it is installed.
    start = f"import sys; sys.path.append({str(Path(__file__).parents[3])!r})"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", start + script], check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == ["3", f"{{'{'00' * 32}'}}"]
