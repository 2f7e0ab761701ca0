# SPDX-License-Identifier: Apache-2.0
"""The workers of one process: they work on a pass until nothing of it is left, and then see what comes next."""

from __future__ import annotations

import threading
import time
from collections import Counter
from contextvars import copy_context
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from sa_asherah.reencrypt.lease import Counts
from sa_asherah.reencrypt.report import Point, Progress, Timeline
from sa_asherah.reencrypt.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from sa_asherah.reencrypt.converter import Converter
    from sa_asherah.reencrypt.lease import Leases
    from sa_asherah.reencrypt.rounds import Rounds, Turn
    from sa_asherah.reencrypt.throttle import Throttle

__all__ = ["Crew"]

_POLL = 0.2
"""Seconds between looks at a pass on which others still work."""


class Crew:
    """Threads that do the same.

    Attributes:
        timeline: What they did over time.
    """

    def __init__(
        self,
        job: str,
        converter: Converter,
        rounds: Rounds,
        leases: Callable[[], Leases],
        *,
        batch: int,
        throttle: Throttle,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        """Prepare.

        Args:
            job: The job's name.
            converter: The table.
            rounds: The job in the database.
            leases: Makes what a worker takes ranges by.
            batch: Rows in a transaction.
            throttle: Holds all workers back.
            progress: Called after each batch.
        """
        self.timeline = Timeline()
        self._job = job
        self._converter = converter
        self._rounds = rounds
        self._leases = leases
        self._batch = batch
        self._throttle = throttle
        self._progress = progress
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._failures: list[BaseException] = []
        self._began = time.monotonic()
        self._turn: Turn | None = None
        self._counts = Counts()
        self._keys: Counter[str] = Counter()

    def work(self, workers: int) -> None:
        """Work until the job has ended.

        Args:
            workers: How many; one works in the calling thread.
        """
        # Each with the caller's `partition_scope`, in a context of its own: one is entered by one thread at a time.
        threads = [
            threading.Thread(target=copy_context().run, args=(self._guarded,), daemon=True) for _ in range(workers - 1)
        ]
        for thread in threads:
            thread.start()
        try:
            self._guarded()
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()
        self.timeline.add(self._point(), is_last=True)
        if self._failures:
            raise self._failures[0]

    def _guarded(self) -> None:
        try:
            self._loop()
        except Exception as error:  # noqa: BLE001 - raised again when all workers have ended
            self._failures.append(error)
            self._stop.set()

    def _loop(self) -> None:
        worker = Worker(
            self._job,
            self._converter,
            self._leases(),
            batch=self._batch,
            throttle=self._throttle,
            told=self._told,
            stop=self._stop,
        )
        while not self._stop.is_set() and (turn := self._rounds.turn()) is not None:
            self._enter(turn)
            while not self._stop.is_set() and worker.work(turn.number, sealing=turn.kind == "convert"):
                pass
            if not self._stop.is_set() and not self._rounds.advance(turn):
                self._stop.wait(_POLL)

    def _enter(self, turn: Turn) -> None:
        with self._lock:
            if self._turn is None or self._turn.number != turn.number:
                self._turn, self._counts, self._keys = turn, Counts(), Counter()

    def _told(self, counts: Counts, keys: Counter[str]) -> None:
        with self._lock:
            turn = self._turn
            self._counts.add(counts)
            self._keys += keys
            self.timeline.add(self._point())
            known = replace(self._counts)
        if self._progress is not None and turn is not None:
            number = turn.number - turn.first + 1
            seconds = time.monotonic() - self._began
            self._progress(Progress(self._job, number, turn.kind, known.found, turn.total, known, seconds))

    def _point(self) -> Point:
        return Point(time.monotonic() - self._began, asdict(self._counts), dict(self._keys))
