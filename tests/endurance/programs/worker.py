# SPDX-License-Identifier: Apache-2.0
"""A process of the application whose 90 days last 4 seconds: `worker.py URL`.

Each line of standard input is a time. At that time, all threads at once write a note and read what was written lately;
then the process prints `done`.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session

from tests.transactions.programs.notes import Note, asherah, note

START = 1_800_000_000
STEP = 0.5
LIFE = 4
"""Seconds, for 90 days."""
PRECISION = 1
EARLY = 0.25
"""Two steps: some processes replace a key at the first of them, the others find it at the second."""
SPREAD = 1
TENANTS = [f"tenant {number}" for number in range(8)]
THREADS = len(TENANTS)
"""So many that a process writes for every tenant in each step."""


class Work:
    """The process."""

    def __init__(self, url: str) -> None:
        options: dict[str, Any] = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
        self.now = float(START)
        self._engine = create_engine(url, pool_size=THREADS, **options)
        self._keys = asherah(
            lambda: self.now,
            expire_after=timedelta(seconds=LIFE),
            precision=timedelta(seconds=PRECISION),
            check_interval=timedelta(seconds=2 * STEP),
            early_rotation=EARLY,
            rotation_spread=timedelta(seconds=SPREAD),
        )
        self._keys.attach(self._engine)

    def write(self, thread: int) -> None:
        """Write a note, and read the newest ones.

        Tenants come one after the other, so that their keys' ages differ from each other's and the system key's.

        Raises:
            ValueError: A note has another text.
        """
        step = round((self.now - START) / STEP)
        tenants = TENANTS[: 1 + step]
        with Session(self._engine) as session:
            session.add(note(tenants[(thread + step) % len(tenants)], f"{self.now}, {thread}"))
            session.commit()
            for each in session.scalars(select(Note).order_by(Note.id.desc()).limit(5)):
                if each.secret != each.clear:
                    raise ValueError(f"note {each.id} is not {each.clear}")


def main(url: str) -> None:
    """Work."""
    work = Work(url)
    with ThreadPoolExecutor(THREADS) as pool:
        for line in sys.stdin:
            work.now = float(line)
            list(pool.map(work.write, range(THREADS)))
            sys.stdout.write("done\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
