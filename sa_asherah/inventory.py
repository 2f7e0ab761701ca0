# SPDX-License-Identifier: Apache-2.0
"""What a key table holds: how many keys of which level and age, which of them encrypt, when they give way."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from sa_asherah.copies import partition_of
from sa_asherah.core.key_record import parse_key_record
from sa_asherah.core.strict_json import load_object
from sa_asherah.errors import KeyRecordError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sa_asherah.core.ids import KeyIds
    from sa_asherah.core.policy import CryptoPolicy
    from sa_asherah.core.ports import KeyRow

__all__ = ["Age", "Inventory", "SystemKey", "take"]

Place = tuple[str, int]

_DAY = 86_400
_STEPS = 6
"""Bars of a key's life in the table of ages."""


@dataclass(frozen=True, slots=True)
class SystemKey:
    """A system key.

    Attributes:
        id: Its id.
        created: Its date in seconds.
        expires: When it stops encrypting by its age, in seconds.
        state: `encrypts`, `expired`, `superseded` by a newer one, `revoked` or `retired`.
        owner_keys: How many keys of owners it wraps.
    """

    id: str
    created: int
    expires: float
    state: str
    owner_keys: int


@dataclass(slots=True)
class Age:
    """How many keys of owners are so old.

    Attributes:
        days: From how many days on.
        until: To how many days; `None` for all older ones.
        encrypting: How many of them are their owners' newest, and may encrypt.
        decrypting: How many only decrypt.
    """

    days: float
    until: float | None
    encrypting: int = 0
    decrypting: int = 0


@dataclass(slots=True)
class Inventory:
    """What a key table holds of one service and product.

    Attributes:
        system_keys: The system keys, newest first.
        owners: How many owners have keys, erased ones not counted.
        owner_keys: How many keys they have.
        due: How many owners get another key at their next write: theirs, or its system key, is expired or revoked.
        revoked: How many keys of owners are revoked.
        erased: How many owners were erased.
        next_rotation: When the newest system key stops encrypting; `None` if none may encrypt.
        next_owner_rotation: When the first owner gets another key if it writes; `None` if none is to come.
        ages: Keys of owners by age.
        damaged: How many records of ours are no key records.
        others: How many rows belong to another service, product or region.
    """

    system_keys: list[SystemKey] = field(default_factory=list[SystemKey])
    owners: int = 0
    owner_keys: int = 0
    due: int = 0
    revoked: int = 0
    erased: int = 0
    next_rotation: float | None = None
    next_owner_rotation: float | None = None
    ages: list[Age] = field(default_factory=list[Age])
    damaged: int = 0
    others: int = 0


def take(rows: Iterable[KeyRow], regions: Sequence[KeyIds], policy: CryptoPolicy) -> Inventory:
    """Count the keys of a key table; none is unwrapped.

    Args:
        rows: The key table.
        regions: The ids of the regions that count, this one's first: the newest system key is of this one.
        policy: When keys expire.

    Returns:
        What there is.
    """
    count = _Count(regions, policy)
    for row in rows:
        count.add(row)
    return count.result()


class _Count:
    def __init__(self, regions: Sequence[KeyIds], policy: CryptoPolicy) -> None:
        self._regions = regions
        self._policy = policy
        self._now = policy.clock()
        self._found = Inventory()
        self._system: dict[Place, tuple[bool, bool]] = {}
        self._owners: dict[str, list[tuple[int, bool, Place]]] = {}
        self._erased: set[str] = set()
        self._system_ids = [ids.system_key_id() for ids in regions]

    def add(self, row: KeyRow) -> None:
        is_owners = row.id[:4] in {"_IK_", "_XK_"} and partition_of(row.id, self._regions) is not None
        if row.id not in self._system_ids and not is_owners:
            self._found.others += 1
            return
        if row.id.startswith("_XK_"):
            self._erased.add("_IK_" + row.id[4:])
            return
        try:
            record = parse_key_record(row)
        except KeyRecordError:
            self._found.damaged += 1
            return
        if record.parent is None:
            is_retired = "Retired" in load_object(row.text, len(row.text))
            self._system[row.id, row.created] = record.revoked, is_retired
        else:
            self._owners.setdefault(row.id, []).append((row.created, record.revoked, record.parent))

    def result(self) -> Inventory:
        found, life = self._found, self._policy.expire_after / _DAY
        bounds = [life * step / _STEPS for step in range(_STEPS + 1)]
        found.ages = [Age(one, other) for one, other in pairwise(bounds)] + [Age(life, None)]
        for key_id in self._erased:
            self._owners.pop(key_id, None)
        found.erased = len(self._erased)
        found.owners = len(self._owners)
        for key_id, keys in self._owners.items():
            self._count_owner(key_id, keys)
        self._count_system()
        return found

    def _count_owner(self, key_id: str, keys: list[tuple[int, bool, Place]]) -> None:
        found = self._found
        newest = max(created for created, _, _ in keys)
        for created, revoked, parent in keys:
            end = self._policy.encrypts_until(key_id, created, parent[1])
            is_revoked = revoked or self._system.get(parent, (False, False))[0]
            encrypts = created == newest and not is_revoked and self._now <= end
            days = (self._now - created) / _DAY
            age = next(age for age in found.ages if age.until is None or days < age.until)
            age.encrypting += encrypts
            age.decrypting += not encrypts
            found.owner_keys += 1
            found.revoked += revoked
            found.due += created == newest and not encrypts
            if encrypts and (found.next_owner_rotation is None or end < found.next_owner_rotation):
                found.next_owner_rotation = end

    def _count_system(self) -> None:
        children = Counter(parent for keys in self._owners.values() for _, _, parent in keys)
        newest: set[str] = set()
        for place in sorted(self._system, key=lambda place: (self._system_ids.index(place[0]), -place[1])):
            expires = place[1] + self._policy.expire_after
            state = self._state(place, expires, is_newest=place[0] not in newest)
            newest.add(place[0])
            self._found.system_keys.append(SystemKey(*place, expires, state, children[place]))
            if state == "encrypts" and place[0] == self._system_ids[0]:
                self._found.next_rotation = expires

    def _state(self, place: Place, expires: float, *, is_newest: bool) -> str:
        is_revoked, is_retired = self._system[place]
        if is_revoked or is_retired:
            return "revoked" if is_revoked else "retired"
        if not is_newest:
            return "superseded"
        return "encrypts" if self._now <= expires else "expired"
