# SPDX-License-Identifier: Apache-2.0
"""Examines the key table: every record by itself, its parent, its date, its `Bind`, and what is between records."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from sa_asherah import metastore
from sa_asherah.core.ids import tombstone_of
from sa_asherah.core.key_record import KeyRecord, parse_key_record
from sa_asherah.core.ports import KeyRow
from sa_asherah.core.strict_json import StrictJsonError, created_member, load_object
from sa_asherah.doctor.chest import UnopenableError
from sa_asherah.doctor.findings import Place
from sa_asherah.doctor.records import Stored, stored_keys
from sa_asherah.errors import (
    ConfigurationError,
    KeyRecordError,
    KmsError,
    MetastoreError,
    MetastoreUnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from sqlalchemy import Connection

    from sa_asherah.core.ports import ExternalMetastore
    from sa_asherah.doctor.chest import Chest
    from sa_asherah.doctor.findings import Findings
    from sa_asherah.doctor.notebook import Notebook
    from sa_asherah.doctor.subject import Identity, Subject

__all__ = ["TABLE", "KeyExamination"]

TABLE = "encryption_key"
_AHEAD = 300
_MAX_NAMES = 100
_SHOWN = 5


class KeyExamination:
    """One pass over the key table."""

    def __init__(
        self, connection: Connection, subject: Subject, chest: Chest, notebook: Notebook, findings: Findings
    ) -> None:
        """Prepare.

        Args:
            connection: To the database of the key table.
            subject: The names in the settings.
            chest: Opens keys.
            notebook: Remembers them.
            findings: Where to note what is wrong.
        """
        self._connection = connection
        self._subject = subject
        self._chest = chest
        self._notebook = notebook
        self._findings = findings
        self._system: set[tuple[str, int]] = set()
        self._other_names: set[str] = set()

    def run(self, batch: int) -> bool:
        """Make the pass.

        Args:
            batch: How many rows a page has.

        Returns:
            Whether there is a key table. One that cannot be listed is left to `take`.
        """
        if self._subject.table is not None:
            return self._is_usable(self._subject.table)
        if not self._has_table():
            return False
        system_ids = [ids.system_key_id() for ids in self._subject.regions]
        for stored in stored_keys(self._connection, batch, system_ids):
            self._examine(stored, system=True)
        for stored in stored_keys(self._connection, batch):
            self._examine(stored, system=False)
        self._settle()
        self._compare_names()
        return True

    def take(self, rows: Collection[KeyRow]) -> None:
        """Examine keys that were read one by one: new ones, and those of a key table that cannot be listed.

        Args:
            rows: Their rows.
        """
        found = [Stored(row.id, row.created, str(row.created), row.text) for row in (*self._related(rows), *rows)]
        for system in (True, False):
            for stored in found:
                self._examine(stored, system=system)
        self._settle()

    def finish(self) -> None:
        """Note what only all keys and all values together tell."""
        for key_id, created in self._notebook.survivors():
            self._add("shred-unfinished", key_id, created)
        for key_id, created in self._notebook.without_tombstone():
            self._add("shred-without-tombstone", key_id, created)
        for key_id, created in self._notebook.orphans():
            self._add("key-orphaned", key_id, created)

    def _related(self, rows: Iterable[KeyRow]) -> list[KeyRow]:
        """Read the system keys and tombstones that go with keys of owners, unless they were read before."""
        places: set[tuple[str, int]] = set()
        for row in rows:
            if row.id[:4] in {"_IK_", "_IX_"}:
                places.add(tombstone_of(row.id))
            with suppress(KeyRecordError):
                parent = parse_key_record(row).parent
                places |= {parent} if parent is not None else set()
        return self._chest.read(places - self._notebook.states(places).keys())

    def _is_usable(self, table: ExternalMetastore) -> bool:
        try:
            table.check()
        except MetastoreUnavailableError:
            raise
        except MetastoreError as error:
            self._findings.add("key-table-missing", Place(TABLE), str(error))
            return False
        except ConfigurationError as error:
            self._findings.add("key-table-unsafe", Place(TABLE), str(error))
        return True

    def _has_table(self) -> bool:
        try:
            metastore.check(self._connection, peers=self._subject.ids.peers)
        except MetastoreError:
            self._findings.add("key-table-missing", Place(TABLE))
            return False
        except ConfigurationError as error:
            self._findings.add("key-table-unsafe", Place(TABLE), str(error))
        finally:
            self._connection.rollback()
        return True

    def _settle(self) -> None:
        """Decide on revoked keys that could not be tried; if keys can be, their system key is missing or bad."""
        self._notebook.settle("good" if self._subject.kms is None else "bad")

    def _add(self, code: str, key_id: str, date: object, detail: str = "") -> None:
        self._findings.add(code, Place(TABLE, None, (key_id, str(date))), detail)

    def _examine(self, stored: Stored, *, system: bool) -> None:
        identity = self._subject.identify(stored.id)
        if identity is None:
            if not system:
                self._leave(stored.id)
            return
        if (identity.level == "SK") != system:
            return
        if identity.level == "IK" and self._is_of_longer_names(stored, identity):
            self._findings.foreign += 1
            return
        self._findings.keys += 1
        if stored.created is None:
            self._add("key-date-unusable", stored.id, stored.date)
            return
        if not self._notebook.add(stored.id, stored.created, identity.level, identity.partition):
            self._add("key-twice", stored.id, stored.created)
            return
        if identity.level == "XK":
            self._notebook.bury(identity.partition or "")
        elif (record := self._parsed(stored, stored.created)) is not None:
            self._judge(record, stored.text, identity)

    def _leave(self, key_id: str) -> None:
        """Count what belongs to others, and remember names that may be ours."""
        self._findings.foreign += 1
        if key_id.startswith("_SK_") and len(self._other_names) < _MAX_NAMES:
            self._other_names.add(key_id)

    def _is_of_longer_names(self, stored: Stored, identity: Identity) -> bool:
        """Tell whether a key is of a service whose name ends with ours, as its parent then says."""
        try:
            record = parse_key_record(KeyRow(stored.id, stored.created or 0, stored.text))
        except KeyRecordError:
            return False
        tail = "" if record.parent is None else record.parent[0].removeprefix("_SK")
        return len(tail) > len(identity.ids.tail) and tail.endswith(identity.ids.tail) and stored.id.endswith(tail)

    def _parsed(self, stored: Stored, created: int) -> KeyRecord | None:
        try:
            return parse_key_record(KeyRow(stored.id, created, stored.text))
        except KeyRecordError as error:
            self._notebook.mark(stored.id, created, "bad")
            named = _created_in(stored.text)
            if named is not None and named != created:
                self._add("key-date-differs", stored.id, created, f"it says {named}")
            else:
                self._add("key-malformed", stored.id, created, str(error).partition("is refused: ")[2].split(". ")[0])
        return None

    def _judge(self, record: KeyRecord, text: str, identity: Identity) -> None:
        place = record.id, record.created
        if record.created > self._subject.clock() + _AHEAD:
            self._add("key-from-future", *place)
        other = self._notebook.same_wrapped(record.wrapped, *place)
        if other is not None:
            self._add("key-copied", *place, f"{other[0]} created {other[1]}")
        if record.bind is None and not self._subject.ids.peers:
            self._add("key-unbound", *place)
        if identity.level == "SK":
            self._open_system_key(record, text, identity)
            return
        if record.parent is None or record.parent[0] != identity.ids.system_key_id():
            self._refuse("key-parent-foreign", record)
        elif record.parent not in self._system:
            self._refuse("key-parent-missing", record, f"{record.parent[0]} created {record.parent[1]}")
        else:
            self._open_key(record, text, identity)

    def _refuse(self, code: str, record: KeyRecord, detail: str = "") -> None:
        self._notebook.mark(record.id, record.created, "bad")
        self._add(code, record.id, record.created, detail)

    def _open_system_key(self, record: KeyRecord, text: str, identity: Identity) -> None:
        self._system.add((record.id, record.created))
        try:
            self._chest.open_system_key(record, text, identity)
        except KmsError as error:
            self._refuse("system-key-unopenable", record, str(error))
        except KeyRecordError:
            self._refuse("key-bind-broken", record)

    def _open_key(self, record: KeyRecord, text: str, identity: Identity) -> None:
        try:
            key = self._chest.open_key(record, text, identity)
        except UnopenableError:
            if record.revoked:  # what shred leaves; `finish` tells whether the tombstone is there
                self._notebook.mark(record.id, record.created, "erased")
            else:
                self._refuse("key-unopenable", record)
        except KeyRecordError:
            self._refuse("key-bind-broken", record)
        else:
            if key is None and record.revoked:  # a tombstone will say of it that it is destroyed
                self._notebook.mark(record.id, record.created, "revoked")
            elif key is None and self._subject.kms is not None:
                self._notebook.mark(record.id, record.created, "bad")  # its system key is reported

    def _compare_names(self) -> None:
        if not self._system and self._other_names:
            self._findings.add(
                "names-differ", Place(TABLE), f"there are {', '.join(sorted(self._other_names)[:_SHOWN])}"
            )
        elif self._system:
            own = self._subject.ids.system_key_id() + "_"
            for key_id in sorted(self._other_names):
                if key_id.startswith(own):
                    self._findings.add("region-unread", Place(TABLE), key_id)


def _created_in(text: str) -> int | None:
    try:
        return created_member(load_object(text, len(text)))
    except StrictJsonError:
        return None
