# SPDX-License-Identifier: Apache-2.0
"""Every value comes back as it was, has one encoding only, and any other bytes are one typed error."""

from __future__ import annotations

import enum
import math
import traceback
import uuid
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Context, Decimal, localcontext
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import assume, given
from hypothesis import strategies as st
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.types import TypeDecorator, TypeEngine

from sa_asherah.errors import AsherahError, MalformedCellError, UnsupportedValueError
from sa_asherah.orm.codec import codec_for


class Colour(enum.Enum):
    RED = "r"
    GREEN = ("g", 2)


class Crossed(enum.StrEnum):
    """Each member is equal to the name of the other."""

    LEFT = "RIGHT"
    RIGHT = "LEFT"


class Reversed(TypeDecorator[str]):
    impl = sa.String
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> str:
        assert dialect.name == "default", "the same on every database"
        return str(value[::-1])

    def process_result_value(self, value: Any, dialect: Any) -> str:
        assert dialect.name == "default", "the same on every database"
        return str(value[::-1])


def dimensions(value: Any) -> int:
    return 1 + max(map(dimensions, value), default=0) if isinstance(value, list) else 0


def stored_texts(members: Any) -> list[str]:
    return [member.value for member in members]


def unfolded(moment: Any) -> Any:
    """Of two equal local times the first; which one it is, an offset says, and no column."""
    return moment.replace(fold=0)


offsets = st.integers(-86_399, 86_399).map(lambda seconds: timezone(timedelta(seconds=seconds)))
decimals = st.one_of(
    st.decimals(allow_nan=False),
    st.builds(lambda digits, exponent: Decimal(f"{digits}E{exponent}"), st.integers(), st.integers(-5000, 5000)),
    st.just(Decimal("NaN")),
)  # fmt: skip
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()
)
documents = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=20
)
deep_arrays = st.recursive(st.none() | st.text(), st.lists, max_leaves=9).filter(
    lambda value: 0 < dimensions(value) < 7
)


