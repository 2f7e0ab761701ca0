# SPDX-License-Identifier: Apache-2.0
"""A writer that leaves SQLite's lock for moments only: `hog.py FILE`, until standard input ends."""

from __future__ import annotations

import select
import sqlite3
import sys
from contextlib import closing


def main(file: str) -> None:
    """Write, one transaction after the other."""
    with closing(sqlite3.connect(file, timeout=60, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS counted (number INTEGER)")
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        done = 0
        while not select.select([sys.stdin], [], [], 0)[0]:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO counted VALUES (1)")
            connection.execute("COMMIT")
            done += 1
    sys.stdout.write(f"{done}\n")


if __name__ == "__main__":
    main(sys.argv[1])
