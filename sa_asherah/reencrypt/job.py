# SPDX-License-Identifier: Apache-2.0
"""`Job`: a plan and a database. Any number of processes run the same job at once; the database coordinates them."""

from __future__ import annotations

import os
import time
from collections import Counter
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from sqlalchemy import SingletonThreadPool, StaticPool, inspect

from sa_asherah.errors import ConfigurationError, NotAttachedError, ReencryptionError
from sa_asherah.reencrypt import tables
from sa_asherah.reencrypt.conversion import conversions_of
from sa_asherah.reencrypt.converter import Converter
from sa_asherah.reencrypt.crew import Crew
from sa_asherah.reencrypt.database import Database
from sa_asherah.reencrypt.lease import Counts, Leases
from sa_asherah.reencrypt.pages import check_key
from sa_asherah.reencrypt.report import Estimate, Progress, Report, date_of
from sa_asherah.reencrypt.rounds import Rounds, report_of
from sa_asherah.reencrypt.throttle import Throttle

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection, Engine

    from sa_asherah.asherah import Asherah
    from sa_asherah.reencrypt.pages import Bounds
    from sa_asherah.reencrypt.plan import Plan

__all__ = ["Job", "require_finished"]

_SHOWN: Final = 10_000
_SAMPLES = 8
_SAMPLE_ROWS = 125


