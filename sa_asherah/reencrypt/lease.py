# SPDX-License-Identifier: Apache-2.0
"""Leases of ranges: by the database's clock, and with an epoch that fences off whoever was away for too long.

Whoever takes a range over adds 1 to its epoch. Every batch first moves the range's position on, under the condition
that the epoch is still its own; in the same transaction it changes the rows. So a worker that was stopped and
continued changes nothing any more, and what the table says is what happened.
"""

from __future__ import annotations

import json
import os
import socket
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import and_, case, false, func, or_, select, update

from sa_asherah.errors import ReencryptionError
from sa_asherah.reencrypt.pages import position_of, text_of
from sa_asherah.reencrypt.tables import asherah_range

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

    from sqlalchemy import ColumnElement, Connection

    from sa_asherah.reencrypt.database import Database
    from sa_asherah.reencrypt.pages import Position

__all__ = ["Counts", "Lease", "LeaseLostError", "Leases", "sums"]

_MOST: Final = 8
"""How many times longer a lease gets at most."""


class LeaseLostError(Exception):
    """Somebody else works on the range now; what this worker had in hand is dropped."""


@dataclass(slots=True)
class Counts:
    """What was seen and done with rows.

    Attributes:
        found: Rows that have a value.
        already: Rows that were as they are to be.
        converted: Rows that were changed.
        skipped: Rows that somebody else changed at the same moment.
        quarantined: Rows with a value that cannot be opened.
        left_over: Rows that would have to be changed, when only counting.
    """

    found: int = 0
    already: int = 0
    converted: int = 0
    skipped: int = 0
    quarantined: int = 0
    left_over: int = 0

    def add(self, other: Counts) -> None:
        """Add.

        Args:
            other: What to add.
        """
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))

    def __bool__(self) -> bool:
        """Tell whether anything was counted."""
        return any(getattr(self, each.name) for each in fields(self))


@dataclass(slots=True)
class Lease:
    """A range that this worker may work on.

    Attributes:
        number: Which pass.
        part: Which range of it.
        high: Up to where, `None` for the end.
        position: What is done.
        epoch: The fence.
        before: Values by key as they were found.
        after: Values by key as they were left.
    """

    number: int
    part: int
    high: Position | None
    position: Position | None
    epoch: int
    before: Counter[str] = field(default_factory=Counter[str])
    after: Counter[str] = field(default_factory=Counter[str])


