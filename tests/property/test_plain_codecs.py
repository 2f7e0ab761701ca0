# SPDX-License-Identifier: Apache-2.0
"""Plaintext without a type code, for other programs: what goes in comes out, in one documented text."""

from __future__ import annotations

import enum
import json
import math
import uuid
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import TypeDecorator, TypeEngine

from sa_asherah import ConfigurationError, Encrypted, MalformedCellError, UnsupportedValueError
from sa_asherah.orm.codec import codec_for, plain_codec_for


class Colour(enum.Enum):
    RED = 1
    GREEN = 2


class Shout(TypeDecorator[str]):
    impl = sa.String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:  # noqa: ARG002
        return None if value is None else value.upper()

    def process_result_value(self, value: str | None, dialect: Any) -> str | None:  # noqa: ARG002
        return None if value is None else value.lower()


zones = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
KINDS: dict[str, tuple[TypeEngine[Any], st.SearchStrategy[Any]]] = {
    "text": (sa.Text(), texts),
    "bytes": (sa.LargeBinary(), st.binary(max_size=40)),
    "boolean": (sa.Boolean(), st.booleans()),
    "integer": (sa.Integer(), st.integers() | st.integers(-(2**80), 2**80)),
    "decimal": (sa.Numeric(), st.decimals(allow_nan=False)),
    "decimal as float": (sa.Numeric(asdecimal=False), st.floats(allow_nan=False)),
    "float": (sa.Float(), st.floats(allow_nan=False) | st.just(-0.0)),
    "date": (sa.Date(), st.dates()),
    "time": (sa.Time(), st.times()),
    "datetime": (sa.DateTime(), st.datetimes()),
    "zoned": (sa.DateTime(timezone=True), st.datetimes(timezones=zones)),
    "uuid": (sa.Uuid(), st.uuids()),
    "uuid text": (sa.Uuid(as_uuid=False), st.uuids().map(str)),
    "enum": (sa.Enum(Colour), st.sampled_from(Colour)),
    "json": (sa.JSON(), st.recursive(leaves, lambda x: st.lists(x) | st.dictionaries(texts, x), max_leaves=8)),
}


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_values_come_back_and_have_no_type_code(name: str, data: st.DataObject) -> None:
    type_, values = KINDS[name]
    value = data.draw(values)
    if name == "json" and value is None:
        value = sa.JSON.NULL
    plain, typed = plain_codec_for(type_), codec_for(type_)
    plaintext = plain.encode(value)
    found = plain.decode(plaintext)
    assert repr(found) == repr(typed.decode(typed.encode(value)))
    if name != "bytes":
        assert plaintext.decode().isprintable() or name in {"text", "json"}


VECTORS: list[tuple[TypeEngine[Any], Any, bytes]] = [
    (sa.String(), "", b""),
    (sa.String(), "é\0", b"\xc3\xa9\0"),
    (sa.LargeBinary(), b"\xff\x01", b"\xff\x01"),
    (sa.Boolean(), True, b"true"),
    (sa.Boolean(), False, b"false"),
    (sa.Integer(), -7, b"-7"),
    (sa.BigInteger(), 2**63, b"9223372036854775808"),
    (sa.Numeric(10, 2), Decimal("12.50"), b"12.50"),
    (sa.Numeric(asdecimal=False), 0.1, b"0.1"),
    (sa.Float(), 1e300, b"1e+300"),
    (sa.Float(), -0.0, b"-0.0"),
    (sa.Float(), math.inf, b"Infinity"),
    (sa.Float(), math.nan, b"NaN"),
    (sa.Float(asdecimal=True), Decimal("0.1"), b"0.1"),
    (sa.Date(), date(2020, 2, 29), b"2020-02-29"),
    (sa.Time(), time(1, 2, 3, 4), b"01:02:03.000004"),
    (sa.DateTime(timezone=True), datetime(2020, 2, 29, 12, tzinfo=UTC), b"2020-02-29T12:00:00+00:00"),
    (sa.Uuid(), uuid.UUID(int=10), b"00000000-0000-0000-0000-00000000000a"),
    (sa.Enum(Colour), Colour.GREEN, b"GREEN"),
    (sa.Enum("a", "ü"), "ü", b"\xc3\xbc"),
    (sa.JSON(), {"é": [1, 2.0, None, True]}, b'{"\xc3\xa9":[1,2.0,null,true]}'),
    (Shout(), "ab", b"AB"),
]


@pytest.mark.parametrize("number", range(len(VECTORS)))
def test_the_text_is_frozen(number: int) -> None:
    type_, value, expected = VECTORS[number]
    codec = plain_codec_for(type_)
    assert codec.encode(value) == expected
    assert repr(codec.decode(expected)) == repr(value)


