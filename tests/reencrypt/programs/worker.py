# SPDX-License-Identifier: Apache-2.0
"""A process that takes part in the job: `worker.py URL LEASE BATCH STOP_AT`.

STOP_AT says where, in each batch, it prints that word and waits for a line: `sealed` is before the transaction,
`swapped` within it, after the rows were changed, `none` nowhere. At the end it prints the report as JSON.
"""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import Any

from sa_asherah.reencrypt.converter import Converter
from sa_asherah.reencrypt.job import Job
from sa_asherah.reencrypt.worker import Worker
from tests.reencrypt.scene import Scene, plan


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main(url: str, lease: float, batch: int, stop_at: str) -> None:
    """Work."""
    scene = Scene(url)
    owner, name = {"sealed": (Converter, "treat"), "swapped": (Worker, "_write")}.get(stop_at, (None, ""))
    if owner is not None:
        original = getattr(owner, name)

        def paused(*arguments: Any, **options: Any) -> Any:
            result = original(*arguments, **options)
            say(stop_at)
            sys.stdin.readline()
            return result

        setattr(owner, name, paused)
    job = Job(scene.engine, scene.asherah, plan(), batch=batch, lease=timedelta(seconds=lease))
    say("ready")
    say(job.run().to_json())
    scene.close()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
