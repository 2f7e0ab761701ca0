# SPDX-License-Identifier: Apache-2.0
"""What sessions take and what they refuse: nothing, the empty, the wrong type; the same for both kinds of session."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sa_asherah import Asherah, AsherahError, DecryptionError, MalformedCellError, OwnerRequiredError, UsageError
from sa_asherah.core.session import Session

FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

NOT_BYTES: list[object] = [None, "text", 7, bytearray(b"data"), memoryview(b"data"), {}, [b"data"]]
NOT_RECORDS = [None, 7, b"{}", bytearray(b"{}"), [], object()]
NO_RECORDS: list[str | Mapping[str, object]] = [
    "",
    "\0",
    " ",
    "null",
    "[]",
    "7",
    '"text"',
    "{}",
    '{"Key": null, "Data": ""}',
    "{",
    "\ud800",
    {},
    {"Key": {}},
]
NOT_PARTITIONS = [None, 7, b"7", ["7"]]


class Failed(Exception):  # noqa: N818 -- what a loader of the application raises
    """Raised by the test's own functions."""


async def encrypted(asherah: Asherah, data: Any, *, is_async: bool) -> str:
    return await asherah.session_async("7").encrypt(data) if is_async else asherah.session("7").encrypt(data)


async def decrypted(asherah: Asherah, record: Any, *, is_async: bool) -> bytes:
    return await asherah.session_async("7").decrypt(record) if is_async else asherah.session("7").decrypt(record)


both = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])


@both
@pytest.mark.parametrize("data", NOT_BYTES, ids=lambda data: f"{type(data).__name__}")
async def test_what_is_not_bytes_is_refused_with_advice(asherah: Asherah, data: Any, *, is_async: bool) -> None:
    with pytest.raises(UsageError, match="encode the value first"):
        await encrypted(asherah, data, is_async=is_async)


@both
@pytest.mark.parametrize("data", [b"", b"\0", bytes(range(256))], ids=["empty", "zero", "all"])
async def test_bytes_of_any_kind_come_back_and_never_as_they_are(
    asherah: Asherah, data: bytes, *, is_async: bool
) -> None:
    record = await encrypted(asherah, data, is_async=is_async)
    assert json.loads(record).keys() == {"Key", "Data"}
    assert await decrypted(asherah, record, is_async=is_async) == data
    assert await decrypted(asherah, json.loads(record), is_async=is_async) == data


@both
@pytest.mark.parametrize("record", NOT_RECORDS, ids=lambda record: type(record).__name__)
async def test_what_is_no_text_and_no_mapping_is_refused(asherah: Asherah, record: Any, *, is_async: bool) -> None:
    with pytest.raises(UsageError, match="JSON text or a mapping"):
        await decrypted(asherah, record, is_async=is_async)


@both
async def test_what_is_no_record_is_refused(asherah: Asherah, *, is_async: bool) -> None:
    for record in NO_RECORDS:
        with pytest.raises(MalformedCellError):
            await decrypted(asherah, record, is_async=is_async)


@pytest.mark.parametrize("partition", NOT_PARTITIONS, ids=lambda partition: type(partition).__name__)
def test_a_partition_is_text(asherah: Asherah, partition: Any) -> None:
    for make in (asherah.session, asherah.session_async):
        with pytest.raises(UsageError, match="partition is text"):
            make(partition)


def test_no_partition_is_no_partition(asherah: Asherah) -> None:
    for make in (asherah.session, asherah.session_async):
        with pytest.raises(OwnerRequiredError):
            make("")


@FEW
@given(data=st.binary(max_size=2000), text=st.text(max_size=200))
def test_a_record_opens_to_what_went_in_and_any_other_text_to_nothing(asherah: Asherah, data: bytes, text: str) -> None:
    with asherah.session("7") as session:
        assert session.decrypt(session.encrypt(data)) == data
        with pytest.raises(MalformedCellError):
            session.decrypt(text)


@FEW
@given(place=st.integers(0, 10**6), other=st.integers(1, 255))
def test_no_byte_of_a_record_can_change_and_give_other_data(asherah: Asherah, place: int, other: int) -> None:
    with asherah.session("7") as session:
        record = bytearray(session.encrypt(b"the data"), "utf-8")
        record[place % len(record)] ^= other
        try:
            data = session.decrypt(record.decode(errors="replace"))
        except AsherahError:
            return
        assert data == b"the data"  # the date of the data row key means nothing, here and in the reference


def test_what_is_in_a_record_is_not_in_the_error(asherah: Asherah) -> None:
    with asherah.session("7") as session:
        members = json.loads(session.encrypt(b"the data"))
        members["Data"] = members["Data"][::-1]
        with pytest.raises(DecryptionError) as raised:
            session.decrypt(members)
    assert members["Data"] not in str(raised.value)
    assert members["Key"]["Key"] not in str(raised.value)


def test_nothing_stored_loads_as_nothing(asherah: Asherah) -> None:
    boxes: dict[str, str] = {}
    with asherah.session("7") as session:
        assert session.load("box", boxes.get) is None
        assert session.store(b"data", lambda record: boxes.setdefault("box", record)) == boxes["box"]
        assert session.load("box", boxes.get) == b"data"


def test_what_a_storer_or_loader_raises_comes_through(asherah: Asherah) -> None:
    def fail(_: str) -> Any:
        raise Failed

    with asherah.session("7") as session:
        for use in (lambda: session.store(b"data", fail), lambda: session.load("box", fail)):
            with pytest.raises(Failed):
                use()
        assert session.decrypt(session.encrypt(b"data")) == b"data"


USES: dict[str, Callable[[Session, Callable[[str], Any]], object]] = {
    "store": lambda session, call: session.store(b"data", call),
    "load": lambda session, call: session.load("box", call),
}


@pytest.mark.parametrize("use", USES)
def test_a_closed_session_calls_nobody(asherah: Asherah, use: str) -> None:
    called: list[str] = []
    session = asherah.session("7")
    session.close()
    with pytest.raises(UsageError, match="open another one"):
        USES[use](session, called.append)
    assert called == []


@pytest.mark.parametrize("use", ["store", "load"])
async def test_a_closed_asynchronous_session_calls_nobody(asherah: Asherah, use: str) -> None:
    called: list[str] = []

    async def call(text: str) -> str | None:
        called.append(text)
        return None

    session = asherah.session_async("7")
    await session.close()
    with pytest.raises(UsageError, match="open another one"):
        await (session.store(b"data", call) if use == "store" else session.load("box", call))
    assert called == []
