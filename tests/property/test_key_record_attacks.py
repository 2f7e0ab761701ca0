# SPDX-License-Identifier: Apache-2.0
"""A key record that was altered, moved or re-dated is refused before its key can be used."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sa_asherah.core import aead
from sa_asherah.core.ids import KeyIds
from sa_asherah.core.key_record import KeyRecord, Level, bind, check_bind, dump_key_record, parse_key_record
from sa_asherah.core.ports import KeyRow
from sa_asherah.core.strict_json import base64_text
from sa_asherah.errors import KeyRecordError

IDS = KeyIds("records", "clinic")
PEERS = replace(IDS, peers=True)
CREATED = 1_767_225_600
SYSTEM_KEY = bytes(range(32))
PARENT = (IDS.system_key_id(), CREATED)


def record_of(partition: str, secret: bytes, created: int = CREATED) -> KeyRow:
    """Write an intermediate key as this package does."""
    key_id = IDS.intermediate_key_id(partition)
    mac = bind("IK", IDS, partition, key_id, created, PARENT, secret)
    wrapped = base64_text(aead.seal(SYSTEM_KEY, secret))
    return KeyRow(key_id, created, dump_key_record(KeyRecord(key_id, created, wrapped, PARENT, bind=mac)))


def load(row: KeyRow, partition: str = "42", ids: KeyIds = IDS, level: Level = "IK") -> bytes | None:
    """Read, unwrap and check as the hierarchy does; None if the row is refused, by typed errors only."""
    try:
        record = parse_key_record(row)
        secret = aead.open_(SYSTEM_KEY, record.wrapped)
        check_bind(record, level, ids, partition, secret)
    except (KeyRecordError, aead.InvalidTag):
        return None
    return secret


SECRET = os.urandom(32)
ROW = record_of("42", SECRET)
OTHERS = [
    record_of("43", os.urandom(32)),
    record_of("42", os.urandom(32), CREATED + 60),
    record_of("4", os.urandom(32)),
]


def altered(row: KeyRow, **members: object) -> KeyRow:
    """Change members of the JSON; None takes one away."""
    changed = {name: value for name, value in (json.loads(row.text) | members).items() if value is not None}
    return replace(row, text=json.dumps(changed))


@pytest.mark.parametrize("ids", [IDS, PEERS], ids=["alone", "peers"])
def test_the_untouched_record_loads(ids: KeyIds) -> None:
    assert load(ROW, ids=ids) == SECRET


def test_every_flipped_bit_of_the_text_is_refused() -> None:
    for bit in range(8 * len(ROW.text)):
        damaged = bytearray(ROW.text.encode())
        damaged[bit // 8] ^= 1 << bit % 8
        text = damaged.decode("latin-1")
        assert load(replace(ROW, text=text)) is None, text


def test_every_truncation_of_the_text_is_refused() -> None:
    for size in range(len(ROW.text)):
        assert load(replace(ROW, text=ROW.text[:size])) is None, size
        assert load(replace(ROW, text=ROW.text[size + 1 :])) is None, size


@pytest.mark.parametrize("ids", [IDS, PEERS], ids=["alone", "peers"])
def test_every_flipped_bit_of_id_and_date_is_refused(ids: KeyIds) -> None:
    for bit in range(8 * len(ROW.id)):
        damaged = bytearray(ROW.id.encode())
        damaged[bit // 8] ^= 1 << bit % 8
        assert load(replace(ROW, id=damaged.decode("latin-1")), ids=ids) is None, bit
    for bit in range(63):
        moved = ROW.created ^ 1 << bit
        assert load(replace(ROW, created=moved), ids=ids) is None, bit
        assert load(replace(altered(ROW, Created=moved), created=moved), ids=ids) is None, bit


@pytest.mark.parametrize("ids", [IDS, PEERS], ids=["alone", "peers"])
def test_every_flipped_bit_of_bind_and_parent_is_refused(ids: KeyIds) -> None:
    mac = base64.b64decode(json.loads(ROW.text)["Bind"])
    for bit in range(8 * len(mac)):
        damaged = bytearray(mac)
        damaged[bit // 8] ^= 1 << bit % 8
        assert load(altered(ROW, Bind=base64_text(bytes(damaged))), ids=ids) is None, bit
    for bit in range(8 * len(PARENT[0])):
        parent = bytearray(PARENT[0].encode())
        parent[bit // 8] ^= 1 << bit % 8
        meta = {"KeyId": parent.decode("latin-1"), "Created": PARENT[1]}
        assert load(altered(ROW, ParentKeyMeta=meta), ids=ids) is None, bit
    for bit in range(63):
        meta = {"KeyId": PARENT[0], "Created": PARENT[1] ^ 1 << bit}
        assert load(altered(ROW, ParentKeyMeta=meta), ids=ids) is None, bit


@pytest.mark.parametrize("ids", [IDS, PEERS], ids=["alone", "peers"])
@pytest.mark.parametrize("other", OTHERS, ids=["other-owner", "older-key", "neighbour"])
def test_a_transplanted_record_is_refused(other: KeyRow, ids: KeyIds) -> None:
    theirs = json.loads(other.text)
    assert load(replace(other, id=ROW.id, created=ROW.created), ids=ids) is None
    assert load(altered(ROW, Key=theirs["Key"]), ids=ids) is None
    assert load(altered(ROW, Bind=theirs["Bind"]), ids=ids) is None
    assert load(altered(ROW, Key=theirs["Key"], Bind=theirs["Bind"]), ids=ids) is None
    assert load(replace(altered(other, Created=ROW.created), id=ROW.id, created=ROW.created), ids=ids) is None


def test_a_stripped_bind_is_refused_unless_peers_share_the_table() -> None:
    stripped = altered(ROW, Bind=None)
    assert load(stripped) is None
    assert load(replace(stripped, text=stripped.text[:-1] + ',"Bind":null}')) is None
    assert load(stripped, ids=PEERS) == SECRET


@pytest.mark.parametrize("ids", [KeyIds("records2", "clinic"), KeyIds("records", "clinic", "eu"), KeyIds("a", "b")])
def test_another_service_product_or_suffix_is_refused(ids: KeyIds) -> None:
    assert load(ROW, ids=ids) is None


def test_another_partition_or_level_is_refused() -> None:
    assert load(ROW, "43") is None
    assert load(ROW, level="IX") is None


def test_a_rewrapped_key_keeps_its_bind() -> None:
    again = base64_text(aead.seal(SYSTEM_KEY, SECRET))
    assert load(altered(ROW, Key=again)) == SECRET


def test_revoked_is_outside_the_bind() -> None:
    assert load(altered(ROW, Revoked=True)) == SECRET


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=80).filter(lambda secret: len(secret) != 32))
def test_a_key_of_another_size_is_refused(secret: bytes) -> None:
    assert load(altered(ROW, Key=base64_text(aead.seal(SYSTEM_KEY, secret)))) is None
    assert load(altered(ROW, Key=base64_text(aead.seal(SYSTEM_KEY, secret)), Bind=None), ids=PEERS) is None
