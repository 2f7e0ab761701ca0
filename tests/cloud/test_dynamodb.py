# SPDX-License-Identifier: Apache-2.0
"""An application whose keys are in DynamoDB and whose data are in a database of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, insert, inspect, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from sa_asherah import (
    Asherah,
    ConfigurationError,
    KeyRecordError,
    MetastoreError,
    MetastoreUnavailableError,
    UsageError,
)
from sa_asherah.metastore.dynamodb import DynamoDBMetastore
from tests.cloud import clinic
from tests.cloud.clinic import Base, Patient, add, ssns
from tests.metastore.backends import engine_of
from tests.servers.database import async_url
from tests.servers.moto import REGIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

    from sa_asherah.kms import StaticKMS
    from tests.servers.moto import Aws

PROCESSES = 4
REGION = REGIONS[0]


def items(aws: Aws, metastore: DynamoDBMetastore) -> list[dict[str, Any]]:
    return list(aws.client("dynamodb").scan(TableName=metastore._table.name)["Items"])


@pytest.fixture
def engine(sqlite_url: str) -> Iterator[Engine]:
    with engine_of(sqlite_url) as engine:
        Base.metadata.create_all(engine)
        yield engine


@pytest.fixture
def asherah(static_kms: StaticKMS, metastore: DynamoDBMetastore) -> Iterator[Asherah]:
    with Asherah("records", "clinic", static_kms, metastore=metastore) as asherah:
        yield asherah


def test_keys_are_in_dynamodb_and_nowhere_else(
    aws: Aws, asherah: Asherah, metastore: DynamoDBMetastore, engine: Engine
) -> None:
    asherah.attach(engine)
    add(engine, 1, "canary 1")
    add(engine, 2, "canary 2")
    assert sorted(item["Id"]["S"] for item in items(aws, metastore)) == [
        "_IK_1_records_clinic",
        "_IK_2_records_clinic",
        "_SK_records_clinic",
    ]
    assert inspect(engine).get_table_names() == ["patients"]
    asherah.detach(engine)
    asherah.attach(engine)
    assert ssns(engine) == ["canary 1", "canary 2"]


def test_a_rolled_back_write_leaves_a_key_that_is_good(asherah: Asherah, engine: Engine) -> None:
    asherah.attach(engine)
    with engine.begin() as connection:
        transaction = connection.begin_nested()
        connection.execute(insert(Patient), {"clinic_id": 1, "ssn": "gone"})
        transaction.rollback()
    add(engine, 1, "canary")
    asherah.detach(engine)
    asherah.attach(engine)
    assert ssns(engine) == ["canary"]


def test_a_database_in_memory_reads_outside_of_its_connection(
    static_kms: StaticKMS, metastore: DynamoDBMetastore
) -> None:
    engine = create_engine("sqlite://")
    with Asherah("records", "clinic", static_kms, metastore=metastore) as asherah:
        asherah.attach(engine)
        Base.metadata.create_all(engine)
        record = asherah.session("1").encrypt(b"canary")
        add(engine, 1, "canary")
        asherah.detach(engine)
        asherah.attach(engine)
        with engine.connect() as connection:
            result = connection.execute(select(Patient.clinic_id, Patient.ssn)).freeze()
        assert result().all() == [(1, "canary")]
        assert asherah.session("1").decrypt(record) == b"canary"
    engine.dispose()


async def test_an_asynchronous_engine(static_kms: StaticKMS, metastore: DynamoDBMetastore, sqlite_url: str) -> None:
    engine = create_async_engine(async_url(sqlite_url))
    with Asherah("records", "clinic", static_kms, metastore=metastore) as asherah:
        asherah.attach(engine)
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
            await connection.run_sync(asherah.create_metastore)
        async with AsyncSession(engine) as session:
            session.add_all([Patient(clinic_id=number, ssn=f"canary {number}") for number in range(12)])
            await session.commit()
        asherah.detach(engine)
        asherah.attach(engine)
        async with AsyncSession(engine) as session:
            found = (await session.execute(select(Patient.ssn, Patient.clinic_id))).all()
        assert {(f"canary {number}", number) for number in range(12)} == set(map(tuple, found))
    await engine.dispose()


@pytest.mark.long
def test_processes_that_make_one_owner_s_first_key_make_one(
    aws: Aws, metastore: DynamoDBMetastore, engine: Engine, asherah: Asherah
) -> None:
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA journal_mode = WAL")
    url = engine.url.render_as_string(hide_password=False)
    program = [sys.executable, str(Path(clinic.__file__)), url, metastore._table.name, str(time.time() + 4)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    running = [subprocess.Popen(program, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(PROCESSES)]
    failed = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0] * PROCESSES
    assert list(map(int, failed)) == [0] * PROCESSES
    found = items(aws, metastore)
    assert sorted(item["Id"]["S"] for item in found) == ["_IK_1_records_clinic", "_SK_records_clinic"]
    asherah.attach(engine)
    assert len(ssns(engine)) == PROCESSES * clinic.THREADS


def test_the_table_is_checked_before_the_first_statement(static_kms: StaticKMS, aws: Aws, engine: Engine) -> None:
    missing = DynamoDBMetastore(REGION, "Missing")
    with Asherah("records", "clinic", static_kms, metastore=missing) as asherah:
        asherah.attach(engine)
        with pytest.raises(MetastoreError, match=r"'Missing' in us-west-2 .* asherah.create_metastore"):
            add(engine, 1, "canary")
        with engine.connect() as connection, pytest.raises(MetastoreError, match="'Missing'"):
            asherah.check(connection)
        asherah.create_metastore()
        with engine.connect() as connection:
            asherah.check(connection)
            asherah.create_metastore(connection)
        add(engine, 1, "canary")
        assert ssns(engine) == ["canary"]
    aws.down = {REGION}
    with Asherah("records", "clinic", static_kms, metastore=missing) as asherah:
        asherah.attach(engine)
        with pytest.raises(MetastoreUnavailableError):
            ssns(engine)


def test_the_data_s_database_is_checked_too(asherah: Asherah, tmp_path: Path) -> None:
    with engine_of(f"sqlite:///{tmp_path / 'utf16.db'}") as engine:
        with engine.begin() as connection:
            connection.exec_driver_sql("PRAGMA encoding = 'UTF-16'")
            Base.metadata.create_all(connection)
        asherah.attach(engine)
        with pytest.raises(ConfigurationError, match="encoding is UTF-16le"):
            add(engine, 1, "canary")


def test_two_key_tables_contradict_each_other(asherah: Asherah, engine: Engine) -> None:
    with pytest.raises(ConfigurationError, match="names another key table than"):
        asherah.attach(engine, metastore=engine)


def test_without_one_the_database_must_be_named(static_kms: StaticKMS) -> None:
    with Asherah("records", "clinic", static_kms) as asherah:
        with pytest.raises(UsageError, match=r"asherah\.create_metastore"):
            asherah.create_metastore()
        with pytest.raises(UsageError, match=r"asherah\.system_keys"):
            asherah.system_keys()


def test_system_keys_are_rotated_there(aws: Aws, asherah: Asherah, metastore: DynamoDBMetastore) -> None:
    made = asherah.system_keys().rotate(force=True)
    assert made.made
    assert [item["Id"]["S"] for item in items(aws, metastore)] == [made.id]


def test_one_key_table_serves_several_engines(asherah: Asherah, engine: Engine, tmp_path: Path) -> None:
    with engine_of(f"sqlite:///{tmp_path / 'other.db'}") as other:
        Base.metadata.create_all(other)
        asherah.attach(engine)
        asherah.attach(other)
        add(engine, 1, "one")
        asherah.detach(engine)
        add(other, 1, "two")
        asherah.attach(engine)
        assert ssns(engine) + ssns(other) == ["one", "two"]


def test_a_moved_record_is_refused(aws: Aws, asherah: Asherah, metastore: DynamoDBMetastore, engine: Engine) -> None:
    asherah.attach(engine)
    add(engine, 1, "canary 1")
    add(engine, 2, "canary 2")
    found = {item["Id"]["S"]: item for item in items(aws, metastore)}
    moved = found["_IK_2_records_clinic"] | {"KeyRecord": found["_IK_1_records_clinic"]["KeyRecord"]}
    created = moved["Created"]["N"]
    moved["KeyRecord"]["M"]["Created"] = {"N": created}
    aws.client("dynamodb").put_item(TableName=metastore._table.name, Item=moved)
    asherah.detach(engine)
    asherah.attach(engine)
    with pytest.raises(KeyRecordError, match="Bind"):
        ssns(engine)
