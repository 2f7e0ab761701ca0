# SPDX-License-Identifier: Apache-2.0
"""The cells of `docs/reference/outages.md`, and how to bring a process into each of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sa_asherah import errors
from sa_asherah.errors import KmsError, KmsUnavailableError, MetastoreUnavailableError
from tests.unit.core.fakes import DAY, EXPIRE_AFTER, INTERVAL, START, SYSTEM_ID, FakeKMS, World, key_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sa_asherah.core.hierarchy import Hierarchy

PAGE: Final = Path(__file__).parents[2] / "docs" / "reference" / "outages.md"
_SAYS: Final = re.compile(
    r"works(?P<new>, with a new key)?( for (?P<hours>\d+) h, then `(?P<then>\w+)`)?|`(?P<error>\w+)`|-"
)
_LOGS: Final = re.compile(r"(`[^`]+`(, `[^`]+`)*)|-")
COLUMNS: Final[tuple[str, ...]] = (
    "write, key in memory",
    "write, another owner",
    "read, key in memory",
    "read, another key",
    "read, another system key",
)
DOWN: Final = ("key table", "key service", "both")

OLDER: Final = START - EXPIRE_AFTER - DAY
"""When the system key before was made, and an owner's key under it."""
BEFORE: Final = START + EXPIRE_AFTER - 600
"""When processes look for the last time before the keys expire."""


@dataclass(frozen=True)
class Cell:
    """One cell: what a user sees.

    Attributes:
        when: The section.
        down: What is down.
        column: Who does what.
        new: Whether it works because a new key is made.
        hours: After how many hours it ends to work; 0 if never, or if it never works.
        error: What is raised then; "" if it works.
    """

    when: str
    down: str
    column: str
    new: bool
    hours: int
    error: str

    @property
    def raises(self) -> type[errors.AsherahError]:
        """The class of the error."""
        found: type[errors.AsherahError] = getattr(errors, self.error)
        return found


@dataclass(frozen=True)
class Row:
    """One row: its cells, but those that say `-` and so do not exist, and what is in the log meanwhile."""

    when: str
    down: str
    cells: tuple[Cell, ...]
    logged: frozenset[str]


def rows(text: str) -> Iterator[Row]:
    """Read the page; nothing in its tables goes unread."""
    when = ""
    for line in text.splitlines():
        when = line.removeprefix("## ") if line.startswith("## ") else when
        first, *rest = (cell.strip() for cell in line.strip("|").split("|"))
        if not line.startswith("|") or set(first) == {"-"}:
            continue
        if first not in DOWN:
            assert (first, *rest) == ("down", *COLUMNS, "log"), line
            continue
        *says, logged = rest
        found = [_cell(when, first, *pair) for pair in zip(COLUMNS, says, strict=True)]
        assert _LOGS.fullmatch(logged), f"no log of this page says {logged!r}"
        yield Row(when, first, tuple(cell for cell in found if cell), frozenset(re.findall("`([^`]+)`", logged)))


def _cell(when: str, down: str, column: str, says: str) -> Cell | None:
    match = _SAYS.fullmatch(says)
    assert match, f"no cell of this page says {says!r}"
    error = match["error"] or match["then"] or ""
    return None if says == "-" else Cell(when, down, column, bool(match["new"]), int(match["hours"] or 0), error)


class Service(FakeKMS):
    """Fails in any way that a service can."""

    def __init__(self) -> None:
        super().__init__()
        self.failure: type[KmsError] = KmsUnavailableError

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if self.is_down:
            raise self.failure("the key service is down", retryable=False, operation=name)


