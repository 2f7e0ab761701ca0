# SPDX-License-Identifier: Apache-2.0
"""Whoever asks is told of every value that is decrypted, on every path, and of no other."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, String, create_engine, insert, select, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, make_transient_to_detached

import sa_asherah
from sa_asherah import Asherah, Encrypted, Unreadable, WrongPartitionError, partition_scope
from tests.servers.database import async_url
from tests.telemetry.stage import Base, Patient, static

COUNT = 12
"""Patients, half of them of clinic 1, half of clinic 2; those of clinic 2 have no card."""

TABLE: Any = Patient.__table__


class Listener:
    """Adds up what it is told, and notes in which thread."""

    def __init__(self) -> None:
        self.calls = 0
        self.threads: set[int] = set()
        self._counts: Counter[tuple[str, str, str]] = Counter()

    def __call__(self, name: str, attributes: Any) -> None:
        if name == "values_decrypted":
            assert attributes.keys() == {"partition", "table", "column", "count"}
            self.calls += 1
            self.threads.add(threading.get_ident())
            self._counts[attributes["partition"], attributes["table"], attributes["column"]] += attributes["count"]

    def counts(self) -> dict[str, int]:
        """Return the counts so far by partition and column."""
        assert {table for _, table, _ in self._counts} <= {"patients"}
        return {f"{partition} {column}": count for (partition, _, column), count in self._counts.items()}


def fill(connection: Any) -> None:
    rows = [
        {
            "id": number,
            "clinic_id": number % 2 + 1,
            "ssn": "ssn",
            "note": "note",
            "card": "card" if number % 2 else None,
        }
        for number in range(1, COUNT + 1)
    ]
    connection.execute(insert(TABLE), rows)


@pytest.fixture
def heard() -> Listener:
    return Listener()


@pytest.fixture
def asherah(heard: Listener) -> Iterator[Asherah]:
    with Asherah("records", "clinic", static()) as asherah:
        asherah.events.listen(heard, decrypts=True)
        yield asherah


def prepared(asherah: Asherah, url: str, stack: ExitStack) -> Engine:
    engine = create_engine(url)
    stack.callback(engine.dispose)
    asherah.attach(engine)
    asherah.create_metastore(engine)
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        fill(connection)
    return engine


@pytest.fixture
def engine(asherah: Asherah, sqlite_url: str) -> Iterator[Engine]:
    with ExitStack() as stack:
        yield prepared(asherah, sqlite_url, stack)


HALF = COUNT // 2
SSN = {"1 ssn": HALF, "2 ssn": HALF}
ALL = SSN | {"1 note": HALF, "2 note": HALF, "2 card": HALF}


def core_rows(session: Session) -> object:
    return session.connection().execute(select(TABLE)).all()


def entities(session: Session) -> object:
    return session.scalars(select(Patient)).all()


def streamed(session: Session) -> object:
    return [row.id for row in session.execute(select(Patient).execution_options(yield_per=5)).scalars()]


def in_parts(session: Session) -> object:
    result = session.connection().execution_options(stream_results=True).execute(select(TABLE))
    return [len(part) for part in result.partitions(5)]


def one_by_one(session: Session) -> object:
    result = session.connection().execute(select(TABLE))
    return list(iter(result.fetchone, None))


def query(session: Session) -> object:
    return session.query(Patient).all()


def refreshed(session: Session) -> None:
    patients = [Patient(id=number) for number in range(1, COUNT + 1)]
    for patient in patients:
        make_transient_to_detached(patient)
        session.add(patient)
        session.refresh(patient)


def in_thread(session: Session) -> None:
    result = session.connection().execute(select(TABLE))
    thread = threading.Thread(target=result.all)
    thread.start()
    thread.join()


EVERYTHING: dict[str, Callable[[Session], object]] = {
    each.__name__: each for each in (core_rows, entities, streamed, in_parts, one_by_one, query, refreshed, in_thread)
}


@pytest.mark.parametrize("path", EVERYTHING)
def test_every_path_tells_every_value(engine: Engine, heard: Listener, path: str) -> None:
    with Session(engine) as session:
        EVERYTHING[path](session)
    assert heard.counts() == ALL


def test_a_statement_tells_once_for_each_owner_and_column(engine: Engine, heard: Listener) -> None:
    with Session(engine) as session:
        session.execute(select(Patient.id, Patient.ssn, Patient.note, Patient.card)).all()
    assert (heard.counts(), heard.calls) == (ALL, len(ALL))


def test_a_result_is_told_as_soon_as_it_is_let_go(engine: Engine, heard: Listener) -> None:
    gc.disable()
    try:
        with engine.connect() as connection:
            result = connection.execute(select(TABLE.c.clinic_id, TABLE.c.ssn))
            assert len(result.all()) == COUNT
            del result
            assert heard.counts() == SSN
        with Session(engine) as session:
            session.scalars(select(Patient.ssn)).all()
            assert sum(heard.counts().values()) == 2 * COUNT
    finally:
        gc.enable()


def test_only_what_was_fetched_is_told(engine: Engine, heard: Listener) -> None:
    with engine.connect() as connection:
        result = connection.execution_options(yield_per=1).execute(select(TABLE.c.ssn, TABLE.c.clinic_id))
        result.fetchmany(5)
        result.close()
        del result
    assert sum(heard.counts().values()) == 5


def test_the_next_statement_tells_what_the_one_before_gave(engine: Engine, heard: Listener) -> None:
    with engine.connect() as connection:
        held = connection.execute(select(TABLE.c.ssn, TABLE.c.clinic_id))
        held.all()
        connection.execute(select(TABLE.c.ssn, TABLE.c.clinic_id).where(TABLE.c.id < 0)).all()
        assert heard.counts() == SSN
        del held
    assert heard.counts() == SSN


def test_streams_that_take_turns_lose_nothing(engine: Engine, heard: Listener) -> None:
    with engine.connect() as connection:
        outer = connection.execute(select(TABLE.c.id, TABLE.c.ssn, TABLE.c.clinic_id))
        for number, *_ in outer:
            inner = select(TABLE.c.note, TABLE.c.clinic_id).where(TABLE.c.id == number)
            assert connection.execute(inner).scalar() == "note"
        del outer
    assert heard.counts() == SSN | {"1 note": HALF, "2 note": HALF}


def test_returning_tells(engine: Engine, heard: Listener) -> None:
    new = [{"id": COUNT + 1 + number, "clinic_id": 1, "ssn": "new"} for number in range(3)]
    with engine.begin() as connection:
        statement = insert(TABLE).returning(TABLE.c.ssn, TABLE.c.clinic_id)
        assert [row.ssn for row in connection.execute(statement, new)] == ["new"] * 3
    assert heard.counts() == {"1 ssn": 3}


def test_text_in_a_scope_tells(engine: Engine, heard: Listener) -> None:
    ssn: Any = Encrypted(String(), label="patients.ssn")
    statement = text("SELECT ssn FROM patients WHERE clinic_id = 1").columns(ssn=ssn)
    with engine.connect() as connection, partition_scope("1"):
        connection.execute(statement).all()
    assert heard.counts() == {"1 ssn": HALF}


def test_what_cannot_be_opened_is_not_told(engine: Engine, asherah: Asherah, heard: Listener) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE patients SET ssn = (SELECT ssn FROM patients WHERE id = 1) WHERE id = 2"))
    with Session(engine) as session, asherah.unreadable("mark"):
        values = session.scalars(select(Patient.ssn)).all()
    assert sum(isinstance(value, Unreadable) for value in values) == 1
    assert heard.counts() == {"1 ssn": HALF - 1, "2 ssn": HALF}


def test_what_a_scope_refuses_is_not_told(engine: Engine, heard: Listener) -> None:
    with Session(engine) as session, partition_scope("1"), pytest.raises(WrongPartitionError):
        session.scalars(select(Patient.card).where(Patient.clinic_id == 2)).all()
    assert heard.counts() == {}


def test_nothing_is_counted_unless_somebody_asks(engine: Engine, asherah: Asherah, heard: Listener) -> None:
    asherah.events.listen(heard)
    with Session(engine) as session:
        session.scalars(select(Patient)).all()
    assert heard.calls == 0
    assert engine.dialect._sa_asherah.audit is None  # type: ignore[attr-defined] # pyright: ignore[reportAttributeAccessIssue]
    asherah.events.listen(heard, decrypts=True)
    with Session(engine) as session:
        session.scalars(select(Patient.ssn)).all()
    assert heard.counts() == SSN


def test_threads_that_read_at_once_lose_nothing(engine: Engine, heard: Listener) -> None:
    start = threading.Barrier(4)

    def read(_number: int) -> None:
        start.wait(30)
        for _ in range(10):
            with Session(engine) as session:
                session.scalars(select(Patient)).all()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, range(4)))
    assert heard.counts() == {place: 40 * count for place, count in ALL.items()}
    assert len(heard.threads) == 4, "told where it was read"


async def test_threads_that_share_a_task_s_context_lose_nothing(engine: Engine, heard: Listener) -> None:
    with engine.connect() as first, engine.connect() as second:
        results = [connection.execute(select(TABLE)) for connection in (first, second)]
        await asyncio.gather(*(asyncio.to_thread(result.all) for result in results))
        del results
    gc.collect()
    assert heard.counts() == {place: 2 * count for place, count in ALL.items()}


def test_a_result_that_is_held_to_the_end_is_told_then(tmp_path: Path) -> None:
    program = """
