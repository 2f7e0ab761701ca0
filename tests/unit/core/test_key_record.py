# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import base64
import hmac
import json
from unittest import mock

import pytest

from sa_asherah.core.ids import MAX_CREATED, KeyIds
from sa_asherah.core.key_record import KeyRecord, bind, check_bind, dump_key_record, parse_key_record
from sa_asherah.core.ports import KeyRow
from sa_asherah.errors import KeyRecordError

SK, IK = "_SK_svc_prod", "_IK_7_svc_prod"
CREATED = 1_767_225_600
KEY = "c2VjcmV0LWtleS1tYXRlcmlhbA=="
MAC = "A" * 43 + "="
PARENT = {"KeyId": SK, "Created": CREATED}
GOOD: dict[str, object] = {"Created": CREATED, "Key": KEY, "ParentKeyMeta": PARENT, "Bind": MAC}


def row(members: dict[str, object] | str, key_id: str = IK, created: int = CREATED) -> KeyRow:
    return KeyRow(key_id, created, members if isinstance(members, str) else json.dumps(members))


def test_a_record_is_read() -> None:
    record = parse_key_record(row(GOOD))
    assert record == KeyRecord(IK, CREATED, KEY, (SK, CREATED), revoked=False, bind=MAC)
    assert record.wrapped == b"secret-key-material"


@pytest.mark.parametrize(
    "members",
    [
        {"Created": CREATED, "Key": KEY},
        {"Created": CREATED, "Key": KEY, "ParentKeyMeta": None, "Revoked": None},
        {"Unknown": {"a": [1.5]}, "Key": KEY, "Revoked": False, "Created": CREATED, "bind": 1},
    ],
)
def test_what_other_implementations_write_is_read(members: dict[str, object]) -> None:
    assert parse_key_record(row(members, SK)) == KeyRecord(SK, CREATED, KEY)


def test_revoked_is_read() -> None:
    assert parse_key_record(row(GOOD | {"Revoked": True})).revoked


@pytest.mark.parametrize(
    "change",
    [
        {"Created": CREATED + 1}, {"Created": float(CREATED)}, {"Created": str(CREATED)}, {"Created": True},
        {"Created": None}, {"Created": -1}, {"Created": 10**20},
        {"Key": None}, {"Key": ""}, {"Key": 5}, {"Key": "c2Vj-_=="}, {"Key": KEY[:-1]}, {"Key": f"{KEY}\n"},
        {"Key": [KEY]},
        {"ParentKeyMeta": None}, {"ParentKeyMeta": []}, {"ParentKeyMeta": {}}, {"ParentKeyMeta": SK},
        {"ParentKeyMeta": {"KeyId": SK}}, {"ParentKeyMeta": {"Created": CREATED}},
        {"ParentKeyMeta": PARENT | {"KeyId": ""}},
        {"ParentKeyMeta": PARENT | {"KeyId": 1}}, {"ParentKeyMeta": PARENT | {"KeyId": "\ud800"}},
        {"ParentKeyMeta": PARENT | {"Created": 1.0}}, {"ParentKeyMeta": PARENT | {"Created": True}},
        {"ParentKeyMeta": PARENT | {"Created": -1}}, {"ParentKeyMeta": PARENT | {"Created": MAX_CREATED + 1}},
        {"Revoked": 1}, {"Revoked": 0}, {"Revoked": "true"}, {"Revoked": []},
        {"Bind": None}, {"Bind": ""}, {"Bind": 1}, {"Bind": MAC[:-1]}, {"Bind": "A" * 40}, {"Bind": "A" * 42 + "B="},
        {"Bind": "A" * 44},
    ],
    ids=repr,
)  # fmt: skip
def test_malformed_members_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(KeyRecordError) as caught:
        parse_key_record(row(GOOD | change))
    text = str(caught.value)
    assert IK in text
    assert str(CREATED) in text
    assert "backup" in text
    assert KEY[:8] not in text


@pytest.mark.parametrize("name", ["Created", "Key", "Bind", "ParentKeyMeta"])
def test_a_member_twice_is_refused(name: str) -> None:
    text = json.dumps(GOOD)[:-1] + f', "{name}": {json.dumps(GOOD[name])}}}'
    with pytest.raises(KeyRecordError, match="twice"):
        parse_key_record(row(text))


def test_a_text_beyond_64_kib_is_refused() -> None:
    with pytest.raises(KeyRecordError, match="65536"):
        parse_key_record(row(GOOD | {"Unknown": "x" * 65_536}))


def test_levels_and_parents_fit() -> None:
    with pytest.raises(KeyRecordError, match="system key"):
        parse_key_record(row(GOOD, SK))
    with pytest.raises(KeyRecordError, match="intermediate key"):
        parse_key_record(row({"Created": CREATED, "Key": KEY}))


def test_records_are_written_compact_ordered_and_not_escaped() -> None:
    parent = ("_SK_ü/_p", CREATED)
    assert dump_key_record(KeyRecord(IK, CREATED, "a+/b", parent, bind=MAC)) == (
        f'{{"Created":{CREATED},"Key":"a+/b","ParentKeyMeta":{{"KeyId":"_SK_ü/_p","Created":{CREATED}}},"Bind":"{MAC}"}}'
    )
    assert dump_key_record(KeyRecord(SK, 7, "a+/b", revoked=True)) == '{"Revoked":true,"Created":7,"Key":"a+/b"}'


def test_written_records_are_read_again() -> None:
    for record in (KeyRecord(IK, CREATED, KEY, (SK, 5), revoked=True, bind=MAC), KeyRecord(SK, 0, KEY)):
        assert parse_key_record(KeyRow(record.id, record.created, dump_key_record(record))) == record


def test_repr_holds_no_key() -> None:
    record = KeyRecord(IK, CREATED, KEY, (SK, 5), bind=MAC)
    assert KEY not in repr(record)
    assert MAC not in repr(record)


def test_bind_is_what_the_design_says() -> None:
    secret = bytes(range(32))
    ids = KeyIds("svc", "prod")
    bind_key = hmac.digest(secret, b"sa_asherah/bind-key/1", "sha512")[:32]
    message = b"".join(
        len(part).to_bytes(4, "big") + part
        for part in (
            b"sa_asherah/bind/1",
            b"SK",
            b"svc",
            b"prod",
            b"",
            b"",
            SK.encode(),
            CREATED.to_bytes(8, "big"),
            b"",
            bytes(8),
        )
    )
    expected = base64.b64encode(hmac.digest(bind_key, message, "sha256")).decode()
    assert bind("SK", ids, None, SK, CREATED, None, secret) == expected


def test_bind_is_compared_in_constant_time() -> None:
    secret = bytes(range(32))
    ids = KeyIds("svc", "prod")
    record = KeyRecord(SK, CREATED, KEY, bind=bind("SK", ids, None, SK, CREATED, None, secret))
    with mock.patch("hmac.compare_digest", wraps=hmac.compare_digest) as compare:
        check_bind(record, "SK", ids, None, secret)
    compare.assert_called_once()


@pytest.mark.parametrize("size", [0, 16, 31, 33, 64])
def test_only_keys_of_32_bytes(size: int) -> None:
    with pytest.raises(KeyRecordError, match="32 bytes"):
        check_bind(KeyRecord(SK, CREATED, KEY), "SK", KeyIds("svc", "prod", peers=True), None, bytes(size))