def tuples(elements: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(elements, max_size=3).map(tuple)


VALUES: dict[str, tuple[TypeEngine[Any], st.SearchStrategy[Any]]] = {
    "text": (sa.Text(), st.text()),
    "bytes": (sa.LargeBinary(), st.binary()),
    "boolean": (sa.Boolean(), st.booleans()),
    "integer": (sa.Integer(), st.integers() | st.integers(-(2**63) - 9, 2**63 + 9)),
    "decimal": (sa.Numeric(), decimals),
    "float": (sa.Double(), st.floats()),
    "decimal float": (sa.Float(asdecimal=True), st.floats().map(lambda value: Decimal(str(value)))),
    "date": (sa.Date(), st.dates()),
    "time": (sa.Time(), st.times().map(unfolded)),
    "time with offset": (sa.Time(timezone=True), st.times(timezones=offsets).map(unfolded)),
    "datetime": (sa.DateTime(), st.datetimes().map(unfolded)),
    "datetime with offset": (sa.DateTime(timezone=True), st.datetimes(timezones=offsets).map(unfolded)),
    "interval": (sa.Interval(), st.timedeltas()),
    "uuid": (sa.Uuid(), st.uuids()),
    "uuid text": (sa.Uuid(as_uuid=False), st.uuids().map(str)),
    "enum": (sa.Enum(Colour), st.sampled_from(Colour)),
    "crossed enum": (sa.Enum(Crossed), st.sampled_from(Crossed)),
    "enum by value": (sa.Enum(Crossed, values_callable=stored_texts), st.sampled_from(Crossed)),
    "texts": (sa.Enum("", "small", "größer", name="sizes"), st.sampled_from(["", "small", "größer"])),
    "json": (postgresql.JSONB(), documents),
    "array": (sa.ARRAY(sa.Numeric(), dimensions=1), st.lists(st.none() | decimals, max_size=5)),
    "deep array": (sa.ARRAY(sa.Text()), st.recursive(st.none() | st.text(), st.lists,
        max_leaves=9).filter(lambda value: 0 < dimensions(value) < 7)),
    "matrix of documents": (postgresql.ARRAY(sa.JSON(), dimensions=2, as_tuple=True), tuples(tuples(documents))),
    "user type": (Reversed(), st.text()),
    "array of user types": (sa.ARRAY(Reversed()), st.lists(st.text(), max_size=4)),
}  # fmt: skip
ENGINE = sa.create_engine("sqlite://", query_cache_size=0)  # an Enum has no class in the keys of that cache
EVERY = pytest.mark.parametrize("name", VALUES)


@EVERY
@given(data=st.data())
def test_values_come_back_as_they_were(name: str, data: st.DataObject) -> None:
    type_, values = VALUES[name]
    codec, value = codec_for(type_), data.draw(values)
    # Their text, which tells 1 from True and from 1.0, 0.0 from -0.0 and one moment at two offsets.
    assert repr(codec.decode(codec.encode(value))) == repr(value)


def refused_or_canonical(type_: TypeEngine[Any], plaintext: bytes) -> None:
    codec = codec_for(type_)
    try:
        value = codec.decode(plaintext)
    except MalformedCellError:
        return
    assert codec.encode(value) == plaintext


@EVERY
@given(data=st.data())
def test_changed_bytes_are_refused_or_the_one_encoding_of_another_value(name: str, data: st.DataObject) -> None:
    type_, values = VALUES[name]
    plaintext = bytearray(codec_for(type_).encode(data.draw(values)))
    at, removed = data.draw(st.integers(0, len(plaintext) - 1)), data.draw(st.integers(0, 9))
    plaintext[at : at + removed] = data.draw(st.binary(max_size=5))
    refused_or_canonical(type_, bytes(plaintext))


@EVERY
@given(data=st.data())
def test_random_bytes_are_refused_or_the_one_encoding_of_a_value(name: str, data: st.DataObject) -> None:
    text = st.text("0123456789+-.:eETNaInfity \"'{}[],\\unl").map(str.encode)
    refused_or_canonical(VALUES[name][0], data.draw(st.integers(0, 16)).to_bytes() + data.draw(st.binary() | text))


NOT_PLAIN = {
    "decimal", "decimal float",  # SQLite makes floats of them
    "time with offset", "datetime with offset",  # it drops the offset
    "array", "deep array", "matrix of documents", "array of user types",  # it has no arrays
    "user type",  # would get its dialect
    "crossed enum",  # SQLAlchemy stores LEFT as RIGHT
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in VALUES if name not in NOT_PLAIN])
@given(data=st.data())
def test_a_plain_column_gives_the_same(name: str, data: st.DataObject) -> None:
    type_, values = VALUES[name]
    value = data.draw(values)
    fits: dict[str, bool] = {
        "integer": name != "integer" or -(2**63) <= value < 2**63,
        "float": name != "float" or not math.isnan(value),  # NULL there
        "interval": name != "interval" or abs(value) < timedelta(days=365 * 1900),
        "json": value is not None,
    }
    assume(fits.get(name, True))
    if name == "json":
        type_ = sa.JSON()
    with ENGINE.connect() as connection:
        plain = connection.scalar(sa.select(sa.bindparam("value", value, type_=type_)))
    codec = codec_for(type_)
    assert repr(codec.decode(codec.encode(value))) == repr(plain)


