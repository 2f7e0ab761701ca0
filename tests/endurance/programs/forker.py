# SPDX-License-Identifier: Apache-2.0
"""A process that forks while its threads encrypt: `forker.py URL CHILDREN`.

Threads write notes all the time, so that a fork finds locks held. Each child writes notes of a known and sometimes of
a new tenant with the keys and the engine that it inherited, and a data row record beside them. It has a minute:
one that waits for a lock which nobody will release is killed by its alarm. The process prints the records, and on
standard error how the children ended.
"""

from __future__ import annotations

import collections
import faulthandler
import gc
import json
import os
import signal
import sys
import threading
import traceback
import warnings

from sqlalchemy import Engine, create_engine, insert

from sa_asherah import Asherah
from tests.transactions.programs.notes import Base, asherah

PATIENCE = 60
THREADS = 4
AT_ONCE = 4
TABLE = Base.metadata.tables["notes"]


def write(engine: Engine, keys: Asherah, tenant: str, statement: str) -> None:
    """Write two notes in one statement and one in another, and a data row record.

    Their clear text says which statement. Not with an ORM session: SQLAlchemy numbers these under a lock of its own,
    which a child of a process with threads may find held.
    """
    notes = [{"tenant": tenant, "clear": f"{statement}/{n}", "secret": f"{statement}/{n}"} for n in range(3)]
    with engine.begin() as connection:
        connection.execute(insert(TABLE), [each | {"remark": f"about {each['clear']}"} for each in notes[:2]])
        connection.execute(insert(TABLE), notes[2])
    # Past the buffer of standard output, which a child would inherit with what is in it.
    os.write(1, keys.session(tenant).encrypt(statement.encode()).encode() + b"\n")


def child(engine: Engine, keys: Asherah, number: int) -> int:
    """Do a child's work, and give its exit status."""
    faulthandler.register(signal.SIGALRM, chain=True)
    signal.alarm(PATIENCE)
    engine.dispose(close=False)
    try:
        write(engine, keys, f"tenant {number % THREADS}", f"child {number}")
        if number % 10 == 0:
            write(engine, keys, f"new tenant {number}", f"first {number}")
    except BaseException:  # noqa: BLE001 - it must not go on in the parent's code
        traceback.print_exc()
        return 1
    return 0


def main(url: str, count: int) -> None:
    """Fork under load."""
    warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of a fork beside threads
    engine = create_engine(url, pool_size=THREADS + 1)
    keys = asherah()
    keys.attach(engine)
    for number in range(THREADS):
        write(engine, keys, f"tenant {number}", f"before {number}")
    stop = threading.Event()

    def load(thread: int) -> None:
        number = 0
        while not stop.is_set():
            write(engine, keys, f"tenant {thread}", f"thread {thread} {number}")
            number += 1

    gc.freeze()
    threads = [threading.Thread(target=load, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    ends: collections.Counter[int] = collections.Counter()
    running = 0
    for number in range(count):
        if os.fork() == 0:
            os._exit(child(engine, keys, number))
        running += 1
        if running == AT_ONCE:
            ends[os.waitstatus_to_exitcode(os.wait()[1])] += 1
            running -= 1
    for _ in range(running):
        ends[os.waitstatus_to_exitcode(os.wait()[1])] += 1
    stop.set()
    for thread in threads:
        thread.join()
    sys.stderr.write(json.dumps(ends))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
