# SPDX-License-Identifier: Apache-2.0
"""Shows how far a re-encryption is: a bar on a terminal, a line from time to time elsewhere."""

from __future__ import annotations

import logging
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from sa_asherah.reencrypt.report import Progress

__all__ = ["shown"]

_EVERY = 10.0

_logger = logging.getLogger("sa_asherah.reencrypt")


@contextmanager
def shown(*, as_json: bool, every: float = _EVERY) -> Generator[Callable[[Progress], None]]:
    """Show progress on the standard error.

    Args:
        as_json: Whether the output is JSON: then there is no bar, lines only.
        every: Seconds between two lines.

    Yields:
        What is called after each batch, by any thread.
    """
    console = Console(stderr=True)
    if console.is_terminal and not as_json:
        with _bars(console) as show:
            yield show
    else:
        with _lines(every) as show:
            yield show


@contextmanager
def _bars(console: Console) -> Generator[Callable[[Progress], None]]:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    tasks: dict[tuple[str, int], int] = {}
    lock = threading.Lock()
    with Bars(*columns, TextColumn("{task.fields[speed]}", markup=False), console=console) as bars:

        def show(progress: Progress) -> None:
            place = (progress.name, progress.number)
            with lock:
                if place not in tasks:
                    tasks[place] = bars.add_task(f"{progress.name}, pass {progress.number}", speed="")
                bars.update(
                    tasks[place],  # type: ignore[arg-type] # rich's own kind of int
                    completed=progress.rows,
                    total=max(progress.total, progress.rows),
                    speed=_speed(progress),
                )

        yield show


@contextmanager
def _lines(every: float) -> Generator[Callable[[Progress], None]]:
    handler = None
    if not _logger.hasHandlers():
        # The command's own process; an application that mounts the commands has its own.
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%dT%H:%M:%S%z"))
        _logger.addHandler(handler)
    level = _logger.level
    _logger.setLevel(logging.INFO)
    due = [time.monotonic() + every]

    def show(progress: Progress) -> None:
        now = time.monotonic()
        if now >= due[0]:  # two threads may both pass: one line more
            due[0] = now + every
            _logger.info(
                "%s, pass %d: %d of %d rows, %d changed, %d not readable, %s",
                progress.name,
                progress.number,
                progress.rows,
                max(progress.total, progress.rows),
                progress.counts.converted,
                progress.counts.quarantined,
                _speed(progress),
            )

    try:
        yield show
    finally:
        _logger.setLevel(level)
        if handler is not None:
            _logger.removeHandler(handler)


def _speed(progress: Progress) -> str:
    return f"{progress.rows / progress.seconds:,.0f} rows/s" if progress.seconds > 0 else ""
