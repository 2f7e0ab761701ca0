# SPDX-License-Identifier: Apache-2.0
"""What an operator does with system keys: make one ahead of time, wrap them anew, move them to another service."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

from sa_asherah.core.events import Events, write_audit_log
from sa_asherah.core.keyring import Keyring
from sa_asherah.core.rewrap import Migration, Renewal
from sa_asherah.core.selection import Selection
from sa_asherah.errors import UsageError

if TYPE_CHECKING:
    from sa_asherah.core.ids import KeyIds
    from sa_asherah.core.key import Key
    from sa_asherah.core.policy import CryptoPolicy
    from sa_asherah.core.ports import KeyManagementService, KeyRows, Metastore
    from sa_asherah.core.rewrap import Report

__all__ = ["Rotation", "SystemKeys"]


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
    """The system keys of one service and product in one key table; every call reads the table anew and blocks."""

    def __init__(
        self,
        ids: KeyIds,
        policy: CryptoPolicy,
        kms: KeyManagementService,
        metastore: Metastore,
        *,
        current: KeyManagementService | None = None,
        events: Events | None = None,
    ) -> None:
        """Take what the application uses.

        Args:
            ids: The ids of the keys.
            policy: Expiry and dates; that this process may make system keys is taken for granted.
            kms: Wraps and opens system keys.
            metastore: The key table; what it writes must be committed at once.
            current: The service that new system keys belong to, if `kms` knows several.
            events: Who is told; left out, the audit log.
        """
        self._events = events or Events(write_audit_log)
        self._ids = ids
        self._policy = dataclasses.replace(policy, create_system_keys=True)
        self._kms = kms
        self._metastore = metastore
        self._current = current or kms

    def __enter__(self) -> Self:
        """Use as a context manager that closes at the end."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Release what serves an asynchronous driver, if any; the key service stays open."""
        self._metastore.close()

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
        if not 0 <= ahead.total_seconds() < self._policy.expire_after:
            raise UsageError(
                f"a system key lives {self._policy.expire_after / 86_400:g} days (EXPIRE_AFTER_SECS), so it cannot be "
                f"made {ahead.total_seconds() / 86_400:g} days ahead; give less, a sixth of its life, say"
            )
        until = math.inf if force else self._policy.clock() + ahead.total_seconds()

        def work(rows: KeyRows) -> Rotation:
            keyring = Keyring(self._ids, self._kms, self._metastore, self._policy, lambda: None, events=self._events)
            selection = Selection(keyring, self._policy, rows, {}, None, self._events)
            # Opened even if its successor is due: a service that cannot open it is not the application's.
            newest = selection.newest_system_key()
            due = newest is None or newest.revoked or self._policy.is_expired(newest.created, until)
            made = due and not dry_run
            return self._rotation(selection.make_system_key() if made else newest, due=due, made=made)

        return self._metastore.run(work, writing=True)

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
        service = self._current
        if not isinstance(service, _Versioned):
            raise UsageError("only Vault's keys have versions to rewrap to: set KMS=vault, or use kms migrate")

        def renew(blob: bytes) -> bytes | None:
            renewed = service.rewrap_key(blob)
            return None if renewed.rpartition(b":")[0] == blob.rpartition(b":")[0] else renewed

        return Renewal(self._ids, self._metastore, self._current, renew, dry_run=dry_run).run(self._events)

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
        return Migration(self._ids, self._metastore, old, self._current, dry_run=dry_run).run(self._events)

    def _rotation(self, key: Key | None, *, due: bool, made: bool) -> Rotation:
        system_id = self._ids.system_key_id()
        if key is None:
            return Rotation(system_id, None, None, due=due, made=made)
        return Rotation(system_id, key.created, key.created + self._policy.expire_after, due=due, made=made)
