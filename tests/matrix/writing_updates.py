# SPDX-License-Identifier: Apache-2.0
"""Every way of changing and deleting rows by statements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest
from sqlalchemy import bindparam, delete, func, literal, select, text, update
from sqlalchemy.orm import Session

from sa_asherah import (
    OwnerChangedError,
    OwnerRequiredError,
    UnsupportedOperatorError,
    UnsupportedValueError,
    UsageError,
)
from sa_asherah.errors import DecryptionError
from tests.matrix.registration import case
from tests.matrix.writing_inserts import silent, stored
from tests.orm.app import App
from tests.orm.models import Animal, Clinic, Dog, Ledger, Letter, Note, Patient, Visit, letters, table_of
from tests.orm.patients import read
from tests.orm.shapes import AFTER, BEFORE, UPDATES

THREE: Final = [tuple(row.values()) for row in BEFORE]
CHANGED: Final = [tuple(row.values()) for row in AFTER]
FIRST: Final = update(letters).where(letters.c.id == 1)
SYNCHRONISE: Final = ("auto", "evaluate", "fetch", False)


def fill(app: App) -> None:
    app.execute(letters.delete())
    app.execute(letters.insert(), BEFORE)
    app.cold()


def changes(app: App, *shapes: str) -> None:
    """Each shape of UPDATE changes the same row."""
    for shape in shapes:
        fill(app)
        with silent(app), app.engine.begin() as connection:
            UPDATES[shape](connection)
        assert stored(app) == CHANGED, shape


def works(app: App, *statements: tuple[Any, Any]) -> None:
    """Each statement makes the same change."""
    for statement, parameters in statements:
        fill(app)
        with silent(app):
            app.execute(statement, parameters)
        assert stored(app) == CHANGED


def refused(app: App, error: type[Exception], *statements: tuple[Any, Any]) -> None:
    """Each statement is refused and changes nothing; raise the last error."""
    errors: list[BaseException] = []
    for statement, parameters in statements:
        fill(app)
        with silent(app), pytest.raises(error) as caught:
            app.execute(statement, parameters)
        errors.append(caught.value)
        assert stored(app) == THREE
    raise errors[-1]


@case("update(...) of rows of one owner")
def of_one_owner(app: App) -> None:
    changes(app, "values", "values by column", "parameters", "other criteria", "subquery in the criteria")
    fill(app)
    assert app.execute(update(letters).where(letters.c.clinic_id == 2).values(body="canary new")) == 2
    assert [row[2] for row in stored(app)] == ["canary 1", "canary new", "canary new"]


@case("update(...) with ordered_values or bindparam(), in a lambda_stmt")
def forms(app: App) -> None:
    changes(app, "ordered values", "bindparam of another name", "bindparam in the criteria", "lambda")


@case("update(...) that names owner and all its encrypted columns")
def with_owner(app: App) -> None:
    changes(app, "with the owner", "executemany with the owner")
    everything = {"clinic_id": 3, "body": "canary moved", "seal": None}
    app.execute(update(letters).where(letters.c.clinic_id == 2), everything)
    with app.session() as session:
        session.execute(update(Letter), [{"id": 1} | everything])
        session.commit()
    assert [row[1:] for row in stored(app)] == [(3, "canary moved", None)] * 3


@case("executemany UPDATE with the primary key in the WHERE")
def many_by_key(app: App) -> None:
    changes(app, "executemany by key")


@case("executemany UPDATE with any other WHERE and without the owner")
def many_by_others(app: App) -> None:
    by_clinic = update(letters).where(letters.c.clinic_id == bindparam("c"))
    refused(app, OwnerRequiredError, (by_clinic, [{"c": n, "body": "canary"} for n in (1, 2)]))


@case("session.execute(update(Patient), [...])")
def bulk(app: App) -> None:
    changes(app, "bulk update by key", "bulk update by key with the owner")
    app.add(*(Ledger(tenant_id=n, number=1, entry=f"canary {n}") for n in (1, 2)), Visit(id=1, place_id=1))
    with silent(app), app.session() as session:
        session.execute(update(Ledger), [{"tenant_id": n, "number": 1, "entry": f"canary new {n}"} for n in (1, 2)])
        session.execute(update(Visit), [{"id": 1, "finding": "canary f"}])
        session.commit()
    assert stored(app, select(Ledger.entry).order_by(Ledger.tenant_id)) == [("canary new 1",), ("canary new 2",)]
    assert stored(app, select(Visit.finding)) == [("canary f",)]


@case("bulk_update_mappings")
def bulk_mapped(app: App) -> None:
    changes(app, "bulk_update_mappings")


@case("bulk_save_objects of changed objects")
def bulk_saved(app: App) -> None:
    changes(app, "bulk_save_objects")


@case("update(Patient) with each synchronize_session")
def synchronised(app: App) -> None:
    changes(app, "session auto", "session evaluate", "session fetch", "session unsynchronised")
    for synchronise in SYNCHRONISE:
        fill(app)
        with silent(app), app.session() as session:
            loaded = session.scalars(select(Letter).order_by(Letter.id)).all()
            everything = {"clinic_id": 3, "body": "canary moved", "seal": None}
            statement = update(Letter).where(Letter.seal.is_(None)).values(everything)
            session.execute(statement, execution_options={"synchronize_session": synchronise})
            if synchronise:
                assert (loaded[1].clinic_id, loaded[1].body) == (3, "canary moved")
            session.commit()
            assert (loaded[1].clinic_id, loaded[1].body) == (3, "canary moved")
        assert stored(app) == [THREE[0], (2, 3, "canary moved", None), THREE[2]]


@case("update(Patient) with with_loader_criteria, or of a class that inherits")
def criteria(app: App) -> None:
    changes(app, "loader criteria")
    app.add(Animal(id=1, clinic_id=1, chip="canary c1"), Dog(id=2, clinic_id=2, chip="canary c2", bark="canary woof"))
    with silent(app), app.session() as session:
        session.execute(update(Dog).values(bark="canary bow"), execution_options={"synchronize_session": False})
        session.commit()
    assert stored(app, select(Dog.bark, Dog.chip)) == [("canary bow", "canary c2")]


@case("onupdate= of an encrypted column")
def onupdate(app: App) -> None:
    app.add(Note(id=1, title="red"))
    seen = {app.rows(select(Note.revision))[0][0]}
    with silent(app):
        app.execute(update(table_of(Note)).values(title="blue"))
        seen.add(stored(app, select(Note.revision))[0][0])
        with app.session() as session:
            session.get_one(Note, 1).title = "green"
            session.commit()
    seen.add(stored(app, select(Note.revision))[0][0])
    assert len(seen) == 3  # each write makes a new one


@case("update(...) of rows of several owners")
def of_several_owners(app: App) -> None:
    every = update(letters).values(body="canary new")
    with pytest.raises(OwnerRequiredError, match="have 2 owners"):
        refused(app, OwnerRequiredError, (every, None), (update(letters), {"body": "canary new"}))
    with app.session() as session:
        session.execute(update(Letter).values(body="canary new"))


@case("update(...) that matches no row")
def of_no_row(app: App) -> None:
    fill(app)
    assert app.execute(update(letters).where(letters.c.id == 99).values(body="canary")) == 0
    assert app.execute(update(letters).where(letters.c.clinic_id == 3), {"body": "canary"}) == 0
    assert stored(app) == THREE


@case("update(...) that sets encrypted columns to None, or other columns only, of any rows")
def of_any_rows(app: App) -> None:
    fill(app)
    assert app.execute(update(letters).values(body=None)) == 3  # all rows
    assert [row[2:] for row in stored(app)] == [(None, row[3]) for row in THREE]
    app.add(*(Patient(id=n, clinic_id=n, ssn=f"canary {n}") for n in (1, 2)))
    assert app.execute(update(Patient).values(name="renamed")) == 2  # both rows
    assert [row[1] for row in read(app)] == ["canary 1", "canary 2"]


@case("the owner without all its encrypted columns")
def owner_alone(app: App) -> None:
    bulk_forms: tuple[Callable[[Session], Any], ...] = (
        lambda session: session.execute(update(Letter), [{"id": 1, "clinic_id": 2}]),
        lambda session: session.bulk_update_mappings(Letter.__mapper__, [{"id": 1, "clinic_id": 2}]),
        lambda session: session.execute(update(Letter).where(Letter.id == 1).values(clinic_id=2, body="canary")),
    )
    for form in bulk_forms:
        fill(app)
        with silent(app), app.session() as session, pytest.raises(OwnerChangedError):
            form(session)
        assert stored(app) == THREE
    refused(
        app,
        OwnerChangedError,
        (FIRST.values(clinic_id=2), None),
        (FIRST.values({letters.c.clinic_id: 2}), None),
        (FIRST.ordered_values((letters.c.clinic_id, 2)), None),
        (FIRST, {"clinic_id": 2}),
        (FIRST.values(clinic_id=bindparam("other")), {"other": 2}),
        (FIRST.values(clinic_id=letters.c.clinic_id + 1), None),
        (FIRST.values(clinic_id=None), None),
        (FIRST.values(clinic_id=2, body="canary new"), None),
        (update(letters).where(letters.c.id == bindparam("b")), [{"b": n, "clinic_id": 3 - n} for n in (1, 2)]),
    )


@case("the owner set to None with values for its encrypted columns")
def owner_none(app: App) -> None:
    fill(app)
    app.execute(FIRST.values(clinic_id=None, body=None, seal=None))
    assert stored(app)[0] == (1, None, None, None)
    refused(app, OwnerRequiredError, (FIRST.values(clinic_id=None, body="canary", seal=None), None))


@case("a SQL expression or another column as the new value of an encrypted column")
def expressions(app: App) -> None:
    values = (
        func.lower("canary"),
        literal("canary") + "x",
        letters.c.seal,
        select(literal("canary")).scalar_subquery(),
    )
    refused(app, UnsupportedValueError, *((FIRST.values(body=value), None) for value in values))


@case("a SQL expression as the owner, with all its encrypted columns")
def owner_expression(app: App) -> None:
    values = {"clinic_id": letters.c.clinic_id + 1, "body": "canary", "seal": None}
    refused(app, UnsupportedValueError, (FIRST.values(values), None))


@case("UPDATE … FROM another table")
def from_another_table(app: App) -> None:
    first = Clinic.id == letters.c.clinic_id, Clinic.name == "Clinic 1"
    works(app, (update(letters).where(*first).values(body="canary new"), None))


@case("UPDATE of several tables, each of its own rows' owner or with the owner", not_on=["sqlite", "postgresql"])
def several_tables(app: App) -> None:
    app.add(Patient(id=1, clinic_id=1, ssn="canary 1", visits=[Visit(id=1, place_id=1, finding="canary f")]))
    joined = update(table_of(Patient)).where(Patient.id == Visit.patient_id)
    with silent(app):
        app.execute(joined.values({Patient.ssn: "canary 2", Visit.place_id: 3, Visit.finding: "canary f2"}))
    assert read(app) == [(1, "canary 2", None)]
    assert stored(app, select(Visit.place_id, Visit.finding)) == [(3, "canary f2")]


@case("UPDATE of an encrypted column of a further table, without the owner", not_on=["sqlite", "postgresql"])
def further_table(app: App) -> None:
    app.add(Patient(id=1, clinic_id=1, ssn="canary 1"))
    joined = update(table_of(Clinic)).where(Patient.clinic_id == Clinic.id)
    with silent(app):
        app.execute(joined.values({Patient.ssn: "canary"}))


@case("UPDATE in a CTE", not_on=["sqlite", "mariadb"])
def in_a_cte(app: App) -> None:
    change = FIRST.values(body="canary new")
    works(
        app,
        (select(change.returning(letters.c.body).cte("changed").c.body), None),
        (select(literal(1)).add_cte(change.cte("changed")), None),
        (delete(Clinic).where(Clinic.id == 3).add_cte(change.cte("changed")), None),
    )
    moving = FIRST.values(clinic_id=2)
    with pytest.raises(OwnerChangedError):
        refused(app, OwnerChangedError, (select(literal(1)).add_cte(moving.cte("m")), None))


@case("INSERT or UPDATE deeper inside another statement", not_on=["sqlite", "mariadb"])
def deep_inside(app: App) -> None:
    moving = FIRST.values(clinic_id=2).returning(letters.c.id).cte("m")
    writing = letters.insert().values(id=9, clinic_id=1, body="canary").returning(letters.c.id).cte("w")
    refused(
        app,
        UsageError,
        *((select(Clinic.id).where(Clinic.id.in_(select(cte.c.id))), None) for cte in (moving, writing)),
    )


@case("UPDATE with an encrypted column in its WHERE, but for IS NULL")
def encrypted_criteria(app: App) -> None:
    works(app, (update(letters).where(letters.c.id == 1, letters.c.seal.is_not(None)).values(body="canary new"), None))
    refused(
        app,
        UnsupportedOperatorError,
        (update(letters).where(literal("canary") == letters.c.body).values(seal=None), None),
        (update(letters).where(func.lower(letters.c.body) == "canary").values(body="canary"), None),
        (update(letters).where(letters.c.body == letters.c.seal).values(body=None), None),
    )


@case("UPDATE of another column from an encrypted one")
def plain_from_encrypted(app: App) -> None:
    app.add(Patient(id=1, clinic_id=1, ssn="canary 1"))
    app.execute(update(Patient).values(name=Patient.ssn))


@case("DELETE by other columns, or by IS NULL of an encrypted one")
def deleted(app: App) -> None:
    fill(app)
    with silent(app):
        assert app.execute(delete(letters).where(letters.c.clinic_id == 2, letters.c.body.is_(None))) == 1
        assert app.execute(delete(letters).where(letters.c.id == bindparam("b")), [{"b": 2}]) == 1
    assert stored(app) == THREE[:1]


@case("delete(Patient) with each synchronize_session")
def delete_synchronised(app: App) -> None:
    for synchronise in SYNCHRONISE:
        fill(app)
        with silent(app), app.session() as session:
            gone = session.get_one(Letter, 2)
            statement = delete(Letter).where(Letter.seal.is_(None))
            session.execute(statement, execution_options={"synchronize_session": synchronise})
            assert (gone in session) is not bool(synchronise)
            session.commit()
        assert stored(app) == [THREE[0], THREE[2]]


@case("DELETE with an encrypted column in its WHERE, but for IS NULL")
def delete_by_encrypted(app: App) -> None:
    refused(
        app,
        UnsupportedOperatorError,
        (delete(letters).where(literal("canary") == letters.c.body), None),
        (delete(letters).where(letters.c.id.in_(select(letters.c.id).where(func.lower(letters.c.body) == "x"))), None),
        (delete(Patient).where(Patient.ssn == Patient.notes), None),
    )


@case("UPDATE as SQL text, of the owner")
def sql_text(app: App) -> None:
    fill(app)
    with app.engine.begin() as connection:
        connection.execute(text("UPDATE letters SET clinic_id = 3 WHERE id = 1"))
    with pytest.raises(DecryptionError):
        stored(app)
