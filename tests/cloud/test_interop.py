# SPDX-License-Identifier: Apache-2.0
"""The published package `asherah` with AWS KMS and DynamoDB: each reads the other's records and uses its keys."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine

from sa_asherah import Asherah, KeyRecordError, WrongPartitionError
from sa_asherah.metastore.dynamodb import DynamoDBMetastore
from tests.interop.shared_table import PROGRAM
from tests.servers.moto import REGIONS

if TYPE_CHECKING:
    from collections.abc import Generator

    from sa_asherah.kms import StaticKMS
    from tests.servers.moto import Aws

WEST, EAST, _ = REGIONS
REFERENCE = Path(__file__).parents[1] / "vectors" / "reference"
VECTORS: list[dict[str, Any]] = json.loads((REFERENCE / "vectors.json").read_text("utf-8"))["vectors"]
PAYLOADS = {"user1": b"canary", "Ünï 账户": b"", "a/b@example.com": bytes(range(256))}


def package(environ: dict[str, str], *requests: tuple[str, str, str]) -> list[str]:
    done = subprocess.run(
        [sys.executable, str(PROGRAM)],
        env={"PATH": os.environ["PATH"], **environ},
        input=json.dumps(requests).encode(),
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr.decode()
    results = json.loads(done.stdout)
    assert all(good for good, _ in results), results
    return [text for _, text in results]


@contextlib.contextmanager
def ours(environ: dict[str, str]) -> Generator[Asherah]:
    engine = create_engine("sqlite://")
    with Asherah.from_env(environ) as asherah:
        asherah.attach(engine)
        yield asherah
    engine.dispose()


@pytest.fixture(params=["one-region", "two-regions", "suffix"])
def environ(request: pytest.FixtureRequest, aws: Aws, metastore: DynamoDBMetastore) -> dict[str, str]:
    settings = {"KMS_KEY_ID": aws.new_key(WEST)}
    if request.param == "two-regions":
        keys = {region: aws.new_key(region) for region in (WEST, EAST)}
        settings = {"REGION_MAP": json.dumps(keys), "PREFERRED_REGION": EAST}
    if request.param == "suffix":
        settings["DDB_REGION_SUFFIX"] = "1"
    names = {"SERVICE_NAME": "svc", "PRODUCT_ID": "prod", "KMS": "aws", "Metastore": "dynamodb"}
    return {**aws.environ, **names, "DDB_TABLE": metastore._table.name, "AWS_REGION": WEST, **settings}


def keys_of(aws: Aws, metastore: DynamoDBMetastore) -> list[str]:
    items = aws.client("dynamodb").scan(TableName=metastore._table.name)["Items"]
    return sorted(item["Id"]["S"] for item in items if item["Id"]["S"].startswith(("_SK_", "_IK_")))


def test_the_package_reads_our_records_under_our_keys(
    aws: Aws, metastore: DynamoDBMetastore, environ: dict[str, str]
) -> None:
    with ours(environ) as asherah:
        records = {partition: asherah.session(partition).encrypt(data) for partition, data in PAYLOADS.items()}
    before = keys_of(aws, metastore)
    assert len(before) == 1 + len(PAYLOADS)
    assert all(key_id.endswith("_svc_prod_us-west-2") == ("DDB_REGION_SUFFIX" in environ) for key_id in before)
    read = package(environ, *[("decrypt", partition, record) for partition, record in records.items()])
    assert [base64.b64decode(text) for text in read] == list(PAYLOADS.values())
    package(environ, *[("encrypt", partition, "") for partition in PAYLOADS])
    assert keys_of(aws, metastore) == before


def test_we_read_the_package_s_records_under_its_keys(
    aws: Aws, metastore: DynamoDBMetastore, environ: dict[str, str]
) -> None:
    texts = {partition: base64.b64encode(data).decode() for partition, data in PAYLOADS.items()}
    records = package(environ, *[("encrypt", partition, text) for partition, text in texts.items()])
    before = keys_of(aws, metastore)
    with ours(environ) as asherah:
        for (partition, data), record in zip(PAYLOADS.items(), records, strict=True):
            session = asherah.session(partition)
            assert session.decrypt(record) == data
            assert session.decrypt(session.encrypt(data)) == data
    assert keys_of(aws, metastore) == before
    with ours({**environ, "ASHERAH_PEERS": "0"}) as asherah, pytest.raises(KeyRecordError, match="ASHERAH_PEERS=1"):
        asherah.session("user1").decrypt(records[0])


def hierarchy_of(vector: dict[str, Any]) -> tuple[str, str]:
    return vector["config"]["ServiceName"], vector["config"].get("RegionSuffix", "")


def load_reference(aws: Aws, metastore: DynamoDBMetastore) -> None:
    """Put the package's key rows into DynamoDB, in the form in which it puts them there."""
    with closing(sqlite3.connect(REFERENCE / "keys.sqlite")) as connection:
        rows = connection.execute("SELECT id, created, key_record FROM encryption_key").fetchall()
    for key_id, created, text in rows:
        seconds = int(datetime.fromisoformat(f"{created}+00:00").timestamp())
        record = json.loads(text)
        members: dict[str, Any] = {"Created": {"N": str(record["Created"])}, "Key": {"S": record["Key"]}}
        if "ParentKeyMeta" in record:
            parent = record["ParentKeyMeta"]
            members["ParentKeyMeta"] = {
                "M": {"KeyId": {"S": parent["KeyId"]}, "Created": {"N": str(parent["Created"])}}
            }
        item = {"Id": {"S": key_id}, "Created": {"N": str(seconds)}, "KeyRecord": {"M": members}}
        aws.client("dynamodb").put_item(TableName=metastore._table.name, Item=item)


def test_the_reference_records_are_read_through_dynamodb(
    aws: Aws, metastore: DynamoDBMetastore, static_kms: StaticKMS
) -> None:
    load_reference(aws, metastore)
    before = keys_of(aws, metastore)
    for (service, suffix), vectors in itertools.groupby(sorted(VECTORS, key=hierarchy_of), key=hierarchy_of):
        engine = create_engine("sqlite://")
        with Asherah(service, "prod", static_kms, region_suffix=suffix, peers=True, metastore=metastore) as asherah:
            asherah.attach(engine)
            for vector in vectors:
                session = asherah.session(vector["partition"])
                assert session.decrypt(vector["drr"]) == base64.b64decode(vector["plaintext"]), vector["name"]
                with pytest.raises(WrongPartitionError):
                    asherah.session("somebody else").decrypt(vector["drr"])
        engine.dispose()
    assert keys_of(aws, metastore) == before
