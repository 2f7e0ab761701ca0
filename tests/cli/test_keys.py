# SPDX-License-Identifier: Apache-2.0
"""`export-keys` and `import-keys`: a copy opens nothing by itself, and a merge loses and overwrites nothing."""

from __future__ import annotations

import dataclasses
import gc
import json
import stat
import time
import tracemalloc
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import create_engine, text

from sa_asherah.cli.deployment import Deployment
from sa_asherah.cli.root import cli
from sa_asherah.copies import export_lines
from sa_asherah.core import wear
from sa_asherah.core.erasure import tombstone
from sa_asherah.core.keyring import Keyring
from sa_asherah.core.ports import KeyRow, KeyRows
from sa_asherah.metastore.table import create, text_of
from tests.cli.site import BASE, DAY, Outcome, Site
from tests.integration.records import Process

SYSTEM = "_SK_records_clinic"


@pytest.fixture
def started(database_url: str, static_site: Site) -> Site:
    """A site on each database in turn, with three system keys."""
    site = Site(database_url, {**static_site.environ, "ASHERAH_DATABASE_URL": database_url})
    site.now = time.time() - 200 * DAY
    site.live("static")
    return site


@pytest.fixture
def other(tmp_path: Path, static_site: Site) -> Site:
    """An empty key table beside it."""
    url = f"sqlite:///{tmp_path / 'other.db'}"
    empty(url)
    return Site(url, {**static_site.environ, "ASHERAH_DATABASE_URL": url})


def empty(url: str) -> None:
    engine = create_engine(url)
    create(engine)
    engine.dispose()


def run_sql(site: Site, statement: str, **values: object) -> None:
    engine = create_engine(site.url)
    with engine.begin() as connection:
        connection.execute(text(statement), values)
    engine.dispose()


def exported(site: Site, path: Path) -> list[dict[str, Any]]:
    assert site.run("export-keys", str(path)).status == 0
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def merged(site: Site, path: Path, *more: str) -> Outcome:
    return site.run("import-keys", str(path), "--json", *more)


def counts(outcome: Outcome) -> tuple[int, ...]:
    found = outcome.json
    numbers = (found[name] for name in ("found", "inserted", "already", "erased", "conflicts", "failed"))
    return tuple(number if isinstance(number, int) else len(number) for number in numbers)


def without_order(site: Site) -> dict[tuple[str, int], dict[str, Any]]:
    """Records by id and second, however the database writes JSON and dates."""
    return {(place[0], record["Created"]): record for place, record in site.rows().items()}