# What other languages write for a value: none of it is ambiguous.
PEERS: list[tuple[TypeEngine[Any], Any, list[bytes]]] = [
    (sa.Numeric(), Decimal("0.0000001"), [b"0.0000001", b"1e-7", b"1E-7"]),
    (sa.Numeric(), Decimal("-12.50"), [b"-12.50"]),
    (sa.Numeric(asdecimal=False), 0.5, [b"0.5", b"0.50", b"5e-1"]),
    (sa.Float(), 3.0, [b"3", b"3.0", b"3.00", b"3e0", b"3E+00", b"0.3e+1", b"3." + b"0" * 400]),
    (sa.Float(), 1e21, [b"1e21", b"1e+21", b"1.0E21", b"1000000000000000000000"]),
    (sa.Float(), -0.0, [b"-0", b"-0.0"]),
    (sa.Time(), time(1, 2, 3), [b"01:02:03", b"01:02:03.0", b"01:02:03.000000000"]),
    (
        sa.DateTime(),
        datetime.fromisoformat("2020-02-29T01:02:03.120"),
        [b"2020-02-29T01:02:03.12", b"2020-02-29T01:02:03.120"],
    ),
    (
        sa.DateTime(timezone=True),
        datetime(2020, 2, 29, tzinfo=UTC),
        [b"2020-02-29T00:00:00Z", b"2020-02-29T00:00:00.0Z"],
    ),
    (sa.Uuid(), uuid.UUID(int=10), [b"00000000-0000-0000-0000-00000000000A"]),
]


@pytest.mark.parametrize("number", range(len(PEERS)))
def test_what_other_languages_write_is_read(number: int) -> None:
    type_, value, plaintexts = PEERS[number]
    codec = plain_codec_for(type_)
    for plaintext in plaintexts:
        found = codec.decode(plaintext)
        assert (repr(found), type(found)) == (repr(value), type(value))


FOREIGN: list[tuple[TypeEngine[Any], list[bytes]]] = [
    (sa.String(), [b"\xff", b"\xed\xa0\x80"]),
    (sa.Boolean(), [b"", b"True", b"1", b"true ", b"\x03\x01"]),
    (sa.Integer(), [b"", b"-0", b"01", b"+1", b" 1", b"1\n", b"1_0", b"1.0", b"\xd9\xa1", b"9" * 5000]),
    (sa.Numeric(), [b"", b"+1", b"01", b"1.", b".1", b"1_0", b"nan", b"sNaN", b"1e" + b"9" * 30, b"\xd9\xa1", b"\xff"]),
    (sa.Float(), [b"", b"+1", b"01", b".5", b"5.", b"1_0", b" 1", b"1\n", b"0x1", b"inf", b"nan", b"1e999", b"\xff"]),
    (sa.Date(), [b"", b"20200101", b"2020-01-01T00:00:00", b"2020-01-01Z"]),
    (sa.Time(), [b"", b"1:02:03", b"01:02", b"01:02:03Z", b"01:02:03.0000001", b"01:02:03.", b"01:02:03,5"]),
    (sa.DateTime(), [b"2020-01-01", b"2020-01-01 00:00:00", b"2020-01-01T00:00:00Z", b"2020-01-01T00:00", b"Z"]),
    (sa.DateTime(timezone=True), [b"2020-01-01T00:00:00", b"2020-01-01t00:00:00z", b"2020-01-01T00:00:00+00:00Z"]),
    (sa.Uuid(), [b"", b"\x00" * 16, uuid.UUID(int=10).hex.encode(), b"{%b}" % str(uuid.UUID(int=10)).encode()]),
    (sa.Enum(Colour), [b"", b"BLUE", b"1", b"\xff"]),
    (sa.JSON(), [b"", b"{", b'{"a":1,"a":1}', b"NaN", b"[1e999]", b'"\\ud800"', b"\xff", b"[" * 100_000]),
    (sa.JSON(), [b"[" * 101 + b"]" * 101, b'{"a":' * 101 + b"1" + b"}" * 101]),
]


@pytest.mark.parametrize("number", range(len(FOREIGN)))
def test_what_no_writer_of_the_type_writes_is_refused_and_not_shown(number: int) -> None:
    type_, plaintexts = FOREIGN[number]
    for plaintext in plaintexts:
        with pytest.raises(MalformedCellError) as caught:
            plain_codec_for(type_).decode(plaintext)
        assert caught.value.__context__ is None, "the error of Python's decoder carries the value"


@given(st.recursive(leaves, lambda x: st.lists(x) | st.dictionaries(texts, x), max_leaves=8), st.booleans())
def test_json_of_other_writers_is_read_however_it_is_spaced_or_escaped(document: Any, ascii_: bool) -> None:  # noqa: FBT001
    forms: list[dict[str, Any]] = [{"indent": 2}, {"separators": (" ,", " : ")}, {"sort_keys": True}]
    for options in forms:
        plaintext = json.dumps(document, ensure_ascii=ascii_, **options).encode()
        assert plain_codec_for(sa.JSON()).decode(plaintext) == document


def test_json_is_read_as_deep_as_it_is_written() -> None:
    deep: Any = []
    for _ in range(99):
        deep = [deep, {}]
    codec = plain_codec_for(sa.JSON())
    assert codec.decode(codec.encode(deep)) == deep
    with pytest.raises(UnsupportedValueError, match="100 levels"):
        codec.encode([deep])


def test_an_integer_that_python_would_not_read_back_is_refused() -> None:
    with pytest.raises(UnsupportedValueError, match="thousands of digits") as caught:
        plain_codec_for(sa.Integer()).encode(10**5000)
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    "inner", [sa.Interval(), sa.ARRAY(sa.Integer()), sa.PickleType(), TypeDecorator, postgresql.INTERVAL()]
)
def test_types_that_other_programs_cannot_read_are_refused_where_they_are_declared(inner: Any) -> None:
    class Wrapped(TypeDecorator[Any]):
        impl = sa.Interval
        cache_ok = True

    with pytest.raises(ConfigurationError):
        Encrypted(Wrapped() if inner is TypeDecorator else inner, format="asherah")