class Job:
    """Re-encrypts what a plan names, while the application runs.

    It may be killed at any moment and run again: what was committed stays, and it goes on where it was.
    """

    def __init__(  # noqa: PLR0913 -- what an operator may want to set
        self,
        engine: Engine,
        asherah: Asherah,
        plan: Plan,
        *,
        batch: int = 500,
        workers: int = 1,
        rows_per_second: float | None = None,
        lag: Callable[[], float] | None = None,
        lease: timedelta = timedelta(seconds=60),
        passes: int = 3,
        progress: Callable[[Progress], None] | None = None,
    ) -> None:
        """Take a plan, without a connection.

        Args:
            engine: The database of the data; synchronous, and attached to `asherah`.
            asherah: Whose keys are used.
            plan: What becomes what.
            batch: Rows in a transaction. Rows of a page are in memory: take fewer where values are large.
            workers: Threads in this process, each with a connection. For more speed run more processes.
            rows_per_second: How many rows this process looks at each second at most.
            lag: Tells how many seconds the slowest replica is behind; above 5 the job pauses.
            lease: How long a range belongs to a worker that is not heard of.
            passes: How many passes may change rows, before those that writers keep adding are only counted.
            progress: Called after each batch, by each worker.

        Raises:
            ConfigurationError: An argument is unusable.
            NotAttachedError: The engine is not attached to `asherah`.
        """
        if batch < 1 or workers < 1 or passes < 1 or lease < timedelta(seconds=1):
            raise ConfigurationError("batch=, workers= and passes= are at least 1, and lease= a second")
        attachment = getattr(engine.dialect, "_sa_asherah", None)
        if attachment is None or attachment.owner is not asherah:
            raise NotAttachedError("attach the Asherah to this engine first: asherah.attach(engine)")
        if workers > 1 and isinstance(engine.pool, SingletonThreadPool | StaticPool):
            raise ConfigurationError("a SQLite database in memory has one connection: workers=1")
        self._engine = engine
        self._plan = plan
        self._batch = batch
        self._workers = workers
        self._throttle = Throttle(rows_per_second, lag)
        self._lease = lease
        self._passes = passes
        self._progress = progress

    @property
    def name(self) -> str:
        """The job's name."""
        return self._plan.name

    def run(self) -> Report:
        """Do the work, or take part in it, until there is none left or only what writers keep adding.

        Returns:
            What was found and done, by all processes together.

        Raises:
            ReencryptionError: The database refuses, or a job of this name with another plan has not ended.
            AsherahError: A key cannot be had.
        """
        database, converter = self._open()
        tables.create(self._engine)
        rounds = Rounds(database, converter, self.name, fingerprint=self._plan.fingerprint, passes=self._passes)
        rounds.begin(self._batch)
        while True:
            crew = Crew(
                self.name,
                converter,
                rounds,
                lambda: Leases(database, self.name, self._lease),
                batch=self._batch,
                throttle=self._throttle,
                progress=self._progress,
            )
            crew.work(self._workers)
            report = self.status()
            if report.ended is not None:
                report.kind, report.timeline = "run", crew.timeline.points
                return report
            # Another process came when all was done, and began anew: its report is not to be taken for this one's.

    def status(self) -> Report:
        """Tell how far the job is, from the database, without taking part.

        Returns:
            The report.

        Raises:
            ReencryptionError: There is no such job.
        """
        database = Database(self._engine)
        names = [self._plan.table.fullname]
        return database.read(lambda connection: report_of(connection, self.name, names, self._columns))

    def dry_run(self) -> Report:
        """Read and open every value, and write nothing, not even keys or progress.

        Returns:
            What would be done: `left` counts the rows that would be changed.

        Raises:
            AsherahError: The database or a key cannot be had.
        """
        return self._look("dry run", 1)

    def verify(self, sample: float = 1.0) -> Report:
        """Read rows back and open every value as the target; write nothing.

        Args:
            sample: Which share of the rows, chosen at random; 1 for all.

        Returns:
            What was found: `already` counts the rows that are as wanted, `left` those that are not.

        Raises:
            ConfigurationError: `sample` is not above 0 and at most 1.
            AsherahError: The database or a key cannot be had.
        """
        if not 0 < sample <= 1:
            raise ConfigurationError("sample= is a share of the rows: above 0, at most 1")
        return self._look("verify", sample)

    def estimate(self) -> Estimate:
        """Read and open a sample, and tell how long the job will take; write nothing.

        Returns:
            The estimate.

        Raises:
            AsherahError: The database or a key cannot be had.
        """
        _, converter = self._open()
        rows = converter.count()
        _, ends = converter.cut(self._batch)
        starts = [None, *ends[:-1]]
        counts, began = Counts(), time.monotonic()
        for start in starts[:: -(-len(starts) // _SAMPLES)]:
            counts.add(converter.treat(converter.read((start, None), _SAMPLE_ROWS), sealing=False).counts)
        speed = counts.found / max(time.monotonic() - began, 0.001)
        share = counts.left_over / counts.found if counts.found else 0.0
        return Estimate(
            name=self.name,
            rows=rows,
            sampled=counts.found,
            to_convert=round(rows * share),
            unreadable=counts.quarantined,
            rows_per_second=speed,
            seconds=2 * rows / speed if speed else 0.0,
        )

    @property
    def _columns(self) -> list[str]:
        return [change.column for change in self._plan.changes]

    def _open(self) -> tuple[Database, Converter]:
        database = Database(self._engine)
        database.read(lambda connection: check_key(connection, self._plan.table))
        return database, Converter(database, self._plan.table, conversions_of(self._plan, self._engine.dialect))

    def _look(self, kind: str, share: float) -> Report:
        """Read and open a share of the rows."""
        database, converter = self._open()
        report = Report(self.name, [converter.name], self._columns, kind, passes=1)
        report.started = date_of(database.now())
        counts, keys, began = Counts(), Counter[str](), time.monotonic()
        for bounds in self._chosen(converter, share):
            for rows in converter.walk(bounds, self._batch):
                treated = converter.treat(rows, sealing=False)
                counts.add(treated.counts)
                keys += treated.before
                report.quarantined += treated.quarantined[: _SHOWN - len(report.quarantined)]
                self._tell(
                    Progress(self.name, 1, "count", counts.found, counts.found, counts, time.monotonic() - began)
                )
        unseen = 0 if share < 1 and counts.found else converter.missed(counts)
        report.found, report.already, report.left = counts.found, counts.already, counts.left_over + unseen
        report.quarantined_rows = counts.quarantined
        report.keys_before = report.keys_after = dict(sorted(keys.items()))
        report.ended = date_of(database.now())
        report.rows_per_second = counts.found / max(time.monotonic() - began, 0.001)
        return report

    def _chosen(self, converter: Converter, share: float) -> list[Bounds]:
        """Choose ranges at random, at least one, in their order."""
        if share == 1:
            return [(None, None)]
        _, ends = converter.cut(-(-self._batch // 4))
        ranges = list(pairwise([None, *ends])) or [(None, None)]
        drawn = sorted(range(len(ranges)), key=lambda _: os.urandom(8))[: max(round(len(ranges) * share), 1)]
        return [ranges[number] for number in sorted(drawn)]

    def _tell(self, progress: Progress) -> None:
        if self._progress is not None:
            self._progress(progress)


def require_finished(connection: Connection, name: str) -> None:
    """Refuse to go on while a re-encryption is not finished: the gate for a later migration.

    Args:
        connection: A connection of the database.
        name: The job's name.

    Raises:
        ReencryptionError: There is no such job, it has not ended, or rows are left or quarantined.
    """
    if not inspect(connection).has_table(tables.asherah_job.name):
        raise ReencryptionError(f"there is no re-encryption named {name!r} in this database; run it first")
    report = report_of(connection, name, [], [name])
    if report.is_complete:
        return
    if report.left is None:
        raise ReencryptionError(f"the re-encryption {name!r} has not ended; run it again, it goes on where it stopped")
    raise ReencryptionError(
        f"the re-encryption {name!r} is not complete: {report.left} rows are left and {report.quarantined_rows} have "
        "values that cannot be opened (table asherah_quarantine names them). Stop old writers, correct or delete the "
        "latter, and run it again"
    )
