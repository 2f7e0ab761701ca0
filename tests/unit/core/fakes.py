# SPDX-License-Identifier: Apache-2.0
"""A key table, a KMS and a clock in memory, each with a log and a switch for every fault."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from typing import TYPE_CHECKING, Any, TypeVar

from sa_asherah.core import aead
from sa_asherah.core.events import Events, write_audit_log
from sa_asherah.core.hierarchy import Hierarchy
from sa_asherah.core.ids import KeyIds
from sa_asherah.core.policy import CryptoPolicy
from sa_asherah.core.ports import KeyManagementService, KeyRow, KeyRows
from sa_asherah.errors import KmsUnavailableError, MetastoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

T = TypeVar("T")

START = 1_800_000_000
DAY = 86_400
EXPIRE_AFTER = 90 * DAY
INTERVAL = 3_600
IDS = KeyIds("records", "clinic")
SYSTEM_ID = IDS.system_key_id()


def key_id(partition: str) -> str:
    return IDS.intermediate_key_id(partition)


class Clock:
    def __init__(self, now: float = START) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class FakeKMS(KeyManagementService):
    def __init__(self, master_key: bytes = bytes(range(32)), delay: float = 0) -> None:
        self.calls: list[str] = []
        self.is_down = False
        self._master_key = master_key
        self._delay = delay

    def encrypt_key(self, key: bytes) -> bytes:
        self._call("encrypt")
        return aead.seal(self._master_key, key)

    def decrypt_key(self, blob: bytes) -> bytes:
        self._call("decrypt")
        return aead.open_(self._master_key, blob)

    def close(self) -> None: ...

    def _call(self, name: str) -> None:
        self.calls.append(name)
        time.sleep(self._delay)
        if self.is_down:
            raise KmsUnavailableError("the KMS is down", retryable=True, operation=name)


class Table:
    """The rows, as if every insert were committed, and what was asked."""

    def __init__(self) -> None:
        self.texts: dict[tuple[str, int], str] = {}
        self.calls: list[tuple[str, int]] = []
        self.before_insert: Callable[[Sequence[KeyRow]], None] = lambda _rows: None
        self._lock = threading.Lock()

    def newest(self, ids: Sequence[str], not_after: int) -> Mapping[str, KeyRow]:
        self.calls.append(("newest", len(ids)))
        found: dict[str, KeyRow] = {}
        for (row_id, created), text in sorted(self.texts.items()):
            if row_id in ids and created <= not_after:
                found[row_id] = KeyRow(row_id, created, text)
        return found

    def exact(self, pairs: Sequence[tuple[str, int]]) -> Mapping[tuple[str, int], KeyRow]:
        self.calls.append(("exact", len(pairs)))
        return {pair: KeyRow(*pair, self.texts[pair]) for pair in pairs if pair in self.texts}

    def versions(self, key_id: str) -> Sequence[KeyRow]:
        self.calls.append(("versions", 1))
        found = sorted((place for place in self.texts if place[0] == key_id), reverse=True)
        return [KeyRow(*place, self.texts[place]) for place in found]

    def replace(self, row: KeyRow, text: str) -> bool:
        self.calls.append(("replace", 1))
        with self._lock:
            is_same = self.texts.get((row.id, row.created)) == row.text
            if is_same:
                self.texts[row.id, row.created] = text
        return is_same

    def insert(self, rows: Sequence[KeyRow], parent: KeyRow | None = None) -> bool:
        self.calls.append(("insert", len(rows)))
        self.before_insert(rows)
        with self._lock:
            if parent is not None and self.texts.get((parent.id, parent.created)) != parent.text:
                return False
            for row in rows:
                self.texts.setdefault((row.id, row.created), row.text)
        return True

    def remove(self, row: KeyRow) -> bool:
        self.calls.append(("remove", 1))
        with self._lock:
            is_same = self.texts.get((row.id, row.created)) == row.text
            if is_same:
                del self.texts[row.id, row.created]
        return is_same

    def erase(self, tombstones: Sequence[KeyRow], ids: Sequence[str], text: Callable[[KeyRow], str]) -> list[KeyRow]:
        self.calls.append(("erase", len(ids)))
        with self._lock:
            for row in tombstones:
                self.texts.setdefault((row.id, row.created), row.text)
            new = [KeyRow(*place, text(KeyRow(*place, self.texts[place]))) for place in self.texts if place[0] in ids]
            self.texts.update({(row.id, row.created): row.text for row in new})
        return new

    def created(self, row_id: str) -> list[int]:
        return sorted(created for found, created in self.texts if found == row_id)

    def edit(self, place: tuple[str, int], **members: Any) -> None:
        """Change members of a record; `None` removes one."""
        record = json.loads(self.texts[place]) | members
        self.texts[place] = json.dumps({name: value for name, value in record.items() if value is not None})

    def taken_calls(self) -> list[tuple[str, int]]:
        taken, self.calls = self.calls, []
        return taken


class FakeMetastore:
    def __init__(self, table: KeyRows, *, enlisted: bool = False, keeps_all: bool = False) -> None:
        self.enlisted = enlisted
        self.keeps_all = keeps_all
        self.is_down = False
        self.runs = 0
        self.is_closed = False
        self.before_run: Callable[[], None] = lambda: None
        self._table = table

    def run(self, work: Callable[[KeyRows], T], connection: object | None = None, *, writing: bool = False) -> T:
        del connection, writing
        self.runs += 1
        self.before_run()
        if self.is_down:
            raise MetastoreUnavailableError("the key table is down")
        return work(self._table)

    def off_loop(self, call: Callable[[], T]) -> T:
        return call()

    def close(self) -> None:
        self.is_closed = True


class World:
    """One key table and one KMS, and as many processes as one likes."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.kms = FakeKMS()
        self.table = Table()
        self.metastore = FakeMetastore(self.table)
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.events = Events(write_audit_log, lambda name, attributes: self.told.append((name, dict(attributes))))

    def process(
        self, ids: KeyIds = IDS, *, enlisted: bool = False, read_suffixes: Sequence[str] = (), **policy: Any
    ) -> Hierarchy:
        """Return a hierarchy with empty caches, as a process that just started has it."""
        settings = CryptoPolicy(
            expire_after=EXPIRE_AFTER, check_interval=INTERVAL, clock=self.clock, rotation_spread=0, early_rotation=0
        )
        self.metastore = FakeMetastore(self.table, enlisted=enlisted)
        settings = dataclasses.replace(settings, **policy)
        return Hierarchy(ids, settings, self.kms, self.metastore, self.events, read_suffixes=read_suffixes)
