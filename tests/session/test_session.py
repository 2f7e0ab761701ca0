# SPDX-License-Identifier: Apache-2.0
"""Sessions of an attached Asherah: many threads, the scope, the end."""

from __future__ import annotations

import gc
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, text

from sa_asherah import Asherah, NotAttachedError, OwnerRequiredError, UsageError, WrongPartitionError, partition_scope

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

    from sa_asherah.core.session import Session
    from tests.session.conftest import Gate

USES: dict[str, Callable[[Session, str], object]] = {
    "encrypt": lambda session, _: session.encrypt(b"data"),
    "decrypt": lambda session, record: session.decrypt(record),
    "store": lambda session, _: session.store(b"data", str),
    "load": lambda session, record: session.load(record, str),
}


@pytest.mark.parametrize("use", USES)
def test_a_closed_session_refuses(asherah: Asherah, use: str) -> None:
    with asherah.session("7") as session:
        record = session.encrypt(b"data")
        USES[use](session, record)
    with pytest.raises(UsageError, match="closed"):
        USES[use](session, record)
    session.close()  # a second time does no harm


@pytest.mark.parametrize("use", USES)
def test_a_closed_asherah_ends_its_sessions(asherah: Asherah, use: str) -> None:
    session = asherah.session("7")
    record = session.encrypt(b"data")
    asherah.close()
    with pytest.raises(UsageError, match="closed or detached"):
        USES[use](session, record)


def test_an_error_in_the_block_closes_the_session_too(asherah: Asherah) -> None:
    with pytest.raises(ZeroDivisionError), asherah.session("7") as session:
        _ = 1 / 0
    with pytest.raises(UsageError, match="closed"):
        session.encrypt(b"")


@pytest.mark.parametrize("use", USES)
def test_the_partition_scope_holds_at_every_use(asherah: Asherah, use: str) -> None:
    session = asherah.session("7")
    record = session.encrypt(b"data")
    with partition_scope("7", "8"):
        USES[use](session, record)
        with partition_scope("8"), pytest.raises(WrongPartitionError, match="partition_scope"):
            USES[use](session, record)
    USES[use](session, record)


def test_threads_share_a_session_and_the_key_service_is_asked_once(asherah: Asherah, kms: Gate) -> None:
    session = asherah.session("7")
    session.encrypt(b"")  # makes the key: on SQLite nobody waits for anybody, so several threads might
    start = threading.Barrier(16)

    def work(number: int) -> None:
        start.wait(10)
        for turn in range(20):
            data = b"%d %d" % (number, turn)
            assert session.decrypt(session.encrypt(data)) == data

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))
    assert kms.calls == 1


def test_sessions_of_many_partitions_keep_apart_in_threads(asherah: Asherah) -> None:
    def work(partition: str) -> tuple[str, str]:
        with asherah.session(partition) as session:
            return partition, session.encrypt(partition.encode())

    with ThreadPoolExecutor(8) as pool:
        records = list(pool.map(work, map(str, range(40))))
    for partition, record in records:
        assert asherah.session(partition).decrypt(record) == partition.encode()
        with pytest.raises(WrongPartitionError):
            asherah.session("other").decrypt(record)


@pytest.mark.parametrize("ends", ["closed", "forgotten"])
def test_the_keys_of_a_session_of_its_own_go_with_it(engine: Engine, kms: Gate, ends: str) -> None:
    with Asherah("records", "clinic", kms, shared_intermediate_keys=False) as asherah:
        asherah.attach(engine)
        asherah.create_metastore(engine)
        session = asherah.session("7")
        record = session.encrypt(b"data")
        keys = session._lease.hierarchy._keyring.intermediate._keys
        assert len(keys) == 1
        if ends == "closed":
            session.close()
        else:
            del session
            gc.collect()
        assert len(keys) == 0
        assert asherah.session("7").decrypt(record) == b"data"


def test_the_engine_must_be_clear(asherah: Asherah, engine: Engine, tmp_path: Path) -> None:
    other = create_engine(f"sqlite:///{tmp_path / 'other.db'}")
    with pytest.raises(NotAttachedError):
        asherah.session("7", engine=other)
    asherah.attach(other)
    asherah.create_metastore(other)
    with pytest.raises(UsageError, match="several engines"):
        asherah.session("7")
    record = asherah.session("7", engine=engine).encrypt(b"data")
    assert asherah.session("7", engine=engine).decrypt(record) == b"data"
    asherah.detach(other)
    assert asherah.session("7").decrypt(record) == b"data"
    asherah.detach(engine)
    with pytest.raises(NotAttachedError):
        asherah.session("7")
    other.dispose()


def test_a_key_of_an_open_transaction_is_undone_with_it(asherah: Asherah, engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(text("CREATE TABLE box (record TEXT)"))
        connection.commit()
        connection.execute(text("INSERT INTO box VALUES ('')"))
        record = asherah.session("7", connection=connection).encrypt(b"data")
        assert asherah.session("7", connection=connection).decrypt(record) == b"data"
        connection.rollback()
        assert connection.execute(text("SELECT count(*) FROM encryption_key")).scalar() == 0


@pytest.mark.parametrize("partition", ["", "nul\0", "long" * 99])
def test_an_unusable_partition_is_refused_at_once(asherah: Asherah, partition: str) -> None:
    with pytest.raises(OwnerRequiredError):
        asherah.session(partition)
    with pytest.raises(OwnerRequiredError):
        asherah.session_async(partition)


def test_a_session_shows_its_key_id_and_cannot_be_pickled(asherah: Asherah) -> None:
    session = asherah.session("7")
    assert repr(session) == "<Session of '_IK_7_records_clinic'>"
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(session)


def test_big_files_come_back(asherah: Asherah, tmp_path: Path) -> None:
    data = os.urandom(5_000_000)
    path = tmp_path / "scan.json"
    with asherah.session("7") as session:
        session.store(data, path.write_text)
        assert session.load(path, Path.read_text) == data
