# SPDX-License-Identifier: Apache-2.0
"""SQL text, which this package does not read: values with a declared type, and without."""

from __future__ import annotations

from typing import Final

import pytest
from sqlalchemy import String, func, select, text, type_coerce

from sa_asherah import Encrypted, OwnerRequiredError, partition_scope
from sa_asherah.errors import DecryptionError
from tests.matrix.reading import SSNS, first
from tests.matrix.registration import reading
from tests.orm.app import App
from tests.orm.models import CANARY, Patient

NAMED: Final = Encrypted(String(), label="patients.ssn")
OF_CLINIC_1: Final = text("SELECT ssn FROM patients WHERE clinic_id = 1 ORDER BY id").columns(ssn=NAMED)
BY_COLUMN: Final = text("SELECT id, clinic_id, ssn FROM patients ORDER BY id").columns(
    Patient.id, Patient.clinic_id, Patient.ssn
)


@reading("from_statement(text(...)) of an entity")
def entities_of_text(app: App) -> None:
    with app.session() as session:
        session.scalars(select(Patient).from_statement(text("SELECT * FROM patients"))).all()


@reading('text(...).columns(ssn=Encrypted(String(), label="patients.ssn"))')
def typed_text(app: App) -> None:
    app.rows(OF_CLINIC_1)


@reading("text(...).columns(...) with a label, in a partition_scope of one partition")
def typed_text_in_a_scope(app: App) -> None:
    with partition_scope("1"):
        assert first(app, OF_CLINIC_1) == SSNS[:2]
    with partition_scope("2"), pytest.raises(DecryptionError):
        app.rows(OF_CLINIC_1)
    wrong = text("SELECT notes FROM patients WHERE id = 1").columns(notes=NAMED)
    with partition_scope("1"), pytest.raises(DecryptionError):
        app.rows(wrong)


@reading("text(...).columns(...) as a subquery")
def text_as_a_subquery(app: App) -> None:
    inner = OF_CLINIC_1.subquery()
    with partition_scope("1"):
        assert first(app, select(type_coerce(inner.c.ssn, NAMED))) == SSNS[:2]
        app.rows(select(inner.c.ssn))


@reading("text(...).columns(Patient.ssn)")
def text_typed_by_a_column(app: App) -> None:
    with pytest.raises(OwnerRequiredError):
        app.rows(BY_COLUMN)
    with partition_scope("1"):
        app.rows(BY_COLUMN)


@reading('type_coerce(expression, Encrypted(String(), label="patients.ssn"))')
def coerced(app: App) -> None:
    query = select(type_coerce(text("ssn"), NAMED)).select_from(Patient).where(Patient.clinic_id == 1)
    with partition_scope("1"):
        assert sorted(first(app, query)) == SSNS[:2]
        of_function = select(type_coerce(func.substr(text("ssn"), 1), NAMED)).select_from(Patient)
        assert sorted(first(app, of_function.where(Patient.clinic_id == 1))) == SSNS[:2]
    with pytest.raises(OwnerRequiredError):
        app.rows(query)


@reading("text(...) without types, exec_driver_sql", opens=False)
def untyped_text(app: App) -> None:
    with app.engine.connect() as connection:
        for result in (
            connection.execute(text("SELECT ssn FROM patients")),
            connection.exec_driver_sql("SELECT ssn FROM patients"),
        ):
            stored = [bytes(value) for value in result.scalars()]
            assert len(stored) == 3
            assert all(cell[:2] == b"\xa5\x01" and CANARY.encode() not in cell for cell in stored)
