# SPDX-License-Identifier: Apache-2.0
"""The 28 records of the shared vectors, written by the package `asherah`, read through the public API."""

from __future__ import annotations

import base64
import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, Engine, create_engine

from sa_asherah import Asherah, KeyRecordError, WrongPartitionError
from tests.interop.shared_table import GUARD, MASTER_KEY

pytestmark = pytest.mark.filterwarnings("ignore::sa_asherah.StaticKeyWarning")

REFERENCE = Path(__file__).parents[1] / "vectors" / "reference"
VECTORS: list[dict[str, Any]] = json.loads((REFERENCE / "vectors.json").read_text("utf-8"))["vectors"]


def hierarchy_of(vector: dict[str, Any]) -> tuple[str, str]:
    return vector["config"]["ServiceName"], vector["config"].get("RegionSuffix", "")


HIERARCHIES = sorted({hierarchy_of(vector) for vector in VECTORS})


def name_of(vector: dict[str, Any]) -> str:
    return str(vector["name"])


def asherah_for(vector: dict[str, Any], **environ: str) -> Asherah:
    service, suffix = hierarchy_of(vector)
    names = {"SERVICE_NAME": service, "PRODUCT_ID": "prod", "REGION_SUFFIX": suffix, "ASHERAH_PEERS": "1"}
    return Asherah.from_env(names | {"KMS": "static", "STATIC_MASTER_KEY_HEX": MASTER_KEY.hex()} | environ)


def rows(engine: Engine) -> list[tuple[str, str, str]]:
    with closing(sqlite3.connect(str(engine.url.database))) as connection:
        return connection.execute("SELECT id, created, key_record FROM encryption_key ORDER BY id, created").fetchall()


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    shutil.copy(REFERENCE / "keys.sqlite", tmp_path / "keys.sqlite")
    engine = create_engine(URL.create("sqlite", database=str(tmp_path / "keys.sqlite")))
    yield engine
    engine.dispose()


def test_there_are_28_records_in_four_hierarchies() -> None:
    assert (len(VECTORS), len(HIERARCHIES)) == (28, 4)


@pytest.mark.parametrize("vector", VECTORS, ids=name_of)
def test_a_record_of_the_package_is_read(engine: Engine, vector: dict[str, Any]) -> None:
    before = rows(engine)
    with asherah_for(vector) as asherah:
        asherah.attach(engine)
        session = asherah.session(vector["partition"])
        assert session.decrypt(vector["drr"]) == base64.b64decode(vector["plaintext"])
        assert session.decrypt(json.loads(vector["drr"])) == base64.b64decode(vector["plaintext"])
    assert rows(engine) == before, "reading changed the key table"


@pytest.mark.parametrize("hierarchy", HIERARCHIES, ids="-".join)
def test_one_asherah_reads_all_records_of_its_service_and_suffix_and_no_other(
    engine: Engine, hierarchy: tuple[str, str]
) -> None:
    with asherah_for(next(one for one in VECTORS if hierarchy_of(one) == hierarchy)) as asherah:
        asherah.attach(engine)
        for vector in VECTORS:
            session = asherah.session(vector["partition"])
            if hierarchy_of(vector) == hierarchy:
                assert session.decrypt(vector["drr"]) == base64.b64decode(vector["plaintext"])
            else:
                with pytest.raises(WrongPartitionError):
                    session.decrypt(vector["drr"])


def test_rows_that_are_no_keys_are_tolerated_and_left_alone(engine: Engine) -> None:
    guards = [row for row in rows(engine) if row[0].startswith(GUARD)]
    assert len(guards) == 3
    with asherah_for(VECTORS[0]) as asherah:
        asherah.attach(engine)
        asherah.create_metastore(engine)
        with engine.connect() as connection:
            asherah.check(connection)
        for partition in ("user1", "somebody new"):
            session = asherah.session(partition)
            assert session.decrypt(session.encrypt(b"ours")) == b"ours"
    assert [row for row in rows(engine) if row[0].startswith(GUARD)] == guards


@pytest.mark.parametrize("vector", VECTORS[::9], ids=name_of)
def test_without_peers_their_keys_are_refused(engine: Engine, vector: dict[str, Any]) -> None:
    with asherah_for(vector, ASHERAH_PEERS="0") as asherah:
        asherah.attach(engine)
        with pytest.raises(KeyRecordError, match="peers=True"):
            asherah.session(vector["partition"]).decrypt(vector["drr"])
