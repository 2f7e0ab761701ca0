# SPDX-License-Identifier: Apache-2.0
"""Merges an export of key records into a key table, restored from a backup perhaps: nothing there is changed."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from sa_asherah.copies import partition_of
from sa_asherah.core.erasure import erased as overwritten
from sa_asherah.core.ids import MAX_CREATED
from sa_asherah.core.key_record import parse_key_record
from sa_asherah.core.keyring import Keyring
from sa_asherah.core.rewrap import Problem
from sa_asherah.errors import AsherahError, ConfigurationError, KeyNotFoundError, KeyRecordError, KmsUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from sa_asherah.copies import Export
    from sa_asherah.core.ids import KeyIds
    from sa_asherah.core.key import Key
    from sa_asherah.core.policy import CryptoPolicy
    from sa_asherah.core.ports import KeyManagementService, KeyRow, KeyRows, Metastore

__all__ = ["Merge", "MergeReport"]

_PAGE = 500

Place = tuple[str, int]


@dataclass(slots=True)
class MergeReport:
    """What merging an export into a key table found and did.

    Attributes:
        dry_run: Whether nothing was written; `inserted` then counts what would have been.
        found: How many records the export has.
        inserted: How many the table did not have.
        already: How many it had, with the same key.
        erased: How many were left out because their owner was erased, here or where the export was made.
        conflicts: Those whose place in the table holds another key, or that such a key would have to open.
        failed: Those that do not hold or could not be compared; they were left out.
        to_revoke: Keys that the export knows as revoked and the table does not.
    """

    dry_run: bool = False
    found: int = 0
    inserted: int = 0
    already: int = 0
    erased: int = 0
    conflicts: list[Problem] = field(default_factory=list[Problem])
    failed: list[Problem] = field(default_factory=list[Problem])
    to_revoke: list[Place] = field(default_factory=list[Place])

    @property
    def is_complete(self) -> bool:
        """Whether there were records, and the table can open now all that they can open."""
        return self.found > 0 and not self.conflicts and not self.failed


class Merge:
    """Inserts the records of an export that a key table lacks; changes none that is there.

    A record is inserted only if its key opens and belongs in its place. Interrupted, it is started again. What it keeps
    in memory grows with what is in conflict, failed or erased, not with the export.
    """

    def __init__(
        self,
        ids: KeyIds,
        kms: KeyManagementService,
        metastore: Metastore,
        policy: CryptoPolicy,
        *,
        read_suffixes: Iterable[str] = (),
        dry_run: bool = False,
    ) -> None:
        """Prepare.

        Args:
            ids: The ids of the keys.
            kms: Opens system keys, those of the table and those of the export.
            metastore: The key table; what it writes must be committed at once.
            policy: How many keys to keep in memory.
            read_suffixes: Suffixes of other regions whose keys belong to the table.
            dry_run: Whether to do everything but write.
        """
        suffixes = tuple(read_suffixes)
        self._ids = ids
        self._regions = ids.regions(suffixes)
        self._metastore = metastore
        self._dry_run = dry_run
        # Two: the same place may hold one key here and another one there.
        self._theirs = self._keyring(kms, policy, suffixes)
        self._ours = self._keyring(kms, policy, suffixes)
        self._report = MergeReport(dry_run=dry_run)
        self._system_rows: dict[Place, KeyRow] = {}
        self._erased: set[str] = set()
        self._refused: set[Place] = set()
        self._conflicts: set[Place] = set()
        """Those, and the system keys that they need."""
        self._unopened: set[KeyRow] = set()

    def _keyring(self, kms: KeyManagementService, policy: CryptoPolicy, suffixes: Sequence[str]) -> Keyring:
        return Keyring(self._ids, kms, self._metastore, policy, lambda: None, read_suffixes=suffixes)

    def conflicts(self, export: Export) -> Iterator[KeyRow]:
        """Give the records that were in conflict, with the system keys of the export that open them.

        Args:
            export: What was merged.

        Yields:
            The rows.
        """
        for row in export.rows:
            if (row.id, row.created) in self._conflicts:
                yield row

    def run(self, export: Export) -> MergeReport:
        """Merge.

        Args:
            export: What to merge.

        Returns:
            What was found and done.

        Raises:
            ConfigurationError: The export is of another service or product.
            KmsUnavailableError: The key service cannot be reached.
            MetastoreError: The key table cannot be read or written.
        """
        if (export.service, export.product) != (self._ids.service, self._ids.product):
            raise ConfigurationError(
                f"the export is of service {export.service!r} and product {export.product!r}, the settings name "
                f"{self._ids.service!r} and {self._ids.product!r}: check SERVICE_NAME, PRODUCT_ID and the file"
            )
        self._report.found = len(export)
        system_ids = {ids.system_key_id() for ids in self._regions}
        marks: list[KeyRow] = []
        for row in export.rows:
            if _is_mark(row):
                marks.append(row)
            elif row.id in system_ids:
                self._system_rows[row.id, row.created] = row
        self._erased = {row.id[4:] for row in marks}
        others = (row for row in export.rows if not _is_mark(row) and row.id not in system_ids)
        # Marks of erased owners are committed before their keys, system keys before the keys that they wrap: what is
        # inserted always holds, wherever this ends.
        for rows in map(iter, (marks, self._system_rows.values(), others)):
            while page := list(itertools.islice(rows, _PAGE)):
                self._merge(page)
        return self._report

    def _merge(self, page: Sequence[KeyRow]) -> None:
        stored, erased = self._metastore.run(lambda rows: _look(rows, page))
        self._erased |= erased
        missing = [row for row in page if self._is_missing(row, stored.get((row.id, row.created)))]
        if missing and not self._dry_run:
            self._insert(missing)
            stored, erased = self._metastore.run(lambda rows: _look(rows, missing))
            self._erase({row.id for row in missing if row.id[4:] in erased - self._erased})
            missing = [row for row in missing if self._is_stored(row, stored.get((row.id, row.created)))]
        self._report.inserted += len(missing)

    def _insert(self, missing: Sequence[KeyRow]) -> None:
        children: dict[Place | None, list[KeyRow]] = {}
        for row in missing:
            parent = None if _is_mark(row) else parse_key_record(row).parent
            children.setdefault(parent, []).append(row)
        for parent, rows in children.items():
            self._metastore.run(partial(_insert, rows, parent), writing=True)

    def _erase(self, ids: set[str]) -> None:
        """Overwrite what was inserted while its owner was being erased."""
        if ids:
            self._metastore.run(lambda rows: rows.erase((), sorted(ids), overwritten), writing=True)
            self._erased |= {key_id[4:] for key_id in ids}

    def _is_stored(self, row: KeyRow, stored: KeyRow | None) -> bool:
        if row.id[4:] in self._erased and not _is_mark(row):
            self._report.erased += 1
            return False
        if stored is not None and parse_key_record(stored) == parse_key_record(row):
            return True
        if self._is_missing(row, stored):
            reason = "the key table does not take it: its system key is retired, or a trigger removes it"
            self._report.failed.append(Problem(row.id, row.created, reason))
        return False

    def _is_missing(self, row: KeyRow, stored: KeyRow | None) -> bool:
        """Judge a record, given what its place in the table holds: tell whether it should be inserted."""
        try:
            return self._judge(row, stored)
        except KmsUnavailableError:
            raise
        except AsherahError as error:
            self._report.failed.append(Problem(row.id, row.created, str(error)))
            return False

    def _judge(self, row: KeyRow, stored: KeyRow | None) -> bool:
        if _is_mark(row):
            self._report.already += stored is not None
            return stored is None
        if row.id[4:] in self._erased:
            self._report.erased += 1
            return False
        record = parse_key_record(row)
        if stored is None:
            if record.parent in self._refused:
                self._refuse(row, "its system key's place in the table holds another key, which does not open it")
                return False
            self._opened(self._theirs, row, self._system_rows)
            return True
        known = parse_key_record(stored)
        if not self._is_same(row, stored):
            self._refuse(row, "its place in the table holds another key")
            return False
        self._report.already += 1
        if record.revoked and not known.revoked:
            self._report.to_revoke.append((row.id, row.created))
        return False

    def _refuse(self, row: KeyRow, reason: str) -> None:
        place, parent = (row.id, row.created), parse_key_record(row).parent
        self._refused.add(place)
        self._conflicts |= {place} if parent is None else {place, parent}
        self._report.conflicts.append(Problem(*place, reason))

    def _is_same(self, row: KeyRow, stored: KeyRow) -> bool:
        theirs, ours = parse_key_record(row), parse_key_record(stored)
        if dataclasses.replace(theirs, revoked=ours.revoked) == ours:
            return True
        # A system key may have been wrapped anew since.
        return self._opened(self._theirs, row, self._system_rows).has_same_secret(self._opened(self._ours, stored, {}))

    def _opened(self, keyring: Keyring, row: KeyRow, system_rows: Mapping[Place, KeyRow]) -> Key:
        record = keyring.record(row)
        if record.parent is None:
            return keyring.system_key(row)
        partition = partition_of(row.id, self._regions)
        if partition is None or not row.id.startswith("_IK_"):
            raise KeyRecordError(f"{row.id!r} is no key of this service; make the export anew with its settings")
        parent = system_rows.get(record.parent) or self._system_row(record.parent)
        return keyring.intermediate_key(row, partition, self._opened_parent(keyring, parent))

    def _opened_parent(self, keyring: Keyring, row: KeyRow) -> Key:
        if row in self._unopened:  # ask the key service once, not for each key under it
            raise KeyRecordError(f"its system key {row.id!r} created {row.created} does not open")
        try:
            return keyring.system_key(row)
        except KmsUnavailableError:
            raise
        except AsherahError:
            self._unopened.add(row)
            raise

    def _system_row(self, place: Place) -> KeyRow:
        stored = self._metastore.run(lambda rows: rows.exact((place,))).get(place)
        if stored is None:
            raise KeyNotFoundError(
                f"its system key {place[0]!r} created {place[1]} is neither in the export nor in the table; import an "
                "export that has it first"
            )
        return stored


def _is_mark(row: KeyRow) -> bool:
    """Tell whether a row says that its owner was erased."""
    return row.id.startswith("_XK_")


def _insert(children: Sequence[KeyRow], parent: Place | None, rows: KeyRows) -> None:
    row = None if parent is None else rows.exact((parent,)).get(parent)
    if parent is None or row is not None:
        rows.insert(children, row)


def _look(rows: KeyRows, page: Sequence[KeyRow]) -> tuple[Mapping[Place, KeyRow], set[str]]:
    """Read the places of some records, and which of their owners are erased."""
    erased = rows.newest(tuple({f"_XK_{row.id[4:]}" for row in page}), MAX_CREATED)
    return rows.exact([(row.id, row.created) for row in page]), {key_id[4:] for key_id in erased}