VECTORS: list[tuple[TypeEngine[Any], Any, str]] = [
    (sa.String(), "", "01"),
    (sa.Text(), "\0é😀", "0100c3a9f09f9880"),
    (sa.Unicode(), "secret**", "017365637265742a2a"),
    (sa.LargeBinary(), b"", "02"),
    (sa.LargeBinary(), b"\x00\xff", "0200ff"),
    (sa.Boolean(), False, "0300"),
    (sa.Boolean(), True, "0301"),
    (sa.Integer(), 0, "040000000000000000"),
    (sa.SmallInteger(), -1, "04ffffffffffffffff"),
    (sa.BigInteger(), 2**63 - 1, "047fffffffffffffff"),
    (sa.BigInteger(), -(2**63), "048000000000000000"),
    (sa.BigInteger(), 2**63, "05008000000000000000"),
    (sa.BigInteger(), -(2**63) - 1, "05ff7fffffffffffffff"),
    (sa.BigInteger(), 2**71, "0500800000000000000000"),
    (sa.Numeric(), Decimal("1E+400"), "0631452b343030"),
    (sa.Numeric(10, 2), Decimal("-12.50"), "062d31322e3530"),
    (sa.Numeric(), Decimal("-0E-10"), "062d30452d3130"),
    (sa.Numeric(), Decimal("NaN"), "064e614e"),
    (sa.Numeric(), Decimal("-Infinity"), "062d496e66696e697479"),
    (sa.Numeric(asdecimal=False), 0.1, "06302e31"),
    (sa.Float(), 1.5, "073ff8000000000000"),
    (sa.Double(), -0.0, "078000000000000000"),
    (sa.Float(), math.nan, "077ff8000000000000"),
    (sa.REAL(), -math.inf, "07fff0000000000000"),
    (sa.Float(asdecimal=True), Decimal("0.1"), "073fb999999999999a"),
    (sa.Date(), date(1, 1, 1), "08303030312d30312d3031"),
    (sa.Date(), date(9999, 12, 31), "08393939392d31322d3331"),
    (sa.Time(), time(1, 2, 3), "0930313a30323a3033"),
    (sa.Time(timezone=True), time(1, 2, 3, 4, tzinfo=UTC), "0930313a30323a30332e3030303030342b30303a3030"),
    (sa.DateTime(), datetime(1, 1, 1), "0a303030312d30312d30315430303a30303a3030"),  # noqa: DTZ001
    (
        sa.DateTime(timezone=True),
        datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=timezone(-timedelta(hours=5, minutes=30))),
        "0a393939392d31322d33315432333a35393a35392e3939393939392d30353a3330",
    ),
    (sa.Interval(), timedelta(microseconds=-1), "0bffffffffffffffff000000000001517f00000000000f423f"),
    (postgresql.INTERVAL(), timedelta(2, 3, 4), "0b000000000000000200000000000000030000000000000004"),
    (sa.Uuid(), uuid.UUID(int=11), "0c0000000000000000000000000000000b"),
    (sa.Uuid(as_uuid=False), "0000000a-0000-4000-8000-00000000000b", "0c0000000a00004000800000000000000b"),
    (sa.Enum(Colour), Colour.GREEN, "0d475245454e"),
    (sa.Enum("", "größer"), "größer", "0d6772c3b6c39f6572"),
    (sa.JSON(), sa.JSON.NULL, "0e6e756c6c"),
    (mysql.JSON(), {"é": [1, 2.0, -0.0, True, None, "\n\x7f"]},
        "0e7b22c3a9223a5b312c322e302c2d302e302c747275652c6e756c6c2c225c6e7f225d7d"),
    (sa.ARRAY(sa.Integer()), [], "0f"),
    (sa.ARRAY(sa.String()), ["a", None, ""], "0f000000020161ffffffff0000000101"),
    (sa.ARRAY(sa.Boolean()), [[True], []], "0f000000070f000000020301000000010f"),
    (Reversed(), "ab", "016261"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(VECTORS)))
def test_the_encoding_is_frozen(number: int) -> None:
    type_, value, expected = VECTORS[number]
    codec = codec_for(type_)
    assert codec.encode(value).hex() == expected
    found = codec.decode(bytes.fromhex(expected))
    assert repr(found) == repr(None if value is sa.JSON.NULL else value)


def test_every_code_has_a_vector() -> None:
    assert {bytes.fromhex(expected)[0] for _, _, expected in VECTORS} == set(range(1, 16))


def test_values_of_another_type_code_are_refused() -> None:
    integer = {4, 5}
    for type_, _, expected in VECTORS:
        own = bytes.fromhex(expected)[0]
        for _, _, other in VECTORS:
            code = bytes.fromhex(other)[0]
            if code != own and not {code, own} <= integer:
                with pytest.raises(MalformedCellError, match=f"type code {code}"):
                    codec_for(type_).decode(bytes.fromhex(other))
        with pytest.raises(MalformedCellError):
            codec_for(type_).decode(b"")