class Leases:
    """The ranges of one job as one worker takes them.

    Attributes:
        seconds: How long a range belongs to a worker that is not heard of, at least.
    """

    def __init__(self, database: Database, job: str, duration: timedelta) -> None:
        """Prepare.

        Args:
            database: The database.
            job: The job's name.
            duration: How long a range belongs to a worker that is not heard of.
        """
        self._database = database
        self._job = job
        self.seconds = duration.total_seconds()
        self._worker = f"{socket.gethostname()[:100]}:{os.getpid()}:{os.urandom(8).hex()}"

    def take(self, number: int) -> Lease | None:
        """Take a range that is nobody's, or whose lease has run out.

        Args:
            number: The pass.

        Returns:
            The lease; `None` if there is nothing to take now.
        """
        return self._database.write(lambda connection: self._take(connection, number))

    def _take(self, connection: Connection, number: int) -> Lease | None:
        table = asherah_range
        free = or_(table.c.worker.is_(None), table.c.lease_until < self._database.clock)
        mine = and_(table.c.job == self._job, table.c.number == number)
        candidates = select(table).where(mine, table.c.done == false(), free)
        # What is nobody's comes first: whoever is slow is left alone as long as there is other work.
        candidates = candidates.order_by(table.c.worker.is_not(None), table.c.part).limit(1)
        if self._database.skips_locked:
            candidates = candidates.with_for_update(skip_locked=True)
        while (row := connection.execute(candidates).first()) is not None:
            taken = (
                update(table)
                .where(mine, table.c.part == row.part, table.c.epoch == row.epoch, table.c.done == false())
                .values(worker=self._worker, epoch=row.epoch + 1, lease_until=self._until(row.epoch + 1))
            )
            if connection.execute(taken).rowcount:
                high, position = (text and position_of(text) for text in (row.high, row.position))
                before, after = (Counter[str](json.loads(text)) for text in (row.keys_before, row.keys_after))
                return Lease(number, row.part, high, position, row.epoch + 1, before, after)
        return None

    def renew(self, lease: Lease) -> None:
        """Keep a range while waiting.

        Args:
            lease: The lease.

        Raises:
            LeaseLostError: Somebody else has it.
        """
        self._database.write(lambda connection: self._update(connection, lease, {}))

    def release(self, lease: Lease) -> None:
        """Give a range back before it is finished; what cannot be given back becomes free when its lease runs out.

        Args:
            lease: The lease.
        """
        free = update(asherah_range).where(self._of(lease)).values(worker=None)
        with suppress(ReencryptionError):
            self._database.write(lambda connection: connection.execute(free))

    def commit(
        self,
        lease: Lease,
        position: Position | None,
        work: Callable[[Connection], Counts],
        keys: tuple[Counter[str], Counter[str]],
        *,
        is_last: bool,
    ) -> Counts:
        """Do a batch and note it, in one transaction.

        Args:
            lease: The lease; it is moved on.
            position: The last row of the batch.
            work: Changes the rows; tells what it did. It may be called several times.
            keys: Values by key before and after.
            is_last: Whether the range is done.

        Returns:
            What was counted.

        Raises:
            LeaseLostError: Somebody else has the range; nothing was changed.
        """
        before, after = lease.before + keys[0], lease.after + keys[1]
        values: dict[str, Any] = {
            "done": is_last,
            "position": None if position is None else text_of(position),
            "keys_before": json.dumps(before, separators=(",", ":")),
            "keys_after": json.dumps(after, separators=(",", ":")),
        }

        def transaction(connection: Connection) -> Counts:
            if not self._update(connection, lease, values):
                return Counts()
            counts = work(connection)
            added = {each.name: asherah_range.c[each.name] + getattr(counts, each.name) for each in fields(counts)}
            connection.execute(update(asherah_range).where(self._of(lease)).values(added))
            return counts

        counts = self._database.write(transaction)
        lease.before, lease.after = before, after
        lease.position = position
        return counts

    def _update(self, connection: Connection, lease: Lease, values: dict[str, Any]) -> bool:
        """Pass the fence: the first statement of each transaction, so that it also locks out whoever takes over."""
        table = asherah_range
        position = None if lease.position is None else text_of(lease.position)
        still = and_(self._of(lease), table.c.position.is_not_distinct_from(position), table.c.done == false())
        if connection.execute(
            update(table).where(still).values(lease_until=self._until(lease.epoch), **values)
        ).rowcount:
            return True
        row = connection.execute(select(table.c.position, table.c.done).where(self._of(lease))).first()
        if row is None:
            raise LeaseLostError
        # The connection was lost during a commit that succeeded: this very batch is done.
        return False

    def _until(self, epoch: int) -> ColumnElement[int]:
        """Say when a lease runs out: later each time it was lost, or slow workers would take it in turns for ever."""
        return self._database.clock + int(self.seconds * 1000) * min(epoch, _MOST)

    def _of(self, lease: Lease) -> Any:
        table = asherah_range
        return and_(
            table.c.job == self._job,
            table.c.number == lease.number,
            table.c.part == lease.part,
            table.c.worker == self._worker,
            table.c.epoch == lease.epoch,
        )


def sums(connection: Connection, job: str, numbers: tuple[int, int]) -> tuple[Counts, int, int]:
    """Add up ranges.

    Args:
        connection: A connection.
        job: The job's name.
        numbers: The first pass and the last.

    Returns:
        The counts, how many ranges there are, and how many are done.
    """
    table = asherah_range
    columns = [func.coalesce(func.sum(table.c[each.name]), 0) for each in fields(Counts)]
    done = func.coalesce(func.sum(case((table.c.done, 1), else_=0)), 0)
    statement = select(func.count(), done, *columns)
    found = connection.execute(statement.where(table.c.job == job, table.c.number.between(*numbers))).one()
    ranges, finished, *counted = map(int, found)
    return Counts(*counted), ranges, finished
