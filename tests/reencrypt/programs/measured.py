# SPDX-License-Identifier: Apache-2.0
"""A worker that watches its memory: `measured.py URL COUNT` prints it in KiB at every tenth of the first pass."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from sa_asherah.reencrypt.job import Job
from sa_asherah.reencrypt.report import Progress
from tests.reencrypt.scene import Scene, plan


def resident() -> int:
    """Return the memory of this process that is in RAM, in KiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def main(url: str, count: int) -> None:
    """Work."""
    scene = Scene(url)
    found: dict[int, int] = {}

    def watch(progress: Progress) -> None:
        if progress.number == 1:
            found.setdefault(progress.rows * 10 // count, resident())

    sys.stdout.write("ready\n")
    sys.stdout.flush()
    report = Job(scene.engine, scene.asherah, plan(), batch=200, progress=watch).run()
    sys.stdout.write(json.dumps([report.converted, [found[tenth] for tenth in range(1, 11)]]) + "\n")
    scene.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
