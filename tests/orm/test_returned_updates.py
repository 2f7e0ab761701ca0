# SPDX-License-Identifier: Apache-2.0
"""UPDATE … RETURNING and upserts that name an entity: the guard counts, and the inserted row is recognised."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.exc import CompileError, DBAPIError

from sa_asherah import OwnerChangedError
from tests.orm.app import App
from tests.orm.models import Patient


def fill(app: App) -> None:
    app.add(
        Patient(id=1, clinic_id=1, ssn="canary 1", notes="canary note 1"),
        Patient(id=2, clinic_id=2, ssn="canary 2", notes="canary note 2"),
    )


def test_an_update_by_primary_key_returns_the_row_it_wrote(app: App) -> None:
    fill(app)
    columns: list[Any] = [Patient.id, Patient.ssn]
    for returned in (columns, columns[::-1]):
        update_one: Any = update(Patient).where(Patient.id == 1).values(ssn="canary new")
        statement = update_one.returning(*returned)
        if app.dialect == "mariadb":  # it has no UPDATE ... RETURNING
            with pytest.raises((CompileError, DBAPIError)):
                app.rows(statement)
        else:
            assert {frozenset(row) for row in app.rows(statement)} == {frozenset((1, "canary new"))}


def test_an_update_by_another_column_returns_the_rows_it_wrote(app: App) -> None:
    if app.dialect == "mariadb":
        return  # it has no UPDATE ... RETURNING
    fill(app)
    statement = update(Patient).where(Patient.clinic_id == 2).values(notes="canary new")
    assert app.rows(statement.returning(Patient.id, Patient.notes)) == [(2, "canary new")]
    assert app.rows(statement.where(Patient.id == 1).returning(Patient.notes)) == []


def upsert(app: App, values: list[dict[str, Any]], *names: str) -> Any:
    """INSERT of the entity that sets these columns to the inserted values where the row exists."""
    if app.dialect == "mariadb":
        statement = mysql.insert(Patient).values(values)
        return statement.on_duplicate_key_update({name: statement.inserted[name] for name in names})
    kind = sqlite.insert if app.dialect == "sqlite" else postgresql.insert
    insert = kind(Patient).values(values)
    return insert.on_conflict_do_update(
        index_elements=[Patient.id], set_={name: insert.excluded[name] for name in names}
    )


def test_an_upsert_of_an_entity_takes_the_inserted_owner_and_values(app: App) -> None:
    fill(app)
    rows = [
        {"id": 1, "clinic_id": 3, "ssn": "canary new 1", "notes": None},
        {"id": 3, "clinic_id": 2, "ssn": "canary new 3", "notes": "canary new 3"},
    ]
    app.execute(upsert(app, rows, "clinic_id", "ssn", "notes"))
    app.cold()
    query = select(Patient.id, Patient.clinic_id, Patient.ssn, Patient.notes).order_by(Patient.id)
    assert app.rows(query) == [
        (1, 3, "canary new 1", None),
        (2, 2, "canary 2", "canary note 2"),
        (3, 2, "canary new 3", "canary new 3"),
    ]


@pytest.mark.parametrize("names", [("ssn", "notes"), ("clinic_id", "ssn"), ("ssn",), ("clinic_id",)], ids="-".join)
def test_an_upsert_of_an_entity_that_leaves_out_the_owner_or_a_column_is_refused(
    app: App, names: tuple[str, ...]
) -> None:
    fill(app)
    before = app.stored("patients")
    row = {"id": 1, "clinic_id": 2, "ssn": "canary new", "notes": "canary new"}
    with pytest.raises(OwnerChangedError):
        app.execute(upsert(app, [row], *names))
    assert app.stored("patients") == before
