# SPDX-License-Identifier: Apache-2.0
"""Which INSERTs are allowed, defaults, INSERT FROM SELECT and RETURNING."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from sqlalchemy import delete, func, insert, literal, null, select, union_all, update

from sa_asherah import OwnerChangedError, OwnerRequiredError, UnsupportedValueError, UsageError
from tests.orm.app import App
from tests.orm.models import Letter, Note, Patient, User, Visit, archive, drafts, letters, table_of
from tests.orm.traces import assert_no_traces


def read(app: App) -> list[tuple[Any, ...]]:
    app.cold()
    return app.rows(select(letters).order_by(letters.c.id))


def test_a_missing_owner_is_refused(app: App) -> None:
    for statement, parameters in (
        (insert(letters).values(id=1, body="canary"), None),
        (insert(letters).values([{"id": 1, "body": "canary"}, {"id": 2, "body": "canary"}]), None),
        (insert(letters), {"id": 1, "body": "canary"}),
        (
            insert(letters),
            [{"id": 1, "clinic_id": None, "body": "canary"}, {"id": 2, "clinic_id": 2, "body": "canary"}],
        ),
        (insert(letters).values(id=1, clinic_id=None, body="canary"), None),
    ):
        with pytest.raises(OwnerRequiredError, match="clinic_id"):
            app.execute(statement, parameters)
    assert_no_traces(app.engine)
    assert read(app) == []


def test_a_row_that_holds_nothing_needs_no_owner(app: App) -> None:
    app.execute(insert(letters), [{"id": 1}, {"id": 2}])
    app.execute(insert(letters).values(id=3, body=None))
    assert read(app) == [(1, None, None, None), (2, None, None, None), (3, None, None, None)]


def test_owners_of_other_kinds_are_refused(app: App) -> None:
    for owner in ("1", True, 1.0, b"1"):
        with pytest.raises(OwnerRequiredError, match="kind 'int'"):
            app.execute(insert(letters), {"id": 1, "clinic_id": owner, "body": "canary"})
    assert read(app) == []


def test_expressions_are_no_values(app: App) -> None:
    for value in (
        func.lower("canary"), func.coalesce(null(), "canary"), literal("canary") + "x",
        select(literal("canary")).scalar_subquery(), select(letters.c.body).scalar_subquery(),
    ):  # fmt: skip
        with pytest.raises(UnsupportedValueError, match="SQL expression"):
            app.execute(insert(letters).values(id=1, clinic_id=1, body=value))
        with pytest.raises(UnsupportedValueError, match="SQL expression"):
            app.execute(insert(letters).values([{"id": 1, "clinic_id": 1, "body": value}]))
    with pytest.raises(UsageError):
        app.execute(insert(letters).values(id=1, clinic_id=func.abs(1), body="canary"))
    assert_no_traces(app.engine)
    assert read(app) == []


def test_defaults_are_evaluated_for_each_row(app: App) -> None:
    notes = table_of(Note)
    app.execute(insert(notes), [{"id": 1, "title": "red"}, {"id": 2, "title": "blue"}])
    app.execute(insert(notes).values(id=3, title="green", body="canary given"))
    app.execute(insert(notes).values([{"id": 4, "title": "x"}, {"id": 5, "title": "y"}]))
    app.cold()
    rows = app.rows(select(Note.author, Note.body, Note.revision).order_by(Note.id))
    assert [row[0] for row in rows] == ["team red", "team blue", "team green", "team x", "team y"]
    assert [row[1] for row in rows] == ["canary draft", "canary draft", "canary given", "canary draft", "canary draft"]
    assert len({row[2] for row in rows}) == 5


def test_a_client_made_key_can_be_the_owner(app: App) -> None:
    users = table_of(User)
    app.execute(insert(users), [{"mail": "canary 1"}, {"mail": "canary 2"}])
    app.execute(insert(users).values(mail="canary 3"))
    with app.session() as session:
        session.execute(insert(User), [{"mail": "canary 4"}, {"mail": "canary 5", "id": uuid.uuid4()}])
        session.commit()
    app.cold()
    assert {mail for (mail,) in app.rows(select(User.mail))} == {f"canary {n}" for n in range(1, 6)}


def test_the_key_of_a_single_insert_is_known(app: App) -> None:
    with app.engine.begin() as connection:
        result = connection.execute(insert(letters).values(clinic_id=1, body="canary"))
        assert result.inserted_primary_key is not None
        number = result.inserted_primary_key[0]
    assert [row[0] for row in read(app)] == [number]


def test_names_of_attributes(app: App) -> None:
    with app.session() as session:
        session.execute(insert(Visit).values(id=1, place_id=1, finding="canary 1"))
        session.execute(insert(Visit).values({Visit.id: 2, Visit.place_id: 2, Visit.finding: "canary 2"}))
        session.execute(insert(Visit), [{"id": 3, "place_id": 1, "finding": "canary 3"}])
        session.execute(insert(Visit).values([{"id": 4, "place_id": 1, "finding": "canary 4"}]))
        session.bulk_insert_mappings(Visit.__mapper__, [{"id": 5, "place_id": 2, "finding": "canary 5"}])
        session.commit()
    app.cold()
    assert app.rows(select(Visit.finding).order_by(Visit.id)) == [(f"canary {n}",) for n in range(1, 6)]


def test_returning_from_insert_update_and_delete(app: App) -> None:
    rows = [{"id": n, "clinic_id": n, "ssn": f"canary {n}"} for n in (1, 2)]
    query = insert(Patient).returning(Patient.ssn, Patient.clinic_id)
    with app.session() as session:
        assert sorted(session.execute(query, rows).all()) == [("canary 1", 1), ("canary 2", 2)]
        added = session.scalars(insert(Patient).returning(Patient), [{"id": 3, "clinic_id": 3, "notes": "canary n"}])
        assert added.one().notes == "canary n"
        if app.dialect != "mariadb":  # it has no UPDATE … RETURNING
            change = update(Patient).where(Patient.id == 1).values(ssn="canary new")
            assert session.execute(change.returning(Patient.ssn, Patient.notes)).all() == [("canary new", None)]
            assert session.scalars(change.values(ssn="canary 1").returning(Patient)).one().ssn == "canary 1"
        gone = delete(Patient).where(Patient.id < 3).returning(Patient.ssn)
        assert sorted(map(str, session.scalars(gone))) == ["canary 1", "canary 2"]
        session.commit()
    assert app.rows(select(Patient.notes)) == [("canary n",)]


def test_returning_without_the_owner(app: App) -> None:
    with app.engine.begin() as connection:
        statement = insert(letters).returning(letters.c.body)
        assert connection.execute(statement, {"id": 1, "clinic_id": 1, "body": "canary"}).scalars().all() == ["canary"]


def fill_drafts(app: App) -> None:
    app.execute(insert(drafts), [{"id": n, "clinic_id": n, "body": f"canary {n}"} for n in (1, 2)])


COLUMNS = ["id", "clinic_id", "body"]


def test_from_select_copies_cells_with_their_owner(app: App) -> None:
    fill_drafts(app)
    source = select(drafts.c.id, drafts.c.clinic_id, drafts.c.body)
    app.execute(insert(letters).from_select(COLUMNS, source.where(drafts.c.id == 1)))
    inner = source.where(drafts.c.id == 2).subquery()
    app.execute(insert(letters).from_select([letters.c.id, letters.c.clinic_id, letters.c.body], select(inner)))
    app.execute(insert(letters).from_select(COLUMNS, select(drafts.c.id + 10, drafts.c.clinic_id, null())))
    both = union_all(*(select(drafts.c.id + n, drafts.c.clinic_id, drafts.c.body) for n in (20, 30)))
    app.execute(insert(letters).from_select(COLUMNS, both))
    assert [row[:3] for row in read(app)] == [
        (1, 1, "canary 1"), (2, 2, "canary 2"), (11, 1, None), (12, 2, None),
        (21, 1, "canary 1"), (22, 2, "canary 2"), (31, 1, "canary 1"), (32, 2, "canary 2"),
    ]  # fmt: skip


def test_from_select_of_anything_else_is_refused(app: App) -> None:
    fill_drafts(app)
    app.execute(insert(archive), {"id": 1, "clinic_id": 1, "body": "canary a"})
    other = drafts.alias()
    for source in (
        select(drafts.c.id, literal(2), drafts.c.body),
        select(drafts.c.id, drafts.c.clinic_id + 1, drafts.c.body),
        select(drafts.c.id, other.c.clinic_id, drafts.c.body).join(other, other.c.id != drafts.c.id),
        select(archive.c.id, archive.c.clinic_id, archive.c.body),
        select(literal(1), literal(1), literal("canary")),
        select(drafts.c.id, drafts.c.clinic_id, func.coalesce(drafts.c.body, literal("canary"))),
        select(Patient.id, Patient.clinic_id, Patient.name),
    ):
        with pytest.raises(UsageError):
            app.execute(insert(letters).from_select(COLUMNS, source))
    with pytest.raises(OwnerChangedError):
        app.execute(insert(letters).from_select(["id", "body"], select(drafts.c.id, drafts.c.body)))
    assert_no_traces(app.engine)
    assert read(app) == []


def test_from_select_of_plain_columns(app: App) -> None:
    fill_drafts(app)
    app.execute(insert(letters).from_select(["id", "clinic_id"], select(drafts.c.id, drafts.c.clinic_id)))
    assert read(app) == [(1, 1, None, None), (2, 2, None, None)]


def test_ciphertext_into_a_plain_column_is_refused(app: App) -> None:
    fill_drafts(app)
    with pytest.raises(UsageError):
        app.execute(insert(Patient).from_select(["id", "name"], select(drafts.c.id, drafts.c.body)))
    with pytest.raises(UsageError):
        app.execute(insert(Patient).values(id=1, name=select(drafts.c.body).limit(1).scalar_subquery()))


def test_a_page_of_many_owners_and_rows(app: App) -> None:
    rows = [{"id": n, "clinic_id": n % 3 + 1, "body": f"canary {n}"} for n in range(1, 301)]
    with app.session() as session:
        found = session.execute(insert(Letter).returning(Letter.id, Letter.body, sort_by_parameter_order=True), rows)
        assert [tuple(row) for row in found] == [(row["id"], row["body"]) for row in rows]
        session.commit()
    assert [row[2] for row in read(app)] == [row["body"] for row in rows]
