# SPDX-License-Identifier: Apache-2.0
"""Migrations while old and new code writes, and migrations that are killed: nothing is lost, nothing left."""

from __future__ import annotations

import json
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from sa_asherah import Encrypted
from sa_asherah.alembic import MigrationError
from tests.migrations.site import program

if TYPE_CHECKING:
    from collections.abc import Generator

    from tests.migrations.site import Site

ROWS = 60
LIMIT = 120.0
TABLE = """
op.create_asherah_metastore()
op.create_table(
    "patients",
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("clinic_id", sa.Integer, nullable=False),
    sa.Column("ssn", sa.Text().with_variant(sa.dialects.mysql.LONGTEXT(), "mysql", "mariadb")),
)
"""
CELL = 'Encrypted(sa.String(), owner="clinic_id", label="patients.ssn")'
TEXT = 'Encrypted(sa.String(), owner="clinic_id", storage="text")'
EXPAND = f"""
op.add_column("patients", sa.Column("ssn_encrypted", {CELL}))
op.create_copy_triggers("patients", "ssn", "ssn_encrypted", ["clinic_id"])
"""
COPY = f'op.encrypt_column("patients", "ssn", sa.String(), {CELL}, into="ssn_encrypted", batch=7)'
CONTRACT = """
op.require_copied("patients", "ssn", "ssn_encrypted")
op.drop_copy_triggers("patients", "ssn", "ssn_encrypted")
op.drop_column("patients", "ssn")
"""


class Writer:
    """A running application of one version."""

    def __init__(self, version: str, url: str, part: int) -> None:
        command, environment = program("writer", version, url, str(part))
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def stop(self) -> dict[int, str]:
        """End it; return what it wrote last, by row."""
        output, _ = self._process.communicate("stop\n", timeout=LIMIT)
        assert self._process.returncode == 0
        return {int(number): ssn for number, ssn in json.loads(output).items()}

    def kill(self) -> None:
        """End it in any case."""
        self._process.kill()
        self._process.communicate()


@contextmanager
def writing(version: str, url: str, part: int) -> Generator[Writer]:
    """Run an application for the time of the block."""
    writer = Writer(version, url, part)
    try:
        yield writer
    finally:
        writer.kill()


def fill(site: Site, rows: int = ROWS) -> dict[int, str]:
    """Create the table with plaintext; return what is in it."""
    site.write(TABLE)
    site.upgrade()
    truth = {number: f"{number:06d}-ä" for number in range(1, rows + 1)}
    statement = "INSERT INTO patients (id, clinic_id, ssn) VALUES (:id, :clinic, :ssn)"
    site.run(statement, [{"id": n, "clinic": n % 3, "ssn": ssn} for n, ssn in truth.items()])
    return truth


def contents(site: Site, column: str, type_: sa.types.TypeEngine[Any]) -> dict[int, str]:
    """Read the rows as the newest application does: only ciphertext is read."""
    columns = [sa.Column("id", sa.Integer, primary_key=True), sa.Column("clinic_id", sa.Integer)]
    patients = sa.Table("patients", sa.MetaData(), *columns, sa.Column(column, type_, key="ssn"))
    return dict(site.read(sa.select(patients.c.id, patients.c.ssn)))


@pytest.fixture
def texts() -> Encrypted:
    return Encrypted(sa.String(), owner="clinic_id", storage="text")


@pytest.fixture
def cells() -> Encrypted:
    return Encrypted(sa.String(), owner="clinic_id", label="patients.ssn")


def wait_for_writes(site: Site, rows: int = 4) -> None:
    """Wait until running applications have added some rows, so that each has changed more."""
    end, count = time.monotonic() + LIMIT, "SELECT count(*) FROM patients"
    wanted = site.rows(count)[0][0] + rows
    while site.rows(count)[0][0] < wanted:
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.long
def test_old_and_new_code_lose_nothing_in_place(site: Site, texts: Encrypted) -> None:
    truth = fill(site)
    site.write(f'op.encrypt_column("patients", "ssn", sa.String(), {TEXT}, batch=7)')
    site.write(f'op.require_encrypted("patients", "ssn", {TEXT})')
    with writing("reading", site.url, 1) as new:
        with writing("old", site.url, 0) as old:
            wait_for_writes(site)
            truth |= old.stop()
        with writing("reading", site.url, 0) as other:
            site.upgrade()
            wait_for_writes(site)
            truth |= other.stop()
        truth |= new.stop()
    assert contents(site, "ssn", texts) == truth


@pytest.mark.long
def test_old_and_new_code_lose_nothing_by_copy(site: Site, cells: Encrypted) -> None:
    truth = fill(site)
    site.write(EXPAND)
    site.upgrade()
    site.write(COPY)
    site.write(COPY)
    site.write(CONTRACT)
    with writing("both", site.url, 1) as both:
        with writing("old", site.url, 0) as old:
            wait_for_writes(site)
            truth |= old.stop()
        with writing("both", site.url, 0) as other:
            site.upgrade("+1")
            wait_for_writes(site)
            truth |= other.stop()
        with writing("copy", site.url, 0) as new:
            wait_for_writes(site)
            site.upgrade("+1")  # the backfill once more: it takes no old value for a newer one
            truth |= both.stop()
            site.upgrade()
            wait_for_writes(site, 1)
            truth |= new.stop()
    assert contents(site, "ssn_encrypted", cells) == truth


@pytest.mark.long
def test_old_code_alone_loses_nothing_by_copy(site: Site, cells: Encrypted) -> None:
    truth = fill(site)
    site.write(EXPAND)
    site.upgrade()
    site.write(COPY)
    with writing("old", site.url, 0) as one, writing("old", site.url, 1) as other:
        try:
            site.upgrade()
        except MigrationError as error:
            assert "values are left" in str(error)  # noqa: PT017 -- it may also come to an end
        wait_for_writes(site)
        truth |= one.stop() | other.stop()
    site.upgrade()
    site.write(COPY)
    site.write(CONTRACT)
    site.upgrade()
    assert contents(site, "ssn_encrypted", cells) == truth


@contextmanager
def upgrading(site: Site) -> Generator[subprocess.Popen[bytes]]:
    """Run `alembic upgrade head` in a process of its own for the time of the block."""
    command, environment = site.alembic("upgrade", "head")
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.long
def test_a_killed_migration_goes_on_where_it_was(site: Site, texts: Encrypted) -> None:
    truth = fill(site, 240)
    site.write(f'op.encrypt_column("patients", "ssn", sa.String(), {TEXT}, batch=5, rows_per_second=150)')
    site.write(f'op.require_encrypted("patients", "ssn", {TEXT})')
    done, counts = 0, []
    for _ in range(2):
        with upgrading(site) as process:
            end = time.monotonic() + LIMIT
            while (now := encrypted(site)) <= done and process.poll() is None and time.monotonic() < end:
                time.sleep(0.02)
        counts.append(done := max(now, encrypted(site)))
        assert site.rows("SELECT version_num FROM alembic_version") == [("r1",)]
    assert 0 < counts[0] < counts[1] < 240
    site.run("UPDATE asherah_range SET lease_until = 0")  # who was killed does not come back: not wait for its lease
    versions = site.folder / "migrations" / "versions" / "r2.py"
    versions.write_text(
        versions.read_text(encoding="utf-8").replace(", batch=5, rows_per_second=150", ""), encoding="utf-8"
    )
    site.upgrade()
    assert contents(site, "ssn", texts) == truth


def encrypted(site: Site) -> int:
    """Count what is ciphertext."""
    return int(site.rows("SELECT count(*) FROM patients WHERE ssn LIKE 'sa1%'")[0][0])
