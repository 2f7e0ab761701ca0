# SPDX-License-Identifier: Apache-2.0
"""What a flush writes: new, changed, moved and deleted instances."""

from __future__ import annotations

import uuid

import pytest
from sqlalchemy import delete, select
from sqlalchemy.orm import defer, load_only

from sa_asherah import OwnerRequiredError
from tests.orm.app import App
from tests.orm.models import Animal, Clinic, Doctor, Dog, Ledger, Note, Patient, Person, User, Visit
from tests.orm.patients import fill, read


def test_the_database_holds_cells(app: App) -> None:
    fill(app)
    stored = [bytes(row["ssn"]) for row in app.stored("patients")]
    assert all(cell[:4] == b"\xa5\x01\x01\x00" and len(cell) == 88 + 1 + len("canary 1") for cell in stored)
    assert stored[0][4:28] == stored[1][4:28], "one statement and one owner share a salt"
    assert app.stored("patients")[1]["notes"] is None


def test_inserted_instances_are_readable_at_once(app: App) -> None:
    with app.session() as session:
        patient = Patient(clinic_id=1, ssn="canary 1")
        session.add(patient)
        session.flush()
        assert patient.ssn == "canary 1"
        session.refresh(patient)
        assert (patient.ssn, patient.notes) == ("canary 1", None)
        session.commit()
        assert patient.ssn == "canary 1"


def test_the_empty_text_is_encrypted_and_none_is_null(app: App) -> None:
    app.add(Patient(id=1, clinic_id=1, ssn="", notes=None))
    assert read(app) == [(1, "", None)]
    assert app.stored("patients")[0]["ssn"] is not None


def test_the_owner_comes_from_a_relationship(app: App) -> None:
    with app.session() as session:
        session.add(Clinic(id=9, patients=[Patient(id=1, ssn="canary 1"), Patient(id=2, ssn="canary 2")]))
        session.add(Patient(id=3, clinic=Clinic(id=10, name="made in the same flush"), notes="canary note"))
        session.commit()
    rows = read(app)
    assert rows[:2] == [(9, "canary 1", None), (9, "canary 2", None)]
    assert rows[2][2] == "canary note"


def test_a_row_without_owner_may_hold_nothing(app: App) -> None:
    app.add(Patient(id=1, name="nobody's"))
    assert read(app) == [(None, None, None)]
    with pytest.raises(OwnerRequiredError, match="clinic_id"):
        app.add(Patient(id=2, ssn="canary"))
    assert len(read(app)) == 1


def test_updates_of_one_column(app: App) -> None:
    fill(app)
    with app.session() as session:
        session.get_one(Patient, 1).ssn = "canary changed"
        session.commit()
    assert read(app, 1) == [(1, "canary changed", "canary note 1")]


def test_updates_of_many_rows_in_one_flush(app: App) -> None:
    app.add(*(Patient(id=n, clinic_id=n % 3 + 1, ssn=f"canary {n}") for n in range(1, 10)))
    with app.session() as session:
        for patient in session.scalars(select(Patient)):
            patient.ssn = f"canary changed {patient.id}"
            patient.notes = f"canary note {patient.id}" if patient.id % 2 else None
        session.commit()
    assert [row[1] for row in read(app)] == [f"canary changed {n}" for n in range(1, 10)]


def test_setting_to_none_and_back(app: App) -> None:
    fill(app)
    with app.session() as session:
        patient = session.get_one(Patient, 1)
        patient.ssn = None
        session.flush()
        assert session.scalar(select(Patient.ssn.is_(None)).where(Patient.id == 1))
        patient.ssn = "canary back"
        session.commit()
    assert read(app, 1) == [(1, "canary back", "canary note 1")]


def test_an_unchanged_value_writes_nothing(app: App) -> None:
    fill(app)
    before = app.stored("patients")
    with app.session() as session:
        patient = session.get_one(Patient, 1)
        assert patient.ssn == "canary 1"
        patient.ssn = "canary 1"
        session.commit()
    assert app.stored("patients") == before


def test_updates_of_other_columns_leave_the_ciphertext(app: App) -> None:
    fill(app)
    before = [row["ssn"] for row in app.stored("patients")]
    with app.session() as session:
        session.get_one(Patient, 1).name = "renamed"
        session.commit()
    assert [row["ssn"] for row in app.stored("patients")] == before
    assert read(app, 1) == [(1, "canary 1", "canary note 1")]


