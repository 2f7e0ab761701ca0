# SPDX-License-Identifier: Apache-2.0
"""`init`, `status` and `revoke`: what they say of a key table, and what they do to it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

import sa_asherah
from tests.cli.site import DAY, Site

MINUTE = 60
ROOT = Path(sa_asherah.__file__).parents[1]


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """Two databases: the statements on the third are run by the tests beside this one."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def started(database_url: str, static_site: Site) -> Site:
    """A site on each database in turn, whose first keys are 100 and whose newest are 9 days old."""
    site = Site(database_url, {**static_site.environ, "ASHERAH_DATABASE_URL": database_url})
    site.now = time.time() - 100 * DAY
    site.live("static", 2)
    return site


# init


def test_init_makes_the_key_table_and_says_what_it_found(database_url: str, static_site: Site) -> None:
    site = Site(database_url, {**static_site.environ, "ASHERAH_DATABASE_URL": database_url})
    looked = site.run("init", "--dry-run", "--json")
    assert (looked.status, looked.json) == (0, {"key_table": "missing", "system_key": None, "dry_run": True})
    assert "would be created" in site.run("init", "--dry-run").out
    assert site.run("init", "--json").json["key_table"] == "created"
    again = site.run("init")
    assert (again.status, "was there already" in again.out, "no system key yet" in again.out) == (0, True, True)
    assert site.rows() == {}
    site.now = time.time()
    site.live("static", 1)
    newest = max(record["Created"] for record in site.rows("_SK_").values())
    assert site.run("init", "--json").json == {"key_table": "found", "system_key": newest, "dry_run": False}


def test_init_with_a_key_service_that_does_not_open_the_system_key_fails(static_site: Site) -> None:
    static_site.now = time.time()
    static_site.live("static", 1)
    outcome = static_site.run("init", STATIC_MASTER_KEY_HEX="11" * 32)
    assert (outcome.status, outcome.err.count("\n")) == (1, 1)


# status


def test_status_counts_what_is_there_without_a_key_service(started: Site) -> None:
    found = started.run("status", "--json", STATIC_MASTER_KEY_HEX="11" * 32).json
    owners = {place[0] for place in started.rows("_IK_")}
    assert (found["owners"], found["owner_keys"]) == (len(owners), len(started.rows("_IK_")))
    assert [key["state"] for key in found["system_keys"]] == ["encrypts", "superseded"]
    assert [key["owner_keys"] for key in found["system_keys"]] == [2, 2]
    # `tenant` has a new key, the owner who wrote only once has not.
    assert (found["due"], found["revoked"], found["damaged"], found["others"]) == (1, 0, 0, 0)
    assert sum(age["encrypting"] for age in found["ages"]) == 2
    assert sum(age["decrypting"] for age in found["ages"]) == 2
    assert found["next_rotation"] == found["system_keys"][0]["created"] + 90 * DAY


def test_status_is_a_table_and_a_plot_for_people(started: Site) -> None:
    outcome = started.run("status")
    assert outcome.status == 0
    for part in ("_SK_records_clinic", "superseded", "3 owners with 4 keys: 1 get another one", "90 and more", "░"):
        assert part in outcome.out, part
    assert "Next system key: 20" in outcome.out


def test_what_is_not_ours_is_counted_and_not_judged(static_site: Site) -> None:
    static_site.now = time.time()
    static_site.live("static", 1)
    other = Site(static_site.url, {**static_site.environ, "SERVICE_NAME": "other"})
    engine = create_engine(static_site.url)
    with engine.begin() as connection:
        for key_id in ("_IK_7_records_clinic", "__asherah_internal__"):
            connection.execute(
                text("INSERT INTO encryption_key VALUES (:id, '2026-01-01 00:00:00', '{}')"), {"id": key_id}
            )
    engine.dispose()
    found = static_site.run("status", "--json").json
    assert (found["others"], found["damaged"], found["owners"]) == (1, 1, 2)
    assert "run sa-asherah doctor" in static_site.run("status").out
    assert (other.run("status").status, other.run("status", "--json").json["owners"]) == (3, 0)


