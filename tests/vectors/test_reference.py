# SPDX-License-Identifier: Apache-2.0
"""Records written by the published package `asherah` open with our core, from JSON and from its SQLite file."""

from __future__ import annotations

import base64
import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from sa_asherah.core import aead
from sa_asherah.core.ids import KeyIds
from sa_asherah.core.key_record import KeyRecord, check_bind, dump_key_record, parse_key_record
from sa_asherah.core.ports import KeyRow
from sa_asherah.core.row_record import dump_data_row_record, parse_data_row_record
from sa_asherah.errors import KeyRecordError

HERE = Path(__file__).parent / "reference"
MASTER_KEY = bytes(range(32))
VECTORS: list[dict[str, Any]] = json.loads((HERE / "vectors.json").read_text("utf-8"))["vectors"]
LISTED: list[dict[str, str]] = json.loads((HERE / "encryption_key.json").read_text("utf-8"))


def row(key_id: str, created: str, text: str) -> KeyRow:
    return KeyRow(key_id, int(datetime.fromisoformat(created).replace(tzinfo=UTC).timestamp()), text)


ROWS = [row(one["id"], one["created"], one["key_record"]) for one in LISTED]
KEYS = {(one.id, one.created): one for one in ROWS if one.id.startswith(("_SK_", "_IK_"))}


def unwrap(record: KeyRecord) -> bytes:
    if record.parent is None:
        return aead.open_(MASTER_KEY, record.wrapped)
    return aead.open_(unwrap(parse_key_record(KEYS[record.parent])), record.wrapped)


def ids_of(vector: dict[str, Any], *, peers: bool) -> KeyIds:
    config = vector["config"]
    return KeyIds(config["ServiceName"], config["ProductID"], config.get("RegionSuffix", ""), peers)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: str(vector["name"]))
@pytest.mark.parametrize("mapping", [False, True], ids=["text", "mapping"])
def test_record_opens(vector: dict[str, Any], mapping: bool) -> None:  # noqa: FBT001
    record = parse_data_row_record(json.loads(vector["drr"]) if mapping else vector["drr"])
    ids = ids_of(vector, peers=True)
    assert record.parent[0] == ids.intermediate_key_id(vector["partition"])
    key = parse_key_record(KEYS[record.parent])
    secret = unwrap(key)
    check_bind(key, "IK", ids, vector["partition"], secret)
    assert aead.open_(aead.open_(secret, record.key), record.data) == base64.b64decode(vector["plaintext"])


def test_there_are_28_records_and_16_keys() -> None:
    assert (len(VECTORS), len(KEYS)) == (28, 16)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: str(vector["name"]))
def test_written_again_it_is_the_same_text(vector: dict[str, Any]) -> None:
    assert dump_data_row_record(parse_data_row_record(vector["drr"])) == vector["drr"]


@pytest.mark.parametrize("one", ROWS, ids=lambda one: f"{one.id}-{one.created}")
def test_key_record_written_again_is_the_same_text(one: KeyRow) -> None:
    assert dump_key_record(parse_key_record(one)) == one.text


def test_a_record_without_bind_needs_peers() -> None:
    ids = ids_of(VECTORS[0], peers=False)
    record = parse_key_record(next(one for one in KEYS.values() if one.id == ids.intermediate_key_id("user1")))
    with pytest.raises(KeyRecordError, match="peers=True"):
        check_bind(record, "IK", ids, "user1", unwrap(record))


def test_sqlite_file_holds_the_same_rows() -> None:
    uri = f"{(HERE / 'keys.sqlite').as_uri()}?mode=ro&immutable=1"
    with closing(sqlite3.connect(uri, uri=True)) as connection:
        stored = connection.execute("SELECT id, CAST(created AS TEXT), key_record FROM encryption_key").fetchall()
    assert sorted((row(*one) for one in stored), key=lambda one: (one.id, one.created)) == ROWS