def test_updates_of_expired_instances(app: App) -> None:
    fill(app)
    with app.session() as session:
        patient = session.get_one(Patient, 1)
        session.commit()
        patient.ssn = "canary changed"
        session.commit()
        assert patient.notes == "canary note 1"
    assert read(app, 1) == [(1, "canary changed", "canary note 1")]


def test_updates_of_partly_loaded_instances(app: App) -> None:
    fill(app)
    with app.session() as session:
        patient = session.scalars(select(Patient).options(load_only(Patient.name)).where(Patient.id == 1)).one()
        patient.notes = "canary changed"
        session.commit()
    assert read(app, 1) == [(1, "canary 1", "canary changed")]


def test_updates_of_instances_whose_owner_may_not_be_loaded(app: App) -> None:
    fill(app)
    with app.session() as session:
        options = defer(Patient.clinic_id, raiseload=True), defer(Patient.notes, raiseload=True)
        patient = session.scalars(select(Patient).options(*options).where(Patient.id == 1)).one()
        patient.ssn = "canary changed"
        session.commit()
    assert read(app, 1) == [(1, "canary changed", "canary note 1")]


def test_merging_a_detached_instance(app: App) -> None:
    fill(app)
    with app.session() as session:
        patient = session.get_one(Patient, 1)
    patient.ssn = "canary changed"
    with app.session() as session:
        session.merge(patient)
        session.commit()
    assert read(app, 1) == [(1, "canary changed", "canary note 1")]
    with app.session() as session:
        session.merge(Patient(id=1, clinic_id=2, ssn="canary merged"))
        session.merge(Patient(id=7, clinic_id=3, ssn="canary new"))
        session.commit()
    assert read(app, 1, 7) == [(2, "canary merged", "canary note 1"), (3, "canary new", None)]


def test_adding_a_detached_instance_again(app: App) -> None:
    fill(app)
    with app.session() as session:
        patient = session.get_one(Patient, 1)
    patient.notes = "canary changed"
    with app.session() as session:
        session.add(patient)
        session.commit()
    assert read(app, 1) == [(1, "canary 1", "canary changed")]


def test_a_new_owner_of_a_loaded_row_reencrypts_it(app: App) -> None:
    fill(app)
    before = app.stored("patients")
    with app.session() as session:
        patient = session.get_one(Patient, 1)
        assert patient.ssn == "canary 1"
        patient.clinic_id = 2
        session.commit()
    assert read(app, 1) == [(2, "canary 1", "canary note 1")]
    after = app.stored("patients")
    assert after[0]["ssn"] != before[0]["ssn"]
    assert after[0]["notes"] != before[0]["notes"]
    assert after[1] == before[1]


def test_a_new_owner_of_an_expired_row_reencrypts_it(app: App) -> None:
    fill(app)
    with app.session() as session:
        patient = session.get_one(Patient, 1)
        session.commit()
        patient.clinic_id = 2
        session.commit()
    assert read(app, 1) == [(2, "canary 1", "canary note 1")]


def test_a_new_owner_of_a_row_with_unloaded_columns_reencrypts_them(app: App) -> None:
    fill(app)
    with app.session() as session:
        patient = session.scalars(select(Patient).options(load_only(Patient.name)).where(Patient.id == 1)).one()
        patient.clinic_id = 2
        patient.notes = "canary changed"
        session.commit()
    assert read(app, 1) == [(2, "canary 1", "canary changed")]


def test_a_new_owner_through_a_relationship_reencrypts_the_row(app: App) -> None:
    fill(app)
    with app.session() as session:
        second = session.get_one(Clinic, 2)
        session.get_one(Patient, 1).clinic = session.get_one(Clinic, 3)
        second.patients.append(session.get_one(Patient, 2))
        session.commit()
    assert read(app) == [(3, "canary 1", "canary note 1"), (2, "canary 2", None)]


def test_a_new_owner_and_new_values_in_one_flush_and_back_again(app: App) -> None:
    fill(app)
    with app.session() as session:
        patient = session.get_one(Patient, 1)
        patient.clinic_id, patient.ssn = 2, "canary changed"
        session.flush()
        patient.clinic_id = 1
        session.flush()
        patient.notes = "canary last"
        session.commit()
    assert read(app, 1) == [(1, "canary changed", "canary last")]


