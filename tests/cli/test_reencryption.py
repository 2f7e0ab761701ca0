# SPDX-License-Identifier: Apache-2.0
"""`reencrypt` and `verify`: what they are given, what they say, and that they never say done too early."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, select, text
from sqlalchemy.orm import Session

import sa_asherah
from sa_asherah.cli.expression import read_type
from sa_asherah.cli.progress import shown
from sa_asherah.errors import ConfigurationError, UsageError
from sa_asherah.orm.types import Encrypted
from sa_asherah.reencrypt.lease import Counts
from sa_asherah.reencrypt.report import Progress
from tests.cli.models import Memo
from tests.cli.site import BASE, Outcome, Site

ROWS = 60
DECLARED = ("--models", "tests.cli.models:Base")
GIVEN = (
    *("--table", "memos", "--column", "text", "--from", "Text()"),
    *("--type", 'Encrypted(Text(), owner="tenant", storage="text")'),
)
BACK = (
    *("--table", "memos", "--column", "text", "--type", "Text()"),
    *("--from", 'Encrypted(Text(), owner="tenant", storage="text")'),
)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """Two databases: the statements on the third are run by the tests beside this one."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """A database of plaintext memos, in each family in turn."""
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE memos (id INTEGER PRIMARY KEY, tenant VARCHAR(40) NOT NULL, text TEXT)"))
        rows = [{"id": n, "tenant": f"tenant-{n % 3}", "text": f"memo {n}"} for n in range(ROWS)]
        connection.execute(text("INSERT INTO memos VALUES (:id, :tenant, :text)"), rows)
    yield engine
    engine.dispose()


@pytest.fixture
def memos(engine: Engine, database_url: str, static_site: Site) -> Site:
    """The command line beside it; the key table is there."""
    site = Site(database_url, {**static_site.environ, "ASHERAH_DATABASE_URL": database_url})
    site.now = time.time()
    assert site.run("init").status == 0
    assert engine.url.database
    return site


def stored(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return list(connection.scalars(text("SELECT text FROM memos ORDER BY id")))


def readable(site: Site) -> list[str | None]:
    process = site.start("static")
    try:
        with Session(process.engine) as session:
            return list(session.scalars(select(Memo.text).order_by(Memo.id)))
    finally:
        process.close()


def plain() -> list[str]:
    return [f"memo {n}" for n in range(ROWS)]


@pytest.mark.parametrize("what", [DECLARED, GIVEN], ids=["models", "table"])
def test_plaintext_is_encrypted_and_verified_and_read(engine: Engine, memos: Site, what: tuple[str, ...]) -> None:
    looked = memos.run("reencrypt", *what, "--dry-run", "--json")
    assert (looked.status, looked.json["reports"][0]["left"], stored(engine)) == (0, ROWS, plain())
    before = memos.run("verify", *what, "--json")
    assert (before.status, before.json["complete"], before.json["reports"][0]["left"]) == (1, False, ROWS)
    estimate = memos.run("reencrypt", *what, "--estimate", "--json").json["estimates"][0]
    assert (estimate["rows"], estimate["to_convert"]) == (ROWS, ROWS)
    assert stored(engine) == plain()
    done = memos.run("reencrypt", *what, "--json", "--batch", "25", "--workers", "1")
    report = done.json["reports"][0]
    assert (done.status, done.json["complete"], report["converted"], report["left"]) == (0, True, ROWS, 0)
    assert all(value.startswith("sa1:") for value in stored(engine))
    assert readable(memos) == plain()
    assert memos.run("verify", *what, "--json").json["complete"] is True
    assert memos.run("verify", *what, "--sample", "0.2").status == 0
    again = memos.run("reencrypt", *what)
    assert (again.status, "0 changed" in again.out, "Complete." in again.out) == (0, True, True)


def test_back_to_plaintext_is_asked_for(engine: Engine, memos: Site) -> None:
    memos.run("reencrypt", *GIVEN)
    refused = memos.run("reencrypt", *BACK)
    assert (refused.status, "memos.text will be stored in plaintext" in refused.err) == (2, True)
    assert memos.run("reencrypt", *BACK, "--dry-run").status == 0
    assert plain() != stored(engine)
    assert memos.run("reencrypt", *BACK, "--yes").status == 0
    assert stored(engine) == plain()


def test_a_revoked_key_is_left_by_all_values(engine: Engine, memos: Site) -> None:
    memos.run("reencrypt", *DECLARED)
    old = stored(engine)
    assert memos.run("revoke", "--partition", "tenant-1", "--yes").status == 0
    done = memos.run("reencrypt", *DECLARED, "--json").json["reports"][0]
    assert (done["converted"], done["is_complete"]) == (ROWS // 3, True)
    changed = [n for n, (one, other) in enumerate(zip(old, stored(engine), strict=True)) if one != other]
    assert changed == list(range(1, ROWS, 3))
    assert readable(memos) == plain()


def test_a_value_that_cannot_be_read_is_listed_and_the_status_says_so(
    engine: Engine, memos: Site, tmp_path: Path
) -> None:
    memos.run("reencrypt", *DECLARED)
    with engine.begin() as connection:
        connection.execute(text("UPDATE memos SET tenant = 'thief' WHERE id = 7"))
    page = tmp_path / "report.html"
    for command in ("verify", "reencrypt"):
        found = memos.run(command, *DECLARED, "--html", str(page))
        assert (found.status, "Not complete" in found.out, "[7]" in found.out) == (1, True, True)
        assert "memos" in page.read_text(encoding="utf-8")
    assert memos.run("reencrypt", *DECLARED, "--dry-run").status == 1
    report = memos.run("reencrypt", *DECLARED, "--json").json["reports"][0]
    assert [(each["table"], each["column"]) for each in report["quarantined"]] == [("memos", "text")]


def test_a_table_without_values_is_nothing_found(engine: Engine, memos: Site) -> None:
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM memos"))
    outcome = memos.run("reencrypt", *DECLARED)
    assert (outcome.status, "Nothing found" in outcome.out) == (3, True)


def test_no_output_holds_a_value(engine: Engine, memos: Site) -> None:
    shown_ = [memos.run("reencrypt", *GIVEN, *more) for more in (("--dry-run",), ("--estimate",), (), ("--json",))]
    shown_ += [memos.run("verify", *GIVEN), memos.run("verify", *GIVEN, "--json")]
    printed = "".join(each.out + each.err for each in shown_)
    assert not [
        value for value in (*plain(), *stored(engine), BASE["STATIC_MASTER_KEY_HEX"]) if f'"{value}"' in printed
    ]
    assert "memo 1" not in printed
    assert "sa1:" not in printed


# What is given


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "Give --models"),
        ((*DECLARED, "--table", "memos"), "Give --models"),
        ((*DECLARED, "--into", "x"), "Give --models"),
        (("--table", "memos"), "--table needs"),
        (("--models", "tests.cli.models"), "for example app.models:Base"),
        (("--models", "nowhere_at_all:Base"), "there is no module 'nowhere_at_all'"),
        (("--models", "tests.cli.models:Nobody"), "has no 'Nobody'"),
        (("--models", "tests.cli.site:DAY"), "neither a declarative base"),
        (("--table", "nobody", *GIVEN[2:]), "there is no table 'nobody'"),
        (("--table", "memos", "--column", "none", *GIVEN[4:]), "no column 'none'"),
        ((*GIVEN[:-1], "Encrypted(1 + 1)"), "literal arguments"),
        ((*GIVEN[:-1], "__import__('os')"), "no column type"),
        ((*GIVEN, "--estimate", "--dry-run"), "leave out --dry-run"),
    ],
)
def test_wrong_usage_is_one_line(static_site: Site, arguments: tuple[str, ...], text: str) -> None:
    plaintext_table(static_site)
    outcome = static_site.run("reencrypt", *arguments)
    assert (outcome.status, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert text in outcome.err
    assert static_site.run("reencrypt", *arguments, "--json").json["error"]


def plaintext_table(site: Site) -> None:
    engine = create_engine(site.url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE memos (id INTEGER PRIMARY KEY, tenant VARCHAR(40), text TEXT)"))
    engine.dispose()


def test_a_type_is_read_as_it_is_written_and_runs_nothing() -> None:
    declared = Encrypted(read_type("String(20)"), owner="tenant", partition="user-{}", storage="text")
    assert repr(read_type(repr(declared))) == repr(declared)
    assert repr(read_type("LargeBinary")) == "LargeBinary()"
    for wrong in (
        "",
        "1",
        "Encrypted(",
        "Encrypted(**{})",
        "open('x')",
        "String(length=open)",
        "lambda: 1",
        "os.system",
    ):
        with pytest.raises(UsageError):
            read_type(wrong)
    with pytest.raises(ConfigurationError):
        read_type("String(1, 2, 3, 4)")


def test_a_key_of_another_library_comes_from_the_environment_and_is_in_no_text() -> None:
    environ = {"OLD_KEY": "hunter2-hunter2-hunter2"}
    found = read_type('SQLAlchemyUtilsFernet(env("OLD_KEY"))', environ)
    assert "hunter2" not in repr(found)
    with pytest.raises(ConfigurationError, match="OLD_KEY"):
        read_type('SQLAlchemyUtilsFernet(env("OLD_KEY"))', {})


# Progress


def progress(rows: int) -> Progress:
    return Progress("memos: text", 1, "convert", rows, ROWS, Counts(found=rows, converted=rows), 1.0)


def test_without_a_terminal_progress_is_lines_from_time_to_time(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "sa_asherah.reencrypt"), shown(as_json=False, every=0) as show:
        show(progress(20))
    assert "memos: text, pass 1: 20 of 60 rows, 20 changed, 0 not readable, 20 rows/s" in caplog.text
    caplog.clear()
    with shown(as_json=True, every=3600) as show:
        show(progress(20))
    assert caplog.text == ""


def test_on_a_terminal_progress_is_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("FORCE_COLOR", "1"), ("COLUMNS", "120"), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    with shown(as_json=False) as show:
        show(progress(20))
        show(progress(60))
    said = capsys.readouterr()
    assert (said.out, "60/60" in said.err, "60 rows/s" in said.err) == ("", True, True)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_as_a_program_it_prints_json_only(memos: Site, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(Path(__file__).with_name("models.py").read_text(encoding="utf-8"))
    done = program(memos, tmp_path, "reencrypt", "--models", "mine:Memo", "--json")
    assert (done.status, done.err) == (0, "")
    assert json.loads(done.out)["complete"] is True


def program(site: Site, folder: Path, *arguments: str) -> Outcome:
    root = str(Path(sa_asherah.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "from sa_asherah.cli import main; main()", *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": root, **site.environ},
        cwd=folder,
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)
