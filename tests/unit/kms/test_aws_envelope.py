# SPDX-License-Identifier: Apache-2.0
"""The JSON that AWS KMS leaves of a system key: strictly read, whatever a writer to the key table puts there."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sa_asherah.core.strict_json import StrictJsonError
from sa_asherah.kms.aws.envelope import RegionalKey, dump_envelope, parse_envelope

SEALED = bytes(range(60))

regional_keys = st.lists(
    st.builds(RegionalKey, st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=40), st.binary(min_size=1)),
    min_size=1,
    max_size=5,
    unique_by=lambda key: key.region,
)


@given(st.binary(min_size=60, max_size=60), regional_keys)
def test_what_is_written_is_read(sealed: bytes, keys: list[RegionalKey]) -> None:
    found = parse_envelope(dump_envelope(sealed, keys))
    assert (found.sealed, list(found.keys.values())) == (sealed, keys)


@given(
    st.binary()
    | st.text().map(str.encode)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["encryptedKey", "kmsKeks", "region"]), inner),
    ).map(lambda value: json.dumps(value).encode())
)
def test_anything_else_is_refused_in_one_way(blob: bytes) -> None:
    with pytest.raises(StrictJsonError):
        parse_envelope(blob)


def valid() -> dict[str, Any]:
    keys = [RegionalKey("us-west-2", "arn:1", b"\1" * 184), RegionalKey("us-east-1", "arn:2", b"\2" * 184)]
    made: dict[str, Any] = json.loads(dump_envelope(SEALED, keys))
    return made


def refused(record: dict[str, Any]) -> str:
    with pytest.raises(StrictJsonError) as caught:
        parse_envelope(json.dumps(record).encode())
    return str(caught.value)


@pytest.mark.parametrize("value", [None, 7, "", "AA==\n", "AA", "A-_A", [1, 2], "A" * 76, "A" * 84])
def test_a_wrong_sealed_key(value: object) -> None:
    assert "encryptedKey" in refused(valid() | {"encryptedKey": value})


@pytest.mark.parametrize("value", [None, {}, [], "AAAA", [None], [[]], ["us-west-2"]])
def test_a_wrong_list_of_regions(value: object) -> None:
    assert "kmsKeks" in refused(valid() | {"kmsKeks": value})


@pytest.mark.parametrize("member", ["region", "arn", "encryptedKek"])
@pytest.mark.parametrize("value", [None, 7, "", [1], "\udc00"])
def test_a_wrong_region(member: str, value: object) -> None:
    record = valid()
    record["kmsKeks"][0][member] = value
    refused(record)


def test_a_region_twice_or_too_many() -> None:
    record = valid()
    record["kmsKeks"].append(record["kmsKeks"][0])
    assert "twice" in refused(record)
    key = {"arn": "a", "encryptedKek": "AAAA"}
    assert "50" in refused(valid() | {"kmsKeks": [key | {"region": str(number)} for number in range(51)]})
    assert "longer" in refused(valid() | {"more": "x" * 40_000})


def test_a_member_twice() -> None:
    text = json.dumps(valid())
    with pytest.raises(StrictJsonError, match="twice"):
        parse_envelope(text.replace('{"encryptedKey"', '{"encryptedKey": "AAAA", "encryptedKey"').encode())


def test_nothing_secret_in_the_repr() -> None:
    wrapped = os.urandom(20)
    key = RegionalKey("us-west-2", "arn:1", wrapped)
    assert repr(wrapped)[2:12] not in repr(key) + repr(parse_envelope(dump_envelope(SEALED, [key])))
