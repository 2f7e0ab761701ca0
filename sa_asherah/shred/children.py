# SPDX-License-Identifier: Apache-2.0
"""The keys that a system key wraps: opened, and wrapped by another system key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from sa_asherah.copies import partition_of
from sa_asherah.core import aead
from sa_asherah.core.erasure import changed
from sa_asherah.core.ids import tombstone_of
from sa_asherah.core.key_record import bind, check_bind, parse_key_record
from sa_asherah.core.strict_json import base64_text
from sa_asherah.errors import KeyNotFoundError, KeyRecordError, KmsCiphertextError, KmsError
from sa_asherah.metastore.stored import pages

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from sqlalchemy import Engine

    from sa_asherah.copies import Export
    from sa_asherah.core.key import Key
    from sa_asherah.core.key_record import KeyRecord, Level
    from sa_asherah.core.ports import KeyRow, KeyRows
    from sa_asherah.core.system_keys import SystemKeys

__all__ = ["Children", "Findings"]

_Opened = tuple["KeyRecord", str | None, bytes]


@dataclass(slots=True)
class Findings:
    """What a pass over the keys of owners found.

    Attributes:
        opened: How many keys open.
        moved: How many were wrapped by another system key.
        erased: How many are left over of erased owners.
        problems: How many do not open although nobody erased their owner, or open although somebody did.
        first: What is wrong with the first of these.
    """

    opened: int = 0
    moved: int = 0
    erased: int = 0
    problems: int = 0
    first: str = ""

    def add(self, problem: str) -> None:
        """Count a problem.

        Args:
            problem: What is wrong.
        """
        self.problems += 1
        self.first = self.first or problem


class Children:
    """The keys of owners in one key table. Of the table no more is in memory than a page."""

    def __init__(self, engine: Engine, system_keys: SystemKeys) -> None:
        """Use a key table.

        Args:
            engine: The engine of its database.
            system_keys: The system keys in it.
        """
        self._engine = engine
        self._system_keys = system_keys
        self._ids = system_keys.ids
        self._parents: dict[int, Key] = {}

    def check(self) -> Findings:
        """Open every key of the table, as a process does that just started.

        Returns:
            What was found.
        """
        self._parents = {}
        findings = Findings()
        for page in pages(self._engine):
            mine = [row for row in page if self._is_child(row)]
            erased = self._erased(mine)
            for row in mine:
                self._opened(row, erased, findings)
        return findings

    def check_copy(self, export: Export) -> Findings:
        """Open every key of a copy of the table.

        Args:
            export: The copy.

        Returns:
            What was found.
        """
        findings = Findings()
        erased = {row.id for row in export.rows if row.id.startswith("_XK_")}
        for row in export.rows:
            if self._is_child(row):
                self._opened(row, erased, findings)
        return findings

    def is_living(self, row: KeyRow) -> bool:
        """Tell whether somebody can use a key; if that cannot be told, somebody can.

        Args:
            row: Its record.

        Returns:
            Whether it opens.
        """
        try:
            self._secret(parse_key_record(row), partition_of(row.id, (self._ids,)))
        except (KeyRecordError, KeyNotFoundError, KmsCiphertextError):
            return False
        except KmsError:
            return True
        return True

    def move(self, retired: Collection[int], parent: Key) -> Findings:
        """Wrap what retired system keys wrap by another one: same keys, same ids, same dates.

        Args:
            retired: Dates of the system keys that are to wrap nothing any more.
            parent: The system key that is to wrap it.

        Returns:
            What was found and done.
        """
        moved, missed = 0, 1
        findings = Findings()
        while missed:  # somebody changed a record meanwhile: once more
            self._parents = {}
            findings, missed = Findings(), 0
            for page in pages(self._engine):
                mine = [row for row in page if self._is_under(row, retired)]
                erased = self._erased(mine)
                pairs = [(row, self._moved(row, erased, findings, parent)) for row in mine]
                done = [(row, text) for row, text in pairs if text is not None]
                count = self._system_keys.metastore.run(_replacing(done), writing=True) if done else 0
                moved += count
                missed += len(done) - count
        findings.moved = moved
        return findings

    def _is_child(self, row: KeyRow) -> bool:
        return row.id.startswith(("_IK_", "_IX_")) and row.id.endswith(self._ids.tail)

    def _is_under(self, row: KeyRow, retired: Collection[int]) -> bool:
        if not self._is_child(row):
            return False
        try:
            parent = parse_key_record(row).parent
        except KeyRecordError:
            return True  # told where it is opened
        return parent is not None and parent[0] == self._ids.system_key_id() and parent[1] in retired

    def _erased(self, rows: Sequence[KeyRow]) -> set[str]:
        """Name the tombstones of the owners of some keys."""
        places = tuple({tombstone_of(row.id) for row in rows})
        if not places:
            return set()
        return {place[0] for place in self._system_keys.metastore.run(lambda key_rows: key_rows.exact(places))}

    def _opened(self, row: KeyRow, erased: Collection[str], findings: Findings) -> _Opened | None:
        is_erased = tombstone_of(row.id)[0] in erased
        try:
            record = parse_key_record(row)
            partition = partition_of(row.id, (self._ids,))
            secret = self._secret(record, partition)
        except (KeyRecordError, KeyNotFoundError, KmsCiphertextError) as error:
            if is_erased:
                findings.erased += 1
            else:
                findings.add(str(error))
            return None
        if is_erased:
            findings.add(
                f"key {row.id!r} created {row.created} opens although its owner has a tombstone: finish the erasure "
                "(shred --finish, or --replay after a restore), or delete the tombstone if nobody erased the owner"
            )
            return None
        findings.opened += 1
        return record, partition, secret

    def _secret(self, record: KeyRecord, partition: str | None) -> bytes:
        if record.parent is None or record.parent[0] != self._ids.system_key_id():
            raise KeyRecordError(f"key record {record.id!r} created {record.created} names no system key of ours")
        try:
            secret = aead.open_(self._parent(record.parent[1]).secret, record.wrapped)
        except aead.InvalidTag:
            secret = None
        if secret is None:
            raise KeyRecordError(
                f"key record {record.id!r} created {record.created} is refused: its system key created "
                f"{record.parent[1]} does not open it; restore the row from a backup, or erase its owner"
            )
        check_bind(record, _level(record.id), self._ids, partition, secret)
        return secret

    def _parent(self, created: int) -> Key:
        key = self._parents.get(created)
        if key is None:
            key = self._parents[created] = self._system_keys.key(created)
        return key

    def _moved(self, row: KeyRow, erased: Collection[str], findings: Findings, parent: Key) -> str | None:
        opened = self._opened(row, erased, findings)
        if opened is None:
            return None
        record, partition, secret = opened
        place = (parent.id, parent.created)
        mac = bind(_level(row.id), self._ids, partition, record.id, record.created, place, secret)
        meta = {"KeyId": parent.id, "Created": parent.created}
        return changed(row.text, Key=base64_text(parent.wrap(secret)), ParentKeyMeta=meta, Bind=mac)


def _replacing(pairs: list[tuple[KeyRow, str]]) -> Callable[[KeyRows], int]:
    return lambda rows: sum(rows.replace(row, text) for row, text in pairs)


def _level(key_id: str) -> Level:
    return cast("Level", key_id[1:3])