def test_taking_the_owner_away_is_refused_while_values_are_there(app: App) -> None:
    fill(app)
    with app.session() as session:
        session.get_one(Patient, 1).clinic = None
        with pytest.raises(OwnerRequiredError, match="becomes NULL"):
            session.flush()
        session.rollback()
    with app.session() as session:
        session.delete(session.get_one(Clinic, 1))
        with pytest.raises(OwnerRequiredError, match="becomes NULL"):
            session.flush()
    with app.session() as session:
        patient = session.get_one(Patient, 1)
        patient.clinic_id = patient.ssn = patient.notes = None
        session.commit()
    assert read(app) == [(None, None, None), (1, "canary 2", None)]


def test_deleting(app: App) -> None:
    fill(app)
    with app.session() as session:
        session.delete(session.get_one(Patient, 1))
        session.commit()
        session.execute(delete(Patient).where(Patient.ssn.is_(None)))
        session.commit()
    assert read(app) == [(1, "canary 2", None)]


def test_rows_that_own_themselves(app: App) -> None:
    user = User(name="a", mail="canary mail")
    with app.session() as session:
        session.add(user)
        session.flush()
        assert isinstance(user.id, uuid.UUID)
        user.mail = "canary second"
        session.commit()
        user.mail = "canary third"
        session.commit()
    app.cold()
    assert app.rows(select(User.mail)) == [("canary third",)]


def test_an_owner_in_the_primary_key(app: App) -> None:
    app.add(Ledger(tenant_id=1, number=1, entry="canary 1"), Ledger(tenant_id=2, number=1, entry="canary 2"))
    with app.session() as session:
        one, two = session.scalars(select(Ledger).order_by(Ledger.tenant_id))
        one.entry = "canary changed"
        two.tenant_id = 3
        session.commit()
    app.cold()
    query = select(Ledger.tenant_id, Ledger.entry).order_by(Ledger.tenant_id)
    assert app.rows(query) == [(1, "canary changed"), (3, "canary 2")]


def test_joined_inheritance_has_an_owner_for_each_table(app: App) -> None:
    app.add(Doctor(id=1, clinic_id=1, alias="canary a", ward="north", licence="canary l"))
    with app.session() as session:
        doctor = session.get_one(Doctor, 1)
        doctor.licence = "canary l2"
        session.commit()
        doctor.alias = "canary a2"
        session.commit()
        doctor.ward = "south"
        session.commit()
        doctor.clinic_id = 2
        session.commit()
    app.cold()
    query = select(Doctor.clinic_id, Doctor.ward, Doctor.alias, Doctor.licence)
    assert app.rows(query) == [(2, "south", "canary a2", "canary l2")]
    assert app.rows(select(Person.alias)) == [("canary a2",)]


def test_single_table_inheritance(app: App) -> None:
    app.add(Animal(id=1, clinic_id=1, chip="canary c1"), Dog(id=2, clinic_id=1, chip="canary c2", bark="canary woof"))
    with app.session() as session:
        animal, dog = session.scalars(select(Animal).order_by(Animal.id))
        animal.chip = "canary c3"
        dog.clinic_id = 2
        session.commit()
    app.cold()
    query = select(Animal.clinic_id, Animal.chip).order_by(Animal.id)
    assert app.rows(query) == [(1, "canary c3"), (2, "canary c2")]
    assert app.rows(select(Dog.bark)) == [("canary woof",)]


def test_attribute_key_and_name_may_differ(app: App) -> None:
    app.add(Visit(id=1, place_id=1, finding="canary f"))
    with app.session() as session:
        visit = session.get_one(Visit, 1)
        visit.finding = "canary f2"
        session.commit()
        visit.place_id = 2
        session.commit()
    app.cold()
    assert app.rows(select(Visit.place_id, Visit.finding)) == [(2, "canary f2")]


def test_defaults_are_on_the_instance_and_in_the_database(app: App) -> None:
    note = Note(id=1, title="red")
    with app.session() as session:
        session.add(note)
        session.flush()
        first = note.revision
        assert (note.author, note.body) == ("team red", "canary draft")
        assert first is not None
        note.body = "canary body"
        session.commit()
        second = note.revision
        assert second not in {None, first}
        note.title = "blue"
        session.commit()
        assert note.revision not in {None, first, second}
        note.author = "somebody"
        session.commit()
        last = note.revision
    app.cold()
    assert app.rows(select(Note.author, Note.body, Note.revision)) == [("somebody", "canary body", last)]
