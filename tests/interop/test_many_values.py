# SPDX-License-Identifier: Apache-2.0
"""Thousands of values of both implementations over one key table, through every rotation and revocation."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta

import pytest

from sa_asherah.core.row_record import parse_data_row_record
from tests.interop.shared_table import SharedTable

pytestmark = pytest.mark.filterwarnings("ignore::sa_asherah.StaticKeyWarning")

DAY = 86_400
YEAR = {"EXPIRE_AFTER_SECS": str(365 * DAY), "ASHERAH_CONFIG_DRIFT_FORCE_RUN": "1"}
SUFFIXES = ("", "us-west-2", "eu-central-1")
SIZES = (0, 1, 16, 97, 1024, 4099)
# Ids differ by their code points alone: neither case nor composed letters, spaces or patterns are the same to a table.
PARTITIONS = (
    "user1",
    "user_1",
    "Bob",
    "bob",
    "Ünïcødé-账户",
    "é",
    "e\N{COMBINING ACUTE ACCENT}",
    "مستخدم",
    "\N{KEY}\N{EMOJI MODIFIER FITZPATRICK TYPE-5}",
    " with space/slash@example.com ",
    "%' OR ''='",
    "long" * 50,
)


@dataclass
class Value:
    """A value that one implementation encrypted."""

    partition: str
    payload: bytes
    record: str = ""


@dataclass
class Life:
    """The life of one hierarchy: its values, and how many keys each owner has by now."""

    table: SharedTable
    share: int
    values: list[Value] = field(default_factory=list[Value])

    def draw(self) -> list[Value]:
        """Take the next values; every owner gets some."""
        start = len(self.values)
        drawn = [
            Value(PARTITIONS[n % len(PARTITIONS)], hashlib.shake_256(b"%d" % n).digest(SIZES[n % len(SIZES)]))
            for n in range(start, start + self.share)
        ]
        self.values += drawn
        return drawn

    def we_write(self, days: float = 0) -> None:
        """Encrypt values here.

        Args:
            days: How far our clock is from the present.
        """
        with (
            self.table.ours(clock=_clock(days), expire_after=timedelta(days=365)) as (asherah, engine),
            engine.begin() as connection,
        ):
            for value in self.draw():
                value.record = asherah.session(value.partition, connection=connection).encrypt(value.payload)

    def it_writes(self, **environ: str) -> None:
        """Encrypt values with the package.

        Args:
            **environ: Settings other than an expiry of a year.
        """
        drawn = self.draw()
        with self.table.package(**YEAR | environ) as package:
            records = package.encrypt(*[(value.partition, value.payload) for value in drawn])
        for value, record in zip(drawn, records, strict=True):
            value.record = record

    def assert_keys(self, counts: Callable[[int], int], newest: int = -1) -> None:
        """Every owner has so many keys, and the last values were encrypted under the newest.

        Args:
            counts: How many keys each owner has, by the number of the partition.
            newest: Which of them encrypted.
        """
        rows = self.table.rows("_IK_")
        for number, partition in enumerate(PARTITIONS):
            key_id = self.table.key_id(partition)
            keys = [(row.id, row.record["Created"]) for row in rows if row.id == key_id]
            assert len(keys) == counts(number), (partition, keys)
            last = next(value for value in reversed(self.values) if value.partition == partition)
            assert parse_data_row_record(last.record).parent == keys[newest]

    def revoke(self, group: int | None) -> None:
        """Revoke the newest keys of a third of the owners, or the newest system key."""
        for partition in [None] if group is None else PARTITIONS[group::3]:
            self.table.revoke_newest(partition)

    def compare(self) -> Iterator[tuple[str, Value]]:
        """Read every value with fresh processes of both, and yield what comes out differently."""
        with self.table.ours() as (asherah, engine), engine.begin() as connection:
            for value in self.values:
                if asherah.session(value.partition, connection=connection).decrypt(value.record) != value.payload:
                    yield "ours", value
        with self.table.package(**YEAR) as package:
            read = package.decrypt(*[(value.partition, value.record) for value in self.values])
        yield from (
            ("package", value) for value, found in zip(self.values, read, strict=True) if found != value.payload
        )


def _clock(days: float) -> Callable[[], float]:
    return lambda: time.time() + days * DAY


def live(life: Life) -> None:
    """Age four years: each step leaves every owner the same number of keys."""
    life.we_write(days=-700)
    life.assert_keys(lambda _: 1)
    # Our keys expire, we rotate; the package goes on with what we made.
    life.we_write(days=-200)
    life.it_writes()
    life.assert_keys(lambda _: 2)
    # The system key is revoked.
    life.revoke(None)
    life.we_write(days=-150)
    life.it_writes()
    life.assert_keys(lambda _: 3)
    # Keys of owners are revoked: once the package is the first to notice, once we are.
    life.revoke(0)
    life.it_writes()
    life.we_write()
    life.assert_keys(lambda number: 3 + (number % 3 == 0))
    life.revoke(1)
    life.we_write()
    life.it_writes()
    life.assert_keys(lambda number: 3 + (number % 3 < 2))
    # The package's policy is the stricter one, and it rotates; we go on with what it made.
    life.it_writes(EXPIRE_AFTER_SECS=str(100 * DAY))
    life.we_write()
    life.assert_keys(lambda _: 4)
    # Our clock is ahead, and we rotate; the package goes on with what we made.
    life.we_write(days=400)
    life.it_writes()
    life.assert_keys(lambda _: 5)
    # With the right clock again, the keys of the future are not for us to encrypt with.
    life.we_write()
    life.assert_keys(lambda _: 5, newest=-2)


STEPS = 14


@pytest.mark.parametrize(
    ("count", "suffixes"),
    [pytest.param(500, SUFFIXES[1:2], id="500"), pytest.param(10_000, SUFFIXES, id="10000", marks=pytest.mark.long)],
)
def test_every_value_opens_with_both(plain: SharedTable, count: int, suffixes: tuple[str, ...]) -> None:
    share = -(-count // (STEPS * len(suffixes)))
    lives = [Life(dataclasses.replace(plain, suffix=suffix), share) for suffix in suffixes]
    for life in lives:
        live(life)
        assert len(life.table.keys(None)) == 5
    assert sum(len(life.values) for life in lives) >= count
    assert [different for life in lives for different in life.compare()] == []
