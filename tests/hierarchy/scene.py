# SPDX-License-Identifier: Apache-2.0
"""A process and a key table in any state: what is in memory, what is in the table, and whose keys they are."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from sa_asherah.core import aead
from sa_asherah.core.ids import tombstone_of
from sa_asherah.core.key_record import KeyRecord, bind, dump_key_record
from sa_asherah.core.ports import KeyRow
from sa_asherah.core.strict_json import base64_text
from sa_asherah.errors import KmsCiphertextError
from tests.unit.core.fakes import DAY, IDS, INTERVAL, START, SYSTEM_ID, FakeKMS, Table, World, key_id

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sa_asherah.core.hierarchy import Hierarchy
    from sa_asherah.core.key import Key
    from sa_asherah.errors import AsherahError

T = TypeVar("T")

OWNER = "7"
IK_ID = key_id(OWNER)
NOW = START + 30
MINUTE = NOW - NOW % 60
DATES = {"old": START - 100 * DAY, "young": MINUTE + 7, "near": NOW + 200, "far": NOW + 3_600}
"""Four keys of each level: expired, made in this minute, and by clocks that are 200 and 3,600 s ahead."""

KEY_OF = {"expired": "old", "valid": "young", "revoked": "young", "foreign": "young", "near": "near", "far": "far"}
"""Which of them a state is about. `foreign` is a row whose blob another key service made."""


class State(NamedTuple):
    """What is in memory and in the key table, each `empty` or a state of `KEY_OF`, and the system key of the IKs."""

    cache_ik: str
    table_ik: str
    cache_sk: str
    table_sk: str
    parent: str


@dataclass(frozen=True)
class Fault:
    """The call of this number fails; `late`: only after it has done its work."""

    number: int
    error: AsherahError
    late: bool = False


class Log(list[str]):
    """The calls so far, of which one may fail."""

    fault: Fault | None = None

    def call(self, text: str, work: Callable[[], T]) -> T:
        """Note a call, and make it."""
        self.append(text)
        fault = self.fault if self.fault and self.fault.number == len(self) - 1 else None
        if fault and not fault.late:
            raise fault.error
        result = work()
        if fault:
            raise fault.error
        return result


class LoggedTable(Table):
    """Notes every call with the keys that it is about."""

    def __init__(self) -> None:
        super().__init__()
        self.log = Log()

    def newest(self, ids: Sequence[str], not_after: int) -> Mapping[str, KeyRow]:
        text = "newest " + " ".join(sorted(one[1:3] for one in ids))
        return self.log.call(text, lambda: super(LoggedTable, self).newest(ids, not_after))

    def exact(self, pairs: Sequence[tuple[str, int]]) -> Mapping[tuple[str, int], KeyRow]:
        text = "read " + " ".join(sorted(map(named, pairs)))
        return self.log.call(text, lambda: super(LoggedTable, self).exact(pairs))

    def insert(self, rows: Sequence[KeyRow], parent: KeyRow | None = None) -> bool:
        text = "insert " + " ".join(sorted(named((row.id, row.created)) for row in rows))
        return self.log.call(text, lambda: super(LoggedTable, self).insert(rows, parent))


class LoggedService(FakeKMS):
    """Notes its calls among those of the table, and refuses blobs of other services in the way that real ones do."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def encrypt_key(self, key: bytes) -> bytes:
        return self._log.call("encrypt", lambda: super(LoggedService, self).encrypt_key(key))

    def decrypt_key(self, blob: bytes) -> bytes:
        return self._log.call("decrypt", lambda: self._open(blob))

    def _call(self, name: str) -> None:
        """Neither wait nor fail: the log sees to that."""

    def _open(self, blob: bytes) -> bytes:
        try:
            return super().decrypt_key(blob)
        except aead.InvalidTag:
            raise KmsCiphertextError("another service's blob") from None


def named(place: tuple[str, int]) -> str:
    """Name a key: its level and which of `DATES` it is; a new one by the seconds after the full minute."""
    if place == tombstone_of(IK_ID):
        return "XK"
    level = "SK" if place[0] == SYSTEM_ID else "IK"
    names = {date: name for name, date in DATES.items()}
    return f"{level}:{names.get(place[1], f'new+{place[1] - MINUTE}')}"


