# SPDX-License-Identifier: Apache-2.0
"""Flushes that are refused, fail or are undone: nothing half-written stays, and the session goes on."""

from __future__ import annotations

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm.exc import StaleDataError

from sa_asherah import OwnerChangedError, UnsupportedValueError
from tests.orm.app import App
from tests.orm.models import Patient
from tests.orm.patients import fill, read


def test_an_owner_changed_by_another_session_is_noticed(app: App) -> None:
    fill(app)
    with app.session(expire_on_commit=False) as session:
        patients = session.scalars(select(Patient).order_by(Patient.id)).all()
        session.commit()
        app.execute(update(Patient).where(Patient.id == 1), {"clinic_id": 2, "ssn": "canary moved", "notes": None})
        for patient in patients:
            patient.ssn = "canary late"
        with pytest.raises(OwnerChangedError) as caught:
            session.flush()
        assert isinstance(caught.value, StaleDataError)
    assert read(app) == [(2, "canary moved", None), (1, "canary 2", None)]


def test_a_failed_flush_leaves_nothing_behind(app: App) -> None:
    fill(app)
    with app.session() as session:
        session.get_one(Patient, 1).ssn = "canary changed"
        session.add(Patient(id=2, clinic_id=1, ssn="canary double"))
        with pytest.raises(IntegrityError) as caught:
            session.flush()
        assert "canary" not in f"{caught.value}{caught.value.params}"
        session.rollback()
        session.get_one(Patient, 2).ssn = "canary fine"
        session.commit()
    assert read(app) == [(1, "canary 1", "canary note 1"), (1, "canary fine", None)]


def test_a_value_of_another_kind_is_refused(app: App) -> None:
    with pytest.raises(UnsupportedValueError, match="does not fit"):
        app.add(Patient(id=1, clinic_id=1, ssn=12))
    with app.session() as session:
        session.add(Patient(id=1, clinic_id=1, ssn=func.lower("canary")))
        with pytest.raises(UnsupportedValueError, match="SQL expression"):
            session.flush()
    assert read(app) == []


def test_savepoints(app: App) -> None:
    with app.session() as session:
        session.add(Patient(id=1, clinic_id=1, ssn="canary 1"))
        with session.begin_nested() as savepoint:
            session.add(Patient(id=2, clinic_id=2, ssn="canary 2"))
            session.flush()
            savepoint.rollback()
        session.add(Patient(id=3, clinic_id=2, ssn="canary 3"))
        session.commit()
    assert read(app) == [(1, "canary 1", None), (2, "canary 3", None)]