def test_a_copy_is_private_whole_and_holds_no_unwrapped_key(started: Site, tmp_path: Path) -> None:
    path = tmp_path / "keys.jsonl"
    lines = exported(started, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {(line["id"], line["created"]) for line in lines[1:-1]} == set(without_order(started))
    assert [line.get("id") for line in lines].count(SYSTEM) == 3
    assert BASE["STATIC_MASTER_KEY_HEX"] not in path.read_text(encoding="utf-8")
    again = started.run("export-keys", str(path))
    assert (again.status, "there is a file" in again.err) == (2, True)
    piped = started.run("export-keys", "-", "--json")
    assert piped.out == path.read_text(encoding="utf-8")
    looked = started.run("export-keys", "-", "--json", "--dry-run")
    assert looked.json == {"file": "-", "records": len(lines) - 2, "dry_run": True}
    assert started.run("export-keys", str(tmp_path / "none"), SERVICE_NAME="nobody").status == 3


def test_a_copy_that_is_not_finished_has_no_name(
    static_site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    static_site.live("static", 1)

    def interrupted(*given: Any) -> Iterator[str]:
        yield from list(export_lines(*given))[:3]
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("sa_asherah.cli.keys.export_lines", interrupted)
        assert static_site.run("export-keys", str(tmp_path / "keys")).status == 1
    assert not list(tmp_path.glob("keys*"))
    (tmp_path / "keys.part").touch()
    outcome = static_site.run("export-keys", str(tmp_path / "keys"))
    assert (outcome.status, "another export is being written, or was killed" in outcome.err) == (2, True)
    (tmp_path / "keys.part").unlink()
    assert static_site.run("export-keys", str(tmp_path / "keys")).status == 0


def test_a_copy_may_come_through_a_pipe(static_site: Site, other: Site, tmp_path: Path) -> None:
    static_site.live("static", 1)
    exported(static_site, tmp_path / "keys")
    whole = (tmp_path / "keys").read_text(encoding="utf-8")
    given = CliRunner().invoke(cli, ["import-keys", "-"], input=whole, obj=Deployment(other.environ))
    assert (given.exit_code, "3 inserted" in given.output) == (0, True)
    cut = CliRunner().invoke(cli, ["import-keys", "-"], input=whole[:-9], obj=Deployment(other.environ))
    assert (cut.exit_code, "cut off" in cut.stderr) == (2, True)
    assert CliRunner().invoke(cli, ["import-keys", "-"], input=b"\xff\n", obj=Deployment(other.environ)).exit_code == 2


@pytest.mark.long
def test_memory_does_not_grow_with_the_table(
    static_site: Site, other: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wear, "_MAX_COUNTERS", 100)  # as if that were reached long ago
    static_site.now = time.time()
    static_site.live("static", 1)
    peaks: list[tuple[int, ...]] = []
    for total in (1_000, 2_000):
        add_owners(static_site, total)
        path = str(tmp_path / f"keys {total}")
        commands = (static_site, "export-keys"), (other, "import-keys"), (other, "import-keys")
        peaks.append(tuple(peak(site, command, path) for site, command in commands))
    assert len(other.rows("_IK_")) == 2_002
    assert [other_one < one * 1.2 for one, other_one in zip(*peaks, strict=True)] == [True] * 3, peaks


def add_owners(site: Site, total: int) -> None:
    """Let there be keys of so many owners."""
    with Deployment(site.environ).key_table(None) as keys, Deployment(site.environ).key_service() as kms:
        ring = Keyring(keys.ids, kms, keys.metastore, keys.policy, lambda: None)
        system = keys.metastore.run(lambda rows: rows.versions(SYSTEM))[0]
        created = system.created
        parent = ring.system_key(system)
        for start in range(0, total, 500):
            made = [ring.new_intermediate_key(f"owner-{n}", created, parent).row for n in range(start, start + 500)]
            keys.metastore.run(partial(inserted, made=made, parent=system), writing=True)


def inserted(rows: KeyRows, made: list[KeyRow], parent: KeyRow) -> bool:
    return rows.insert(made, parent)


def peak(site: Site, *arguments: str) -> int:
    gc.collect()
    tracemalloc.start()
    try:
        assert site.run(*arguments).status == 0
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_without_the_key_service_a_copy_can_be_made_and_not_merged(started: Site, other: Site, tmp_path: Path) -> None:
    assert started.run("export-keys", str(tmp_path / "keys"), STATIC_MASTER_KEY_HEX="11" * 32).status == 0
    outcome = other.run("import-keys", str(tmp_path / "keys"), "--json", STATIC_MASTER_KEY_HEX="11" * 32)
    assert outcome.status == 1
    assert (outcome.json["inserted"], len(outcome.json["failed"])) == (0, outcome.json["found"])
    assert other.rows() == {}


def test_an_export_into_an_empty_table_and_back_is_the_same(started: Site, other: Site, tmp_path: Path) -> None:
    lines = exported(started, tmp_path / "one")
    total = len(lines) - 2
    looked = merged(other, tmp_path / "one", "--dry-run")
    assert (looked.status, counts(looked), other.rows()) == (0, (total, total, 0, 0, 0, 0), {})
    assert counts(merged(other, tmp_path / "one")) == (total, total, 0, 0, 0, 0)
    assert counts(merged(other, tmp_path / "one")) == (total, 0, total, 0, 0, 0)
    assert without_order(other) == without_order(started)
    run_sql(started, "DELETE FROM encryption_key WHERE id LIKE '%ten%'")
    assert exported(other, tmp_path / "two") != []
    back = merged(started, tmp_path / "two")
    assert (back.status, counts(back)[1] > 0) == (0, True)
    assert without_order(started) == without_order(other)
    assert started.reads_all("static")


def test_a_system_key_that_was_wrapped_anew_is_the_same_key(small_site: Site, tmp_path: Path) -> None:
    small_site.live("static", 2)
    lines = exported(small_site, tmp_path / "before")
    moved = small_site.run("kms", "migrate", "--from", "static", "--to", "vault", "--json")
    assert moved.json["moved"] == 2
    before = small_site.rows()
    outcome = small_site.run("import-keys", str(tmp_path / "before"), "--json", KMS="vault", KMS_PREVIOUS="static")
    assert (outcome.status, counts(outcome)) == (0, (len(lines) - 2, 0, len(lines) - 2, 0, 0, 0))
    assert small_site.rows() == before


def test_another_key_in_the_same_place_is_listed_and_kept(started: Site, other: Site, tmp_path: Path) -> None:
    """Two sites that made keys at the same second, or a minute that was rolled back."""
    other.now = min(record["Created"] for record in started.rows().values())
    other.live("static", 1)
    exported(other, tmp_path / "theirs")
    before = started.rows()
    looked = merged(started, tmp_path / "theirs", "--as-conflict", str(tmp_path / "kept"), "--dry-run")
    assert (looked.status, (tmp_path / "kept").exists()) == (1, False)
    outcome = merged(started, tmp_path / "theirs", "--as-conflict", str(tmp_path / "kept"))
    assert outcome.status == 1
    listed = {(one["id"], one["created"]) for one in outcome.json["conflicts"]}
    both = without_order(other).keys() & without_order(started).keys()
    assert both
    assert both <= listed
    assert {place: started.rows()[place] for place in before} == before
    assert started.reads_all("static")
    # What the other site wrote opens with the export of conflicts in a key table of its own.
    third = Site(f"sqlite:///{tmp_path / 'third.db'}", other.environ, notes=other.notes, now=other.now)
    copy_notes(other, third)
    assert third.run("import-keys", str(tmp_path / "kept"), "--database", third.url).status == 0
    process = third.start("static")
    assert process.read("tenant") == other.notes[:1]
    process.close()
    taken = other.run("import-keys", str(tmp_path / "theirs"), "--as-conflict", str(tmp_path / "kept"))
    assert (taken.status, "there is a file" in taken.err, taken.out) == (2, True, "")
    people = started.run("import-keys", str(tmp_path / "theirs"))
    assert (people.status, "holds another key" in people.out, "Done" in people.out) == (1, True, False)


def copy_notes(one: Site, other: Site) -> None:
    process = other.start("static")
    process.create_tables()
    process.close()
    source = create_engine(one.url)
    with source.connect() as connection:
        found = connection.execute(text("SELECT id, tenant, text FROM notes")).all()
    source.dispose()
    for row in found:
        run_sql(other, "INSERT INTO notes VALUES (:id, :tenant, :text)", **row._mapping)


def test_an_erased_owner_stays_erased_whatever_an_export_holds(started: Site, other: Site, tmp_path: Path) -> None:
    lines = exported(started, tmp_path / "before")
    kept = [line for line in lines[1:-1] if not line["id"].startswith("_IK_tenant_")]
    mark = tombstone("_IK_tenant_records_clinic")
    run_sql(
        other,
        "INSERT INTO encryption_key VALUES (:id, :created, :record)",
        id=mark.id,
        created=text_of(mark.created),
        record=mark.text,
    )
    outcome = merged(other, tmp_path / "before")
    assert (outcome.status, counts(outcome)) == (0, (len(lines) - 2, len(kept), 0, len(lines) - 2 - len(kept), 0, 0))
    assert not other.rows("_IK_tenant_")
    # The mark travels: a table from before the erasure is told.
    exported(other, tmp_path / "after")
    assert merged(started, tmp_path / "after").json["inserted"] == 1
    assert len(started.rows("_XK_")) == 1


def test_a_revocation_is_named_and_replayed(started: Site, other: Site, tmp_path: Path) -> None:
    exported(started, tmp_path / "before")
    merged(other, tmp_path / "before")
    started.run("revoke", "--partition", "tenant", "--yes")
    exported(started, tmp_path / "after")
    outcome = other.run("import-keys", str(tmp_path / "after"))
    assert (outcome.status, f"revoke --replay {tmp_path / 'after'}" in outcome.out) == (0, True)
    assert len(merged(other, tmp_path / "after").json["to_revoke"]) == 1
    assert other.run("revoke", "--replay", str(tmp_path / "after")).status == 0
    assert without_order(other) == without_order(started)
    assert merged(other, tmp_path / "after").json["to_revoke"] == []


@pytest.mark.parametrize("damage", ["cut", "changed", "other", "service"])
def test_an_export_that_is_not_whole_is_refused_before_anything_is_written(
    damage: str, static_site: Site, other: Site, tmp_path: Path
) -> None:
    static_site.live("static", 1)
    exported(static_site, tmp_path / "keys")
    whole = (tmp_path / "keys").read_text(encoding="utf-8")
    broken = {
        "cut": "".join(whole.splitlines(keepends=True)[:-1]),
        "changed": whole.replace("_IK_tenant_", "_IK_tenent_"),
        "other": "{}\n",
        "service": whole,
    }[damage]
    (tmp_path / "broken").write_text(broken, encoding="utf-8")
    outcome = other.run(
        "import-keys", str(tmp_path / "broken"), PRODUCT_ID="other" if damage == "service" else "clinic"
    )
    assert (outcome.status, outcome.err.count("\n"), other.rows()) == (2, 1, {})


def test_a_record_that_does_not_hold_is_left_out_and_listed(static_site: Site, other: Site, tmp_path: Path) -> None:
    static_site.live("static", 1)
    places = without_order(static_site)
    victim = next(place for place in places if place[0].startswith("_IK_tenant-"))
    run_sql(static_site, "UPDATE encryption_key SET id = '_IK_thief_records_clinic' WHERE id = :id", id=victim[0])
    exported(static_site, tmp_path / "keys")
    outcome = merged(other, tmp_path / "keys")
    assert (outcome.status, [one["id"] for one in outcome.json["failed"]]) == (1, ["_IK_thief_records_clinic"])
    assert not other.rows("_IK_thief")
    assert dataclasses.asdict(outcome)["err"] == ""


def test_no_key_reaches_the_output(started: Site, other: Site, tmp_path: Path) -> None:
    exported(started, tmp_path / "keys")
    shown = [other.run("import-keys", str(tmp_path / "keys"), *more) for more in (("--dry-run",), (), ("--json",))]
    shown += [started.run("status"), started.run("status", "--json"), started.run("revoke", "--system", "--yes")]
    printed = "".join(outcome.out + outcome.err for outcome in shown)
    for secret in (BASE["STATIC_MASTER_KEY_HEX"], *(record["Key"] for record in started.rows().values())):
        assert secret not in printed


def test_a_process_reads_on_while_keys_are_merged(started: Site, other: Site, tmp_path: Path) -> None:
    exported(started, tmp_path / "keys")
    process: Process = started.start("static")
    assert process.read() == started.notes
    assert merged(started, tmp_path / "keys").status == 0
    assert process.read() == started.notes
    process.close()
    assert other.rows() == {}
