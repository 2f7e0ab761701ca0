# SPDX-License-Identifier: Apache-2.0
"""What an operator does with system keys: make one ahead of time, wrap them anew, move them to another service."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

from sa_asherah.core.events import Events, write_audit_log
from sa_asherah.core.ids import TOMBSTONE_DATE
from sa_asherah.core.keyring import Keyring
from sa_asherah.core.rewrap import Migration, Renewal
from sa_asherah.core.selection import Selection
from sa_asherah.errors import KeyNotFoundError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sa_asherah.core.ids import KeyIds
    from sa_asherah.core.key import Key
    from sa_asherah.core.policy import CryptoPolicy
    from sa_asherah.core.ports import KeyManagementService, KeyRows, Metastore
    from sa_asherah.core.rewrap import Report

__all__ = ["Rotation", "SystemKeys", "epoch_place"]


def epoch_place(ids: KeyIds) -> tuple[str, int]:
    """Name the place in the key table of what is known of a running epoch (`shred --epoch`).

    Args:
        ids: The ids of the keys.

    Returns:
        Id and date.
    """
    return "_EP_" + ids.system_key_id()[4:], TOMBSTONE_DATE


@dataclass(frozen=True, slots=True)
class Rotation:
    """What `SystemKeys.rotate` did.

    Attributes:
        id: Id of the system key.
        created: Date of the newest system key in seconds; `None` if there is none, which only a dry run leaves so.
        expires: When it stops encrypting, in seconds.
        due: Whether a successor was called for.
        made: Whether one was made.
    """

    id: str
    created: int | None
    expires: float | None
    due: bool
    made: bool


@runtime_checkable
class _Versioned(Protocol):
    """A service whose master keys have versions, named in a wrapped key before its last colon."""

    def rewrap_key(self, blob: bytes) -> bytes:
        """Wrap a wrapped key with the newest version."""
        ...


class SystemKeys:
    """The system keys of one service and product in one key table; every call reads the table anew and blocks.

    Attributes:
        ids: The ids of the keys.
        regions: The ids of all regions whose keys may be read, this one's first.
        policy: How long processes use keys.
        metastore: The key table; what it writes is committed at once.
        events: Who is told.
    """

    def __init__(
        self,
        ids: KeyIds,
        policy: CryptoPolicy,
        kms: KeyManagementService,
        metastore: Metastore,
        *,
        current: KeyManagementService | None = None,
        events: Events | None = None,
        read_suffixes: Iterable[str] = (),
    ) -> None:
        """Take what the application uses.

        Args:
            ids: The ids of the keys.
            policy: Expiry and dates; that this process may make system keys is taken for granted.
            kms: Wraps and opens system keys.
            metastore: The key table; what it writes must be committed at once.
            current: The service that new system keys belong to, if `kms` knows several.
            events: Who is told; left out, the audit log.
            read_suffixes: Suffixes of other regions whose keys are read.
        """
        self.events = events or Events(write_audit_log)
        self.ids = ids
        self.regions = ids.regions(read_suffixes)
        self.policy = dataclasses.replace(policy, create_system_keys=True)
        self._kms = kms
        self.metastore = metastore
        self._current = current or kms

    def __enter__(self) -> Self:
        """Use as a context manager that closes at the end."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Release what serves an asynchronous driver, if any; the key service stays open."""
        self.metastore.close()

    @property
    def service(self) -> KeyManagementService:
        """The key service; with `KMS_PREVIOUS` the one that knows both."""
        return self._kms

    def newest_key(self) -> Key:
        """Unwrap the newest system key.

        Returns:
            The key.

        Raises:
            KeyNotFoundError: There is none.
            KeyRecordError: Its record does not hold.
            KmsError: The service failed.
            MetastoreError: The key table failed.
        """
        key = self.metastore.run(lambda rows: self._selection(rows).newest_system_key())
        if key is None:
            raise KeyNotFoundError(
                f"there is no system key {self.ids.system_key_id()!r}; check SERVICE_NAME, PRODUCT_ID, REGION_SUFFIX "
                "and the database"
            )
        return key

    def key(self, created: int) -> Key:
        """Unwrap a system key by its date.

        Args:
            created: The date in seconds.

        Returns:
            The key.

        Raises:
            KeyNotFoundError: It is not there.
            KeyRecordError: Its record does not hold.
            KmsError: The service failed.
            MetastoreError: The key table failed.
        """
        place = (self.ids.system_key_id(), created)
        row = self.metastore.run(lambda rows: rows.exact((place,))).get(place)
        if row is None:
            raise KeyNotFoundError(f"system key {place[0]!r} created {created} is not in the table encryption_key")
        return self._keyring().system_key(row)

    def make_key(self) -> Key:
        """Make a system key in any case, newer than the newest.

        Returns:
            The key.

        Raises:
            KeyRecordError: The newest record does not hold.
            KmsError: The service failed.
            MetastoreError: The key table failed.
        """

        def work(rows: KeyRows) -> Key:
            selection = self._selection(rows)
            selection.newest_system_key()
            return selection.make_system_key()

        return self.metastore.run(work, writing=True)

    def _keyring(self) -> Keyring:
        return Keyring(self.ids, self._kms, self.metastore, self.policy, lambda: None, events=self.events)

    def _selection(self, rows: KeyRows) -> Selection:
        return Selection(self._keyring(), self.policy, rows, {}, None, self.events)

    def rotate(self, *, ahead: timedelta = timedelta(days=14), force: bool = False, dry_run: bool = False) -> Rotation:
        """Make a system key if the newest one ends soon. Running processes take it for new keys of owners.

        Args:
            ahead: How long before the end counts as soon.
            force: Whether to make one in any case.
            dry_run: Whether to look only.

        Returns:
            What was found and done.

        Raises:
            UsageError: System keys live no longer than `ahead`, so that every call would make one.
            KeyRecordError: The newest record does not hold.
            KmsError: The service failed, or does not open the newest system key.
            MetastoreError: The key table failed.
        """
        if not 0 <= ahead.total_seconds() < self.policy.expire_after:
            raise UsageError(
                f"a system key lives {self.policy.expire_after / 86_400:g} days (EXPIRE_AFTER_SECS), so it cannot be "
                f"made {ahead.total_seconds() / 86_400:g} days ahead; give less, a sixth of its life, say"
            )
        until = math.inf if force else self.policy.clock() + ahead.total_seconds()

        if not dry_run:
            self._refuse_during_epoch("rotate")

        def work(rows: KeyRows) -> Rotation:
            selection = self._selection(rows)
            # Opened even if its successor is due: a service that cannot open it is not the application's.
            newest = selection.newest_system_key()
            due = (
                newest is None
                or newest.revoked
                or newest.record.retired
                or self.policy.is_expired(newest.created, until)
            )
            made = due and not dry_run
            return self._rotation(selection.make_system_key() if made else newest, due=due, made=made)

        return self.metastore.run(work, writing=True)

    def rewrap(self, *, dry_run: bool = False) -> Report:
        """Bring system keys to the newest version of the master key that wraps them.

        Args:
            dry_run: Whether to do everything but write.

        Returns:
            What was found and done.

        Raises:
            UsageError: The service's keys have no versions.
            MetastoreError: The key table cannot be read.
        """
        self._refuse_during_epoch("rewrap")
        service = self._current
        if not isinstance(service, _Versioned):
            raise UsageError("only Vault's keys have versions to rewrap to: set KMS=vault, or use kms migrate")

        def renew(blob: bytes) -> bytes | None:
            renewed = service.rewrap_key(blob)
            return None if renewed.rpartition(b":")[0] == blob.rpartition(b":")[0] else renewed

        return Renewal(self.ids, self.metastore, self._current, renew, dry_run=dry_run).run(self.events)

    def migrate(self, old: KeyManagementService, *, dry_run: bool = False) -> Report:
        """Move system keys here from another service; processes that know only that one cannot open them then.

        Args:
            old: The service that wraps them now.
            dry_run: Whether to do everything but write.

        Returns:
            What was found and done.

        Raises:
            MetastoreError: The key table cannot be read.
        """
        self._refuse_during_epoch("migrate")
        return Migration(self.ids, self.metastore, old, self._current, dry_run=dry_run).run(self.events)

    def _refuse_during_epoch(self, what: str) -> None:
        place = epoch_place(self.ids)
        if self.metastore.run(lambda rows: rows.exact((place,))):
            raise UsageError(
                f"an epoch is being ended, so that this is no moment to {what}: finish it first (sa-asherah shred "
                "--epoch)"
            )

    def _rotation(self, key: Key | None, *, due: bool, made: bool) -> Rotation:
        system_id = self.ids.system_key_id()
        if key is None:
            return Rotation(system_id, None, None, due=due, made=made)
        return Rotation(system_id, key.created, key.created + self.policy.expire_after, due=due, made=made)
