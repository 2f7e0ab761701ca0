# SPDX-License-Identifier: Apache-2.0
"""500 clients meet the expiry of their system key: one of them moves first, and the key service hears of few."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import pytest
from sqlalchemy import Engine, create_engine

from sa_asherah.core.hierarchy import Hierarchy
from sa_asherah.core.ids import KeyIds
from sa_asherah.core.policy import CryptoPolicy
from sa_asherah.core.session import Session
from sa_asherah.kms.static import LocalKMS
from sa_asherah.metastore import create, open_metastore

CLIENTS = 500
AT_ONCE = 50
"""So many threads, and so many connections: the clients' machines are not idle, nor the server."""
START = 1_800_000_000
DAY = 86_400
HOUR = 3_600
LIFE = 90 * DAY
IDS = KeyIds("records", "clinic")


class CountingKMS(LocalKMS):
    """Wraps keys in this process and counts."""

    _name = "test KMS"
    _setting = "nothing"

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.encrypted = 0

    def _key(self) -> bytes:
        return bytes(32)

    def encrypt_key(self, key: bytes) -> bytes:
        with self._lock:
            self.encrypted += 1
        return super().encrypt_key(key)


@dataclass
class Crowd:
    """Clients with caches of their own, each with an owner of its own; one key table, one clock."""

    engine: Engine
    kms: CountingKMS = field(default_factory=CountingKMS)
    now: float = START
    clients: list[Hierarchy] = field(default_factory=list[Hierarchy])

    def gather(self) -> None:
        """Make the clients; what each process draws for itself, each client draws here."""
        metastore = open_metastore(self.engine)
        for number in range(CLIENTS):
            policy = CryptoPolicy(clock=lambda: self.now, draw=partial(_draw, number))
            self.clients.append(Hierarchy(IDS, policy, self.kms, metastore))

    def work(self, numbers: Iterable[int]) -> int:
        """Let clients encrypt at once; gives how often the key service was asked to encrypt."""
        before = self.kms.encrypted

        def encrypt(number: int) -> None:
            session = Session(self.clients[number], _owner(number))
            assert session.decrypt(session.encrypt(b"data")) == b"data"

        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(encrypt, numbers))
        return self.kms.encrypted - before

    def take_turns(self, end: float, pause: float) -> int:
        """Let some clients work, then the next ones some time later, each about once until the end."""
        turns = int((end - self.now) // pause)
        asked = 0
        for turn in range(turns):
            self.now += pause
            asked += self.work(range(turn, CLIENTS, turns))
        return asked


def _owner(number: int) -> str:
    return f"owner {number}"


def _draw(number: int, _key_id: str, created: int) -> float:
    return ((number * 2_654_435_761 + created) % 2**32) / 2**32


@pytest.fixture
def crowd(postgresql_url: str) -> Iterator[Crowd]:
    engine = create_engine(postgresql_url)
    create(engine)
    crowd = Crowd(engine)
    crowd.gather()
    yield crowd
    engine.dispose()


@pytest.mark.long
def test_of_clients_at_work_one_moves_first_and_the_others_follow(crowd: Crowd) -> None:
    """All keys are equally old, and everybody works some time while they may be replaced early."""
    crowd.clients[0].encryption_keys([_owner(number) for number in range(CLIENTS)])
    assert crowd.kms.encrypted == 1
    crowd.now = START + LIFE * 0.98
    assert 1 <= crowd.take_turns(START + LIFE, HOUR) <= 5
    crowd.now = START + LIFE + 1
    assert crowd.work(range(CLIENTS)) == 0


@pytest.mark.long
def test_clients_that_come_back_together_after_the_expiry_do_not_ask_together(crowd: Crowd) -> None:
    """Nobody was at work while the system key could have been replaced early; owners' keys have their own ages."""
    crowd.clients[0].encryption_keys(["the first owner"])
    for batch in range(1, 10):
        crowd.now = START + LIFE * batch / 10
        crowd.clients[0].encryption_keys([_owner(number) for number in range(batch - 1, CLIENTS, 9)])
    assert crowd.kms.encrypted == 1
    crowd.now = START + LIFE + 1
    assert crowd.work(range(CLIENTS)) == 0
    assert 1 <= crowd.take_turns(crowd.now + 7 * DAY, 6 * HOUR) <= 5