class Stage:
    """A process with a key in memory, another one that makes keys, and switches for the outages."""

    def __init__(self, *, enlisted: bool = False) -> None:
        self.world = World()
        self.world.kms = self.service = Service()
        self.enlisted = enlisted
        self.elsewhere = self.new_process()
        self.world.clock.now = OLDER
        self.elsewhere.encryption_keys(["older"])
        self.world.clock.now = START
        self.elsewhere.encryption_keys(["warm", "cold", *(f"cold {number}" for number in range(4))])
        self.process = self.new_process()
        self.metastore = self.world.metastore
        self.strangers = 0
        self.looked = float(START)
        self.expires = float(START + EXPIRE_AFTER)

    def new_process(self, **policy: Any) -> Hierarchy:
        return self.world.process(enlisted=self.enlisted, rotation_spread=0, early_rotation=0, **policy)

    def look(self, now: float, *owners: str) -> None:
        """Let the process look at the keys of owners, `warm` among them."""
        self.world.clock.now = self.looked = now
        for owner in (*owners, "warm"):
            self.process.encryption_keys([owner])
        self.process.decryption_key("warm", START)

    def learn(self) -> None:
        """Let the process look, and see that it has to make a key, and fail to."""
        self.world.clock.now = self.looked = START + INTERVAL * 3
        self.process.decryption_key("warm", START)
        self._fail_at_insert()
        try:
            self.process.encryption_keys(["warm"])
        except MetastoreUnavailableError:
            self.world.clock.now += 11
            return
        raise AssertionError("it encrypted with a revoked key")

    def _fail_at_insert(self) -> None:
        """Let the key table go down after it was read."""

        def fail(_rows: object) -> None:
            self.world.table.before_insert = lambda _rows: None
            raise MetastoreUnavailableError("the key table went down")

        self.world.table.before_insert = fail

    def begin(self, down: str, *, midway: bool = False) -> None:
        """Begin the outage."""
        if midway:
            if down != "key service":
                self._fail_at_insert()
            self.world.kms.is_down = down != "key table"
            self.act(COLUMNS[0])
            if down == "both":
                self.looked = self.world.clock.now  # the key service failed first: the key table was read to the end
        self.metastore.is_down = down != "key service"
        self.world.kms.is_down = down != "key table"

    def end(self) -> None:
        """End the outage; everybody is back within 10 s."""
        self.metastore.is_down = self.world.kms.is_down = False
        self.world.table.before_insert = lambda _rows: None
        self.world.clock.now += 11

    def act(self, column: str) -> bool:
        """Do what a column says; tell whether a new key was needed for it."""
        if column == COLUMNS[0]:
            return self.process.encryption_keys(["warm"])["warm"].created != START
        if column == COLUMNS[1]:
            # One with a key that this process does not have, and one who has none.
            cold, new = f"cold {self.strangers}", f"new {self.strangers}"
            self.strangers += 1
            created = self.process.encryption_keys([cold])[cold].created
            self.process.encryption_keys([new])
            return created != START
        values: list[tuple[str, int]] = [("warm", START), ("cold", START), ("older", OLDER)]
        owner, created = values[COLUMNS[2:].index(column)]
        self.process.before_reading()
        opened = self.process.row_keys.setdefault("reader", {})
        head = f"{owner} {created}".encode()
        if head not in opened:  # like the readers, which open a value like one before without asking
            opened[head] = self.process.decryption_key(owner, created)
        return False

    def seconds_left(self) -> float:
        """Tell what the gauge shows."""
        return self.process.seconds_until_writes_stop()


def starts(_stage: Stage) -> None:
    """Nothing is in memory."""


def between(stage: Stage) -> None:
    stage.look(START + INTERVAL)
    stage.world.clock.now += INTERVAL * 0.8


def due(stage: Stage) -> None:
    stage.look(START + INTERVAL)
    stage.world.clock.now += INTERVAL * 1.1 + 1


def expired(stage: Stage) -> None:
    stage.look(BEFORE)
    stage.world.clock.now = stage.expires + 1


def expired_under_a_younger_system_key(stage: Stage) -> None:
    stage.world.clock.now = BEFORE
    stage.new_process(expire_after=EXPIRE_AFTER - DAY).encryption_keys(["third"])
    stage.look(BEFORE, "third")
    stage.world.clock.now = stage.expires + 1


def revoked(stage: Stage) -> None:
    stage.look(START + INTERVAL)
    stage.world.table.edit((key_id("warm"), START), Revoked=True)
    stage.learn()


def system_key_revoked(stage: Stage) -> None:
    stage.look(START + INTERVAL)
    stage.world.table.edit((SYSTEM_ID, START), Revoked=True)
    stage.learn()


SCENES: Final[dict[str, Callable[[Any], None]]] = {
    "A process starts": starts,
    "Between two looks": between,
    "A look is due": due,
    "An owner's key expires": expired_under_a_younger_system_key,
    "The system key expires": expired,
    "An owner's key is known to be revoked": revoked,
    "The system key is known to be revoked": system_key_revoked,
    "In the middle of a rotation": expired,
}