NOT_CANONICAL: list[tuple[TypeEngine[Any], bytes]] = [
    (sa.String(), b"\x01\xed\xa0\x80"), (sa.String(), b"\x01\xc0\x80"), (sa.Boolean(), b"\x03\x02"), (sa.Boolean(),
        b"\x03"),
    (sa.Integer(), b"\x04\x01"), (sa.Integer(), b"\x04" + bytes(9)), (sa.Integer(), b"\x05" + bytes(8)),
    (sa.Integer(), b"\x05" + bytes(9)), (sa.Integer(), b"\x05\xff\xff" + bytes(8)),
    *((sa.Numeric(), b"\x06" + text) for text in (
        b"", b"1e5", b"1E5", b"+1", b" 1", b"1_0", b"01", b"nan", b"sNaN", b"-NaN", b"NaN1", b"inf",
            b"1E+99999999999999999999",
        "\u0661".encode(), b"1\n", b"0x1",
    )),
    (sa.Float(), b"\x07" + bytes(7)), (sa.Float(), b"\x07\xff\xf8" + bytes(6)), (sa.Float(),
        b"\x07\x7f\xf0" + bytes(5) + b"\x01"),
    *((sa.Date(), b"\x08" + text) for text in (b"20200101", b"2020-W01-1", b"2020-02-30", b"0000-01-01",
        b"2020-01-01T00:00:00")),
    *((sa.Time(), b"\x09" + text) for text in (b"01:02", b"010203", b"01:02:03.000000", b"01:02:03.1", b"24:00:00",
        b"01:02:03+00:00")),
    *((sa.DateTime(), b"\x0a" + text) for text in (b"2020-01-01", b"2020-01-01 01:02:03", b"2020-01-01T01:02:03Z")),
    *((sa.DateTime(timezone=True), b"\x0a" + text) for text in (
        b"2020-01-01T01:02:03", b"2020-01-01T01:02:03Z", b"2020-01-01T01:02:03-00:00", b"2020-01-01T01:02:03+0100",
        b"2020-01-01T01:02:03+01:00:00", b"2020-01-01T01:02:03+25:00",
    )),
    *((sa.Interval(), b"\x0b" + b"".join(number.to_bytes(8, "big", signed=True) for number in numbers)) for numbers in (
        (0, -1, 0), (0, 86400, 0), (0, 0, 1000000), (10**9, 0, 0), (2**62, 0, 0), (0, 0),
    )),
    (sa.Uuid(), b"\x0c" + bytes(15)), (sa.Enum("a", "b"), b"\x0dc"), (sa.Enum("a", "b"), b"\x0d"), (sa.Enum(Colour),
        b"\x0dr"),
    (sa.Enum("a", "b"), b"\x0d\xff"),
    *((sa.JSON(), b"\x0e" + text) for text in (
        b"", b"{", b" 1", b"1 ", b'{"a": 1}', b'{"a":1,"a":2}', b'{"a":1,"a":1}', b"NaN", b"[Infinity]", b"1e5",
            b"1E400", b"01", b"-0", b"1.50",
        b'"\\u0061"', b'"\\/"', b'"\\ud800"', b'"\xff"', b'"\x01"', b"'a'", b"1 2", b"[1,]",
    )),
    *((sa.ARRAY(sa.Boolean()), b"\x0f" + tail) for tail in (
        b"\0", b"\0\0\0", b"\0\0\0\2\3", b"\0\0\0\2\3\2", b"\0\0\0\0", b"\0\0\0\2\3\1\0", b"\0\0\0\2\1a",
            b"\xff\xff\xff\xfe",
    )),
    (sa.ARRAY(sa.Text(), dimensions=1), b"\x0f\0\0\0\1\x0f"), (sa.ARRAY(sa.Text(), dimensions=2), b"\x0f\0\0\0\1\1"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(NOT_CANONICAL)))
def test_a_second_way_to_write_a_value_is_refused(number: int) -> None:
    type_, plaintext = NOT_CANONICAL[number]
    with pytest.raises(MalformedCellError) as caught:
        codec_for(type_).decode(plaintext)
    assert caught.value.__context__ is None, "the error of Python's decoder carries the value"


def nested(levels: int) -> Any:
    document: Any = []
    for _ in range(levels - 1):
        document = [document]
    return document


class NoOffset(tzinfo):
    def utcoffset(self, moment: datetime | None) -> None:  # noqa: ARG002
        return None

    def dst(self, moment: datetime | None) -> None:  # noqa: ARG002
        return None

    def tzname(self, moment: datetime | None) -> None:  # noqa: ARG002
        return None


class Finer(datetime):
    """Knows more than a datetime, as some libraries' classes do."""

    __hash__ = datetime.__hash__

    def __eq__(self, other: object) -> bool:
        return type(other) is Finer and super().__eq__(other)


class Number(enum.IntEnum):
    ONE = 1


class Word(enum.StrEnum):
    RED = "RED"


