# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import base64
import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sa_asherah.core.session import Session
from sa_asherah.errors import (
    DecryptionError,
    KeyNotFoundError,
    MalformedCellError,
    OwnerRequiredError,
    UsageError,
    WrongPartitionError,
)
from tests.unit.core.fakes import IDS, START, World, key_id


@pytest.fixture
def world() -> World:
    return World()


@given(st.binary(max_size=300))
def test_what_was_encrypted_comes_back(data: bytes) -> None:
    world = World()
    record = Session(world.process(), "7").encrypt(data)
    assert Session(world.process(), "7").decrypt(record) == data
    assert Session(world.process(), "7").decrypt(json.loads(record)) == data


def test_the_record_is_the_reference_json(world: World) -> None:
    world.clock.now += 7.5
    record = json.loads(Session(world.process(), "7").encrypt(b""))
    assert list(record) == ["Key", "Data"]
    assert list(record["Key"]) == ["Created", "Key", "ParentKeyMeta"]
    assert record["Key"]["Created"] == START + 7
    assert record["Key"]["ParentKeyMeta"] == {"KeyId": key_id("7"), "Created": START}
    assert len(base64.b64decode(record["Key"]["Key"])) == 60
    assert len(base64.b64decode(record["Data"])) == 28


def test_every_record_has_a_key_of_its_own(world: World) -> None:
    session = Session(world.process(), "7")
    records = [json.loads(session.encrypt(b"same")) for _ in range(50)]
    assert len({record["Key"]["Key"] for record in records}) == 50
    assert len({record["Data"] for record in records}) == 50


def test_another_partitions_record_is_refused_before_a_key_is_fetched(world: World) -> None:
    process = world.process()
    record = Session(process, "7").encrypt(b"data")
    other = world.process()
    world.table.taken_calls()
    with pytest.raises(WrongPartitionError, match="_IK_7_records_clinic"):
        Session(other, "70").decrypt(record)
    assert world.table.calls == []


@pytest.mark.parametrize("suffix", ["", "_", "2", "_us-east-1"])
def test_ids_are_compared_exactly(world: World, suffix: str) -> None:
    process = world.process()
    record = json.loads(Session(process, "7").encrypt(b"data"))
    record["Key"]["ParentKeyMeta"]["KeyId"] += suffix
    if suffix:
        with pytest.raises(WrongPartitionError):
            Session(process, "7").decrypt(record)
    else:
        assert Session(process, "7").decrypt(record) == b"data"


def test_relabelled_records_do_not_open(world: World) -> None:
    process = world.process()
    record = json.loads(Session(process, "7").encrypt(b"data"))
    process.encryption_keys(["8"])
    record["Key"]["ParentKeyMeta"]["KeyId"] = key_id("8")
    with pytest.raises(DecryptionError, match="does not open"):
        Session(process, "8").decrypt(record)


def test_every_altered_bit_is_noticed_and_nothing_is_said_about_the_data(world: World) -> None:
    session = Session(world.process(), "7")
    record = json.loads(session.encrypt(b"confidential"))
    for member in ("Key", "Data"):
        holder = record["Key"] if member == "Key" else record
        genuine = holder[member]
        raw = base64.b64decode(genuine)
        for n in range(len(raw) * 8):
            altered = bytearray(raw)
            altered[n // 8] ^= 1 << n % 8
            holder[member] = base64.b64encode(altered).decode()
            with pytest.raises(DecryptionError) as caught:
                session.decrypt(record)
            assert caught.value.__cause__ is None
            assert holder[member] not in str(caught.value)
        holder[member] = genuine
    assert session.decrypt(record) == b"confidential"


def test_a_record_that_names_a_missing_key_says_which(world: World) -> None:
    session = Session(world.process(), "7")
    record = json.loads(session.encrypt(b"data"))
    record["Key"]["ParentKeyMeta"]["Created"] += 1
    with pytest.raises(KeyNotFoundError, match=str(START + 1)):
        session.decrypt(record)


def test_a_key_that_was_rolled_back_is_read_again(world: World) -> None:
    process = world.process(enlisted=True)
    Session(process, "7").encrypt(b"rolled back")
    world.table.texts.clear()
    record = Session(world.process(), "7").encrypt(b"committed by another process")
    assert Session(process, "7").decrypt(record) == b"committed by another process"


def test_rubbish_is_malformed(world: World) -> None:
    session = Session(world.process(), "7")
    for rubbish in ("", "{}", "[]", '{"Key":1,"Data":"AA=="}', "\x00", "x" * 10_000):
        with pytest.raises(MalformedCellError):
            session.decrypt(rubbish)


@pytest.mark.parametrize("data", ["text", bytearray(b"x"), memoryview(b"x"), None, 5])
def test_only_bytes_are_encrypted(world: World, data: object) -> None:
    with pytest.raises(UsageError, match="bytes"):
        Session(world.process(), "7").encrypt(data)  # type: ignore[arg-type]


@pytest.mark.parametrize("record", [b"{}", None, 5, ["Key"]])
def test_only_records_are_decrypted(world: World, record: object) -> None:
    with pytest.raises(UsageError, match="JSON text or a mapping"):
        Session(world.process(), "7").decrypt(record)  # type: ignore[arg-type]


def test_an_unusable_partition_is_refused_at_once(world: World) -> None:
    with pytest.raises(OwnerRequiredError):
        Session(world.process(), "")


def test_store_and_load(world: World) -> None:
    stored: dict[int, str] = {}

    def store(record: str) -> int:
        stored[5] = record
        return 5

    with Session(world.process(), "7") as session:
        key = session.store(b"data", store)
        assert session.load(key, stored.get) == b"data"
        assert session.load(6, stored.get) is None


def test_a_closed_session_refuses(world: World) -> None:
    with Session(world.process(), "7") as session:
        record = session.encrypt(b"data")
    for call in (lambda: session.encrypt(b"data"), lambda: session.decrypt(record)):
        with pytest.raises(UsageError, match="closed"):
            call()


def test_nothing_secret_in_its_text(world: World) -> None:
    session = Session(world.process(), "7")
    assert repr(session) == f"<Session of {IDS.intermediate_key_id('7')!r}>"
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(session)