def test_a_database_file_that_is_not_there_is_not_made(static_site: Site, tmp_path: Path) -> None:
    for arguments in (("status",), ("export-keys", "keys.jsonl"), ("revoke", "--system", "--yes")):
        outcome = static_site.run(*arguments)
        assert (outcome.status, "no such database file" in outcome.err) == (2, True)
    assert not list(tmp_path.glob("*.db"))


def test_a_database_without_a_key_table_is_named_with_the_remedy(database_url: str, static_site: Site) -> None:
    engine = create_engine(database_url)
    engine.connect().close()
    engine.dispose()
    outcome = static_site.run("status", "--database", database_url)
    assert (outcome.status, outcome.err.count("\n"), "sa-asherah init" in outcome.err) == (1, 1, True)


# revoke


def revoked(site: Site) -> set[tuple[str, int]]:
    return {(place[0], record["Created"]) for place, record in site.rows().items() if record.get("Revoked")}


def test_the_next_write_after_a_revocation_has_another_key_within_the_same_minute(started: Site) -> None:
    started.now = time.time() // MINUTE * MINUTE
    process = started.start("static")
    started.notes.append(process.write("tenant"))
    process.close()
    looked = started.run("revoke", "--partition", "tenant", "--dry-run", "--json").json
    assert (looked["dry_run"], looked["keys"][0]["outcome"], revoked(started)) == (True, "revoked", set())
    done = started.run("revoke", "--partition", "tenant", "--yes", "--json")
    key = done.json["keys"][0]
    assert (done.status, key["id"], key["outcome"]) == (0, "_IK_tenant_records_clinic", "revoked")
    assert revoked(started) == {(key["id"], key["created"])}
    process = started.start("static")
    started.notes.append(process.write("tenant"))
    process.close()
    newest = max(record["Created"] for record in started.rows("_IK_tenant_").values())
    assert newest > key["created"]
    assert started.reads_all("static")
    assert (
        "revoked already"
        in started.run("revoke", "--partition", "tenant", "--created", str(key["created"]), "--yes").out
    )


def test_a_revoked_system_key_has_its_successor_first(started: Site) -> None:
    before = {record["Created"] for record in started.rows("_SK_").values()}
    done = started.run("revoke", "--system", "--yes")
    assert (done.status, "within 60 minutes" in done.out) == (0, True)
    records = {record["Created"]: record for record in started.rows("_SK_").values()}
    assert len(records) == 3
    assert {created for created, record in records.items() if record.get("Revoked")} == {max(before)}
    application = started.start("static", create_system_keys=False)
    started.notes.append(application.write("tenant"))
    application.close()
    assert started.reads_all("static")
    started.run("revoke", "--system", "--created", str(min(before)), "--yes")
    assert len(started.rows("_SK_")) == 3


def test_on_a_terminal_it_asks_and_a_no_changes_nothing(static_site: Site) -> None:
    static_site.now = time.time()
    static_site.live("static", 1)
    for answer, status, count in ((b"n\n", 1, 0), (b"y\n", 0, 1)):
        ours, theirs = os.openpty()
        os.write(ours, answer)
        done = subprocess.run(
            [sys.executable, "-m", "sa_asherah", "revoke", "--partition", "tenant"],
            env={**static_site.environ, "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
            stdin=theirs,
            capture_output=True,
            check=False,
            timeout=60,
        )
        os.close(ours)
        os.close(theirs)
        assert (done.returncode, len(revoked(static_site))) == (status, count)
        assert b"This cannot be undone. Go on?" in done.stderr


def test_a_revocation_is_asked_for_and_names_its_key(static_site: Site) -> None:
    static_site.now = time.time()
    static_site.live("static", 1)
    for more in ((), ("--json",)):
        outcome = static_site.run("revoke", "--partition", "tenant", *more)
        assert (outcome.status, "give --yes" in outcome.err + outcome.out) == (2, True)
    assert revoked(static_site) == set()
    for wrong in ((), ("--system", "--partition", "7"), ("--replay", "x", "--created", "1")):
        assert static_site.run("revoke", *wrong, "--yes").status == 2
    assert static_site.run("revoke", "--partition", "nobody", "--yes").status == 3
    assert static_site.run("revoke", "--partition", "tenant", "--created", "1", "--yes").status == 3
