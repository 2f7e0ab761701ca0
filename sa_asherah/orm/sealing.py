# SPDX-License-Identifier: Apache-2.0
"""Encrypting all values of one statement at once: one look-up of keys, one draw of randomness."""

from __future__ import annotations

from enum import Enum
from itertools import compress, islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol
from uuid import UUID

from sa_asherah.core import cell, row_record
from sa_asherah.errors import OwnerRequiredError, UnsupportedValueError, UsageError
from sa_asherah.orm.owner import owner_kind, owner_text
from sa_asherah.orm.scope import require_in_scope, sole_partition
from sa_asherah.orm.types import Sealed
from sa_asherah.orm.unreadable import Unreadable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from sqlalchemy.engine import Connection
    from sqlalchemy.schema import Column

    from sa_asherah.core.key import Key, Secret
    from sa_asherah.orm.attachment import Attachment
    from sa_asherah.orm.plan import EncryptedColumn, Group

__all__ = ["Batch", "partitions_of", "row_texts", "rows_with_values"]

_PLAIN: Final = frozenset((int, str, UUID))


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
        return _named(group, owners, needed)
    except OwnerRequiredError as error:
        raise OwnerRequiredError(f"{error} (owner column {group.owner} of {labels})") from None


def _named(group: Group, owners: Sequence[Any], needed: Sequence[bool]) -> list[str | None]:
    def name(owner: Any) -> str:
        return group.template.replace("{}", owner_text(group.owner, group.kind, owner))  # type: ignore[arg-type]

    kinds = set(map(type, owners))
    if len(kinds) == 1 and all(needed) and (kinds <= _PLAIN or isinstance(owners[0], Enum)):
        name(owners[0])  # refuses a wrong type, which may have no hash
        names = {owner: name(owner) for owner in set(owners)}
        return [names[owner] for owner in owners]
    # Values of several types (1 and True), or of a type with an equality of its own, may be equal without being the
    # same owner.
    return [name(owner) if need else None for owner, need in zip(owners, needed, strict=True)]


def row_texts(row: Column[Any], values: Sequence[Any], needed: Sequence[bool]) -> list[str]:
    """Give the texts of the primary keys that row-bound cells are bound to.

    Args:
        row: The primary key column.
        values: Its values, row by row.
        needed: Whether the row has anything to encrypt.

    Returns:
        Texts, empty where not needed.

    Raises:
        UsageError: A needed key is missing or not canonical.
    """
    kind = owner_kind(row)
    try:
        return [owner_text(row, kind, value) if need else "" for value, need in zip(values, needed, strict=True)]
    except OwnerRequiredError:
        raise UsageError(
            f"a row-bound value needs the primary key {row} of its row, of kind {kind!r}, before it is encrypted: set "
            "it, or give the column a Python-side default"
        ) from None


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


class _Job(NamedTuple):
    """One column of a statement."""

    place: Place
    column: EncryptedColumn
    values: list[Any]
    partitions: Sequence[Any]
    rows: Sequence[str]

    def only(self, chosen: Sequence[bool]) -> _Job:
        """Leave out the rows that have nothing to encrypt."""
        values, partitions, rows = (list(compress(each, chosen)) for each in self[2:])
        return self._replace(values=values, partitions=partitions, rows=rows)


class Batch:
    """The cells and data row records that one statement will write."""

    def __init__(self, attachment: Attachment) -> None:
        """Start an empty batch.

        Args:
            attachment: The engine's Asherah.
        """
        self._attachment = attachment
        self._jobs: list[_Job] = []

    def add(
        self,
        place: Place,
        column: EncryptedColumn,
        values: list[Any],
        partitions: Sequence[str | None],
        rows: Sequence[str] = (),
    ) -> None:
        """Plan the encryption of one column.

        Args:
            place: Takes the sealed values.
            column: The column.
            values: Plaintext values row by row; `None` and sealed ones stay as they are.
            partitions: The partition of each row.
            rows: The primary key of each row, for a row-bound column.
        """
        self._jobs.append(_Job(place, column, values, partitions, rows))

    def seal(self, connection: Connection | None) -> None:
        """Encrypt everything and put it in place.

        Args:
            connection: The executing connection; `None` where keys are not read on it.

        Raises:
            AsherahError: A key cannot be had or a value does not fit; nothing was put in place.
        """
        with self._attachment.hierarchy.events.measure("drr.encrypt", via="statement"):
            self._seal(connection)

    def _seal(self, connection: Connection | None) -> None:
        partitions = {partition for job in self._jobs for partition in job.partitions if partition is not None}
        for partition in partitions:
            require_in_scope(partition)
        keys = self._attachment.encryption_keys(partitions, connection) if partitions else {}
        wanted = [_to_encrypt(job.values) for job in self._jobs]
        jobs = [job if chosen is None else job.only(chosen) for job, chosen in zip(self._jobs, wanted, strict=True)]
        cells, records = self._cells(keys, jobs), self._records(keys, jobs)
        for job, chosen in zip(self._jobs, wanted, strict=True):
            finished: Iterator[bytes | str] = records if job.column.is_record else cells
            if chosen is None:
                sealed: list[Any] = list(map(Sealed, islice(finished, len(job.values))))
            else:
                pairs = zip(job.values, chosen, strict=True)
                sealed = [Sealed(next(finished)) if want else value for value, want in pairs]
            job.place.put(job.column.column.key, sealed)

    def _cells(self, keys: Mapping[str, Key], jobs: Sequence[_Job]) -> Iterator[bytes]:
        requests: list[cell.Request] = []
        for job in jobs:
            if not job.column.is_record:
                requests += self._requests(keys, job)
        return iter(cell.seal(requests))

    def _records(self, keys: Mapping[str, Key], jobs: Sequence[_Job]) -> Iterator[str]:
        requests: list[row_record.Request] = []
        for job in jobs:
            if job.column.is_record:
                encode = job.column.encode
                pairs = zip(job.values, job.partitions, strict=True)
                requests += [(keys[partition], encode(value)) for value, partition in pairs]  # type: ignore[misc]
        return iter(row_record.seal(requests, int(self._attachment.hierarchy.policy.clock()))) if requests else iter(())

    def _requests(self, keys: Mapping[str, Key], job: _Job) -> list[cell.Request]:
        encode = job.column.encode
        if job.column.row_bound:
            return [
                cell.Request(*self._head(keys[partition], job.column, partition, row), encode(value))
                for value, partition, row in zip(job.values, job.partitions, job.rows, strict=True)
            ]
        heads = {partition: self._head(key, job.column, partition) for partition, key in keys.items()}
        pairs = zip(job.values, job.partitions, strict=True)
        return [(*heads[partition], encode(value)) for value, partition in pairs]  # type: ignore[misc]

    def _head(self, key: Key, column: EncryptedColumn, partition: str, row: str = "") -> tuple[Secret, int, int, bytes]:
        return key.cell_key, key.created, column.flags, self._attachment.context(partition, column.label, row)


def _to_encrypt(values: Sequence[Any]) -> list[bool] | None:
    """Tell which values are to be encrypted; `None` says all of them, as in most statements."""
    types = set(map(type, values))
    if Unreadable in types:
        raise UnsupportedValueError("a value that could not be read cannot be written back: set another value")
    if types.isdisjoint({type(None), Sealed}):
        return None
    return [value is not None and type(value) is not Sealed for value in values]
