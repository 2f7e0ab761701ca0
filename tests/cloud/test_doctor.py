# SPDX-License-Identifier: Apache-2.0
"""`doctor` where the key table is in DynamoDB: keys are looked up one by one, and what that leaves out is said."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine

from sa_asherah.config import Settings
from sa_asherah.core.ids import TOMBSTONE_DATE
from sa_asherah.core.ports import KeyRow
from sa_asherah.doctor import examine
from sa_asherah.errors import UsageError
from sa_asherah.kms import StaticKMS
from sa_asherah.metastore.dynamodb import DynamoDBMetastore
from sa_asherah.shred.owner import OwnerShred
from tests.cli.site import Outcome, run
from tests.doctor.clinic import START, Base, asherah, live, metadata
from tests.doctor.surgery import Surgery
from tests.servers.moto import REGIONS, Aws

OWNED = "_IK_3_records_clinic"
Wound = Callable[[Engine, DynamoDBMetastore, Aws], object]


@pytest.fixture
def engine(tmp_path: Path, metastore: DynamoDBMetastore, static_kms: StaticKMS) -> Any:
    """The data of a healthy clinic."""
    found = create_engine(f"sqlite:///{tmp_path / 'clinic.db'}")
    Base.metadata.create_all(found)
    live(found, asherah(static_kms, START, metastore=metastore), 0, (1, 2, 3))
    yield found
    found.dispose()


def environ(aws: Aws, metastore: DynamoDBMetastore, engine: Engine) -> dict[str, str]:
    return aws.environ | {
        "SERVICE_NAME": "records",
        "PRODUCT_ID": "clinic",
        "KMS": "static",
        "STATIC_MASTER_KEY_HEX": bytes(range(32)).hex(),
        "Metastore": "dynamodb",
        "DDB_TABLE": metastore._table.name,
        "AWS_REGION": REGIONS[0],
        "ASHERAH_PEERS": "0",
        "ASHERAH_DATABASE_URL": str(engine.url),
    }


def test_every_value_is_opened_nothing_is_written_and_what_was_not_listed_is_said(
    engine: Engine, aws: Aws, metastore: DynamoDBMetastore, static_kms: StaticKMS
) -> None:
    aws.calls.clear()
    findings = examine(engine, asherah(static_kms, metastore=metastore), metadata(), batch=3)
    assert [str(each) for each in findings.found] == []
    assert findings.opened == findings.values > 0
    assert findings.keys == 1 + 3 + 3 + 3 + 2  # the system key; clinics, members, accounts, levels
    (reason,) = findings.not_checked
    assert "DynamoDB" in reason
    assert {operation for _, operation in aws.calls} == {"DescribeTable", "GetItem"}


def test_without_a_key_service_forms_and_keys_are_checked(
    engine: Engine, aws: Aws, metastore: DynamoDBMetastore
) -> None:
    vault = {"KMS": "vault", "VAULT_ADDR": "http://127.0.0.1:1", "VAULT_TOKEN": "none", "VAULT_TRANSIT_KEY": "none"}
    settings = Settings.from_env(environ(aws, metastore, engine) | vault)
    findings = examine(engine, settings, metadata())
    assert [str(each) for each in findings.found] == []
    assert (findings.opened, len(findings.not_checked)) == (0, 2)
    _key_deleted(engine, metastore, aws)
    assert set(examine(engine, settings, metadata()).counts) == {"key-missing"}


def _key_deleted(_engine: Engine, metastore: DynamoDBMetastore, aws: Aws) -> None:
    (row,) = metastore.run(lambda rows: rows.versions(OWNED))
    place = {"Id": {"S": row.id}, "Created": {"N": str(row.created)}}
    aws.client("dynamodb").delete_item(TableName=metastore._table.name, Key=place)


def _key_of_another_owner(_engine: Engine, metastore: DynamoDBMetastore, _aws: Aws) -> None:
    (row,), (other,) = metastore.run(lambda rows: (rows.versions(OWNED), rows.versions("_IK_2_records_clinic")))
    assert metastore.run(lambda rows: rows.replace(row, other.text))


def _key_damaged(_engine: Engine, metastore: DynamoDBMetastore, _aws: Aws) -> None:
    (row,) = metastore.run(lambda rows: rows.versions(OWNED))
    record = json.loads(row.text)
    wrapped = bytearray(base64.b64decode(record["Key"]))
    wrapped[-1] ^= 1
    text = json.dumps(record | {"Key": base64.b64encode(wrapped).decode()})
    assert metastore.run(lambda rows: rows.replace(row, text))


def _tombstone_only(_engine: Engine, metastore: DynamoDBMetastore, _aws: Aws) -> None:
    text = json.dumps({"Created": TOMBSTONE_DATE, "Key": "AA==", "Revoked": True})
    metastore.run(lambda rows: rows.insert([KeyRow("_XK" + OWNED[3:], TOMBSTONE_DATE, text)]))


def _cell_moved(engine: Engine, _metastore: DynamoDBMetastore, _aws: Aws) -> None:
    with engine.begin() as connection:
        body = Surgery(connection)
        row, other = body.rows("visits", clinic_id=3)[0], body.rows("visits", clinic_id=2)[0]
        body.put("visits", row, fee=other.fee)


@pytest.mark.parametrize(
    ("wound", "codes"),
    [
        (_key_deleted, {"key-missing", "value-damaged"}),
        (_key_of_another_owner, {"key-bind-broken", "key-copied"}),
        (_key_damaged, {"key-unopenable"}),
        (_tombstone_only, {"shred-unfinished"}),
        (_cell_moved, {"wrong-owner"}),
    ],
)
def test_damages_are_found(
    engine: Engine, aws: Aws, metastore: DynamoDBMetastore, static_kms: StaticKMS, wound: Wound, codes: set[str]
) -> None:
    wound(engine, metastore, aws)
    findings = examine(engine, asherah(static_kms, metastore=metastore), metadata())
    found = set(findings.counts)
    assert found
    assert found <= codes, findings.found
    assert findings.has_errors


def test_an_erased_owner_is_a_note(engine: Engine, metastore: DynamoDBMetastore, static_kms: StaticKMS) -> None:
    keys = asherah(static_kms, metastore=metastore)
    with OwnerShred(engine, keys, "3", metadata()) as shred:
        shred.begin()
    findings = examine(engine, keys, metadata())
    assert set(findings.counts) == {"value-erased"}


def test_two_key_tables_are_refused(engine: Engine, metastore: DynamoDBMetastore, static_kms: StaticKMS) -> None:
    with pytest.raises(UsageError, match="another key table"):
        examine(engine, asherah(static_kms, metastore=metastore), metadata(), metastore=engine)


def test_the_command_says_what_it_did_not_look_at(engine: Engine, aws: Aws, metastore: DynamoDBMetastore) -> None:
    def command(**others: str) -> Outcome:
        settings = environ(aws, metastore, engine) | others
        return run(settings, "doctor", "--models", "tests.doctor.clinic:Base", "--json")

    outcome = command()
    assert outcome.status == 0, outcome.out
    assert outcome.json["healthy"]
    assert "orphaned keys" in outcome.json["not_checked"][0]
    outcome = command(DDB_TABLE="Absent")
    assert outcome.status == 1
    assert list(outcome.json["counts"]) == ["key-table-missing"]
