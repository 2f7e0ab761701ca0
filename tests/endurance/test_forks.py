# SPDX-License-Identifier: Apache-2.0
"""A process forks under load: no child waits for a lock that nobody holds, and none repeats a salt or a nonce."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections import defaultdict

import pytest
from sqlalchemy import create_engine, text

from sa_asherah.core import cell
from tests.endurance.process import command
from tests.endurance.programs import forker
from tests.transactions.programs import notes
from tests.transactions.programs.notes import Base, asherah

pytestmark = pytest.mark.filterwarnings("ignore::sa_asherah.StaticKeyWarning")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("children", [50, pytest.param(1000, marks=pytest.mark.long)])
def test_children_neither_wait_nor_repeat(postgresql_url: str, children: int) -> None:
    engine = create_engine(postgresql_url)
    asherah().create_metastore(engine)
    Base.metadata.create_all(engine)
    done = subprocess.run(
        command(forker, postgresql_url, children),
        capture_output=True,
        check=True,
        text=True,
    )
    assert json.loads(done.stderr) == {"0": children}
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT clear, secret, remark FROM notes")).all()
    engine.dispose()
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 3 * len(records)
    assert len(records) >= children * 11 // 10 + 4
    assert_fresh_salts([(clear, bytes(value)) for clear, *cells in rows for value in cells if value is not None])
    nonces = [
        bytes(value)[cell.HEAD_SIZE : cell.NONCE_END] for _, *cells in rows for value in cells if value is not None
    ]
    nonces += [base64.b64decode(blob)[-12:] for each in records for blob in (each["Data"], each["Key"]["Key"])]
    assert len(set(nonces)) == len(nonces)
    read = [sys.executable, notes.__file__, "read", postgresql_url]
    assert len(json.loads(subprocess.run(read, capture_output=True, check=True).stdout)) == len(rows)


def assert_fresh_salts(cells: list[tuple[str, bytes]]) -> None:
    """Only the cells that one statement wrote share a salt."""
    statements: dict[bytes, set[str]] = defaultdict(set)
    for clear, value in cells:
        statement, _, number = clear.rpartition("/")
        statements[cell.parse(value).salt].add(f"{statement}, {'second' if number == '2' else 'first'}")
    assert all(len(each) == 1 for each in statements.values())
    assert len(statements) == len({each for names in statements.values() for each in names})
