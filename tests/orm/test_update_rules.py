# SPDX-License-Identifier: Apache-2.0
"""Which UPDATEs are allowed, by the owners of the rows they match."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import bindparam, func, literal, select, update
from sqlalchemy.orm import Session, with_loader_criteria

from sa_asherah import OwnerChangedError, OwnerRequiredError, UnsupportedValueError, UsageError
from tests.orm.app import App
from tests.orm.models import Animal, Dog, Ledger, Letter, Note, Patient, Visit, letters, table_of
from tests.orm.shapes import BEFORE
from tests.orm.traces import assert_no_traces


def fill(app: App) -> None:
    app.execute(letters.insert(), BEFORE)


def read(app: App) -> list[tuple[Any, ...]]:
    app.cold()
    return app.rows(select(letters).order_by(letters.c.id))


ALL = [tuple(row.values()) for row in BEFORE]


def test_no_row_is_no_error(app: App) -> None:
    fill(app)
    assert app.execute(update(letters).where(letters.c.id == 99).values(body="canary")) == 0
    assert app.execute(update(letters).where(letters.c.clinic_id == 3), {"body": "canary"}) == 0
    assert read(app) == ALL


def test_all_rows_of_one_owner(app: App) -> None:
    fill(app)
    assert app.execute(update(letters).where(letters.c.clinic_id == 2).values(body="canary new")) == 2
    assert [row[2] for row in read(app)] == ["canary 1", "canary new", "canary new"]


def test_rows_of_several_owners_are_refused_and_counted(app: App) -> None:
    fill(app)
    with pytest.raises(OwnerRequiredError, match="have 2 owners"):
        app.execute(update(letters).values(body="canary new"))
    with app.session() as session, pytest.raises(OwnerRequiredError, match="have 2 owners"):
        session.execute(update(Letter).values(body="canary new"))
    assert_no_traces(app.engine)
    assert read(app) == ALL


def test_none_may_be_written_to_rows_of_several_owners(app: App) -> None:
    fill(app)
    assert app.execute(update(letters).values(body=None)) == 3
    assert [row[2] for row in read(app)] == [None, None, None]


def test_other_columns_may_be_written_to_rows_of_several_owners(app: App) -> None:
    app.add(Patient(id=1, clinic_id=1, ssn="canary 1"), Patient(id=2, clinic_id=2, ssn="canary 2"))
    assert app.execute(update(Patient).values(name="renamed")) == 2
    app.cold()
    assert app.rows(select(Patient.ssn).order_by(Patient.id)) == [("canary 1",), ("canary 2",)]


def test_the_owner_alone_is_refused_in_every_shape(app: App) -> None:
    fill(app)
    first = update(letters).where(letters.c.id == 1)
    shapes: list[tuple[Any, Any]] = [
        (first.values(clinic_id=2), None),
        (first.values({letters.c.clinic_id: 2}), None),
        (first.ordered_values((letters.c.clinic_id, 2)), None),
        (first, {"clinic_id": 2}),
        (first.values(clinic_id=bindparam("other")), {"other": 2}),
        (first.values(clinic_id=letters.c.clinic_id + 1), None),
        (first.values(clinic_id=2, body="canary new"), None),
        (
            update(letters).where(letters.c.id == bindparam("b_id")),
            [{"b_id": 1, "clinic_id": 2}, {"b_id": 2, "clinic_id": 1}],
        ),
    ]  # fmt: skip
    for statement, parameters in shapes:
        with pytest.raises((OwnerChangedError, UnsupportedValueError)):
            app.execute(statement, parameters)
    works: tuple[Callable[[Session], Any], ...] = (
        lambda session: session.execute(update(Letter), [{"id": 1, "clinic_id": 2}]),
        lambda session: session.bulk_update_mappings(Letter.__mapper__, [{"id": 1, "clinic_id": 2}]),
        lambda session: session.execute(update(Letter).where(Letter.id == 1).values(clinic_id=2)),
    )
    for work in works:
        with app.session() as session, pytest.raises(OwnerChangedError):
            work(session)
    assert_no_traces(app.engine)
    assert read(app) == ALL


def test_the_owner_with_all_its_columns(app: App) -> None:
    fill(app)
    everything = {"clinic_id": 3, "body": "canary moved", "seal": None}
    assert app.execute(update(letters).where(letters.c.id == 1).values(everything)) == 1
    assert app.execute(update(letters).where(letters.c.clinic_id == 2), everything | {"clinic_id": 1}) == 2
    with app.session() as session:
        session.execute(update(Letter), [{"id": 2} | everything])
        session.commit()
    assert [row[1:] for row in read(app)] == [
        (3, "canary moved", None), (3, "canary moved", None), (1, "canary moved", None),
    ]  # fmt: skip


def test_the_owner_may_not_become_null_while_values_are_written(app: App) -> None:
    fill(app)
    with pytest.raises(OwnerRequiredError):
        app.execute(update(letters).where(letters.c.id == 1).values(clinic_id=None, body="canary", seal=None))
    app.execute(update(letters).where(letters.c.id == 1).values(clinic_id=None, body=None, seal=None))
    assert read(app)[0] == (1, None, None, None)


def test_executemany_needs_the_whole_key_or_the_owner(app: App) -> None:
    fill(app)
    with pytest.raises(OwnerRequiredError, match="primary key"):
        app.execute(
            update(letters).where(letters.c.clinic_id == bindparam("c")),
            [{"c": 1, "body": "canary"}, {"c": 2, "body": "canary"}],
        )
    missing = [{"b": 1, "body": "canary new 1"}, {"b": 2, "body": "canary new 2"}]
    app.execute(update(letters).where(letters.c.id == bindparam("b")), missing)
    assert [row[2] for row in read(app)] == ["canary new 1", "canary new 2", None]


def test_a_composite_key_with_the_owner(app: App) -> None:
    app.add(Ledger(tenant_id=1, number=1, entry="canary 1"), Ledger(tenant_id=2, number=1, entry="canary 2"))
    with app.session() as session:
        session.execute(
            update(Ledger), [{"tenant_id": n, "number": 1, "entry": f"canary new {n}"} for n in (1, 2)]
        )  # fmt: skip
        session.commit()
    app.cold()
    assert app.rows(select(Ledger.entry).order_by(Ledger.tenant_id)) == [("canary new 1",), ("canary new 2",)]


def test_bulk_updates_of_many_rows(app: App) -> None:
    numbers = range(1, 41)
    app.add(*(Patient(id=n, clinic_id=n % 3 + 1, ssn=f"canary {n}") for n in numbers))
    with app.session() as session:
        session.execute(update(Patient), [{"id": n, "ssn": f"canary new {n}"} for n in numbers])
        session.commit()
    app.cold()
    assert app.rows(select(Patient.ssn).order_by(Patient.id)) == [(f"canary new {n}",) for n in numbers]


def test_expressions_are_no_values(app: App) -> None:
    fill(app)
    for value in (
        func.lower("canary"), literal("canary") + "x", letters.c.seal, letters.c.body,
        select(literal("canary")).scalar_subquery(),
    ):  # fmt: skip
        with pytest.raises(UsageError):
            app.execute(update(letters).where(letters.c.id == 1).values(body=value))
    assert_no_traces(app.engine)
    assert read(app) == ALL


def test_criteria_that_sqlalchemy_adds_count(app: App) -> None:
    app.add(Animal(id=1, clinic_id=1, chip="canary c1"), Dog(id=2, clinic_id=2, chip="canary c2", bark="canary woof"))
    with app.session() as session:
        session.execute(update(Dog).values(bark="canary bow"), execution_options={"synchronize_session": False})
        criteria = with_loader_criteria(Animal, Animal.clinic_id == 1)
        session.execute(
            update(Animal).values(chip="canary c3").options(criteria), execution_options={"synchronize_session": False}
        )
        session.commit()
    app.cold()
    assert app.rows(select(Dog.bark)) == [("canary bow",)]
    assert app.rows(select(Animal.chip).order_by(Animal.id)) == [("canary c3",), ("canary c2",)]


def test_names_of_attributes(app: App) -> None:
    app.add(Visit(id=1, place_id=1, finding="canary f"))
    with app.session() as session:
        session.execute(update(Visit).where(Visit.place_id == 1).values(finding="canary f2"))
        session.execute(update(Visit).where(Visit.id == 1).values({Visit.finding: "canary f3", Visit.place_id: 2}))
        session.execute(update(Visit), [{"id": 1, "finding": "canary f4"}])
        session.commit()
    app.cold()
    assert app.rows(select(Visit.place_id, Visit.finding)) == [(2, "canary f4")]


def test_onupdate_is_evaluated_and_encrypted(app: App) -> None:
    app.add(Note(id=1, title="red"))
    ((before,),) = app.rows(select(Note.revision))
    app.execute(update(table_of(Note)).values(title="blue"))
    app.cold()
    ((after,),) = app.rows(select(Note.revision))
    assert before != after
    assert after.startswith("canary revision ")


def test_an_update_in_a_session_bound_to_a_connection(app: App) -> None:
    fill(app)
    with app.engine.begin() as connection, Session(connection) as session:
        session.get_one(Letter, 1).body = "canary new"
        session.commit()
    assert read(app)[0][2] == "canary new"
