# SPDX-License-Identifier: Apache-2.0
"""Whatever is done to a stored data row record, reading it cold and warm agree, and what is authentic stays so."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Column, Engine, Integer, LargeBinary, MetaData, Table, create_engine, insert, text

from sa_asherah import Asherah, DecryptionError, Encrypted, StaticKeyWarning
from sa_asherah.core import cell, row_record
from sa_asherah.core.key import Key, Secret
from sa_asherah.core.key_record import KeyRecord
from sa_asherah.core.row_record import DataRowRecord, dump_data_row_record, parse_data_row_record
from sa_asherah.errors import UnsupportedValueError
from sa_asherah.kms.static import StaticKMS
from sa_asherah.orm.reading import Packed

VALUE = b"the value"
TYPE = Encrypted(LargeBinary(), "owner", format="asherah")
rows = Table("rows", MetaData(), Column("id", Integer, primary_key=True), Column("owner", Integer), Column("v", TYPE))
Outcome = bytes | type[DecryptionError]


class Place:
    """A row of owner 7 with a record, and ways to read something in its place."""

    def __init__(self, engine: Engine, asherah: Asherah) -> None:
        self.engine, self.asherah = engine, asherah
        with engine.begin() as connection:
            connection.execute(insert(rows), [{"id": n, "owner": n, "v": VALUE} for n in (7, 8)])
            stored = connection.execute(text("SELECT v FROM rows ORDER BY id")).scalars().all()
        self.own, self.others = stored
        self.process: Callable[[Any], Any] = Packed(TYPE, "int", "rows.v").result_processor(engine.dialect, None)

    def forget(self) -> None:
        """Forget the open data row keys, not the intermediate ones."""
        for known in self.asherah_hierarchy.row_keys.values():
            known.clear()

    @property
    def asherah_hierarchy(self) -> Any:
        dialect: Any = self.engine.dialect
        return dialect._sa_asherah.hierarchy

    def read(self, stored: bytes) -> Outcome:
        try:
            found: bytes = self.process(b"7\0" + stored)
        except DecryptionError as error:
            return type(error)
        return found

    def outcome(self, stored: bytes) -> Outcome:
        """Read with nothing known, with the genuine record known, and after itself: always the same."""
        self.forget()
        cold = self.read(stored)
        self.forget()
        assert self.read(self.own.encode()) == VALUE
        assert self.read(stored) == cold
        assert self.read(stored) == cold
        return cold


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder: Path = tmp_path_factory.mktemp("records")
    engine = create_engine(f"sqlite:///{folder / 'records.db'}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StaticKeyWarning)
        kms = StaticKMS(bytes(range(32)), {})
    with Asherah("records", "clinic", kms) as asherah:
        asherah.attach(engine)
        asherah.create_metastore(engine)
        rows.metadata.create_all(engine)
        yield Place(engine, asherah)
    engine.dispose()


def unauthenticated(record: str) -> range:
    """Where the date of the data row key stands: peers require it and use it for nothing."""
    start = record.index('{"Created":') + len('{"Created":')
    return range(start, record.index(",", start))


def test_every_flipped_bit_but_those_of_the_row_keys_date_is_refused(place: Place) -> None:
    original = place.own.encode()
    free = unauthenticated(place.own)
    for bit in range(8 * len(original)):
        damaged = bytearray(original)
        damaged[bit // 8] ^= 1 << bit % 8
        found = place.outcome(bytes(damaged))
        assert found != VALUE or bit // 8 in free, bit
        assert found == VALUE or isinstance(found, type), bit


def test_every_truncation_and_extension_is_refused(place: Place) -> None:
    original = place.own.encode()
    for size in range(len(original)):
        assert isinstance(place.outcome(original[:size]), type), size
    for more in (b"}", b'"', b'"}', b"\0", original, b',"Data":"AAAA"}'):
        assert isinstance(place.outcome(original + more), type), more
    assert place.outcome(original + b"\n") == VALUE


pieces = st.sampled_from(['{"Key":', '"Data":"', '"}', ",", "}", '"', "{", "\\", '"x":', "AAAA", "null", " "])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_pieces_of_json_put_anywhere_never_change_what_is_read(place: Place, data: st.DataObject) -> None:
    """A shortcut that knows the beginning of a record reads it as the strict parser does, or not at all."""
    stored = place.own
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(stored)))
        other = place.own if data.draw(st.booleans()) else place.others
        end = data.draw(st.integers(position, min(len(stored), position + 8)))
        cut = data.draw(st.integers(0, len(other)))
        stored = stored[:position] + data.draw(pieces | st.just(other[cut:])) + stored[end:]
    found = place.outcome(stored.encode())
    if found == VALUE:
        record = parse_data_row_record(stored)
        assert record.data == parse_data_row_record(place.own).data
        assert record.parent == parse_data_row_record(place.own).parent
    else:
        assert isinstance(found, type)


def test_a_member_that_hides_behind_an_escape_is_not_taken_for_the_data(place: Place) -> None:
    record = json.loads(place.own)
    other = json.loads(place.others)["Data"]
    for name in ('x"Data', "Data\\", "\\Data", 'Data":"', '"'):
        for members in ({name: other}, {name: {"Data": other}}, {name: [other]}):
            assert place.outcome(json.dumps(record | members).encode()) == VALUE
            assert place.outcome(json.dumps(members | record, separators=(",", ":")).encode()) == VALUE


def test_records_of_another_owner_are_refused_whatever_of_them_is_exchanged(place: Place) -> None:
    own, other = json.loads(place.own), json.loads(place.others)
    assert place.outcome(place.others.encode()) is DecryptionError
    for mixed in (
        own | {"Data": other["Data"]},
        own | {"Key": other["Key"]},
        own | {"Key": own["Key"] | {"Key": other["Key"]["Key"]}},
        own | {"Key": own["Key"] | {"ParentKeyMeta": other["Key"]["ParentKeyMeta"]}},
        other | {"Key": other["Key"] | {"ParentKeyMeta": own["Key"]["ParentKeyMeta"]}},
    ):
        assert place.outcome(json.dumps(mixed, separators=(",", ":")).encode()) is DecryptionError


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
dates = st.integers(0, 2**33)


@given(dates, dates, names, st.binary(max_size=40).filter(bool), st.binary(max_size=60).filter(bool))
def test_what_is_written_is_read_the_same(created: int, parent: int, key_id: str, key: bytes, data: bytes) -> None:
    record = DataRowRecord(created, key, (key_id, parent), data)
    written = dump_data_row_record(record)
    assert parse_data_row_record(written) == record
    assert json.dumps(json.loads(written), ensure_ascii=False, separators=(",", ":")) == written
    spaced = row_record.spaced_head(record) + json.loads(written)["Data"] + row_record.TAIL
    assert parse_data_row_record(spaced) == record
    members = json.loads(written)
    key_first = {name: members["Key"][name] for name in ("Key", "Created", "ParentKeyMeta")}
    assert json.dumps({"Key": key_first, "Data": members["Data"]}, ensure_ascii=False) == spaced


def intermediate_key(number: int) -> Key:
    record = KeyRecord(f"_IK_{number}_records_clinic", 1_767_225_600, "")
    return Key(record, "", Secret(bytes([number]) * 32), str(number))


@given(st.lists(st.tuples(st.integers(0, 3), st.binary(max_size=30)), max_size=20))
def test_one_call_wraps_one_key_for_each_intermediate_key_and_repeats_nothing(values: list[tuple[int, bytes]]) -> None:
    keys = [intermediate_key(number) for number in range(4)]
    records = row_record.seal([row_record.Request(keys[number], value) for number, value in values], 5)
    parsed = [parse_data_row_record(record) for record in records]
    wrapped = {(record.parent, record.key) for record in parsed}
    assert len(wrapped) == len({number for number, _ in values})
    assert len({record.data[-12:] for record in parsed} | {key[-12:] for _, key in wrapped}) == len(parsed) + len(
        wrapped
    )
    assert [key.wraps.number for key in keys] == [int(any(number == n for n, _ in values)) for number in range(4)]
    for (number, value), record in zip(values, parsed, strict=True):
        decrypt = row_record.opener(keys[number].secret, record.key)
        assert decrypt is not None
        assert row_record.open_data(decrypt, record.data) == value
        assert row_record.opener(keys[number - 1].secret, record.key) is None


def test_a_data_row_key_is_used_up_like_a_salt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_record, "SALT_BUDGET", 3 * cell.CELL_COST)
    records = row_record.seal([row_record.Request(intermediate_key(1), b"")] * 2, 5)
    assert len({parse_data_row_record(record).key for record in records}) == 1
    key = intermediate_key(1)
    records = row_record.seal([row_record.Request(key, b"")] * 7, 5)
    assert [sum(parse_data_row_record(one).key == parse_data_row_record(record).key for one in records) for record in
        records] == [3, 3, 3, 3, 3, 3, 1]  # fmt: skip
    assert key.wraps.number == 3


def test_a_value_too_long_to_be_read_again_is_refused() -> None:
    room = row_record.MAX_LENGTH // 4 * 3
    with pytest.raises(UnsupportedValueError, match="in parts"):
        row_record.seal([row_record.Request(intermediate_key(1), bytes(room))], 5)


def test_a_data_row_key_of_another_size_opens_nothing() -> None:
    key = intermediate_key(1)
    for size in (0, 16, 31, 33, 64):
        assert row_record.opener(key.secret, key.wrap(bytes(size))) is None
