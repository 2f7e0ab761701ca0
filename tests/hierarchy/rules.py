# SPDX-License-Identifier: Apache-2.0
"""What a process has to do in each state, told a second time: the rules of this package, and those of the reference.

Where they differ (in brackets the decision of the design):

1. A key in memory encrypts until its system key expires, or is known to be revoked; the reference asks at the next
   look only (D11).
2. At a look (every `check_interval`, and on SQLite in every statement) what encrypts must be in the key table. A record
   that the table lost comes back before its key, or the key that hangs on it, encrypts again (D4).
3. The newest key of both levels is read in one query, and with it the owner's tombstone, which is read again in the
   query that reads a new key of the owner back; the reference knows no tombstones and takes the system key in memory
   unseen (D11).
4. A revoked key gives way at once, to one that is dated a second later; the reference goes on with it until its minute
   is over (D5).
5. A key from a clock that is ahead by more than 300 s decrypts but never encrypts (D5).
6. A key that cannot be unwrapped is an error; the reference makes another one (D6, D7). Only a missing system key makes
   a new one, and never in its place: the old one may come back from a backup.
7. Who decrypts looks again every `check_interval`, too, at the key and its system key in one query, and goes on with
   the key in memory whatever is there, unless the record is gone and the owner has a tombstone; the reference loads the
   key anew, and fails if it is gone (D11).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.hierarchy.scene import DATES, KEY_OF, MINUTE, State, keys_in_table, named
from tests.unit.core.fakes import SYSTEM_ID

EXPIRED = "old"
TOO_FAR = "far"  # counts for reading only
BY_DATE = sorted(DATES, key=DATES.__getitem__)


@dataclass
class Told:
    """What happens: the calls in order, and the key that comes out or the error that is raised."""

    calls: list[str] = field(default_factory=list)
    key: str = ""
    error: str = ""


class RefusedError(Exception):
    """The rules end in an error of this name."""


class Rules:
    """One process, one table, one owner: which keys are where, and what was called."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.cached = KEY_OF.get(state.cache_ik, "")
        self.cached_system = KEY_OF.get(state.cache_sk, "")
        self.parent = state.parent
        self.iks = keys_in_table(state.table_ik)
        self.sks = keys_in_table(state.table_sk)
        self.seen: set[str] = set()
        self.unwrapped = {self.cached_system}
        self.calls: list[str] = []

    # Facts

    def newest(self, keys: set[str]) -> str:
        return max(keys - {TOO_FAR}, key=BY_DATE.index, default="")

    def system_is_revoked(self, key: str) -> bool:
        states = (self.state.table_sk,) if key in keys_in_table(self.state.table_sk) else (self.state.cache_sk,)
        return key == "young" and "revoked" in states

    def ik_is_revoked(self, key: str) -> bool:
        in_table = key in keys_in_table(self.state.table_ik)
        return key == "young" and (self.state.table_ik if in_table else self.state.cache_ik) == "revoked"

    def system_is_valid(self, key: str) -> bool:
        return key not in {"", EXPIRED} and not self.system_is_revoked(key)

    def ik_is_valid(self, key: str) -> bool:
        return key not in {"", EXPIRED} and not self.ik_is_revoked(key)

    def is_lost(self, cached: str, keys: set[str]) -> bool:
        newest = self.newest(keys)
        return cached not in {"", TOO_FAR} and (not newest or BY_DATE.index(newest) < BY_DATE.index(cached))

    # Steps

    def is_foreign(self, key: str) -> bool:
        return self.state.table_sk == "foreign" and key == "young"

    def unwrap(self, key: str) -> None:
        """The key service is asked for blobs that this process has not seen."""
        if key not in self.unwrapped or self.is_foreign(key):
            self.calls.append("decrypt")
            if self.is_foreign(key):
                raise RefusedError("KmsCiphertextError")
            self.unwrapped.add(key)

    def store(self, *keys: str) -> None:
        text = " ".join(sorted(keys))
        tombstone = " XK" if "IK:" in text else ""
        self.calls += [f"insert {text}", f"read {text}{tombstone}"]

    def date(self, level: str, *after: str) -> str:
        """Date a new key: this minute, but after every key that it must not be taken for."""
        created = max([MINUTE, *(DATES[key] + 1 for key in after if key not in {"", TOO_FAR})])
        return named(("" if level == "IK" else SYSTEM_ID, created))

    # What happens

    def bring_back(self) -> None:
        """What the table lost and this process holds is inserted again, with the system keys that it needs."""
        newest = self.newest(self.iks)
        lost = self.is_lost(self.cached, self.iks)
        needs_parent = bool(newest) or lost
        if needs_parent and self.parent not in self.seen:
            self.calls.append(f"read SK:{self.parent}")
            self.seen |= {self.parent} & self.sks
        absent = {self.parent} - self.sks if lost or (newest and self.cached_system == self.parent) else set()
        if self.is_lost(self.cached_system, self.sks) and not (needs_parent and self.cached_system == self.parent):
            absent.add(self.cached_system)
        if absent:
            self.store(*(f"SK:{key}" for key in absent))
            self.sks |= absent
            self.seen |= absent
        if lost:
            self.unwrap(self.parent)
            self.store(f"IK:{self.cached}")
            self.iks.add(self.cached)

    def replace(self) -> str:
        """A new key, under the newest system key or a new one."""
        system, newest = self.newest(self.sks), self.newest(self.iks)
        if self.system_is_valid(system):
            try:
                self.unwrap(system)
            except RefusedError:
                raise RefusedError(
                    "KeyExpiredError" if newest and not self.ik_is_valid(newest) else "KmsCiphertextError"
                ) from None
        else:
            self.calls.append("encrypt")
            was_named = self.parent if newest else ""
            self.store(self.date("SK", system, was_named))
        new = self.date("IK", newest)
        self.store(new)
        return new

    def choose(self) -> str:
        """The newest key of the table if it and its system key may encrypt; else a new one."""
        self.calls.append("newest IK SK XK")
        newest, system = self.newest(self.iks), self.newest(self.sks)
        self.seen = {system}
        same = newest == self.cached and self.state.table_ik == self.state.cache_ik and self.state.table_sk != "foreign"
        if same and system == self.parent and self.ik_is_valid(newest) and self.system_is_valid(system):
            return f"IK:{newest}"
        self.bring_back()
        newest = self.newest(self.iks)
        if self.ik_is_valid(newest) and self.parent in self.seen and self.system_is_valid(self.parent):
            self.unwrap(self.parent)
            return f"IK:{newest}"
        return self.replace()

    def load(self, key: str, *, looked_lately: bool) -> str:
        """The key that a value names, from memory or by exact coordinates; nothing else is tried."""
        if key == self.cached and not looked_lately:
            self.calls.append(f"read IK:{key} SK:{self.parent}")
            # What the look finds stops encryption, and takes no key away from those who read, but an erased owner's.
            if key not in self.iks:
                self.calls.append("read XK")
            elif self.is_foreign(self.parent):
                self.calls.append("decrypt")
        if key != self.cached:
            self.calls.append(f"read IK:{key}")
            if key not in self.iks:
                self.calls.append("read XK")  # was the owner erased?
                raise RefusedError("KeyNotFoundError")
            if self.parent != self.cached_system:
                self.calls.append(f"read SK:{self.parent}")
                if self.parent not in self.sks:
                    self.calls.append("read XK")
                    raise RefusedError("KeyNotFoundError")
                self.unwrap(self.parent)
        return f"IK:{key}"