def _secret(level: str, key: str) -> bytes:
    return f"{level} {key}".encode().ljust(32, b".")


def _row(record: KeyRecord, level: str, secret: bytes, *, revoked: bool) -> KeyRow:
    partition = OWNER if level == "IK" else None
    mac = bind("IK" if level == "IK" else "SK", IDS, partition, record.id, record.created, record.parent, secret)
    record = dataclasses.replace(record, bind=mac, revoked=revoked)
    return KeyRow(record.id, record.created, dump_key_record(record))


@cache
def _sealed(key: bytes, secret: bytes) -> bytes:
    """Wrap a key once, so that its record has one text whatever else it says."""
    return aead.seal(key, secret)


@cache
def system_row(key: str, state: str = "") -> KeyRow:
    """Make the row of a system key."""
    secret = _secret("SK", key)
    blob = _sealed(bytes(range(32)) if state != "foreign" else bytes(32), secret)
    return _row(KeyRecord(SYSTEM_ID, DATES[key], base64_text(blob)), "SK", secret, revoked=state == "revoked")


@cache
def intermediate_row(key: str, parent: str, state: str = "") -> KeyRow:
    """Make the row of an intermediate key under a system key."""
    secret = _secret("IK", key)
    blob = _sealed(_secret("SK", parent), secret)
    place = (SYSTEM_ID, DATES[parent])
    return _row(KeyRecord(IK_ID, DATES[key], base64_text(blob), place), "IK", secret, revoked=state == "revoked")


def keys_in_table(state: str) -> set[str]:
    """Tell which keys a state puts into the table: the old one is under every other."""
    return set() if state == "empty" else {"old", KEY_OF[state]}


class Scene:
    """A key table in a state, and a process with keys in memory whose next look at the table may be due."""

    def __init__(self, state: State, *, enlisted: bool = False, due: bool = False) -> None:
        self.world = World()
        self.world.clock.now = NOW
        self.table = self.world.table = LoggedTable()
        self.log = self.table.log
        self.world.kms = LoggedService(self.log)
        self.process = self.world.process(enlisted=enlisted, max_stale=0)
        self._fill_table(state)
        self._fill_memory(self.process, state, due=due)
        self.log.clear()

    def _fill_table(self, state: State) -> None:
        rows = [system_row(key, state.table_sk if key != "old" else "") for key in keys_in_table(state.table_sk)]
        rows += [
            intermediate_row(key, state.parent, state.table_ik if key != "old" else "")
            for key in keys_in_table(state.table_ik)
        ]
        self.table.texts.update({(row.id, row.created): row.text for row in rows})

    @staticmethod
    def _fill_memory(process: Hierarchy, state: State, *, due: bool) -> None:
        keyring = process._keyring
        if state.cache_sk != "empty":
            system = keyring.system_key(system_row(KEY_OF[state.cache_sk], state.cache_sk))
            keyring.system.put_newest(system)
        if state.cache_ik != "empty":
            key = KEY_OF[state.cache_ik]
            parent = keyring.system.get(SYSTEM_ID, DATES[state.parent])
            evicted = parent is None
            parent = parent or keyring.system_key(system_row(state.parent))
            ik = keyring.intermediate_key(intermediate_row(key, state.parent, state.cache_ik), OWNER, parent)
            keyring.intermediate.put_newest(ik)
            dates = (DATES[key], DATES[state.parent])
            # Who took a key from the future had a clock that was ahead.
            ik.checked = max(NOW - 10, max(dates) - 300)
            ik.usable_until = NOW if due else min(NOW + INTERVAL, min(dates) + process.policy.expire_after)
            ik.seen, ik.look_again = NOW - 10, NOW if due else NOW + INTERVAL
            if evicted:
                keyring.system.forget(parent)

    @staticmethod
    def name(key: Key) -> str:
        """Name a key that came out; its bytes must be those of its name."""
        name = named((key.id, key.created))
        level, _, which = name.partition(":")
        assert which.startswith("new+") or bytes(key.secret) == _secret(level, which), f"{name} has other bytes"
        return name
