# SPDX-License-Identifier: Apache-2.0
"""10,000 owners through a cache of 1,000 keys: `crowd.py URL SECONDS`.

Round after round a note of each owner is written and some are read. Printed is what the process used at the end of
each round, and what was found in memory where keys had been: in the cache, dropped from it, and after closing.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import time
from typing import TYPE_CHECKING

from sqlalchemy import create_engine, insert, select, update
from sqlalchemy.orm import Session

from tests.transactions.programs.notes import Note, asherah

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from sa_asherah.core.cache import KeyCache

OWNERS = 10_000
CACHE = 1_000
BATCH = 500
ROUNDS = 4


def addresses(cache: KeyCache) -> dict[int, bytes]:
    """Tell where the bytes of the keys are, and their first half."""
    found: dict[int, bytes] = {}
    for key in list(cache._keys.values()):
        place = (ctypes.c_char * len(key.secret)).from_buffer(key.secret)
        found[ctypes.addressof(place)] = bytes(key.secret)
    return found


def still_there(places: dict[int, bytes]) -> int:
    """Count the places where a key, or its second half, is to be found: freed memory may begin with a pointer."""
    memory = os.open("/proc/self/mem", os.O_RDONLY)
    count = 0
    for address, secret in places.items():
        try:
            count += os.pread(memory, len(secret), address)[16:] == secret[16:]
        except OSError:  # given back to the system
            continue
    os.close(memory)
    return count


def used() -> int:
    """Return the memory of this process in KiB."""
    gc.collect()
    with open("/proc/self/statm") as file:  # noqa: PTH123 - once a round, it must leave nothing behind
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") // 1024


def owner(number: int) -> str:
    """Name the owner of a note, by the note's id."""
    return f"owner {number}"


def fill(engine: Engine) -> None:
    """Write a note of each owner."""
    for start in range(1, OWNERS, BATCH):
        notes = [{"id": number, "tenant": owner(number), "clear": ""} for number in range(start, start + BATCH)]
        with engine.begin() as connection:
            connection.execute(insert(Note), [each | {"secret": "a note", "remark": "a note"} for each in notes])


def turn(engine: Engine, first: int, last: int) -> None:
    """Write the notes of some owners anew, and read some of them."""
    for start in range(first, last, BATCH):
        with Session(engine) as session:
            numbers = range(start, start + BATCH)
            values = [{"id": each, "tenant": owner(each), "secret": "anew", "remark": "anew"} for each in numbers]
            session.execute(update(Note), values)
            session.commit()
            session.scalars(select(Note).where(Note.id == start)).one()


def main(url: str, seconds: float) -> None:
    """Work until the time is up, at least for some rounds."""
    engine = create_engine(url)
    keys = asherah(cache_size=CACHE)
    keys.attach(engine)
    fill(engine)
    cache = keys._attachment(engine).hierarchy._keyring.intermediate
    end = time.monotonic() + seconds
    memory: list[int] = []
    present = dropped = 0
    before: dict[int, bytes] = {}
    largest = 0
    while time.monotonic() < end or len(memory) < ROUNDS:
        turn(engine, 1, OWNERS // 2)
        # Not after the whole round, when the same keys are in memory again.
        dropped += still_there(before)
        turn(engine, 1 + OWNERS // 2, OWNERS)
        before = addresses(cache)
        present += still_there(before)
        largest = max(largest, len(cache))
        memory.append(used())
    keys.close()
    closed = still_there(before)
    report = {"memory": memory, "largest": largest, "present": present, "dropped": dropped, "closed": closed}
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
