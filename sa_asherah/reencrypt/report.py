# SPDX-License-Identifier: Apache-2.0
"""What a re-encryption found and did. It says "complete" of nothing that it has not looked at."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from sa_asherah.reencrypt.lease import Counts

__all__ = ["Estimate", "Point", "Progress", "Quarantined", "Report", "Timeline"]

_POINTS: Final = 240
_FIRST_INTERVAL = 0.25


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A value that cannot be opened.

    Attributes:
        table: Its table.
        primary_key: The primary key of its row, as JSON.
        column: Its column.
        reason: Class and text of the error; free of values.
    """

    table: str
    primary_key: str
    column: str
    reason: str


@dataclass(frozen=True, slots=True)
class Point:
    """The state of the work at one time.

    Attributes:
        seconds: Since the start of this process's part of the work.
        counts: Rows of the pass by state, as this process counted them.
        keys: Values by key, as this process left them in the pass.
    """

    seconds: float
    counts: dict[str, int]
    keys: dict[str, int]


@dataclass(frozen=True, slots=True)
class Progress:
    """What a progress bar or a log line shows.

    Attributes:
        name: The job's name.
        number: Which pass, from 1.
        kind: `convert`, or `count` when nothing is changed.
        rows: Rows that this process has looked at in this pass.
        total: Rows of the table when the job began; several processes share them.
        counts: Rows of the pass by state, as this process counted them.
        seconds: Since this process began.
    """

    name: str
    number: int
    kind: str
    rows: int
    total: int
    counts: Counts
    seconds: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """How long a job will take, from a sample.

    Attributes:
        name: The job's name.
        rows: Rows that have a value.
        sampled: Rows that were read and opened.
        to_convert: Rows that will have to be changed, by the share in the sample.
        unreadable: Rows of the sample with a value that cannot be opened.
        rows_per_second: How fast one worker read and opened the sample; writing comes on top.
        seconds: That speed for all rows, in two passes.
    """

    name: str
    rows: int
    sampled: int
    to_convert: int
    unreadable: int
    rows_per_second: float
    seconds: float

    def to_json(self) -> str:
        """Give JSON."""
        return json.dumps(asdict(self))


class Timeline:
    """Points over time, never more than a few hundred, however long it takes."""

    def __init__(self) -> None:
        """Start empty."""
        self.points: list[Point] = []
        self._interval = _FIRST_INTERVAL

    def add(self, point: Point, *, is_last: bool = False) -> None:
        """Note a point, unless it is too close to the one before.

        Args:
            point: The point.
            is_last: Whether to note it in any case.
        """
        if self.points and not is_last and point.seconds - self.points[-1].seconds < self._interval:
            return
        if len(self.points) >= _POINTS:
            self.points = self.points[::2]
            self._interval *= 2
        self.points.append(point)


@dataclass(slots=True)
class Report:
    """What was found and done.

    Rows are counted, not values: a row with three columns of a plan is one. A row whose value cannot be opened counts
    as quarantined, whatever became of its other values.

    Attributes:
        name: The job's name.
        tables: The tables that were looked at.
        columns: The columns.
        kind: `run`, `dry run`, `verify` or `status`.
        found: Rows with a value, as the last pass saw them.
        already: Rows that were as wanted, as the first pass saw them.
        converted: Rows that were changed, in all passes.
        skipped_by_writers: Swaps that somebody else's change came before; the next pass looked at these rows again.
        quarantined: Values that cannot be opened, the first 10,000.
        quarantined_rows: Rows with such a value, all of them.
        left: Rows that still are to be changed; `None` as long as the last pass is not over.
        keys_before: Values by key as the first pass found them.
        keys_after: Values by key as the last pass left them.
        started: When the job began, by the database's clock.
        ended: When it ended; `None` if it has not.
        rows_per_second: Rows looked at, in all passes, by all workers, each second.
        passes: How many passes were made.
        timeline: What this process did over time.
    """

    name: str
    tables: list[str]
    columns: list[str]
    kind: str
    found: int = 0
    already: int = 0
    converted: int = 0
    skipped_by_writers: int = 0
    quarantined: list[Quarantined] = field(default_factory=list[Quarantined])
    quarantined_rows: int = 0
    left: int | None = None
    keys_before: dict[str, int] = field(default_factory=dict[str, int])
    keys_after: dict[str, int] = field(default_factory=dict[str, int])
    started: datetime | None = None
    ended: datetime | None = None
    rows_per_second: float = 0.0
    passes: int = 0
    timeline: list[Point] = field(default_factory=list[Point])

    @property
    def is_complete(self) -> bool:
        """Whether there were columns, every row of the table was looked at, and none is left or in quarantine.

        A table without any value is complete; one that has values, of which none was found, is not: they are `left`.
        """
        return bool(self.columns) and self.left == 0 and not self.quarantined_rows and self.ended is not None

    def to_dict(self) -> dict[str, Any]:
        """Give what JSON can hold."""
        found = asdict(self)
        for name in ("started", "ended"):
            found[name] = None if found[name] is None else found[name].isoformat()
        return {**found, "is_complete": self.is_complete}

    def to_json(self) -> str:
        """Give JSON; it holds no value, only primary keys and counts."""
        return json.dumps(self.to_dict())


def date_of(milliseconds: int | None) -> datetime | None:
    """Read a date of the tables of progress.

    Args:
        milliseconds: Since 1970.

    Returns:
        The date, in UTC.
    """
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC)
