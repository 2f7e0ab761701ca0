# SPDX-License-Identifier: Apache-2.0
"""`partition_scope`: a ceiling for reading and writing, and the owner of what cannot name its own."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import String, column, func, insert, select, text, type_coerce, update

from sa_asherah import (
    Encrypted,
    OwnerRequiredError,
    UnsupportedOperatorError,
    UsageError,
    WrongPartitionError,
    partition_scope,
)
from sa_asherah.errors import DecryptionError
from tests.orm.app import App
from tests.orm.models import Account, Patient, Setting

SSN = Encrypted(String(), label="patients.ssn")


def fill(app: App) -> None:
    app.add(Patient(id=1, clinic_id=1, ssn="canary 1"), Patient(id=2, clinic_id=2, ssn="canary 2"))
    app.cold()


def test_reading_is_limited(app: App) -> None:
    fill(app)
    query = select(Patient.ssn).order_by(Patient.id)
    with partition_scope("1", "2"):
        assert app.rows(query) == [("canary 1",), ("canary 2",)]
    with partition_scope("1"):
        assert app.rows(query.where(Patient.clinic_id == 1)) == [("canary 1",)]
        with pytest.raises(WrongPartitionError):
            app.rows(query)
        with app.session() as session, pytest.raises(WrongPartitionError):
            session.get(Patient, 2)
    assert app.rows(query) == [("canary 1",), ("canary 2",)]


def test_what_was_read_before_is_limited_too(app: App) -> None:
    fill(app)
    query = select(Patient.ssn).order_by(Patient.id)
    assert len(app.rows(query)) == 2
    with partition_scope("2"), pytest.raises(WrongPartitionError):
        app.rows(query)


def test_writing_is_limited(app: App) -> None:
    fill(app)
    with partition_scope("1"):
        app.execute(update(Patient).where(Patient.id == 1).values(ssn="canary 3"))
        for statement in (
            insert(Patient).values(id=3, clinic_id=2, ssn="canary"),
            insert(Patient).values([{"id": n, "clinic_id": n, "ssn": "canary"} for n in (1, 2)]),
            update(Patient).where(Patient.id == 2).values(ssn="canary"),
            update(Patient).where(Patient.id == 1).values(clinic_id=2, ssn="canary", notes=None),
        ):
            with pytest.raises(WrongPartitionError):
                app.execute(statement)
        with pytest.raises(WrongPartitionError):
            app.add(Patient(id=3, clinic_id=2, ssn="canary"))
        with app.session() as session:
            session.get_one(Patient, 1).clinic_id = 2
            with pytest.raises(WrongPartitionError):
                session.flush()
    assert app.rows(select(Patient.id, Patient.ssn).order_by(Patient.id)) == [(1, "canary 3"), (2, "canary 2")]


def test_scopes_narrow(app: App) -> None:
    fill(app)
    one = select(Patient.ssn).where(Patient.id == 1)
    with partition_scope("1", "2"), partition_scope("1", "3"):
        assert app.rows(one) == [("canary 1",)]
        with pytest.raises(WrongPartitionError):
            app.rows(select(Patient.ssn).where(Patient.id == 2))
        with partition_scope("2"), pytest.raises(WrongPartitionError):
            app.rows(one)
    with pytest.raises(UsageError):
        partition_scope().__enter__()
    with pytest.raises(UsageError):
        partition_scope(1).__enter__()  # type: ignore[arg-type] # the point


def test_partitions_are_named_as_the_template_says(app: App) -> None:
    app.add(Account(id=1, login="ann", hint="canary"))
    with partition_scope("account-ann"):
        assert app.rows(select(Account.hint)) == [("canary",)]
    with partition_scope("ann"), pytest.raises(WrongPartitionError):
        app.rows(select(Account.hint))


def test_a_column_without_owner(app: App) -> None:
    with pytest.raises(OwnerRequiredError):
        app.add(Setting(id=1, value="canary 1"))
    with partition_scope("1", "2"), pytest.raises(OwnerRequiredError):
        app.add(Setting(id=1, value="canary 1"))
    with partition_scope("1"):
        app.add(Setting(id=1, value="canary 1"))
        app.execute(insert(Setting), [{"id": 2, "value": "canary 2"}, {"id": 3, "value": None}])
        app.execute(update(Setting).where(Setting.id == 2).values(value="canary 2b"))
        with app.session() as session:
            session.get_one(Setting, 1).value = "canary 1b"
            session.commit()
    app.cold()
    with partition_scope("1"):
        assert app.rows(select(Setting.value).order_by(Setting.id)) == [("canary 1b",), ("canary 2b",), (None,)]
    with partition_scope("2"), pytest.raises(DecryptionError):
        app.rows(select(Setting.value))
    with pytest.raises(OwnerRequiredError):
        app.rows(select(Setting.value))
    assert app.rows(select(Setting.id).where(Setting.value.is_(None))) == [(3,)]


def test_text_needs_a_label_and_a_scope(app: App) -> None:
    fill(app)
    query = text("SELECT ssn AS s FROM patients WHERE id = 1")
    with pytest.raises(OwnerRequiredError):
        app.rows(query.columns(s=SSN))
    with partition_scope("1"):
        assert app.rows(query.columns(s=SSN)) == [("canary 1",)]
        with pytest.raises(OwnerRequiredError, match="label"):
            app.rows(query.columns(s=Encrypted(String())))
        with pytest.raises(DecryptionError):
            app.rows(query.columns(s=Encrypted(String(), label="patients.notes")))
    with partition_scope("2"), pytest.raises(DecryptionError):
        app.rows(query.columns(s=SSN))


def test_type_coerce_needs_a_label_and_a_scope(app: App) -> None:
    fill(app)
    newest: Any = func.coalesce(column("ssn"), column("ssn"))  # a column that SQLAlchemy knows nothing of
    query = select(type_coerce(newest, SSN)).select_from(Patient).where(Patient.id == 1)
    with partition_scope("1"):
        assert app.rows(query) == [("canary 1",)]
        with pytest.raises(UnsupportedOperatorError):
            app.rows(select(type_coerce(newest, Encrypted(String()))).select_from(Patient))
    with pytest.raises(OwnerRequiredError):
        app.rows(query)
