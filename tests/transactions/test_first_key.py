# SPDX-License-Identifier: Apache-2.0
"""Four processes with eight threads each write the first note of the same tenant at once."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.transactions.programs import notes
from tests.transactions.site import Site

pytestmark = pytest.mark.long


@pytest.mark.parametrize("shared_site", ["sqlite-delete", "sqlite-wal", "postgresql", "mariadb"], indirect=True)
def test_there_is_one_key_and_no_error(shared_site: Site) -> None:
    command = [sys.executable, notes.__file__, "first", shared_site.url, "acme", str(notes.NOW), "8"]
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path.cwd())
            )
            for _ in range(4)
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        printed = [process.communicate(timeout=120)[0] for process in processes]
    assert [json.loads(each or "null") for each in printed] == [[], [], [], []]
    keys = shared_site.sql("SELECT id, count(*) FROM encryption_key GROUP BY id ORDER BY id")
    assert [tuple(key) for key in keys] == [("_IK_acme_records_clinic", 1), ("_SK_records_clinic", 1)]
    assert len(shared_site.restart_and_read()) == 32
