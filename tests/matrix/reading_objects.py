# SPDX-License-Identifier: Apache-2.0
"""How the ORM loads objects, their attributes and their relationships."""

from __future__ import annotations

import pickle
import uuid
from collections.abc import Callable
from contextlib import closing
from typing import Any, Final

import pytest
from sqlalchemy import func, inspect, select
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import (
    contains_eager,
    defer,
    immediateload,
    joinedload,
    lazyload,
    load_only,
    raiseload,
    selectin_polymorphic,
    selectinload,
    subqueryload,
    undefer,
    undefer_group,
    with_expression,
    with_loader_criteria,
    with_parent,
)
from sqlalchemy.util import await_only

from sa_asherah import UnsupportedOperatorError
from tests.matrix import models as rich
from tests.matrix.reading import SSNS, first, patients
from tests.matrix.registration import case, reading
from tests.orm.app import App
from tests.orm.models import Animal, Clinic, Device, Doctor, Dog, Ledger, Patient, Person, User, Visit

BY_CLINIC: Final = [SSNS[:2], SSNS[2:], []]
FIRST: Final = select(Patient).where(Patient.id == 1)


@reading("session.get")
def got(app: App) -> None:
    with app.session() as session:
        patient = session.get_one(Patient, 1)
        assert (patient.ssn, patient.notes) == ("canary 1", "canary note 1")
        assert session.get(Patient, 1) is patient
        assert session.get(Patient, 99) is None
    assert patient.ssn == "canary 1", "a detached object keeps its values"


@case("session.get")
def got_by_every_kind_of_key(app: App) -> None:
    number = uuid.uuid4()
    app.add(User(id=number, mail="canary mail"), Ledger(tenant_id=4, number=2, entry="canary entry"))
    app.cold()
    with app.session() as session:
        assert session.get_one(User, number).mail == "canary mail"
        assert session.get_one(Ledger, (4, 2)).entry == "canary entry"


@case("session.get")
def got_with_many_owners_in_one_page(app: App) -> None:
    app.add(*(Device(id=n, tenant=uuid.UUID(int=n), code=f"canary {n}") for n in range(1, 41)))
    app.cold()
    assert first(app, select(Device.code).order_by(Device.id)) == [f"canary {n}" for n in range(1, 41)]


def _collections(row: str, load: Callable[..., Any]) -> None:
    """Register collections, collections of collections and references, loaded in one way."""

    def read(app: App) -> None:
        with app.session() as session:
            query = select(Clinic).options(load(Clinic.patients).options(load(Patient.visits))).order_by(Clinic.id)
            clinics = session.scalars(query).unique().all()
            assert [[each.ssn for each in clinic.patients] for clinic in clinics] == BY_CLINIC
            assert [visit.finding for visit in clinics[1].patients[0].visits] == ["canary finding 3"]
        with app.session() as session:
            visits = session.scalars(select(Visit).options(load(Visit.patient)).order_by(Visit.id)).all()
            assert [visit.patient.ssn for visit in visits if visit.patient] == SSNS

    read.__name__ = load.__name__
    reading(row)(read)


for _load in (joinedload, selectinload, subqueryload, immediateload):
    _collections(_load.__name__, _load)
_collections("lazy loading", lazyload)


@reading("contains_eager")
def contained_eagerly(app: App) -> None:
    query = select(Clinic).join(Clinic.patients).options(contains_eager(Clinic.patients))
    with app.session() as session:
        clinics = session.scalars(query.where(Patient.id != 1).order_by(Clinic.id, Patient.id)).unique().all()
        assert [[patient.ssn for patient in clinic.patients] for clinic in clinics] == [["canary 2"], ["canary 3"]]


@reading("eager loads below a LIMIT")
def eager_below_a_limit(app: App) -> None:
    for load in (joinedload, selectinload, subqueryload):
        query = select(Clinic).options(load(Clinic.patients).options(load(Patient.visits))).order_by(Clinic.id).limit(1)
        with app.session() as session:
            clinic = session.scalars(query).unique().one()
            assert [visit.finding for each in clinic.patients for visit in each.visits] == [
                "canary finding 1", "canary finding 2",
            ]  # fmt: skip


@reading("raiseload")
def raised_instead_of_loaded(app: App) -> None:
    options = (defer(Patient.ssn, raiseload=True), raiseload(Patient.visits))
    with app.session() as session:
        patient = session.scalars(FIRST.options(*options)).one()
        for name in ("ssn", "visits"):
            with pytest.raises(InvalidRequestError):
                getattr(patient, name)
        assert patient.notes == "canary note 1"


@reading("dynamic and write-only relationships")
def dynamic_relationships(app: App) -> None:
    with app.session() as session:
        clinic = session.get_one(rich.Clinic, 1)
        assert [each.ssn for each in clinic.dynamic.filter(rich.Patient.id > 1)] == ["canary 2"]
        assert [each.ssn for each in session.scalars(clinic.write_only.select())] == SSNS[:2]


