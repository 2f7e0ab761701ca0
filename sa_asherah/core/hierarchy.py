# SPDX-License-Identifier: Apache-2.0
"""The key hierarchy of one key table: keys to encrypt with, keys to decrypt with."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from sa_asherah.core.current import CurrentKeys
from sa_asherah.core.events import Events
from sa_asherah.core.keyring import Keyring
from sa_asherah.core.lookup import Lookup
from sa_asherah.core.outage import Outage
from sa_asherah.errors import KeyNotFoundError, UsageError, WrongPartitionError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Iterable

    from sa_asherah.core.ids import KeyIds
    from sa_asherah.core.key import Key
    from sa_asherah.core.policy import CryptoPolicy
    from sa_asherah.core.ports import KeyManagementService, Metastore

__all__ = ["Hierarchy"]

T = TypeVar("T")


class Hierarchy:
    """System and intermediate keys of one service and product in one key table. Safe to share between threads.

    `CurrentKeys` says which keys encrypt, `Lookup` finds those that decrypt. Keys of other regions, if their suffixes
    are listed, are read and never written with: see `unlock`.

    Attributes:
        ids: The ids of the keys.
        policy: Expiry, checks, grace.
        row_keys: Dictionaries of data row keys that readers fill; emptied in place when keys change or were checked.
            Readers call `before_reading` before each statement, so that none is used for long without a look.
        events: Who is told.
    """

    def __init__(
        self,
        ids: KeyIds,
        policy: CryptoPolicy,
        kms: KeyManagementService,
        metastore: Metastore,
        events: Events | None = None,
        *,
        read_suffixes: Iterable[str] = (),
    ) -> None:
        """Start with no keys; nothing is read or made yet.

        Args:
            ids: The ids of the keys.
            policy: Expiry, checks, grace.
            kms: Wraps system keys.
            metastore: The key table.
            events: Who is told; left out, nobody.
            read_suffixes: Suffixes of other regions whose keys are read, in this order; the empty one for ids without.

        Raises:
            ConfigurationError: A suffix is unusable, or the policy does not go with the key table.
        """
        self.events = events or Events()
        self.ids = ids
        self.policy = policy
        self._metastore = metastore
        self._outage = Outage()
        self._start(
            Keyring(
                ids,
                kms,
                metastore,
                policy,
                self._forget_row_keys,
                read_suffixes=read_suffixes,
                events=self.events,
            )
        )

    def _start(self, keyring: Keyring) -> None:
        self.row_keys: dict[Hashable, dict[bytes, Any]] = {}
        self._row_keys_since = -math.inf
        self._keyring = keyring
        self._lookup = Lookup(keyring, self.policy, self._metastore, self._outage, self._forget_row_keys, self.events)
        self._current = CurrentKeys(keyring, self.policy, self._metastore, self._outage, self._lookup, self.events)

    def branch(self) -> Hierarchy:
        """Make a hierarchy for one session: with intermediate keys of its own, and all else in common.

        Returns:
            This very hierarchy if the policy has sessions share intermediate keys; else another one, to be given to
            `drop` at the session's end.
        """
        if self.policy.shared_intermediate_keys:
            return self
        other: Hierarchy = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._start(self._keyring.private(other._forget_row_keys))
        return other

    def drop(self, branch: Hierarchy) -> None:
        """Drop the keys of a branch.

        Args:
            branch: What `branch` gave.
        """
        if branch is not self:
            branch._keyring.intermediate.clear()
            branch._forget_row_keys()

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} holds keys and cannot be pickled or copied; make another one")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.ids.system_key_id()!r}>"

    # Keys to encrypt with

    def encryption_keys(self, partitions: Collection[str], connection: object | None = None) -> dict[str, Key]:
        """Find or make the keys that may encrypt now, all in one go.

        Args:
            partitions: The partitions.
            connection: The SQLAlchemy `Connection` that will execute what is encrypted.

        Returns:
            The keys by partition.

        Raises:
            OwnerRequiredError: A partition is unusable.
            KeyRecordError: A key record does not hold.
            KeyExpiredError: A key is expired or revoked, and no successor could be made.
            KmsError: The KMS failed.
            MetastoreError: The key table failed.
        """
        wanted = {self.ids.intermediate_key_id(partition): partition for partition in partitions}
        self._refuse_if_closed()
        chosen = self._current.find(wanted, connection)
        return {wanted[key_id]: key for key_id, key in chosen.items()}

    def newest_keys(self, partitions: Collection[str], connection: object | None = None) -> dict[str, tuple[str, int]]:
        """Name the keys that would encrypt now, without making or unwrapping any.

        Args:
            partitions: The partitions.
            connection: A SQLAlchemy `Connection`, for a key table in memory.

        Returns:
            Id and date of the key by partition; none where a new key would be made.

        Raises:
            KeyRecordError: A key record is malformed.
            MetastoreError: The key table failed.
        """
        wanted = {self.ids.intermediate_key_id(partition): partition for partition in partitions}
        self._refuse_if_closed()
        found = self._current.newest(tuple(wanted), connection)
        return {wanted[key_id]: (key_id, created) for key_id, created in found.items()}

    def distrust(self) -> None:
        """Have every key's record read again before it encrypts: call it after a connection was lost."""
        self._outage.suspect(self.policy.clock())

    def seconds_until_writes_stop(self) -> float:
        """Tell how long writing would go on if neither the key table nor the key service answered from now on.

        It falls while one of them is out of reach, which leaves that time to repair it.

        Returns:
            Seconds until the first owner cannot be written for, of those that were written for since the last check
            and whose keys are in memory; infinity if there are none.
        """
        return self._current.seconds_left()

    # Keys to decrypt with

    def decryption_key(self, partition: str, created: int, connection: object | None = None) -> Key:
        """Find the key that a value names; expired and revoked ones decrypt, too.

        Args:
            partition: The partition, from the row's owner.
            created: Date of the key in seconds, from the value.
            connection: The SQLAlchemy `Connection` that read the value, if it is still there.

        Returns:
            The key.

        Raises:
            OwnerRequiredError: The partition is unusable.
            KeyNotFoundError: The key table has no such key, or not the system key that wraps it.
            KeyRecordError: A key record does not hold.
            KmsError: The KMS failed.
            MetastoreError: The key table failed.
        """
        return self._lookup.find((self.ids.intermediate_key_id(partition), created), partition, connection)

    def readable_ids(self, partition: str) -> tuple[str, ...]:
        """Name the intermediate keys of a partition that may be read: this region's, then the others' in their order.

        A data row record whose `ParentKeyMeta.KeyId` is none of them belongs to another partition.

        Args:
            partition: The partition.

        Returns:
            Key ids.

        Raises:
            OwnerRequiredError: The partition is unusable.
        """
        return tuple(ids.intermediate_key_id(partition) for ids in self._keyring.regions)

    def unlock(
        self,
        partition: str,
        created: int,
        opener: Callable[[Key], T | None],
        connection: object | None = None,
        *,
        key_id: str | None = None,
    ) -> T | None:
        """Open something with the key that it names: this region's, else the other regions' in their order.

        A cell names the date of its key only, so each region's key of that date is tried, and the cell's commitment
        decides. A data row record names the key id, too: then no other key is tried. A key that does not open it is
        read once more first, since another one may have its place now.

        Args:
            partition: The partition, from the row's owner.
            created: Date of the key in seconds, from the value.
            opener: Returns `None` if the key does not open the value (a commitment or tag that does not hold).
            connection: The SQLAlchemy `Connection` that read the value, if it is still there.
            key_id: The key id that the value names, one of `readable_ids`; left out, any of these.

        Returns:
            What `opener` returned; `None` if there are keys, and none of them opens the value.

        Raises:
            OwnerRequiredError: The partition is unusable.
            WrongPartitionError: `key_id` is none of `readable_ids`.
            KeyNotFoundError: The key table has no such key, or not the system key that wraps it.
            KeyRecordError: A key record does not hold.
            KmsError: The KMS failed.
            MetastoreError: The key table failed.
        """
        key_ids = self.readable_ids(partition)
        if key_id is not None:
            if key_id not in key_ids:
                raise WrongPartitionError(
                    f"the value belongs to the key {key_id!r}, its place to {key_ids[0]!r}: it was moved here, or it "
                    "was written in a region whose suffix is not in read_suffixes (RECOVERY_REGION_SUFFIXES)"
                )
            key_ids = (key_id,)
        places = [(one, created) for one in key_ids]
        found, opened = self._unlock_one(places, partition, opener, connection)
        # Another process may have made this region's key after it was looked for in vain.
        if opened is None and found and self._lookup.forget_absent(places):
            _, opened = self._unlock_one(places, partition, opener, connection)
        return opened

    def _unlock_one(
        self,
        places: list[tuple[str, int]],
        partition: str,
        opener: Callable[[Key], T | None],
        connection: object | None,
    ) -> tuple[bool, T | None]:
        """Try keys, first those in memory: what opens a value is the same in any order. Tell whether there were any."""
        missing: KeyNotFoundError | None = None
        found = False
        for place in sorted(places, key=lambda place: not self._lookup.is_here(place)):
            try:
                key = self._lookup.find(place, partition, connection)
                opened = opener(key)
                if opened is None:
                    current = self.reload(key, connection)
                    opened = None if current is key else opener(current)
            except KeyNotFoundError as error:
                missing = missing or error
                continue
            found = True
            if opened is not None:
                return True, opened
        if not found and missing is not None:
            raise missing
        return found, None

    def before_reading(self) -> None:
        """Forget the data row keys from time to time; call it before each statement that reads encrypted columns."""
        now = self.policy.clock()
        is_young = self._row_keys_since <= now < self._row_keys_since + self.policy.check_interval / 10
        # While the table cannot be read, each key's time may be up.
        if self._outage.is_on or not is_young:
            self._row_keys_since = now
            self._forget_row_keys()

    def reload(self, key: Key, connection: object | None = None) -> Key:
        """Read a key's record once more: a value that it should open did not open.

        Args:
            key: A key that this hierarchy gave.
            connection: The SQLAlchemy `Connection` that read the value, if it is still there.

        Returns:
            The same key, or another one if the record holds other bytes now.

        Raises:
            KeyNotFoundError: The record is gone; the key is dropped.
            KeyRecordError: The record does not hold.
            KmsError: The KMS failed.
            MetastoreError: The key table failed.
        """
        try:
            return self._lookup.load((key.id, key.created), key.partition or "", connection)
        except KeyNotFoundError:
            self._keyring.intermediate.forget(key)
            self._forget_row_keys()
            raise

    # The end

    def close(self) -> None:
        """Drop all keys and release the metastore; the KMS stays open. A key still in use is wiped after its use."""
        self._outage.is_closed = True
        self._keyring.clear()
        self._forget_row_keys()
        self._metastore.close()

    def _forget_row_keys(self) -> None:
        for known in list(self.row_keys.values()):
            known.clear()

    def _refuse_if_closed(self) -> None:
        if self._outage.is_closed:
            raise UsageError("this Asherah is closed or detached from the engine; make a new one and attach it")
