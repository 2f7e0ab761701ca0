# SPDX-License-Identifier: Apache-2.0
"""The runbook of restores: its commands are run as the page has them, and what it promises holds."""

from __future__ import annotations

import itertools
import re
import shlex
import time
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from sa_asherah.cli.root import cli
from sa_asherah.errors import KeyNotFoundError, OwnerErasedError
from tests.cli.site import DAY, Outcome, Site

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "restore.md"
_numbers = itertools.count(1)


def commands(heading: str) -> list[list[str]]:
    """Take the commands of a section of the page."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    blocks = "".join(re.findall(r"```bash\n(.*?)```", section, re.DOTALL))
    found = [shlex.split(line, comments=True) for line in blocks.splitlines() if line.startswith("sa-asherah ")]
    assert found
    # The page's models are those of the tests.
    return [
        [word.replace("app.models:Base", "tests.integration.records:Base") for word in words[1:]] for words in found
    ]


def run_all(site: Site, heading: str) -> list[Outcome]:
    outcomes = [site.run(*words) for words in commands(heading)]
    assert [outcome.status for outcome in outcomes] == [0] * len(outcomes), [outcome.err for outcome in outcomes]
    return outcomes


def run_sql(site: Site, *statements: str) -> None:
    engine = create_engine(site.url)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


def dump(site: Site, *names: str) -> dict[str, str]:
    """Copy tables as they are; say where the copy of each is."""
    found = {name: f"dump_{next(_numbers)}" for name in names}
    run_sql(site, *(f"CREATE TABLE {copy} AS SELECT * FROM {name}" for name, copy in found.items()))  # noqa: S608 # our own names
    return found


def restore(site: Site, dumped: dict[str, str]) -> None:
    """Bring tables back to what they were."""
    for name, copy in dumped.items():
        run_sql(site, f"DELETE FROM {name}", f"INSERT INTO {name} SELECT * FROM {copy}")  # noqa: S608 # our own names


@pytest.fixture
def started(database_url: str, static_site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A site on each database in turn; commands are given in a folder of their own."""
    (tmp_path / "backup").mkdir()
    monkeypatch.chdir(tmp_path / "backup")
    # An erasure is final when no process can have a key any more: here at once.
    at_once = {"REVOKE_CHECK_INTERVAL_SECS": "0", "ASHERAH_MAX_STALE_SECS": "0"}
    site = Site(database_url, {**static_site.environ, "ASHERAH_DATABASE_URL": database_url, **at_once})
    site.now = time.time() - 10 * DAY
    site.live("static", 1)
    site.now = time.time()
    return site


def write(site: Site, *tenants: str) -> None:
    process = site.start("static")
    site.notes += [process.write(tenant) for tenant in tenants]
    process.close()


def forget(site: Site) -> None:
    run_sql(site, "DELETE FROM notes WHERE tenant = 'gone'")
    site.notes.pop()


def test_the_runbook_brings_back_what_the_dump_lacks(started: Site) -> None:
    write(started, "gone")
    forget(started)  # the note of an owner that will be erased
    data = dump(started, "notes")
    write(started, "newcomer")  # between the dump of the data and that of the keys
    run_all(started, "Back up")
    keys = dump(started, "encryption_key")
    notes = list(started.notes)
    write(started, "later", "tenant")
    erased = ("shred", "--partition", "gone", "--yes", "--wait", "--receipt", "receipts.jsonl")
    assert started.run(*erased).status == 0
    assert started.run("revoke", "--partition", "tenant", "--yes").status == 0
    assert started.run("export-keys", "newest.jsonl").status == 0
    later = dump(started, "notes")
    # The database is lost; what is left is the dump, and data of the time after it from elsewhere.
    restore(started, {**keys, **data})
    looked = run_all(started, "Restore")
    assert "2 inserted" in looked[1].out  # the key of `later`, and the mark of `gone`
    restore(started, later)
    assert started.notes[: len(notes)] == notes
    assert started.reads_all("static")
    revoked = {place[0] for place, record in started.rows("_IK_").items() if record.get("Revoked")}
    assert revoked == {"_IK_tenant_records_clinic", "_IK_gone_records_clinic"}
    process = started.start("static")
    with pytest.raises(OwnerErasedError):
        process.write("gone")
    process.close()
    assert run_all(started, "Restore")  # it may be gone through again


def test_keys_that_were_copied_before_the_data_lack_some(started: Site) -> None:
    """Why the order matters: the page's first rule, broken."""
    keys = dump(started, "encryption_key")
    write(started, "newcomer")
    data = dump(started, "notes")
    restore(started, {**keys, **data})
    process = started.start("static")
    with pytest.raises(KeyNotFoundError, match="not in the table encryption_key"):
        process.read()
    process.close()


def test_every_command_of_the_page_is_one() -> None:
    named = set(re.findall(r"sa-asherah ([a-z-]+)", PAGE.read_text(encoding="utf-8")))
    assert named <= set(cli.commands)
