# SPDX-License-Identifier: Apache-2.0
"""`asherah.unreadable("mark")`: one bad cell does not stop a page, and hides nothing else."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from sqlalchemy import select, text, update

from sa_asherah import (
    DecryptionError,
    KeyNotFoundError,
    KmsError,
    MalformedCellError,
    OwnerRequiredError,
    Unreadable,
    UnsupportedValueError,
    UsageError,
    WrongPartitionError,
    WrongPlaceError,
    partition_scope,
)
from tests.orm.app import App
from tests.orm.models import Passport, Patient
from tests.orm.patients import fill

PAGE = select(Patient.id, Patient.ssn, Patient.notes).order_by(Patient.id)


def damage(app: App, statement: str, **parameters: Any) -> None:
    with app.engine.begin() as connection:
        connection.execute(text(statement), parameters)
    app.cold()


def cell_of(app: App, column: str, row: int = 1) -> bytes:
    return bytes(next(each[column] for each in app.stored("patients") if each["id"] == row))


def test_a_bad_cell_is_marked_and_the_others_are_read(app: App) -> None:
    fill(app)
    damage(app, "UPDATE patients SET ssn = :cell WHERE id = 1", cell=cell_of(app, "notes"))
    with app.asherah.unreadable("mark"):
        (number, mark, notes), other = app.rows(PAGE)
    assert (number, notes, other) == (1, "canary note 1", (2, "canary 2", None))
    assert isinstance(mark, Unreadable)
    assert (mark.label, mark.reason, bool(mark)) == ("patients.ssn", WrongPlaceError, False)
    assert repr(mark) == "<unreadable patients.ssn: WrongPlaceError>"
    with pytest.raises(WrongPlaceError):
        app.rows(PAGE)
    with app.asherah.unreadable("mark"), app.asherah.unreadable("raise"), pytest.raises(WrongPlaceError):
        app.rows(PAGE)


def test_the_reason_is_the_error_that_reading_raises(app: App) -> None:
    fill(app)
    good = cell_of(app, "ssn")
    keyless = good[:4] + (12345).to_bytes(8, "big") + good[12:]
    changed = good[:59] + bytes([good[59] ^ 1]) + good[60:]
    cells = {MalformedCellError: b"plain", KeyNotFoundError: keyless, DecryptionError: changed}
    for reason, cell in cells.items():
        damage(app, "UPDATE patients SET ssn = :cell WHERE id = 1", cell=cell)
        with app.asherah.unreadable("mark"):
            assert app.rows(PAGE)[0][1].reason is reason
    damage(app, "UPDATE patients SET ssn = :cell, clinic_id = NULL WHERE id = 1", cell=good)
    with app.asherah.unreadable("mark"):
        assert [value.reason for value in app.rows(PAGE)[0][1:]] == [OwnerRequiredError, OwnerRequiredError]


def test_values_of_every_form_are_marked(app: App) -> None:
    app.add(Passport(clinic_id=1, place="a", number="canary", names="canary", memo="canary", scan=b"canary"))
    damage(app, "UPDATE passports SET number = names, scan = memo")
    with app.asherah.unreadable("mark"):
        (found,) = app.rows(select(Passport.number, Passport.names, Passport.memo, Passport.scan))
    assert [getattr(value, "reason", value) for value in found] == [
        MalformedCellError, "canary", "canary", MalformedCellError,
    ]  # fmt: skip


def test_a_mark_is_not_written_back(app: App) -> None:
    fill(app)
    damage(app, "UPDATE patients SET ssn = :cell WHERE id = 1", cell=cell_of(app, "notes"))
    with app.session() as session, app.asherah.unreadable("mark"):
        patient = session.get_one(Patient, 1)
        patient.notes = "canary note new"
        session.flush()
        patient.clinic_id = 2
        with pytest.raises(UnsupportedValueError, match="could not be read"):
            session.flush()
        session.rollback()
        patient = session.get_one(Patient, 1)
        patient.clinic_id, patient.ssn = 2, "canary new"
        session.commit()
    with pytest.raises(UnsupportedValueError, match="could not be read"):
        app.execute(update(Patient).where(Patient.id == 1).values(ssn=Unreadable("patients.ssn", WrongPlaceError)))
    app.cold()
    assert app.rows(PAGE)[0] == (1, "canary new", "canary note 1")


def test_what_is_not_the_value_s_fault_is_raised(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(app)
    with app.asherah.unreadable("mark"):
        with partition_scope("2"), pytest.raises(WrongPartitionError):
            app.rows(PAGE)
        inner = select(Patient.ssn).subquery()
        with pytest.raises(OwnerRequiredError):
            app.rows(select(inner.c.ssn))
        app.cold()
    with app.asherah.unreadable("mark"):

        def fail(*_: object) -> bytes:
            raise KmsError("the key service is away")

        monkeypatch.setattr(type(app.kms), "decrypt_key", fail)
        with pytest.raises(KmsError):
            app.rows(PAGE)


def test_another_asherah_marks_nothing_here(app: App) -> None:
    fill(app)
    damage(app, "UPDATE patients SET ssn = :cell WHERE id = 1", cell=cell_of(app, "notes"))
    with app.new_asherah().unreadable("mark"), pytest.raises(WrongPlaceError):
        app.rows(PAGE)
    with pytest.raises(UsageError), app.asherah.unreadable("ignore"):  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
        pass


def test_a_mark_can_be_pickled() -> None:
    mark = pickle.loads(pickle.dumps(Unreadable("patients.ssn", WrongPlaceError)))  # noqa: S301
    assert (mark.label, mark.reason) == ("patients.ssn", WrongPlaceError)
