# SPDX-License-Identifier: Apache-2.0
"""The life of a job in the database: passes over the table until one finds nothing to do, or there were enough.

Processes agree through the job's row: whoever finds a pass finished locks it and says what comes next.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import and_, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from sa_asherah.errors import ReencryptionError
from sa_asherah.reencrypt.database import clock_of
from sa_asherah.reencrypt.lease import sums
from sa_asherah.reencrypt.pages import text_of
from sa_asherah.reencrypt.report import Quarantined, Report, date_of
from sa_asherah.reencrypt.tables import asherah_job, asherah_quarantine, asherah_range

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection, Row

    from sa_asherah.reencrypt.converter import Converter
    from sa_asherah.reencrypt.database import Database
    from sa_asherah.reencrypt.lease import Counts
    from sa_asherah.reencrypt.pages import Position

__all__ = ["Rounds", "Turn", "report_of"]

_SHOWN: Final = 10_000
_EMPTY: Final = {
    "worker": None,
    "position": None,
    "lease_until": 0,
    "epoch": 0,
    "done": False,
    "found": 0,
    "already": 0,
    "converted": 0,
    "skipped": 0,
    "quarantined": 0,
    "left_over": 0,
    "keys_before": "{}",
    "keys_after": "{}",
}


class Turn(NamedTuple):
    """What is to be done now.

    Attributes:
        number: The pass.
        first: The first pass of this run of the job.
        kind: `convert` or `count`.
        total: Rows of the table when the job began.
    """

    number: int
    first: int
    kind: str
    total: int


class Rounds:
    """One job in the database."""

    def __init__(self, database: Database, converter: Converter, name: str, *, fingerprint: str, passes: int) -> None:
        """Prepare.

        Args:
            database: The database.
            converter: The table.
            name: The job's name.
            fingerprint: What the plan says, hashed.
            passes: How many passes may change rows.
        """
        self._database = database
        self._converter = converter
        self._name = name
        self._fingerprint = fingerprint
        self._passes = passes

    def begin(self, batch: int) -> None:
        """Join the job if it is running, else begin it; one that had ended begins anew.

        Args:
            batch: Rows in a transaction.

        Raises:
            ReencryptionError: A job of this name with another plan is running.
        """
        if self._is_running():
            return
        total, ends = self._converter.cut(batch)
        self._database.write(lambda connection: self._begin(connection, total, ends))

    def turn(self) -> Turn | None:
        """Tell what is to be done; `None` if the job has ended."""
        job = self._database.read(self._job)
        if job is None or job.state == "ended":
            return None
        return Turn(job.number, job.first_pass, job.kind, job.total)

    def advance(self, turn: Turn) -> bool:
        """Go on to what comes after a pass, if it is finished.

        Args:
            turn: The pass.

        Returns:
            Whether it was finished, or somebody else had gone on already.
        """
        counts, ranges, done = self._database.read(
            lambda connection: sums(connection, self._name, (turn.number, turn.number))
        )
        if done < ranges:
            return False
        # In a pass that changed nothing: another one is due anyway after the others.
        missed = (
            0 if turn.kind == "convert" and (counts.converted or counts.skipped) else self._converter.missed(counts)
        )
        end = self._converter.end()
        self._database.write(lambda connection: self._advance(connection, turn, counts, missed, end))
        return True

    def _is_running(self) -> bool:
        job = self._database.read(self._job)
        if job is None or job.state == "ended":
            return False
        self._require_same(job)
        return True

    def _require_same(self, job: Row[Any]) -> None:
        if job.plan != self._fingerprint:
            raise ReencryptionError(
                f"a job named {self._name!r} with another plan has not ended: finish it with its plan, or give this "
                "plan another name="
            )

    def _job(self, connection: Connection) -> Row[Any] | None:
        return connection.execute(select(asherah_job).where(asherah_job.c.name == self._name)).first()

    def _begin(self, connection: Connection, total: int, ends: Sequence[Position]) -> None:
        locked = update(asherah_job).where(asherah_job.c.name == self._name).values(name=self._name)
        if not connection.execute(locked).rowcount:
            values = {"name": self._name, "plan": self._fingerprint, "state": "ended", "kind": "convert", "number": 0}
            values |= {"first_pass": 0, "total": 0, "left_over": 0, "started": 0}
            try:
                with connection.begin_nested():
                    connection.execute(insert(asherah_job), values)
            except IntegrityError:
                pass  # another process was first
            connection.execute(locked)
        job = self._job(connection)
        if job is None or job.state != "ended":
            if job is not None:
                self._require_same(job)
            return
        for table in (asherah_range, asherah_quarantine):
            connection.execute(delete(table).where(table.c.job == self._name))
        number = job.number + 1
        self._add_ranges(connection, number, [text_of(end) for end in ends] or [None])
        self._set(
            connection,
            plan=self._fingerprint,
            state="running",
            kind="convert",
            number=number,
            first_pass=number,
            total=total,
            left_over=0,
            started=self._database.clock,
            ended=None,
        )

    def _advance(self, connection: Connection, turn: Turn, counts: Counts, missed: int, end: Position | None) -> None:
        here = and_(asherah_job.c.name == self._name, asherah_job.c.number == turn.number)
        running = and_(here, asherah_job.c.kind == turn.kind, asherah_job.c.state == "running")
        if not connection.execute(update(asherah_job).where(running).values(name=self._name)).rowcount:
            return
        if turn.kind == "count" or not (counts.converted or counts.skipped or missed):
            self._set(connection, state="ended", left_over=counts.left_over + missed, ended=self._database.clock)
            return
        kind = "convert" if turn.number - turn.first + 1 < self._passes else "count"
        ranges = asherah_range
        mine = and_(ranges.c.job == self._name, ranges.c.number == turn.number)
        *highs, _ = connection.execute(select(ranges.c.high).where(mine).order_by(ranges.c.part)).scalars()
        self._add_ranges(connection, turn.number + 1, [*highs, None if end is None else text_of(end)])
        quarantine = asherah_quarantine
        connection.execute(delete(quarantine).where(quarantine.c.job == self._name, quarantine.c.number <= turn.number))
        self._set(connection, kind=kind, number=turn.number + 1)

    def _add_ranges(self, connection: Connection, number: int, ends: Sequence[str | None]) -> None:
        """Divide what a pass looks at: up to the last row of its beginning, or those who add rows could outrun it."""
        connection.execute(
            insert(asherah_range),
            [
                {**_EMPTY, "job": self._name, "number": number, "part": part, "position": start, "high": end}
                for part, (start, end) in enumerate(zip([None, *ends[:-1]], ends, strict=True))
            ],
        )

    def _set(self, connection: Connection, **values: Any) -> None:
        connection.execute(update(asherah_job).where(asherah_job.c.name == self._name).values(values))


def report_of(connection: Connection, name: str, tables: list[str], columns: list[str]) -> Report:
    """Read from the database how far a job is.

    Args:
        connection: A connection.
        name: The job's name.
        tables: The tables.
        columns: The columns.

    Returns:
        The report.

    Raises:
        ReencryptionError: There is no such job.
    """
    job = connection.execute(select(asherah_job).where(asherah_job.c.name == name)).first()
    if job is None:
        raise ReencryptionError(f"there is no re-encryption named {name!r}; run it first")
    first, last = (sums(connection, name, (number, number))[0] for number in (job.first_pass, job.number))
    whole = sums(connection, name, (job.first_pass, job.number))[0]
    quarantine = asherah_quarantine
    chosen = select(quarantine).where(quarantine.c.job == name, quarantine.c.number == job.number)
    # Numbers of as many digits are in the order of their text.
    order = (quarantine.c.table_name, func.length(quarantine.c.primary_key), quarantine.c.primary_key)
    rows = connection.execute(chosen.order_by(*order, quarantine.c.column_name).limit(_SHOWN))
    now = connection.execute(select(clock_of(connection.dialect))).scalar_one() if job.ended is None else job.ended
    return Report(
        name=name,
        tables=tables,
        columns=columns,
        kind="status",
        found=last.found,
        already=first.already,
        converted=whole.converted,
        skipped_by_writers=whole.skipped,
        quarantined=[Quarantined(row.table_name, row.primary_key, row.column_name, row.reason) for row in rows],
        quarantined_rows=last.quarantined,
        left=job.left_over if job.state == "ended" else None,
        keys_before=_keys(connection, name, job.first_pass, "keys_before"),
        keys_after=_keys(connection, name, job.number, "keys_after"),
        started=date_of(job.started),
        ended=date_of(job.ended),
        rows_per_second=whole.found / max((now - job.started) / 1000, 0.001),
        passes=job.number - job.first_pass + 1,
    )


def _keys(connection: Connection, name: str, number: int, column: str) -> dict[str, int]:
    ranges = asherah_range
    found: Counter[str] = Counter()
    for (text,) in connection.execute(select(ranges.c[column]).where(ranges.c.job == name, ranges.c.number == number)):
        found.update(json.loads(text))
    return dict(sorted(found.items()))
