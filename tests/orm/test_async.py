# SPDX-License-Identifier: Apache-2.0
"""What only asynchronous code does: results processed outside the greenlet, streams, tasks side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import StaticPool, insert, select, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import selectinload

from sa_asherah import Asherah, OwnerRequiredError, UsageError, WrongPartitionError, partition_scope
from sa_asherah.kms.static import StaticKMS
from tests.orm.models import Base, Clinic, Patient
from tests.servers.database import async_url

PATIENTS: Any = Patient.__table__
SSNS = [f"canary {n}" for n in range(1, 5)]


class Site:
    """An asynchronous engine with its `Asherah`."""

    def __init__(self, engine: AsyncEngine, kms: StaticKMS) -> None:
        self.engine = engine
        self._kms = kms
        self.asherah = Asherah("records", "clinic", kms)
        self.asherah.attach(engine)

    def cold(self) -> None:
        """Go on as a process that just started."""
        self.asherah.detach(self.engine)
        self.asherah = Asherah("records", "clinic", self._kms)
        self.asherah.attach(self.engine)


@asynccontextmanager
async def site_of(engine: AsyncEngine, kms: StaticKMS) -> AsyncGenerator[Site]:
    site = Site(engine, kms)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
        await connection.run_sync(Base.metadata.create_all)
        await connection.run_sync(site.asherah.create_metastore)
    async with AsyncSession(engine) as session:
        session.add_all(Clinic(id=n, patients=[Patient(id=n, ssn=f"canary {n}")]) for n in range(1, 5))
        await session.commit()
    try:
        yield site
    finally:
        site.asherah.detach(engine)
        await engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql", "mariadb", "memory"])
async def site(request: pytest.FixtureRequest, static_kms: StaticKMS) -> AsyncIterator[Site]:
    """Four clinics of one patient each, on each database and on SQLite in memory."""
    if request.param == "memory":
        engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
    else:
        engine = create_async_engine(async_url(request.getfixturevalue(f"{request.param}_url")))
    async with site_of(engine, static_kms) as site:
        yield site


def in_memory(site: Site) -> bool:
    return site.engine.url.database in {None, ":memory:"}


async def test_entities(site: Site) -> None:
    site.cold()
    async with AsyncSession(site.engine) as session:
        patients = (await session.scalars(select(Patient).order_by(Patient.id))).all()
        assert [each.ssn for each in patients] == SSNS
        clinics = await session.scalars(select(Clinic).options(selectinload(Clinic.patients)).order_by(Clinic.id))
        assert [clinic.patients[0].ssn for clinic in clinics] == SSNS
        assert (await session.get_one(Patient, 1)).ssn == "canary 1"
        await session.refresh(patients[0])
        assert patients[0].ssn == "canary 1"


async def test_column_tuples(site: Site) -> None:
    site.cold()
    async with AsyncSession(site.engine) as session:
        rows = (await session.execute(select(Patient.ssn, Patient.id).order_by(Patient.id))).all()
        assert [row.ssn for row in rows] == SSNS
        assert await session.scalar(select(Patient.ssn).where(Patient.id == 2)) == "canary 2"


async def test_core_rows_are_opened_outside_the_greenlet_with_cold_keys(site: Site) -> None:
    site.cold()
    async with site.engine.connect() as connection:
        if in_memory(site):
            result = await connection.execute(select(PATIENTS).order_by(PATIENTS.c.id))
            with pytest.raises(UsageError, match="in memory"):
                result.all()
            return
        result = await connection.execute(select(PATIENTS).order_by(PATIENTS.c.id))
        assert [row.ssn for row in result] == SSNS


async def test_core_rows_with_keys_made_here(site: Site) -> None:
    async with site.engine.connect() as connection:
        result = await connection.execute(select(PATIENTS.c.ssn).order_by(PATIENTS.c.id))
        assert result.scalars().all() == SSNS


async def test_the_loop_runs_on_while_a_cold_key_is_read(site: Site) -> None:
    if in_memory(site):
        return
    site.cold()
    async with site.engine.connect() as connection, site.engine.connect() as other:
        one = await connection.execute(select(PATIENTS.c.ssn).order_by(PATIENTS.c.id))
        two = await other.execute(select(PATIENTS.c.ssn).order_by(PATIENTS.c.id))
        assert one.scalars().all() == two.scalars().all() == SSNS


async def test_streams(site: Site) -> None:
    site.cold()
    async with AsyncSession(site.engine) as session:
        stream = await session.stream(select(Patient).order_by(Patient.id).execution_options(yield_per=1))
        assert [patient.ssn async for (patient,) in stream] == SSNS
        scalars = await session.stream_scalars(select(Patient.ssn).order_by(Patient.id))
        assert [ssn async for ssn in scalars] == SSNS
    site.cold()
    async with (
        site.engine.connect() as connection,
        connection.stream(select(PATIENTS.c.ssn).order_by(PATIENTS.c.id)) as rows,
    ):
        assert [ssn async for ssn in rows.scalars()] == SSNS


async def test_lazy_attributes(site: Site) -> None:
    async with AsyncSession(site.engine) as session:
        clinic = await session.get_one(Clinic, 1)
        patients = await session.run_sync(lambda _: clinic.patients)
        assert [each.ssn for each in patients] == ["canary 1"]


async def test_writing(site: Site) -> None:
    async with AsyncSession(site.engine) as session:
        patient = await session.get_one(Patient, 1)
        patient.ssn = "canary changed"
        (await session.get_one(Patient, 2)).clinic_id = 3
        await session.execute(update(Patient).where(Patient.id == 3).values(ssn="canary updated"))
        await session.execute(insert(Patient), [{"id": 9, "clinic_id": 1, "ssn": "canary 9"}])
        await session.commit()
    async with site.engine.begin() as connection:
        await connection.execute(insert(PATIENTS).values(id=10, clinic_id=4, ssn="canary 10"))
        await connection.execute(update(PATIENTS).where(PATIENTS.c.id == 4).values(ssn="canary 4b"))
    async with AsyncSession(site.engine) as session:
        found = (await session.scalars(select(Patient.ssn).order_by(Patient.id))).all()
    assert found == ["canary changed", "canary 2", "canary updated", "canary 4b", "canary 9", "canary 10"]


async def test_returning(site: Site) -> None:
    async with site.engine.begin() as connection:
        rows = [{"id": n, "clinic_id": 1, "ssn": f"canary {n}"} for n in (7, 8)]
        result = await connection.execute(insert(PATIENTS).returning(PATIENTS.c.ssn), rows)
        assert sorted(result.scalars()) == ["canary 7", "canary 8"]


async def test_a_new_owner_in_each_of_many_tasks(site: Site) -> None:
    if in_memory(site):
        return  # one connection

    async def add(number: int) -> None:
        async with AsyncSession(site.engine) as session:
            session.add(Clinic(id=number, patients=[Patient(id=number, ssn=f"canary {number}")]))
            await session.commit()

    numbers = range(10, 18)
    if site.engine.dialect.name == "sqlite":
        for number in numbers:  # one writer
            await add(number)
    else:
        await asyncio.gather(*map(add, numbers))
    site.cold()

    async def read(number: int) -> str | None:
        async with site.engine.connect() as connection:
            found: str | None = await connection.scalar(select(PATIENTS.c.ssn).where(PATIENTS.c.id == number))
            return found

    assert await asyncio.gather(*map(read, numbers)) == [f"canary {n}" for n in numbers]


async def test_each_task_has_its_own_scope(site: Site) -> None:
    async def read(scope: str, number: int) -> str | None:
        with partition_scope(scope):
            async with AsyncSession(site.engine) as session:
                await asyncio.sleep(0)
                return await session.scalar(select(Patient.ssn).where(Patient.id == number))

    if in_memory(site):
        assert await read("1", 1) == "canary 1"
    else:
        assert list(await asyncio.gather(read("1", 1), read("2", 2))) == ["canary 1", "canary 2"]
    with pytest.raises(WrongPartitionError):
        await read("1", 2)


async def test_an_error_leaves_the_session_usable(site: Site) -> None:
    async with AsyncSession(site.engine) as session:
        session.add(Patient(id=20, ssn="canary"))
        with pytest.raises(OwnerRequiredError):
            await session.flush()
        await session.rollback()
        assert (await session.scalars(select(Patient.ssn).order_by(Patient.id))).all() == SSNS
