# SPDX-License-Identifier: Apache-2.0
"""An unwrapped key."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, NoReturn

from sa_asherah.core.cell import derive_cell_key
from sa_asherah.core.ports import KeyRow

if TYPE_CHECKING:
    from sa_asherah.core.key_record import KeyRecord

__all__ = ["Key", "Secret"]


class Secret(bytearray):
    """Key bytes that are overwritten when nobody refers to them any more.

    Not before, not even on closing: zeros encrypt like any other key.
    """

    def __del__(self) -> None:
        self[:] = bytes(len(self))


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
    """

    __slots__ = ("_cell_key", "checked", "parent", "partition", "record", "secret", "text", "usable_until")

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
        self.checked = float("-inf")
        self.usable_until = float("-inf")
        self._cell_key: bytes | None = None

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
    def cell_key(self) -> bytes:
        """The key from which the cells' data row keys are derived, 64 bytes."""
        if self._cell_key is None:
            self._cell_key = derive_cell_key(self.secret)
        return self._cell_key

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