NOON = datetime(2020, 1, 1, 12)  # noqa: DTZ001
circle: list[Any] = []
circle.append(circle)
UNFIT: list[tuple[TypeEngine[Any], Any]] = [
    *((sa.String(), value) for value in (1, b"canary", True, "canary\ud800", Colour.RED)),
    *((sa.LargeBinary(), value) for value in ("canary", 1, [1])),
    *((sa.Boolean(), value) for value in (1, 0, "true", 1.0)),
    *((sa.Integer(), value) for value in (True, "1", 1.0, Decimal(1))),
    *((sa.Numeric(), value) for value in (True, "1", 1.5, Decimal("sNaN"), Decimal("-NaN"), Decimal("NaN7"))),
    *((sa.Numeric(asdecimal=False), value) for value in (False, "1", Decimal("1E+400"), 2**53 + 1, 10**400)),
    *((sa.Float(), value) for value in (True, "1", 2**53 + 1, 10**400, Decimal("1E+400"), Decimal("sNaN"))),
    *((sa.Date(), value) for value in (NOON, "2020-01-01", time())),
    *((sa.Time(), value) for value in (NOON, time(tzinfo=UTC), time(tzinfo=NoOffset()), timedelta(hours=1))),
    *((sa.Time(timezone=True), value) for value in (time(), time(tzinfo=NoOffset()))),
    *((sa.DateTime(), value) for value in (date(2020, 1, 1), NOON.replace(tzinfo=UTC),
        NOON.replace(tzinfo=NoOffset()), Finer(2020, 1, 1))),
    *((sa.DateTime(timezone=True), value) for value in (NOON, NOON.replace(tzinfo=NoOffset()))),
    *((sa.Interval(), value) for value in (1, 1.5, time())),
    *((sa.Uuid(), value) for value in (str(uuid.UUID(int=7)), uuid.UUID(int=7).bytes, 7)),
    *((sa.Uuid(as_uuid=False), value) for value in (uuid.UUID(int=7), "canary", "", f"urn:uuid:{uuid.UUID(int=7)}")),
    *((sa.Enum(Colour), value) for value in ("BLUE", "r", "", Word.RED, 1, [1], None)),
    *((sa.Enum(Number), value) for value in (1, "1", True)),
    *((sa.Enum("a", "b"), value) for value in ("c", "", 1, b"a", "\ud800")),
    *((sa.JSON(), value) for value in (
        math.nan, [math.inf], {"a": {1, 2}}, {"a": b"canary"}, {b"a": 1}, {1: 1, "1": 2}, {"a": [{None: 1,
            "null": 1}]}, "\ud800", {"\ud800": 1},
        {"a": sa.JSON.NULL}, Decimal(1), NOON, nested(101), circle, 10**5000, {(1, 2): 3}, {math.nan: 1},
    )),
    *((sa.ARRAY(sa.Integer()), value) for value in (1, "ab", {1, 2}, {"a": 1}, [1, "2"], [[1], ["2"]], nested(7),
        circle, b"ab")),
    *((sa.ARRAY(sa.Integer(), dimensions=2), value) for value in ([1], [[1], 2], [[[1]]])),
    (sa.ARRAY(sa.String(), dimensions=1), [["a"]]),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(UNFIT)))
def test_values_that_would_not_come_back_are_refused_and_not_shown(number: int) -> None:
    type_, value = UNFIT[number]
    with pytest.raises(UnsupportedValueError) as caught:
        codec_for(type_).encode(value)
    error = caught.value
    assert isinstance(error, AsherahError)
    assert error.__context__ is None, "the error of Python's encoder carries the value"
    assert "canary" not in "".join(traceback.format_exception_only(error))


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "something else"

    def encode(self, encoding: str = "", errors: str = "") -> bytes:  # noqa: ARG002
        return b"something else"


