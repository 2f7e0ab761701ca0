# SPDX-License-Identifier: Apache-2.0
"""`partition_scope`: the ceiling on the partitions that a piece of code may touch."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from sa_asherah.errors import OwnerRequiredError, UsageError, WrongPartitionError

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["current_scope", "partition_scope", "require_in_scope", "sole_partition"]

current_scope: ContextVar[frozenset[str] | None] = ContextVar("sa_asherah_partition_scope", default=None)


@contextmanager
def partition_scope(*partitions: str) -> Generator[None]:
    """Allow only these partitions inside the block, for writing and for reading.

    A scope can only narrow: nested scopes allow what all of them name. Where a row cannot name its owner (a
    subquery without the owner column, `text()`, a type without `owner=`), a scope of exactly one partition does.
    Threads and tasks started inside the block inherit it as context variables do.

    Args:
        *partitions: Partition names as the hierarchy uses them: the owner's text put into the column's `partition`
            template, `"7"` for owner 7 and the default template.

    Yields:
        Nothing.

    Raises:
        UsageError: A partition is not a non-empty `str`, or none is given.
    """
    if not partitions or not all(isinstance(partition, str) and partition for partition in partitions):
        raise UsageError(
            "partition_scope takes one or more partition names as non-empty str, e.g. partition_scope('7')"
        )
    outer = current_scope.get()
    allowed = frozenset(partitions) if outer is None else outer.intersection(partitions)
    token = current_scope.set(allowed)
    try:
        yield
    finally:
        current_scope.reset(token)


def require_in_scope(partition: str) -> None:
    """Refuse a partition outside the current scope.

    Args:
        partition: The partition of a row.

    Raises:
        WrongPartitionError: A scope is set and does not name it.
    """
    allowed = current_scope.get()
    if allowed is not None and partition not in allowed:
        raise WrongPartitionError("the row's partition is outside the current partition_scope()")


def sole_partition(label: str | None) -> str:
    """Tell the one partition of the current scope, for rows that cannot name their owner.

    Args:
        label: The column's label, for the error text.

    Returns:
        The partition.

    Raises:
        OwnerRequiredError: No scope is set, or it has none or several partitions.
    """
    allowed = current_scope.get()
    if allowed is None or len(allowed) != 1:
        raise OwnerRequiredError(
            f"the owner of {label or 'an encrypted value'} is not in reach of this statement: select the owner column "
            "beside it in the same subquery, or run inside partition_scope('<partition>') with exactly one partition"
        )
    return next(iter(allowed))
