# SPDX-License-Identifier: Apache-2.0
"""Every way the ORM loads instances and attributes."""

from __future__ import annotations

import uuid

import pytest
from sqlalchemy import inspect, select
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import (
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
)
from sqlalchemy.orm.interfaces import ORMOption

from tests.orm.app import App
from tests.orm.models import Animal, Clinic, Device, Doctor, Dog, Ledger, Patient, Person, User, Visit


def fill(app: App) -> None:
    app.add(
        Patient(id=1, clinic_id=1, ssn="canary 1", notes="canary note 1"),
        Patient(id=2, clinic_id=1, ssn="canary 2"),
        Patient(id=3, clinic_id=2, ssn="canary 3"),
        *(Visit(id=n, patient_id=n % 3 + 1, place_id=n % 2 + 1, finding=f"canary finding {n}") for n in range(1, 7)),
    )
    app.cold()


@pytest.mark.parametrize("load", [joinedload, selectinload, subqueryload, lazyload, immediateload])
def test_collections(app: App, load: type) -> None:
    fill(app)
    options: ORMOption = load(Clinic.patients)
    with app.session() as session:
        clinics = session.scalars(select(Clinic).options(options).order_by(Clinic.id)).unique().all()
        assert [[patient.ssn for patient in clinic.patients] for clinic in clinics] == [
            ["canary 1", "canary 2"], ["canary 3"], [],
        ]  # fmt: skip


@pytest.mark.parametrize("load", [joinedload, selectinload, subqueryload])
def test_collections_of_collections_below_a_limit(app: App, load: type) -> None:
    fill(app)
    options: ORMOption = load(Clinic.patients).options(load(Patient.visits))
    with app.session() as session:
        clinic = session.scalars(select(Clinic).options(options).order_by(Clinic.id).limit(1)).unique().one()
        assert [visit.finding for patient in clinic.patients for visit in patient.visits] == [
            "canary finding 3", "canary finding 6", "canary finding 1", "canary finding 4",
        ]  # fmt: skip


@pytest.mark.parametrize("load", [joinedload, selectinload, lazyload])
def test_references(app: App, load: type) -> None:
    fill(app)
    options: ORMOption = load(Visit.patient)
    with app.session() as session:
        visits = session.scalars(select(Visit).options(options).order_by(Visit.id)).all()
        assert [visit.patient.ssn for visit in visits if visit.patient][:3] == ["canary 2", "canary 3", "canary 1"]


def test_get_is_answered_by_the_database_once(app: App) -> None:
    fill(app)
    with app.session() as session:
        patient = session.get_one(Patient, 1)
        assert (patient.ssn, patient.notes) == ("canary 1", "canary note 1")
        assert session.get(Patient, 1) is patient
        assert session.get(Patient, 99) is None


def test_get_by_every_kind_of_key(app: App) -> None:
    user = User(mail="canary mail")
    app.add(user, Ledger(tenant_id=4, number=2, entry="canary entry"))
    app.cold()
    with app.session() as session:
        assert session.get_one(User, session.scalars(select(User.id)).one()).mail == "canary mail"
        assert session.get_one(Ledger, (4, 2)).entry == "canary entry"


def test_deferred_columns(app: App) -> None:
    fill(app)
    with app.session() as session:
        patient = session.scalars(select(Patient).options(defer(Patient.ssn)).where(Patient.id == 1)).one()
        assert "ssn" in inspect(patient).unloaded
        assert patient.ssn == "canary 1"
        other = session.scalars(
            select(Patient).options(defer(Patient.notes), undefer(Patient.ssn)).where(Patient.id == 2)
        )
        assert other.one().ssn == "canary 2"


def test_load_only_without_the_owner(app: App) -> None:
    fill(app)
    with app.session() as session:
        patient = session.scalars(select(Patient).options(load_only(Patient.ssn)).where(Patient.id == 1)).one()
        assert {"clinic_id", "notes"} <= inspect(patient).unloaded
        assert patient.ssn == "canary 1"
        assert patient.notes == "canary note 1"


def test_raiseload(app: App) -> None:
    fill(app)
    with app.session() as session:
        patient = session.scalars(
            select(Patient)
            .options(defer(Patient.ssn, raiseload=True), raiseload(Patient.visits))
            .where(Patient.id == 1)
        ).one()
        with pytest.raises(InvalidRequestError):
            patient.ssn  # noqa: B018 # the access is the test
        assert patient.notes == "canary note 1"


def test_refresh_and_expire(app: App) -> None:
    fill(app)
    with app.session() as session:
        patient = session.get_one(Patient, 1)
        patient.ssn = "canary changed"
        session.expire(patient, ["ssn"])
        assert patient.ssn == "canary 1"
        patient.notes = "canary changed"
        session.refresh(patient)
        assert patient.notes == "canary note 1"
        session.refresh(patient, ["ssn"])
        session.expire_all()
        assert (patient.ssn, patient.notes) == ("canary 1", "canary note 1")


def test_refresh_after_somebody_else_wrote(app: App) -> None:
    fill(app)
    with app.session() as session:
        patient = session.get_one(Patient, 1)
        session.commit()
        with app.session() as other:
            other.get_one(Patient, 1).ssn = "canary newer"
            other.commit()
        assert patient.ssn == "canary newer"
        session.rollback()
        with app.session() as other:
            other.get_one(Patient, 1).ssn = "canary newest"
            other.commit()
        loaded = session.scalars(select(Patient).where(Patient.id == 1).execution_options(populate_existing=True)).one()
        assert loaded is patient
        assert patient.ssn == "canary newest"


def test_joined_inheritance(app: App) -> None:
    app.add(Doctor(id=1, clinic_id=1, alias="canary a", ward="north", licence="canary l"), Person(id=2, clinic_id=2))
    app.cold()
    with app.session() as session:
        doctor, person = session.scalars(
            select(Person).order_by(Person.id).options(selectin_polymorphic(Person, [Doctor]))
        )
        assert isinstance(doctor, Doctor)
        assert (doctor.alias, doctor.licence, doctor.ward, person.alias) == ("canary a", "canary l", "north", None)
    with app.session() as session:
        assert session.get_one(Doctor, 1).licence == "canary l"
        late = session.scalars(select(Person).where(Person.id == 1)).one()
        assert isinstance(late, Doctor)
        assert late.licence == "canary l"


def test_single_table_inheritance(app: App) -> None:
    app.add(Animal(id=1, clinic_id=1, chip="canary c1"), Dog(id=2, clinic_id=2, chip="canary c2", bark="canary woof"))
    app.cold()
    with app.session() as session:
        animal, dog = session.scalars(select(Animal).order_by(Animal.id))
        assert (animal.chip, dog.chip) == ("canary c1", "canary c2")
        assert isinstance(dog, Dog)
        assert dog.bark == "canary woof"
        assert session.scalars(select(Dog.bark)).all() == ["canary woof"]


def test_a_detached_instance_keeps_its_values(app: App) -> None:
    fill(app)
    with app.session() as session:
        patient = session.get_one(Patient, 1)
    assert (patient.ssn, patient.notes) == ("canary 1", "canary note 1")


def test_many_owners_in_one_page(app: App) -> None:
    tenants = [uuid.UUID(int=number) for number in range(1, 41)]
    app.add(*(Device(id=n, tenant=tenant, code=f"canary {n}") for n, tenant in enumerate(tenants, 1)))
    app.cold()
    assert app.rows(select(Device.code).order_by(Device.id)) == [(f"canary {n}",) for n in range(1, 41)]