@reading("with_loader_criteria, with_parent")
def loader_criteria(app: App) -> None:
    with app.session() as session:
        query = select(Patient).options(with_loader_criteria(Patient, Patient.id > 1)).order_by(Patient.id)
        assert [each.ssn for each in session.scalars(query)] == SSNS[1:]
        clinic = session.get_one(Clinic, 2)
        assert session.scalars(select(Patient.ssn).where(with_parent(clinic, Clinic.patients))).all() == SSNS[2:]


@reading("defer, deferred, undefer, undefer_group")
def deferred_columns(app: App) -> None:
    with app.session() as session:
        patient = session.scalars(FIRST.options(defer(Patient.ssn))).one()
        assert "ssn" in inspect(patient).unloaded
        assert patient.ssn == "canary 1"
        other = select(Patient).options(defer(Patient.notes), undefer(Patient.ssn)).where(Patient.id == 2)
        assert session.scalars(other).one().ssn == "canary 2"
        query = select(rich.Patient).where(rich.Patient.id == 1)
        late = session.scalars(query).one()
        assert "notes" in inspect(late).unloaded
        assert late.notes == "canary note 1"
        session.expunge(late)
        assert "notes" not in inspect(session.scalars(query.options(undefer_group("long"))).one()).unloaded


@reading("load_only")
def loaded_without_the_owner(app: App) -> None:
    with app.session() as session:
        patient = session.scalars(FIRST.options(load_only(Patient.ssn))).one()
        assert {"clinic_id", "notes"} <= inspect(patient).unloaded
        assert (patient.ssn, patient.notes) == ("canary 1", "canary note 1")


@reading("selectin_polymorphic")
def polymorphic_by_select_in(app: App) -> None:
    with app.session() as session:
        query = select(Person).order_by(Person.id).options(selectin_polymorphic(Person, [Doctor]))
        doctor, person, _ = session.scalars(query)
        assert isinstance(doctor, Doctor)
        assert (doctor.alias, doctor.licence, person.alias) == ("canary alias 1", "canary licence 1", "canary alias 2")


@reading("populate_existing")
def populated_again(app: App) -> None:
    with app.session() as session:
        patient = session.get_one(Patient, 1)
        patient.ssn = "canary changed"
        with session.no_autoflush:
            again = session.scalars(FIRST.execution_options(populate_existing=True)).one()
        assert again is patient
        assert patient.ssn == "canary 1"


@reading("refresh")
def refreshed(app: App) -> None:
    with app.session() as session:
        patient = session.get_one(Patient, 1)
        patient.notes = "canary changed"
        session.refresh(patient)
        assert patient.notes == "canary note 1"
        patient.ssn = "canary changed"
        session.refresh(patient, ["ssn"], with_for_update=True)
        assert patient.ssn == "canary 1"


@case("refresh")
def refreshed_after_somebody_else_wrote(app: App) -> None:
    app.add(Patient(id=1, clinic_id=1, ssn="canary 1"))
    with app.session() as session:
        patient = session.get_one(Patient, 1)
        session.commit()
        with app.session() as other:
            other.get_one(Patient, 1).ssn = "canary newer"
            other.get_one(Patient, 1).clinic_id = 2
            other.commit()
        assert patient.ssn == "canary newer"


@reading("expire")
def expired(app: App) -> None:
    with app.session() as session:
        patient = session.get_one(Patient, 1)
        patient.ssn = "canary changed"
        session.expire(patient, ["ssn"])
        assert patient.ssn == "canary 1"
        session.expire_all()
        assert (patient.ssn, patient.notes) == ("canary 1", "canary note 1")
        session.commit()
        assert patient.ssn == "canary 1"


@reading("merge")
def merged(app: App) -> None:
    with app.session() as session:
        patient = session.get_one(Patient, 1)
    with app.session() as session:
        loaded = session.merge(patient)
        assert loaded.ssn == "canary 1"
        assert not session.is_modified(loaded)
    with app.session() as session:
        unloaded = session.merge(patient, load=False)
        assert unloaded.ssn == "canary 1"
        session.expire(unloaded)
        assert unloaded.notes == "canary note 1"


@reading("yield_per")
def yielded_in_parts(app: App) -> None:
    with app.session() as session:
        query = select(Patient).order_by(Patient.id)
        with closing(session.scalars(query.execution_options(yield_per=2))) as found:
            assert [[each.ssn for each in part] for part in found.partitions()] == [SSNS[:2], SSNS[2:]]
        assert [each.ssn for each in session.query(Patient).order_by(Patient.id).yield_per(1)] == SSNS


