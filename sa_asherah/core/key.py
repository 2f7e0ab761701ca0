# SPDX-License-Identifier: Apache-2.0
"""An unwrapped key."""

from __future__ import annotations

import hmac
import math
from itertools import count
from typing import TYPE_CHECKING, NoReturn, SupportsIndex

from sa_asherah.core import aead
from sa_asherah.core.cell import derive_cell_key
from sa_asherah.core.ports import KeyRow

if TYPE_CHECKING:
    from sa_asherah.core.key_record import KeyRecord

__all__ = ["Key", "Secret", "Wraps"]


class Secret(bytearray):
    """Key bytes that are overwritten when nobody refers to them any more.

    Not before, not even on closing: zeros encrypt like any other key. As a key of a dictionary it stands for itself.
    """

    __hash__ = object.__hash__  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]

    def __del__(self) -> None:
        self[:] = bytes(len(self))

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    __str__ = __repr__

    def __reduce_ex__(self, _protocol: SupportsIndex) -> NoReturn:
        raise TypeError("a key cannot be pickled or copied; pass the partition and fetch the key where it is used")


class Wraps:
    """How many keys this process wrapped with one key; it outlives the key's stay in memory.

    Attributes:
        number: How many.
    """

    __slots__ = ("_numbers", "number")

    def __init__(self) -> None:
        """Start at none."""
        self._numbers = count(1)
        self.number = 0

    def add(self) -> None:
        """Count one more. Threads need no lock for it."""
        self.number = next(self._numbers)


class Key:
    """A system or intermediate key in clear, with the record it came from.

    Attributes:
        record: The key's record as it was read last.
        text: The record's text in the key table: the same text needs no second look.
        secret: The key, 32 bytes.
        partition: The partition of an intermediate key, `None` for a system key.
        parent: The system key that wraps an intermediate key.
        checked: When the record was last found to be its id's newest and valid, in seconds.
        usable_until: Until when it may encrypt without another look at the key table.
        seen: When the record was last read, in seconds.
        look_again: Until when it may decrypt without another look at the key table.
        wraps: How many keys this process wrapped with it.
        max_wraps: How many it may wrap without another look at the key table.
    """

    __slots__ = (
        "_cell_key",
        "checked",
        "look_again",
        "max_wraps",
        "parent",
        "partition",
        "record",
        "secret",
        "seen",
        "text",
        "usable_until",
        "wraps",
    )

    def __init__(
        self, record: KeyRecord, text: str, secret: Secret, partition: str | None = None, parent: Key | None = None
    ) -> None:
        """Take a key whose record held.

        Args:
            record: The record.
            text: The record's text.
            secret: The key.
            partition: The partition of an intermediate key.
            parent: The system key of an intermediate key.
        """
        self.record = record
        self.text = text
        self.secret = secret
        self.partition = partition
        self.parent = parent
        self.checked = -math.inf
        self.usable_until = -math.inf
        self.seen = -math.inf
        self.look_again = -math.inf
        self.wraps = Wraps()
        self.max_wraps = math.inf
        self._cell_key: Secret | None = None

    @property
    def id(self) -> str:
        """Key id."""
        return self.record.id

    @property
    def created(self) -> int:
        """Date of the key in seconds."""
        return self.record.created

    @property
    def revoked(self) -> bool:
        """Whether the key, or the system key that wraps it, was revoked when its record was read last."""
        return self.record.revoked or (self.parent is not None and self.parent.record.revoked)

    @property
    def row(self) -> KeyRow:
        """The key's row in the key table."""
        return KeyRow(self.record.id, self.record.created, self.text)

    @property
    def cell_key(self) -> Secret:
        """The key from which the cells' data row keys are derived, 64 bytes."""
        if self._cell_key is None:
            self._cell_key = Secret(derive_cell_key(self.secret))
        return self._cell_key

    def wrap(self, secret: bytes) -> bytes:
        """Wrap a key with this one, and count it: no key wraps more than `max_wraps` others in one process.

        Args:
            secret: The other key.

        Returns:
            The wrapped key.
        """
        self.wraps.add()
        return aead.seal(self.secret, secret)

    def has_same_secret(self, other: Key) -> bool:
        """Compare two keys in constant time; id and date do not tell, the bytes do.

        Args:
            other: The other key.

        Returns:
            Whether both hold the same bytes.
        """
        return hmac.compare_digest(self.secret, other.secret)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id!r} created {self.created}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a key cannot be pickled or copied; pass the partition and fetch the key where it is used")
