# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import base64

import pytest

from sa_asherah.core.ids import MAX_CREATED
from sa_asherah.core.strict_json import StrictJsonError, base64_bytes, created_member, load_object, text_member

SECRET = "s3cr3t-c0ntent"
ATTACKS = {
    "empty": "",
    "null": "null",
    "array": "[]",
    "text": '"a"',
    "number": "1",
    "not-json": SECRET,
    "truncated": '{"a":1',
    "trailing": '{"a":1}{}',
    "trailing-nul": '{"a":1}\x00',
    "byte-order-mark": '\ufeff{"a":1}',
    "utf-16": '{"a":1}'.encode("utf-16").decode("latin-1"),
    "control-character": '{"a":"\n"}',
    "single-quotes": "{'a':1}",
    "comment": '{"a":1}//',
    "trailing-comma": '{"a":1,}',
    "twice": '{"a":1,"a":1}',
    "twice-escaped": '{"a":1,"\\u0061":2}',
    "twice-below": '{"a":{"b":1,"b":2}}',
    "twice-in-array": '{"a":[{"b":1,"b":2}]}',
    "nan": '{"a":NaN}',
    "infinity": '{"a":[-Infinity]}',
    "many-digits": '{"a":%s}' % ("9" * 5000),
    "surrogate": '{"a":"\ud800"}',
    "surrogate-escaped": '{"a":"\\ud800"}',
    "surrogate-name": '{"\\udfff":1}',
    "surrogate-deep": '{"a":[["\\ud800"]]}',
    "deep-arrays": '{"a":' + "[" * 60_000,
    "deep-objects": '{"a":' * 10_000,
    "deep-by-one": '{"a":' + "[" * 100 + "]" * 100 + "}",
    "many-parts": '{"a":[' + "0," * 1_000 + "0]}",
    "infinity-by-exponent": '{"a":1e999}',
    "deep-and-closed": '{"a":' + "[" * 30_000 + "]" * 30_000 + "}",
    "too-long": '{"a":"%s"}' % ("x" * 65_536),
}


@pytest.mark.parametrize("text", ATTACKS.values(), ids=ATTACKS)
def test_ambiguous_json_is_refused(text: str) -> None:
    with pytest.raises(StrictJsonError) as caught:
        load_object(text, 65_536)
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in repr(vars(error)) + str(error)
        error = error.__cause__ or error.__context__


def test_as_deep_and_as_many_as_allowed_passes() -> None:
    assert load_object('{"a":' + "[" * 99 + "]" * 99 + "}", 300)
    assert load_object('{"a":[' + "0," * 998 + "0]}", 3_000)


def test_strange_but_unambiguous_json_passes() -> None:
    assert load_object(' {"a" : 1, "ü":"\\ud83d\\ude00", "f":1.5e3, "A":{"a":[]}} ', 100) == {
        "a": 1,
        "ü": "😀",
        "f": 1500.0,
        "A": {"a": []},
    }


@pytest.mark.parametrize("value", [None, True, False, 1.0, 0.0, "1", -1, MAX_CREATED + 1, 2**63, 10**30, [], {}])
def test_created_is_an_exact_integer_in_range(value: object) -> None:
    with pytest.raises(StrictJsonError):
        created_member({"Created": value})
    with pytest.raises(StrictJsonError):
        created_member({})
    assert created_member({"Created": 0}) == 0
    assert created_member({"Created": MAX_CREATED}) == MAX_CREATED


@pytest.mark.parametrize("value", [None, "", 1, b"a", ["a"], "a\ud800"])
def test_texts_are_texts(value: object) -> None:
    with pytest.raises(StrictJsonError):
        text_member({"a": value}, "a")


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "ab",
        "abc",
        "ab=",
        "ab==c",
        "YQ",
        "YR==",
        "YQ==\n",
        " YQ==",
        "YQ= =",
        "Y-_8",
        "YQ==YQ==",
        "====",
        "YQ==YQ",
        "éééé",
    ],
)
def test_base64_is_canonical(text: str) -> None:
    with pytest.raises(StrictJsonError):
        base64_bytes({"a": text}, "a")


def test_every_byte_string_has_its_base64() -> None:
    for size in range(1, 40):
        raw = bytes(range(200, 200 + size))
        assert base64_bytes({"a": base64.b64encode(raw).decode()}, "a") == raw