ZONE = timezone(timedelta(hours=2))
ALLOWED: list[tuple[TypeEngine[Any], Any, Any]] = [
    (sa.String(), Text("a"), "a"),
    (sa.String(), Word.RED, "RED"),
    (sa.LargeBinary(), bytearray(b"a"), b"a"),
    (sa.LargeBinary(), memoryview(b"abc")[::2], b"ac"),
    (sa.Integer(), Number.ONE, 1),
    (sa.Numeric(), 7, Decimal(7)),
    (sa.Numeric(), 10**5000, Decimal(10**5000)),
    (sa.Numeric(asdecimal=False), Decimal("0.10"), 0.1),
    (sa.Numeric(asdecimal=False), 5e-324, 5e-324),
    (sa.Numeric(asdecimal=False), math.inf, math.inf),
    (sa.Float(), 7, 7.0),
    (sa.Float(), Number.ONE, 1.0),
    (sa.Float(), Decimal("0.1"), 0.1),
    (sa.Float(asdecimal=True), 0.1, Decimal("0.1")),
    (sa.Float(asdecimal=True), Decimal("0.10000000000000000001"), Decimal("0.1")),
    (sa.Float(asdecimal=True), Decimal("1E-20"), Decimal("1E-20")),
    (sa.Float(asdecimal=True), Decimal("-0"), Decimal("-0.0")),
    (sa.DateTime(), NOON.replace(fold=1), NOON),
    (sa.DateTime(timezone=True), NOON.replace(tzinfo=ZONE), NOON.replace(tzinfo=ZONE)),
    (sa.Uuid(as_uuid=False), uuid.UUID(int=10).hex.upper(), str(uuid.UUID(int=10))),
    (sa.Enum(Colour), "RED", Colour.RED),
    (sa.Enum(Crossed), "LEFT", Crossed.LEFT),
    (sa.Enum("a", "b"), Text("a"), "a"),
    (sa.JSON(), {"a": (1, Number.ONE, Word.RED)}, {"a": [1, 1, "RED"]}),
    (sa.JSON(), {1: 2, None: 3, 1.5: 5, Word.RED: 6}, {"1": 2, "null": 3, "1.5": 5, "RED": 6}),
    (sa.JSON(), nested(100), nested(100)),
    (sa.JSON(), 10**4000, 10**4000),
    (sa.ARRAY(sa.Integer()), (1, None), [1, None]),
    (sa.ARRAY(sa.Integer(), as_tuple=True), [1, [2]], (1, (2,))),
    (sa.ARRAY(sa.Integer()), nested(6), nested(6)),
    (sa.ARRAY(sa.JSON(), dimensions=1), [[1], {"a": []}], [[1], {"a": []}]),
    (sa.Text(), "x" * 2**20, "x" * 2**20),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(ALLOWED)))
def test_values_that_a_plain_column_takes_come_back_as_from_it(number: int) -> None:
    type_, value, expected = ALLOWED[number]
    codec = codec_for(type_)
    found = codec.decode(codec.encode(value))
    assert repr(found) == repr(expected)


def test_decimals_do_not_depend_on_the_thread() -> None:
    codec = codec_for(sa.Numeric())
    value = Decimal("1.23456789E+400")
    with localcontext(Context(prec=2, capitals=0, Emax=5, traps=[])):
        plaintext = codec.encode(value)
        found = codec.decode(plaintext)
        with pytest.raises(MalformedCellError):
            codec.decode(b"\x06canary")
    assert plaintext == b"\x061.23456789E+400"
    assert found == value


def test_a_switch_of_asdecimal_reads_what_was_written_before() -> None:
    number = codec_for(sa.Numeric()).encode(Decimal("12.50"))
    assert repr(codec_for(sa.Numeric(asdecimal=False)).decode(number)) == "12.5"
    double = codec_for(sa.Float()).encode(0.1)
    assert codec_for(sa.Float(asdecimal=True)).decode(double) == Decimal("0.1")


def test_a_decimal_that_no_float_can_hold_is_refused_and_not_read_as_infinity() -> None:
    number = codec_for(sa.Numeric()).encode(Decimal("1E+400"))
    with pytest.raises(MalformedCellError, match="range of a float"):
        codec_for(sa.Numeric(asdecimal=False)).decode(number)


def test_a_name_kept_as_an_alias_still_reads() -> None:
    class Old(enum.Enum):
        CRIMSON = 1

    class New(enum.Enum):
        RED = 1
        CRIMSON = RED

    plaintext = codec_for(sa.Enum(Old)).encode(Old.CRIMSON)
    assert codec_for(sa.Enum(New, omit_aliases=False)).decode(plaintext) is New.RED
    with pytest.raises(MalformedCellError, match="renamed"):
        codec_for(sa.Enum(New)).decode(plaintext)


def test_a_document_too_deep_for_the_interpreter_is_a_typed_error() -> None:
    depth = 100_000
    with pytest.raises(MalformedCellError):
        codec_for(sa.JSON()).decode(b"\x0e" + b"[" * depth + b"]" * depth)
    plaintext = b"\x0f"
    for _ in range(2000):
        plaintext = b"\x0f" + len(plaintext).to_bytes(4, "big") + plaintext
    with pytest.raises(MalformedCellError):
        codec_for(sa.ARRAY(sa.Integer())).decode(plaintext)
