# SPDX-License-Identifier: Apache-2.0
"""The application of one version while the job runs: `writer.py URL VERSION NUMBER COUNT PAUSE LOG`.

The old version knows plaintext only. The new one writes cells, reads plaintext too, and looks at what it finds. Each
changes rows of its own (id modulo 2), of which it knows all there is to know: it adds, deletes, empties and rewrites
them, gives them to other owners, several in a transaction, and takes some transactions back. What was committed it
writes to LOG, one transaction in a line, until standard input ends.
"""

from __future__ import annotations

import json
import random
import select
import sys
from contextlib import suppress
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from sa_asherah import Encrypted
from sa_asherah.errors import MetastoreUnavailableError
from tests.reencrypt.scene import LONG_TEXT, Scene, first_note, notes

WRITERS = 2
READING_BOTH = notes(
    Encrypted(sa.Text(), owner="tenant", label="notes.body", storage="text", reads=("plaintext@2099-12-31",))
)
Row = tuple[str, str | None]
"""Owner and text."""


class Writer:
    """One process."""

    def __init__(self, scene: Scene, version: str, number: int, count: int) -> None:
        self.scene = scene
        self.is_new = version == "new"
        self.table = READING_BOTH if self.is_new else notes(LONG_TEXT)
        self.dice = random.Random(number)  # noqa: S311 -- a load, not a secret
        self.truth: dict[int, Row] = {n: first_note(n) for n in range(1, count + 1) if n % WRITERS == number}
        self.ids = list(self.truth)
        self.next = count + 1 + (number - count - 1) % WRITERS
        self.turn = 0

    def transact(self) -> dict[int, Row | None] | None:
        """Change some rows in one transaction; tell what was committed."""
        self.turn += 1
        changes: dict[int, Row | None] = {}
        for number in sorted({self._choose() for _ in range(self.dice.choice([1, 1, 1, 2, 3]))}):
            changes[number] = self._change(number)
        with self.scene.engine.connect() as connection:
            for number, row in changes.items():
                self._write(connection, number, row)
            if self.dice.random() < 0.05:
                return None
            connection.commit()
        self.truth |= {number: row for number, row in changes.items() if row is not None}
        for number, row in changes.items():
            if row is None:
                del self.truth[number]
        return changes

    def _choose(self) -> int:
        """Take a row, also one that was deleted; or a new one."""
        if self.dice.random() < 0.1:
            self.ids.append(self.next)
            self.next += WRITERS
            return self.ids[-1]
        return self.dice.choice(self.ids)

    def _change(self, number: int) -> Row | None:
        now = self.truth.get(number)
        dice = self.dice.random()
        if now is not None and dice < 0.1:
            return None
        owner = now[0] if now is not None and dice < 0.7 else f"tenant {self.dice.randrange(5)}"
        text = f"{self.turn} written by {self.is_new} {dice} " + "é" * self.dice.choice([5000] + 24 * [0, 10])
        return owner, None if 0.1 < dice < 0.15 else text

    def _write(self, connection: sa.Connection, number: int, row: Row | None) -> None:
        table, here = self.table, self.table.c.id == number
        now = self.truth.get(number)
        if self.is_new:
            found = connection.execute(sa.select(table.c.tenant, table.c.body).where(here)).first()
            if (None if found is None else tuple(found)) != now:
                raise SystemExit(f"row {number} is not what was written")
        if row is None:
            connection.execute(table.delete().where(here))
        elif now is None:
            connection.execute(table.insert().values(id=number, tenant=row[0], body=row[1]))
        else:
            connection.execute(table.update().where(here).values(tenant=row[0], body=row[1]))


def main(url: str, version: str, number: int, count: int, pause: float, log: Path) -> None:
    """Write."""
    scene = Scene(url)
    writer = Writer(scene, version, number, count)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    with log.open("a", encoding="utf-8") as lines:
        while not select.select([sys.stdin], [], [], pause)[0]:
            # Deadlocks are the application's to repeat.
            with suppress(OperationalError, MetastoreUnavailableError):
                changes = writer.transact()
                if changes is not None:
                    lines.write(json.dumps(list(changes.items()), ensure_ascii=False) + "\n")
    sys.stdout.write("done\n")
    scene.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]), Path(sys.argv[6]))
