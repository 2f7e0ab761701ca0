# SPDX-License-Identifier: Apache-2.0
"""Encrypting all values of one statement at once: one look-up of keys, one draw of randomness."""

from __future__ import annotations

from itertools import compress, islice
from typing import TYPE_CHECKING, Any, Protocol

from sa_asherah.core import cell
from sa_asherah.errors import OwnerRequiredError
from sa_asherah.orm.owner import OwnerKind, canonical
from sa_asherah.orm.scope import require_in_scope, sole_partition
from sa_asherah.orm.types import Sealed

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy.engine import Connection

    from sa_asherah.orm.attachment import Attachment
    from sa_asherah.orm.plan import EncryptedColumn, Group

__all__ = ["Batch", "partitions_of", "rows_with_values"]


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
    try:
        return _named(group, group.kind, owners, needed)
    except OwnerRequiredError as error:
        raise OwnerRequiredError(f"{error} (owner column {group.owner} of {labels})") from None


def _named(group: Group, kind: OwnerKind, owners: Sequence[Any], needed: Sequence[bool]) -> list[str | None]:
    def name(owner: Any) -> str:
        return group.template.replace("{}", canonical(kind, owner))

    if len(set(map(type, owners))) == 1 and all(needed):
        name(owners[0])  # refuses a wrong type, which may have no hash
        names = {owner: name(owner) for owner in set(owners)}
        return [names[owner] for owner in owners]
    # Values of several types may be equal (1 and True) without being the same owner.
    return [name(owner) if need else None for owner, need in zip(owners, needed, strict=True)]


def rows_with_values(columns: Iterable[Sequence[Any]], count: int) -> list[bool]:
    """Tell which rows have anything to encrypt.

    Args:
        columns: The values of each encrypted column, row by row.
        count: Number of rows.

    Returns:
        One answer for each row.
    """
    found = [False] * count
    for values in columns:
        if type(None) not in set(map(type, values)):
            return [True] * count
        found = [known or value is not None for known, value in zip(found, values, strict=True)]
    return found


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
        wanted = [_to_encrypt(values) for _, _, values, _ in self._jobs]
        for (_, column, values, owners), chosen in zip(self._jobs, wanted, strict=True):
            encode = column.codec.encode
            heads = {
                partition: (key.cell_key, key.created, 0, self._attachment.context(partition, column.label))
                for partition, key in keys.items()
            }
            rows = zip(values, owners, strict=True)
            requests += [
                (*heads[owner], encode(value))  # type: ignore[index, misc]
                for value, owner in (rows if chosen is None else compress(rows, chosen))
            ]
        cells = iter(cell.seal(requests))
        for (place, column, values, _), chosen in zip(self._jobs, wanted, strict=True):
            if chosen is None:
                sealed: list[Any] = list(map(Sealed, islice(cells, len(values))))
            else:
                sealed = [Sealed(next(cells)) if want else value for value, want in zip(values, chosen, strict=True)]
            place.put(column.column.key, sealed)


def _to_encrypt(values: Sequence[Any]) -> list[bool] | None:
    """Tell which values are to be encrypted; `None` says all of them, as in most statements."""
    if {type(None), Sealed}.isdisjoint(map(type, values)):
        return None
    return [value is not None and type(value) is not Sealed for value in values]
