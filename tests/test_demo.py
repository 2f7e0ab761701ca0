# SPDX-License-Identifier: Apache-2.0
"""The demo: six blocks and exit code 0, and exit code 1 as soon as a block does not show what it says."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

import sa_asherah
from sa_asherah import demo
from sa_asherah.core import aead
from sa_asherah.kms import StaticKMS

SUMMARY = "OK: 2 clinics, 6 patients, 0 plaintext bytes in the file"
HEADINGS = [
    "1. What the application reads",
    "2. What the database holds",
    "3. The key table",
    "4. An update",
    "5. Two ciphertexts swapped between the clinics",
    "6. The bytes of the database file",
]

Sabotage = Callable[[Engine], None]


@pytest.fixture
def sabotage(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Sabotage], None]:
    """Lets a function interfere with the database right before a block."""

    def before(block: str, interfere: Sabotage) -> None:
        original = getattr(demo, block)

        def sabotaged(engine: Engine, *rest: Path) -> None:
            interfere(engine)
            original(engine, *rest)

        monkeypatch.setattr(demo, block, sabotaged)

    return before


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(sa_asherah.__file__).parents[1]), "PYTHONIOENCODING": "utf-8"}


def run_sql(*statements: str) -> Sabotage:
    def interfere(engine: Engine) -> None:
        with engine.begin() as connection:
            for statement in statements:
                connection.execute(text(statement))

    return interfere


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    yield tmp_path
    assert not list(tmp_path.iterdir()), "the demo leaves files behind"


def test_it_runs_as_a_program_without_warnings_and_shows_six_blocks() -> None:
    program = [sys.executable, "-W", "error", "-m", "sa_asherah.demo"]
    done = subprocess.run(program, env=environment(), capture_output=True, check=False, timeout=60)
    output = done.stdout.decode()
    assert (done.returncode, done.stderr.decode()) == (0, "")
    assert re.findall(r"^\d\. .*", output, re.MULTILINE) == HEADINGS
    assert output.splitlines()[-1] == SUMMARY
    assert "refused: DecryptionError" in output
    assert max(map(len, output.splitlines())) <= 120


def test_it_needs_no_extra() -> None:
    program = (
        "import sys; sys.modules.update(dict.fromkeys(['hvac', 'greenlet', 'alembic', 'click', 'rich']));"
        "from sa_asherah import demo; sys.exit(demo.main())"  # importing one of them is an ImportError now
    )
    subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, check=True, timeout=60)


def test_two_runs_use_two_master_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[bytes] = []

    class Recording(StaticKMS):
        def __init__(self, master_key: bytes) -> None:
            keys.append(master_key)
            super().__init__(master_key)

    monkeypatch.setattr(demo, "StaticKMS", Recording)
    assert (demo.main(), demo.main()) == (0, 0)
    assert len(set(keys)) == 2
    assert {len(key) for key in keys} == {aead.KEY_SIZE}


@pytest.mark.parametrize(
    ("block", "interference", "complaint"),
    [
        pytest.param(
            "_show_application",
            run_sql("UPDATE patients SET notes = NULL WHERE id = 1"),
            "the application does not read what it wrote",
            id="application",
        ),
        pytest.param(
            "_show_raw_table",
            run_sql("UPDATE patients SET ssn = '078-05-1120' WHERE id = 1"),
            "a stored value is no ciphertext",
            id="raw-table",
        ),
        pytest.param(
            "_show_key_table",
            run_sql("INSERT INTO encryption_key VALUES ('_IK_3_registry_demo', '2026-01-01 00:00:00', '{}')"),
            "there is not one key for each clinic",
            id="key-table",
        ),
        pytest.param(
            "_show_update",
            run_sql("CREATE TRIGGER undo AFTER UPDATE ON patients BEGIN UPDATE patients SET notes = NULL; END"),
            "the new value is not read",
            id="update",
        ),
        pytest.param(
            "_show_swap",
            run_sql("CREATE TRIGGER keep BEFORE UPDATE ON patients BEGIN SELECT RAISE(IGNORE); END"),
            "a moved value was read",
            id="swap",
        ),
        pytest.param(
            "_show_scan",
            run_sql("DELETE FROM patients WHERE id = 6"),
            "2 clinics, 5 patients, 0 plaintext bytes in the file",
            id="a-patient-lost",
        ),
        pytest.param(
            "_show_scan",
            run_sql("UPDATE clinics SET name = name || '078-05-1120' WHERE id = 1"),
            "2 clinics, 6 patients, 11 plaintext bytes in the file",
            id="plaintext-in-another-column",
        ),
    ],
)
def test_a_block_that_does_not_show_what_it_says_ends_with_1(
    sabotage: Callable[[str, Sabotage], None],
    capsys: pytest.CaptureFixture[str],
    block: str,
    interference: Sabotage,
    complaint: str,
) -> None:
    sabotage(block, interference)
    assert demo.main() == 1
    output = capsys.readouterr().out
    assert output.endswith(f"\nFAILED: {complaint}\n")
    assert SUMMARY not in output


@pytest.mark.parametrize("mode", ["wal", "persist"])
def test_plaintext_left_in_the_log_beside_the_file_is_found(
    sabotage: Callable[[str, Sabotage], None], capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    def interfere(engine: Engine) -> None:
        # Written and overwritten: afterwards only the write-ahead log or the kept journal holds the value.
        database = str(engine.url.database)
        connection = sqlite3.connect(database)
        sabotaging.append(connection)
        connection.execute(f"PRAGMA journal_mode = {mode}")
        connection.execute("PRAGMA secure_delete = on")
        for name in ("Riverside Clinic 219-09-9999", "Riverside Clinic"):
            connection.execute("UPDATE clinics SET name = ? WHERE id = 1", (name,))
            connection.commit()
        assert b"219-09-9999" not in Path(database).read_bytes()
        assert b"219-09-9999" in Path(f"{database}-{'wal' if mode == 'wal' else 'journal'}").read_bytes()

    sabotaging: list[sqlite3.Connection] = []
    sabotage("_show_scan", interfere)
    try:
        assert demo.main() == 1
    finally:
        sabotaging[0].close()
    assert re.search(r"FAILED: 2 clinics, 6 patients, [1-9]\d* plaintext bytes in the file\n$", capsys.readouterr().out)
