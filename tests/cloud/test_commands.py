# SPDX-License-Identifier: Apache-2.0
"""The command line where the key table is in DynamoDB: what works on single records works, the rest says why not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from sa_asherah import Asherah
from sa_asherah.core.key_record import parse_key_record
from tests.cli.site import BASE, Site, run
from tests.integration.records import Base, Note
from tests.servers.moto import REGIONS, Aws

if TYPE_CHECKING:
    from pathlib import Path

    from sa_asherah.metastore.dynamodb import DynamoDBMetastore

OWNER = "_IK_tenant_records_clinic"


@pytest.fixture
def environ(aws: Aws, metastore: DynamoDBMetastore) -> dict[str, str]:
    """The settings of an application whose key table is there."""
    table = {"Metastore": "dynamodb", "DDB_TABLE": metastore._table.name, "AWS_REGION": REGIONS[0]}
    return {**aws.environ, **BASE, **table, "ASHERAH_PEERS": "0"}


@pytest.fixture
def exported(sqlite_url: str, tmp_path: Path) -> Path:
    """An export of the key table of an application that has it in its database."""
    site = Site(sqlite_url, {**BASE, "ASHERAH_DATABASE_URL": sqlite_url})
    site.live("static", 1)
    assert site.run("export-keys", str(tmp_path / "keys")).status == 0
    create_engine(sqlite_url).dispose()
    return tmp_path / "keys"


def revoked(metastore: DynamoDBMetastore) -> list[bool]:
    rows = metastore.run(lambda rows: rows.versions(OWNER))
    return [parse_key_record(row).revoked for row in rows]


def test_keys_of_a_database_are_imported_and_revoked(
    environ: dict[str, str], metastore: DynamoDBMetastore, exported: Path
) -> None:
    done = run(environ, "import-keys", str(exported), "--json")
    assert (done.status, done.json["inserted"], done.json["complete"]) == (0, 3, True)
    again = run(environ, "import-keys", str(exported), "--json").json
    assert (again["already"], again["inserted"]) == (3, 0)
    assert run(environ, "revoke", "--partition", "tenant", "--dry-run").status == 0
    assert revoked(metastore) == [False]
    assert run(environ, "revoke", "--partition", "tenant", "--yes", "--json").json["keys"][0]["outcome"] == "revoked"
    assert revoked(metastore) == [True]
    assert "revoked already" in run(environ, "revoke", "--partition", "tenant", "--yes").out
    assert run(environ, "revoke", "--partition", "nobody", "--yes").status == 3


@pytest.mark.parametrize("arguments", [("status",), ("export-keys", "keys.jsonl")])
def test_what_reads_the_whole_table_says_that_it_cannot(
    arguments: tuple[str, ...], environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run(environ, *arguments)
    assert (outcome.status, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert "DynamoDB's own tools" in outcome.err
    assert "DynamoDB" in json.loads(run(environ, *arguments, "--json").out)["error"]
    assert not list(tmp_path.glob("keys*"))


NOTES = "tests.integration.records:Base"


def test_what_works_on_keys_needs_no_database_and_what_works_on_data_says_which(
    environ: dict[str, str], metastore: DynamoDBMetastore, sqlite_url: str
) -> None:
    assert run(environ, "rotate", "--json").json["made"] is True
    assert run(environ, "revoke", "--system", "--yes").status == 0
    for command in (
        ("init",),
        ("reencrypt", "--models", NOTES),
        ("verify", "--models", NOTES),
        ("doctor", "--models", NOTES),
        ("shred", "--partition", "tenant"),
    ):
        outcome = run(environ, *command)
        assert (outcome.status, "which database?" in outcome.err, "unless Metastore" in outcome.err) == (2, True, True)
    data = {**environ, "ASHERAH_DATABASE_URL": sqlite_url}
    engine = create_engine(sqlite_url)
    Base.metadata.create_all(engine)
    with Asherah.from_env(data) as keys, Session(engine) as session:
        keys.attach(engine)
        session.add(Note(tenant="tenant", text="a note"))
        session.commit()
    engine.dispose()
    assert run(data, "init", "--json").json["key_table"] == "found"
    assert run(data, "reencrypt", "--models", NOTES, "--json").json["complete"] is True
    assert run(data, "verify", "--models", NOTES, "--json").json["reports"][0]["found"] == 1
    assert run(data, "doctor", "--models", NOTES).status == 0
    assert run(data, "shred", "--partition", "tenant", "--yes", "--json").json["state"] == "begun"
    assert revoked(metastore) == [True]