import gc, warnings
warnings.simplefilter("ignore")
from contextlib import ExitStack
from sqlalchemy import select
from sa_asherah import Asherah
from tests.telemetry.stage import static
from tests.telemetry.test_decrypts import TABLE, prepared
asherah = Asherah("records", "clinic", static())
asherah.events.listen(lambda name, attributes: print(name, attributes["count"]), decrypts=True)
engine = prepared(asherah, "sqlite:///held.db", ExitStack())
result = engine.connect().execute(select(TABLE.c.id, TABLE.c.ssn, TABLE.c.clinic_id).where(TABLE.c.clinic_id == 1))
rows = result.fetchmany(4)
gc.disable()
held = [result]
held.append(held)
print("the end")
"""
    root = Path(__file__).parents[2]
    paths = f"{root}:{Path(sa_asherah.__file__).parents[1]}"
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        cwd=tmp_path,
        env={"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=240,
    )
    lines = done.stdout.splitlines()
    assert lines[-1] == "values_decrypted 4"
    assert "the end" in lines


async def test_sessions_beside_the_orm_tell_each_record(asherah: Asherah, engine: Engine) -> None:
    told: list[dict[str, object]] = []
    asherah.events.listen(lambda _name, attributes: told.append(dict(attributes)), decrypts=True)
    session, twin = asherah.session("9", engine=engine), asherah.session_async("9", engine=engine)
    record = session.encrypt(b"data")
    del told[:]
    session.decrypt(record)
    await twin.decrypt(record)
    with pytest.raises(WrongPartitionError):
        asherah.session("8", engine=engine).decrypt(record)
    assert told == [{"partition": "9", "count": 1}] * 2


@pytest.mark.parametrize("streams", [False, True], ids=["at once", "streamed"])
async def test_asynchronous_engines_tell(
    asherah: Asherah, heard: Listener, database_url: str, *, streams: bool
) -> None:
    engine = create_async_engine(async_url(database_url))
    asherah.attach(engine)
    async with engine.begin() as connection:
        await connection.run_sync(asherah.create_metastore)
        await connection.run_sync(Base.metadata.create_all)
    async with engine.begin() as connection:
        await connection.run_sync(fill)
    async with AsyncSession(engine) as session:
        if streams:
            async for _ in await session.stream_scalars(select(Patient).execution_options(yield_per=5)):
                pass
        else:
            (await session.scalars(select(Patient))).all()
    async with engine.connect() as connection:
        (await connection.execute(select(TABLE))).all()
    gc.collect()
    assert heard.counts() == {place: 2 * count for place, count in ALL.items()}
    await engine.dispose()


def test_synchronous_engines_tell(asherah: Asherah, heard: Listener, database_url: str) -> None:
    with ExitStack() as stack, Session(prepared(asherah, database_url, stack)) as session:
        entities(session)
        session.expunge_all()
        streamed(session)
    assert heard.counts() == {place: 2 * count for place, count in ALL.items()}