@reading("server-side cursors")
def streamed_results(app: App) -> None:
    with app.engine.connect() as connection:
        streaming = connection.execution_options(stream_results=True, max_row_buffer=1)
        with streaming.execute(select(patients.c.ssn).order_by(patients.c.id)) as found:
            assert list(found.scalars()) == SSNS


@reading("AsyncSession.stream, AsyncConnection.stream", not_on={"pysqlite", "psycopg", "pymysql"})
def streamed(app: App) -> None:
    engine = app._bind
    assert isinstance(engine, AsyncEngine)

    async def read() -> None:
        async with AsyncSession(engine) as session:
            stream = await session.stream(select(Patient).order_by(Patient.id).execution_options(yield_per=1))
            try:
                assert [patient.ssn async for (patient,) in stream] == SSNS
            finally:
                await stream.close()
        async with engine.connect() as connection:
            query = select(patients.c.ssn).order_by(patients.c.id)
            async with connection.stream(query) as rows:
                assert [ssn async for ssn in rows.scalars()] == SSNS
            assert [ssn async for ssn in (await connection.stream_scalars(query))] == SSNS

    await_only(read())


@reading("Session.identity_map")
def identity_map(app: App) -> None:
    with app.session() as session:
        loaded = session.scalars(select(Patient).order_by(Patient.id)).all()
        known = {each.id: each.ssn for each in session.identity_map.values() if isinstance(each, Patient)}
        assert known == dict(enumerate(SSNS, 1))
        assert session.get(Patient, 1) is loaded[0]


@reading("pickled entities")
def pickled(app: App) -> None:
    with app.session() as session:
        patient = session.scalars(FIRST.options(defer(Patient.notes))).one()
        pickle_of_it = pickle.dumps(patient)
        rows = pickle.dumps(session.execute(select(Patient.ssn).order_by(Patient.id)).all())
    with app.session() as session:
        again = pickle.loads(pickle_of_it)  # noqa: S301 # our own
        assert again.ssn == "canary 1"
        session.add(again)
        assert again.notes == "canary note 1"
    assert [row.ssn for row in pickle.loads(rows)] == SSNS  # noqa: S301 # the same
    assert b"canary 1" in pickle_of_it, "the page says so"


@reading("Result.freeze")
def frozen(app: App) -> None:
    with app.session() as session:
        kept = session.execute(select(Patient.ssn).order_by(Patient.id)).freeze()
    assert kept().scalars().all() == SSNS


@reading("column_property")
def column_properties(app: App) -> None:
    with app.session() as session:
        assert session.get_one(rich.Patient, 1).again == "canary 1"
    assert first(app, select(rich.Patient.again).order_by(rich.Patient.id)) == SSNS


@reading("query_expression")
def query_expressions(app: App) -> None:
    query = select(rich.Patient).options(with_expression(rich.Patient.chosen, rich.Patient.ssn))
    with app.session() as session:
        assert [each.chosen for each in session.scalars(query.order_by(rich.Patient.id))] == SSNS


@reading("synonym")
def synonyms(app: App) -> None:
    assert first(app, select(rich.Patient.other).order_by(rich.Patient.id)) == SSNS
    with app.session() as session:
        assert session.get_one(rich.Patient, 1).other == "canary 1"


@reading("hybrid_property")
def hybrid_properties(app: App) -> None:
    with app.session() as session:
        assert session.get_one(rich.Patient, 1).masked == "***1"
        assert session.scalars(select(rich.Patient.masked).order_by(rich.Patient.id)).all() == SSNS
        with pytest.raises(UnsupportedOperatorError):
            select(rich.Patient).where(rich.Patient.masked == "***1")


@reading("association proxies")
def association_proxies(app: App) -> None:
    with app.session() as session:
        clinic = session.get_one(rich.Clinic, 1)
        assert list(clinic.numbers) == SSNS[:2]
        counted = select(func.count()).select_from(rich.Clinic).where(rich.Clinic.patients.any())
        assert session.scalar(counted) == 2
        with pytest.raises(UnsupportedOperatorError):
            select(rich.Clinic).where(rich.Clinic.numbers == "canary 1")


@reading("select(Patient)")
def joined_inheritance(app: App) -> None:
    with app.session() as session:
        assert session.get_one(Doctor, 1).licence == "canary licence 1"
        late = session.scalars(select(Person).where(Person.id == 3)).one()
        assert isinstance(late, Doctor)
        assert (late.alias, late.licence) == ("canary alias 3", "canary licence 3")


@reading("select(Patient)")
def single_table_inheritance(app: App) -> None:
    with app.session() as session:
        found = session.scalars(select(Animal).order_by(Animal.id)).all()
        assert [each.chip for each in found] == ["canary chip 1", "canary chip 2", "canary chip 3"]
        assert [each.bark for each in found if isinstance(each, Dog)] == ["canary bark 2", "canary bark 3"]
        assert session.scalars(select(Dog.bark).order_by(Dog.id)).all() == ["canary bark 2", "canary bark 3"]