def encrypting(state: State, *, looked_lately: bool) -> Told:
    """Tell what encrypting does; `looked_lately`: the key in memory was checked within `check_interval`."""
    rules = Rules(state)
    cached_parent = state.cache_sk if rules.cached_system == state.parent else "valid"
    may = {rules.cached, state.parent}.isdisjoint({"", EXPIRED, TOO_FAR})
    if looked_lately and may and "revoked" not in {state.cache_ik, cached_parent}:
        return Told(key=f"IK:{rules.cached}")
    try:
        return Told(key=rules.choose(), calls=rules.calls)
    except RefusedError as error:
        return Told(error=str(error), calls=rules.calls)


def decrypting(state: State, key: str, *, looked_lately: bool) -> Told:
    """Tell what decrypting a value does that one of `DATES` encrypted."""
    rules = Rules(state)
    try:
        return Told(key=rules.load(key, looked_lately=looked_lately), calls=rules.calls)
    except RefusedError as error:
        return Told(error=str(error), calls=rules.calls)


@dataclass(frozen=True)
class Summary:
    """What the reference's own table compares: whose key encrypts, and which levels are stored."""

    ik: str
    stored: tuple[str, ...]


def by_the_reference(state: State) -> Summary:
    """Tell what the reference does; it knows `valid`, `expired` (its `retired`) and `empty`."""
    if state.cache_ik == "valid":
        return Summary("cached", ())
    parent = state.table_sk if state.cache_sk == "empty" else state.cache_sk
    if state.table_ik == parent == "valid":
        return Summary("stored", ())
    return Summary("new", ("IK",) if "valid" in {state.cache_sk, state.table_sk} else ("IK", "SK"))


def summary(state: State, told: Told) -> Summary:
    """Reduce what happened here to what the reference's table compares; keys that are brought back count as stored."""
    stored = {word[:2] for call in told.calls if call.startswith("insert") for word in call.split()[1:]}
    key = told.key.removeprefix("IK:")
    ik = "cached" if key == KEY_OF.get(state.cache_ik) else "stored" if key in KEY_OF.get(state.table_ik, "") else "new"
    return Summary(ik, tuple(sorted(stored)))
