# SPDX-License-Identifier: Apache-2.0
"""Encrypting all values of one statement at once: one look-up of keys, one draw of randomness."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from sa_asherah.core import cell
from sa_asherah.errors import OwnerRequiredError
from sa_asherah.orm.owner import canonical
from sa_asherah.orm.scope import require_in_scope, sole_partition
from sa_asherah.orm.types import Sealed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.engine import Connection

    from sa_asherah.orm.attachment import Attachment
    from sa_asherah.orm.plan import EncryptedColumn, Group

__all__ = ["Batch", "partitions_of"]


class Place(Protocol):
    """Where sealed values go back to."""

    def put(self, key: str, values: Sequence[Any]) -> None:
        """Write a column.

        Args:
            key: `Column.key`.
            values: One for each row.
        """
        ...


def partitions_of(group: Group, owners: Sequence[Any], needed: Sequence[bool]) -> list[str | None]:
    """Give the partition of each row.

    Args:
        group: The columns and their owner.
        owners: The owner values, row by row; ignored where the scope names the owner.
        needed: Whether the row has anything to encrypt.

    Returns:
        Partitions, `None` where not needed.

    Raises:
        OwnerRequiredError: A needed owner is missing or not canonical.
    """
    labels = ", ".join(column.label for column in group.columns.values())
    if group.kind is None:
        partition = sole_partition(labels)
        return [partition if need else None for need in needed]
    known: dict[tuple[type, Any], str] = {}
    partitions: list[str | None] = []
    for owner, need in zip(owners, needed, strict=True):
        if not need:
            partitions.append(None)
            continue
        key = (owner.__class__, owner)
        if key not in known:
            try:
                known[key] = group.template.replace("{}", canonical(group.kind, owner))
            except OwnerRequiredError as error:
                raise OwnerRequiredError(f"{error} (owner column {group.owner} of {labels})") from None
        partitions.append(known[key])
    return partitions


class Batch:
    """The cells that one statement will write."""

    def __init__(self, attachment: Attachment) -> None:
        """Start an empty batch.

        Args:
            attachment: The engine's Asherah.
        """
        self._attachment = attachment
        self._jobs: list[tuple[Place, EncryptedColumn, list[Any], Sequence[str | None]]] = []

    def add(self, place: Place, column: EncryptedColumn, values: list[Any], partitions: Sequence[str | None]) -> None:
        """Plan the encryption of one column.

        Args:
            place: Takes the sealed values.
            column: The column.
            values: Plaintext values row by row; `None` and sealed ones stay as they are.
            partitions: The partition of each row.
        """
        self._jobs.append((place, column, values, partitions))

    def seal(self, connection: Connection) -> None:
        """Encrypt everything and put it in place.

        Args:
            connection: The executing connection.

        Raises:
            AsherahError: A key cannot be had or a value does not fit; nothing was put in place.
        """
        partitions = {partition for job in self._jobs for partition in job[3] if partition is not None}
        for partition in partitions:
            require_in_scope(partition)
        keys = self._attachment.encryption_keys(partitions, connection) if partitions else {}
        requests: list[cell.Request] = []
        for _, column, values, owners in self._jobs:
            encode = column.codec.encode
            heads = {
                partition: (key.cell_key, key.created, 0, self._attachment.context(partition, column.label))
                for partition, key in keys.items()
            }
            requests += [
                (*heads[owner], encode(value))  # type: ignore[index,misc]
                for value, owner in zip(values, owners, strict=True)
                if value is not None and type(value) is not Sealed
            ]
        cells = iter(cell.seal(requests))
        for place, column, values, _ in self._jobs:
            sealed = [value if value is None or type(value) is Sealed else Sealed(next(cells)) for value in values]
            place.put(column.column.key, sealed)
