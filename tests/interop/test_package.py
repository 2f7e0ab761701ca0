# SPDX-License-Identifier: Apache-2.0
"""The published package `asherah` and we share one key table: each reads the other's records and uses its keys."""

from __future__ import annotations

import json
import time
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import String, insert, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sa_asherah import Encrypted, KeyRecordError, WrongPartitionError
from tests.interop.shared_table import GUARD, SharedTable

pytestmark = pytest.mark.filterwarnings("ignore::sa_asherah.StaticKeyWarning")

PARTITIONS = ["user1", "Ünïcødé-账户", "with space/slash@example.com"]
PAYLOADS = {"empty": b"", "one-byte": b"\0", "all-bytes": bytes(range(256)), "4-KiB": b"\xa5" * 4096}
PAIRS = [(partition, payload) for partition in PARTITIONS for payload in PAYLOADS.values()]
LONG_AGO = timedelta(days=200).total_seconds()


def long_ago() -> float:
    return time.time() - LONG_AGO


def in_the_future() -> float:
    return time.time() + LONG_AGO


def parent(record: str) -> dict[str, Any]:
    return dict(json.loads(record)["Key"]["ParentKeyMeta"])


def test_the_package_reads_our_records_under_our_keys(shared: SharedTable) -> None:
    with shared.ours() as (asherah, _):
        records = [(partition, asherah.session(partition).encrypt(payload)) for partition, payload in PAIRS]
    before = shared.rows("_SK_") + shared.rows("_IK_")
    assert shared.decrypt(*records) == [payload for _, payload in PAIRS]
    assert shared.rows("_SK_") + shared.rows("_IK_") == before
    assert all("Bind" in record for _, _, record in before)


def test_the_package_encrypts_under_our_keys_and_we_read_it(shared: SharedTable) -> None:
    with shared.ours(peers=False) as (asherah, _):
        for partition in PARTITIONS:
            asherah.session(partition).encrypt(b"makes the keys")
        before = shared.rows("_SK_") + shared.rows("_IK_")
        records = shared.encrypt(*PAIRS)
        assert shared.rows("_SK_") + shared.rows("_IK_") == before
        for (partition, payload), record in zip(PAIRS, records, strict=True):
            assert [parent(record)] == shared.keys(partition)
            assert asherah.session(partition).decrypt(record) == payload


def test_we_read_the_packages_records_and_encrypt_under_its_keys_and_it_reads_them(shared: SharedTable) -> None:
    theirs = shared.encrypt(*PAIRS)
    before = shared.rows()
    with shared.ours() as (asherah, _):
        ours: list[tuple[str, str]] = []
        for (partition, payload), record in zip(PAIRS, theirs, strict=True):
            session = asherah.session(partition)
            assert session.decrypt(record) == payload
            ours.append((partition, session.encrypt(payload)))
            assert [parent(ours[-1][1])] == shared.keys(partition)
    assert shared.decrypt(*ours) == [payload for _, payload in PAIRS]
    assert shared.rows() == before


def test_our_expired_keys_still_decrypt_there_and_it_makes_successors(shared: SharedTable) -> None:
    with shared.ours(clock=long_ago) as (asherah, _):
        old = [(partition, asherah.session(partition).encrypt(b"old")) for partition in PARTITIONS]
    assert shared.decrypt(*old) == [b"old"] * 3
    new = shared.encrypt(*((partition, b"new") for partition in PARTITIONS))
    with shared.ours() as (asherah, _):
        for (partition, record), successor in zip(old, new, strict=True):
            assert shared.keys(partition) == [parent(record), parent(successor)]
            session = asherah.session(partition)
            assert (session.decrypt(record), session.decrypt(successor)) == (b"old", b"new")
            ours = session.encrypt(b"ours")
            assert parent(ours) == parent(successor)
            assert shared.decrypt((partition, ours)) == [b"ours"]


def test_its_expired_keys_still_decrypt_here_and_we_make_successors(shared: SharedTable) -> None:
    old = shared.encrypt(*((partition, b"old") for partition in PARTITIONS))
    with shared.ours(clock=in_the_future) as (asherah, _):
        for partition, record in zip(PARTITIONS, old, strict=True):
            session = asherah.session(partition)
            assert session.decrypt(record) == b"old"
            new = session.encrypt(b"new")
            assert shared.keys(partition) == [parent(record), parent(new)]
            assert shared.decrypt((partition, new), (partition, record)) == [b"new", b"old"]
    assert len(shared.rows("_SK_")) == 2


def test_neither_reads_a_record_of_another_partition(shared: SharedTable) -> None:
    (theirs,) = shared.encrypt(("user1", b"for user1"))
    with shared.ours() as (asherah, _):
        ours = asherah.session("user1").encrypt(b"for user1")
        with pytest.raises(WrongPartitionError):
            asherah.session("user2").decrypt(theirs)
    with shared.package() as package:
        assert [good for good, _ in package.ask(("decrypt", "user2", ours))] == [False]


def test_its_keys_are_refused_without_peers(shared: SharedTable) -> None:
    (record,) = shared.encrypt(("user1", b"data"))
    with shared.ours(peers=False) as (asherah, _), pytest.raises(KeyRecordError, match="peers=True"):
        asherah.session("user1").decrypt(record)


def test_its_row_that_is_no_key_stays_as_it_was(shared: SharedTable) -> None:
    shared.encrypt(("user1", b"data"))
    guards = shared.rows(GUARD)
    with shared.ours() as (asherah, engine), engine.begin() as connection:
        asherah.check(connection)
        asherah.session("user2", connection=connection).encrypt(b"data")
    assert len(guards) == 1
    assert shared.rows(GUARD) == guards


def test_keys_made_by_an_encrypted_column_serve_the_package(shared: SharedTable) -> None:
    class Base(DeclarativeBase):
        pass

    class Document(Base):
        __tablename__ = "documents"
        id: Mapped[int] = mapped_column(primary_key=True)
        owner: Mapped[str] = mapped_column(String(40))
        title: Mapped[str] = mapped_column(Encrypted(String(), owner="owner"))

    with shared.ours() as (asherah, engine):
        Base.metadata.create_all(engine)
        with engine.begin() as connection:
            rows = [{"owner": partition, "title": f"of {partition}"} for partition in PARTITIONS]
            connection.execute(insert(Document), rows)
        records = shared.encrypt(*((partition, b"by the package") for partition in PARTITIONS))
        for partition, record in zip(PARTITIONS, records, strict=True):
            assert [parent(record)] == shared.keys(partition)
            assert asherah.session(partition).decrypt(record) == b"by the package"
        with engine.connect() as connection:
            titles = connection.execute(select(Document.title).order_by(Document.id)).scalars().all()
            assert titles == [f"of {partition}" for partition in PARTITIONS]
