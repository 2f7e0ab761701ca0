# SPDX-License-Identifier: Apache-2.0
"""The keys that the examination may open: unwrapped once, a bounded number in memory."""

from __future__ import annotations

from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, cast

from sa_asherah.core import aead
from sa_asherah.core.cache import KeyCache
from sa_asherah.core.key import Key, Secret
from sa_asherah.core.key_record import KeyRecord, Level, check_bind, parse_key_record
from sa_asherah.errors import KeyRecordError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from sqlalchemy import Connection

    from sa_asherah.core.ports import KeyRow, KeyRows, Metastore
    from sa_asherah.doctor.subject import Identity, Subject

__all__ = ["Chest", "UnopenableError"]

_KEPT = 1_000
_AT_ONCE = 500


class UnopenableError(KeyRecordError):
    """The system key does not open the record."""


class Chest:
    """Opens keys, if the subject has a key service."""

    def __init__(self, subject: Subject, metastore: Metastore, connection: Connection) -> None:
        """Start empty.

        Args:
            subject: The names, and the key service.
            metastore: The key table.
            connection: For a key table in the same SQLite database.
        """
        self._subject = subject
        self._metastore = metastore
        self._connection = connection
        self._system: dict[tuple[str, int], Key] = {}
        self._cache = KeyCache(_KEPT)

    def read(self, places: Collection[tuple[str, int]]) -> list[KeyRow]:
        """Read key records as they are now.

        Args:
            places: Ids and dates.

        Returns:
            Those that there are.
        """
        found: list[KeyRow] = []
        rest = iter(places)
        while part := list(islice(rest, _AT_ONCE)):
            found += self._metastore.run(partial(_exact, part), self._connection)
        return found

    def open_system_key(self, record: KeyRecord, text: str, identity: Identity) -> None:
        """Have the key service open a system key.

        Args:
            record: Its record.
            text: The record's text.
            identity: Its names.

        Raises:
            KmsError: The service does not open it.
            KeyRecordError: Its `Bind` does not hold.
        """
        if self._subject.kms is None:
            return
        secret = Secret(self._subject.kms.decrypt_key(record.wrapped))
        if record.bind is not None:  # else reported as such
            check_bind(record, "SK", identity.ids, None, secret)
        self._system[record.id, record.created] = Key(record, text, secret)

    @property
    def has_system_keys(self) -> bool:
        """Whether a system key is open."""
        return bool(self._system)

    def open_key(self, record: KeyRecord, text: str, identity: Identity) -> Key | None:
        """Open an owner's key.

        Args:
            record: Its record.
            text: The record's text.
            identity: What its id says.

        Returns:
            The key; `None` where its system key is not open.

        Raises:
            UnopenableError: Its system key does not open it.
            KeyRecordError: Its `Bind` does not hold.
        """
        parent = self._system.get(record.parent or ("", 0))
        if parent is None:
            return None
        try:
            secret = Secret(aead.open_(parent.secret, record.wrapped))
        except aead.InvalidTag:
            raise UnopenableError(f"key {record.id!r} created {record.created} does not open") from None
        if record.bind is not None:
            check_bind(record, cast("Level", identity.level), identity.ids, identity.partition, secret)
        return Key(record, text, secret, identity.partition, parent)

    def open(self, places: Iterable[tuple[str, int]]) -> dict[tuple[str, int], Key]:
        """Give owners' keys, opened now if need be.

        Args:
            places: Their ids and dates.

        Returns:
            Those that can be had.
        """
        found: dict[tuple[str, int], Key] = {}
        cold: list[tuple[str, int]] = []
        for place in places if self._system else ():
            key = self._cache.get(*place)
            if key is None:
                cold.append(place)
            else:
                found[place] = key
        for row in self.read(cold):
            identity = self._subject.identify(row.id)
            try:
                record = parse_key_record(row)
                key = None if identity is None else self.open_key(record, row.text, identity)
            except KeyRecordError:
                continue  # reported with the key
            if key is not None:
                self._cache.put(key)
                found[row.id, row.created] = key
        return found


def _exact(places: Sequence[tuple[str, int]], rows: KeyRows) -> list[KeyRow]:
    return list(rows.exact(places).values())
