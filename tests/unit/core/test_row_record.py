# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections import UserDict
from typing import Any

import pytest

from sa_asherah.core.row_record import DataRowRecord, dump_data_row_record, parse_data_row_record
from sa_asherah.errors import MalformedCellError

IK = "_IK_7_svc_prod"
PARENT: dict[str, Any] = {"KeyId": IK, "Created": 5}
KEY: dict[str, Any] = {"Created": 9, "Key": "a2V5", "ParentKeyMeta": PARENT}
GOOD: dict[str, Any] = {"Key": KEY, "Data": "ZGF0YQ=="}
RECORD = DataRowRecord(9, b"key", (IK, 5), b"data")


@pytest.mark.parametrize("source", [json.dumps(GOOD), GOOD, UserDict(GOOD)], ids=["text", "dict", "mapping"])
def test_a_record_is_read(source: Any) -> None:
    assert parse_data_row_record(source) == RECORD


def test_extra_members_are_ignored_and_the_key_date_does_not_matter() -> None:
    source = GOOD | {"X": 1.5, "Key": KEY | {"Revoked": "maybe", "Created": 0}}
    assert parse_data_row_record(json.dumps(source)).data == b"data"


def key(**members: object) -> dict[str, Any]:
    return GOOD | {"Key": KEY | members}


MALFORMED: list[dict[str, Any]] = [
    *({}, {"Key": KEY}, {"Data": "ZGF0YQ=="}),
    *(GOOD | {"Data": data} for data in (None, "", "ZGF0YQ", "ZGF0Y_==", b"ZGF0YQ==")),
    *(GOOD | {"Key": value} for value in (None, "a2V5", 1)),
    *(key(Created=created) for created in (None, 1.0, True, "1", -1)),
    *(key(Key=wrapped) for wrapped in (None, "", "a2V", 1)),
    *(key(ParentKeyMeta=meta) for meta in (None, IK, {"KeyId": IK}, {"Created": 5})),
    *(key(ParentKeyMeta=PARENT | {"KeyId": key_id}) for key_id in (None, "", 1, "\ud800")),
    *(key(ParentKeyMeta=PARENT | {"Created": created}) for created in (None, "5", 5.0, True)),
]


@pytest.mark.parametrize("source", MALFORMED, ids=repr)
def test_malformed_records_are_refused_as_text_and_as_mapping(source: dict[str, Any]) -> None:
    with pytest.raises(MalformedCellError) as caught:
        parse_data_row_record(source)
    assert "ZGF0" not in str(caught.value)
    with pytest.raises(MalformedCellError):
        parse_data_row_record(json.dumps(source, default=repr))


@pytest.mark.parametrize("text", ["", "null", "[]", "ZGF0YQ==", '{"Key":{},"Key":{}}', '{"a":' * 5000, '{"Data":NaN}'])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(MalformedCellError, match="not a data row record"):
        parse_data_row_record(text)


def test_long_records_are_refused() -> None:
    text = json.dumps(GOOD)
    assert parse_data_row_record(text, len(text)) == RECORD
    with pytest.raises(MalformedCellError, match="longer"):
        parse_data_row_record(text, len(text) - 1)
    with pytest.raises(MalformedCellError, match="longer"):
        parse_data_row_record(GOOD, 7)


def test_records_are_written_as_the_reference_does() -> None:
    text = dump_data_row_record(DataRowRecord(9, b"key", ("_IK_ü_svc_prod", 5), b"data"))
    assert text == (
        '{"Key":{"Created":9,"Key":"a2V5","ParentKeyMeta":{"KeyId":"_IK_ü_svc_prod","Created":5}},"Data":"ZGF0YQ=="}'
    )


def test_repr_holds_neither_key_nor_data() -> None:
    assert repr(RECORD) == f"DataRowRecord(created=9, parent=('{IK}', 5))"
