# SPDX-License-Identifier: Apache-2.0
"""Every way of inserting rows."""

from __future__ import annotations

import uuid
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Final

import pytest
from sqlalchemy import (
    Column,
    Integer,
    MetaData,
    String,
    Table,
    bindparam,
    event,
    func,
    insert,
    literal,
    null,
    select,
    text,
    union_all,
)  # fmt: skip
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.orm import Session

from sa_asherah import Encrypted, OwnerChangedError, OwnerRequiredError, UnsupportedOperatorError, UnsupportedValueError
from sa_asherah.errors import MalformedCellError
from tests.matrix.registration import case
from tests.orm.app import App
from tests.orm.models import (
    CANARY,
    Clinic,
    Doctor,
    Ledger,
    Letter,
    Note,
    Patient,
    Slot,
    User,
    archive,
    drafts,
    letters,
    table_of,
)  # fmt: skip
from tests.orm.patients import read
from tests.orm.shapes import INSERTS, ROWS
from tests.orm.test_upsert import NEW, upsert
from tests.orm.traces import assert_no_traces

LETTERS: Final = [tuple(row.values()) for row in ROWS]
SLOT: Final[dict[str, Any]] = {"id": 1, "clinic_id": 1, "number": 7, "first": "canary new 1", "second": "canary new 2"}
MOVED: Final = SLOT | {"clinic_id": 2}
ALL: Final[dict[str, Any]] = {"clinic_id": NEW, "first": NEW, "second": NEW}


def stored(app: App, statement: Any = None) -> list[tuple[Any, ...]]:
    """Read as a process that just started does, by default all letters."""
    app.cold()
    return app.rows(select(letters).order_by(letters.c.id) if statement is None else statement)


@contextmanager
def silent(app: App) -> Generator[None]:
    """Make sure that no plaintext is sent or stays in a cache of statements."""
    sent: list[object] = []

    def listen(*arguments: Any) -> None:
        sent.append(arguments[2:4])

    event.listen(app.engine, "before_cursor_execute", listen)
    yield
    event.remove(app.engine, "before_cursor_execute", listen)
    assert CANARY not in repr(sent)
    assert_no_traces(app.engine)


def skip_numbers(app: App) -> None:
    """Let PostgreSQL number clinics beyond those that are there; the others look for themselves."""
    if app.dialect == "postgresql":
        app.execute(select(func.setval("clinics_id_seq", 100)))


def writes(app: App, *shapes: str) -> None:
    """Each shape of INSERT leaves the same rows."""
    for shape in shapes:
        app.execute(letters.delete())
        with silent(app), app.engine.begin() as connection:
            INSERTS[shape](connection)
        assert stored(app) == LETTERS, shape


@case("session.add, add_all")
def added(app: App) -> None:
    writes(app, "unit of work")


@case("objects appended to a relationship, or with an owner set by one only")
def related(app: App) -> None:
    skip_numbers(app)
    with silent(app), app.session() as session:
        session.add(Clinic(id=9, patients=[Patient(id=1, ssn="canary 1"), Patient(id=2, ssn="canary 2")]))
        session.add(Patient(id=3, clinic=Clinic(name="numbered by the server in this flush"), ssn="canary 3"))
        first = session.get_one(Clinic, 1)
        first.patients.append(Patient(id=4, ssn="canary 4"))
        session.add(Patient(id=5, clinic=session.get_one(Clinic, 2), ssn="canary 5"))
        session.commit()
        made = session.scalars(select(Clinic.id).where(Clinic.name.startswith("numbered"))).one()
    assert [row[:2] for row in read(app)] == [
        (9, "canary 1"), (9, "canary 2"), (made, "canary 3"), (1, "canary 4"), (2, "canary 5"),
    ]  # fmt: skip


@case("session.merge of a transient object")
def merged(app: App) -> None:
    writes(app, "merge")


@case("bulk_save_objects of new objects")
def bulk_saved(app: App) -> None:
    writes(app, "bulk_save_objects")


@case("bulk_insert_mappings")
def bulk_mapped(app: App) -> None:
    writes(app, "bulk_insert_mappings")
    with app.session() as session:
        mappings = [
            {"id": n, "clinic_id": n, "alias": f"canary {n}", "ward": f"{n}", "licence": "canary"} for n in (1, 2)
        ]
        session.bulk_insert_mappings(Doctor.__mapper__, mappings, return_defaults=True)
        session.commit()
    assert stored(app, select(Doctor.alias, Doctor.licence).order_by(Doctor.id)) == [
        ("canary 1", "canary"), ("canary 2", "canary"),
    ]  # fmt: skip


@case("session.execute(insert(Patient), [...])")
def bulk(app: App) -> None:
    writes(app, "session parameters")


@case("insert(...).values(...)")
def values(app: App) -> None:
    writes(
        app, "values by key", "values by column", "values by position", "mapped values by attribute", "session values"
    )


@case("several rows in values(...)")
def rows(app: App) -> None:
    writes(app, "rows by key", "rows by column", "rows by position", "mapped rows", "session rows")


@case("insert(table) with one set of parameters")
def parameters(app: App) -> None:
    writes(app, "parameters")


@case("insert(table) with many sets of parameters (executemany)")
def many_parameters(app: App) -> None:
    writes(app, "executemany")


@case("insert().inline()")
def inline(app: App) -> None:
    writes(app, "executemany inline")


@case("bindparam() and null() as values; values partly in the statement, partly in parameters")
def bound(app: App) -> None:
    writes(
        app, "values with null()", "values with bindparam", "bindparam of other names", "owner in parameters",
        "owner in statement", "owner in statement by column", "owner as bindparam, values in parameters",
    )  # fmt: skip


@case("INSERT in a lambda_stmt")
def lambdas(app: App) -> None:
    writes(app, "lambda", "lambda with values", "session lambda")


@case("INSERT of many rows with RETURNING (insertmanyvalues)")
def returning(app: App) -> None:
    writes(app, "returning", "returning in order")
    numbers = range(1, 1502)
    given = [{"clinic_id": n % 3 + 1, "body": f"canary {n}", "seal": None} for n in numbers]
    app.execute(letters.delete())
    with silent(app), app.session() as session:
        statement = insert(Letter).returning(Letter.id, Letter.body, sort_by_parameter_order=True)
        found = session.execute(statement, given).all()
        session.commit()
    assert [row.body for row in found] == [row["body"] for row in given]
    assert [row[:2] for row in stored(app, select(letters.c.id, letters.c.body).order_by(letters.c.id))] == sorted(
        map(tuple, found)
    )


@case("INSERT … RETURNING an entity")
def returned_entity(app: App) -> None:
    with silent(app), app.session() as session:
        found = session.scalars(insert(Letter).returning(Letter), ROWS).all()
        assert sorted((each.id, each.clinic_id, each.body, each.seal) for each in found) == LETTERS
        session.commit()
    assert stored(app) == LETTERS


@case("key numbered by the server")
def numbered(app: App) -> None:
    with silent(app), app.session() as session:
        letters_ = [Letter(clinic_id=n % 3 + 1, body=f"canary {n}") for n in range(5)]
        session.add_all(letters_)
        session.flush()
        ids = [letter.id for letter in letters_]
        session.commit()
    assert sorted(stored(app, select(letters.c.body, letters.c.id))) == [(f"canary {n}", ids[n]) for n in range(5)]


@case("Python-side default= of the owner or of an encrypted column")
def defaults(app: App) -> None:
    with silent(app), app.session() as session:
        note = Note(id=1, title="red")
        session.add(note)
        session.flush()
        assert (note.author, note.body) == ("team red", "canary draft")
        assert note.revision is not None
        session.execute(insert(Note), [{"id": n, "title": f"t{n}"} for n in (2, 3)])
        session.execute(insert(Note).values(id=4, title="t4"))
        session.execute(insert(table_of(Note)).values([{"id": n, "title": f"t{n}"} for n in (5, 6)]))
        session.commit()
    found = stored(app, select(Note.author, Note.body, Note.revision).order_by(Note.id))
    assert [row[:2] for row in found[1:]] == [(f"team t{n}", "canary draft") for n in range(2, 7)]
    assert len({row[2] for row in found}) == len(found)


@case("owner in the primary key")
def owner_in_key(app: App) -> None:
    with silent(app):
        app.add(*(Ledger(tenant_id=n, number=1, entry=f"canary {n}") for n in (1, 2)))
        app.execute(insert(Ledger), [{"tenant_id": n, "number": 2, "entry": f"canary {n}"} for n in (1, 2)])
    query = select(Ledger.tenant_id, Ledger.entry).order_by(Ledger.tenant_id, Ledger.number)
    assert stored(app, query) == [(1, "canary 1")] * 2 + [(2, "canary 2")] * 2


@case("row that owns itself, with a key made by Python")
def self_owned(app: App) -> None:
    given = uuid.uuid4()
    with silent(app):
        app.add(
            User(name="a", mail="canary a"), User(name="b", mail="canary b"), User(id=given, name="c", mail="canary c")
        )
        app.execute(insert(User), [{"name": "d", "mail": "canary d"}, {"name": "e", "mail": "canary e"}])
        app.execute(insert(table_of(User)).values(name="f", mail="canary f"))
    assert stored(app, select(User.mail).order_by(User.name)) == [(f"canary {name}",) for name in "abcdef"]


@case("owner numbered by the server")
def server_owned(app: App) -> None:
    body: Column[Any] = Column("body", Encrypted(String(), owner="id", label="numbered.body"))
    app.execute(insert(Table("drafts", MetaData(), Column("id", Integer, primary_key=True), body)), {"body": "canary"})


@case("no owner, or owner None")
def no_owner(app: App) -> None:
    forms: list[tuple[Any, Any]] = [
        (insert(letters).values(id=1, body="canary"), None),
        (insert(letters).values([{"id": 1, "body": "canary"}, {"id": 2, "body": "canary"}]), None),
        (insert(letters), {"id": 1, "clinic_id": None, "body": "canary"}),
        (insert(letters), [{"id": n, "clinic_id": n or None, "body": "canary"} for n in (1, 0)]),
    ]
    with silent(app):
        for statement, given in forms:
            with pytest.raises(OwnerRequiredError, match="clinic_id"):
                app.execute(statement, given)
    app.add(Patient(id=1, ssn="canary"))


@case("row without an owner whose encrypted columns are NULL")
def nobody(app: App) -> None:
    app.add(Patient(id=1, name="nobody's"))
    app.execute(insert(letters), [{"id": 1}, {"id": 2}])
    app.execute(insert(letters).values(id=3, body=None, seal=null()))
    assert read(app) == [(None, None, None)]
    assert stored(app) == [(n, None, None, None) for n in (1, 2, 3)]


@case("owner of another Python type than the column's")
def owner_kind(app: App) -> None:
    for owner in ("1", True, 1.0, b"1"):
        with pytest.raises(OwnerRequiredError, match="kind 'int'"):
            app.execute(insert(letters), {"id": 1, "clinic_id": owner, "body": "canary"})
    app.add(Patient(id=1, clinic_id="1", ssn="canary"))


@case("a SQL expression as the value of an encrypted column")
def expressions(app: App) -> None:
    with silent(app):
        for value in (func.lower("canary"), literal("canary") + "x", select(literal("canary")).scalar_subquery()):
            for statement in (insert(letters).values(id=1, clinic_id=1, body=value), insert(letters).values([
                {"id": 1, "clinic_id": 1, "body": "canary"}, {"id": 2, "clinic_id": 1, "body": value},
            ])):  # fmt: skip
                with pytest.raises(UnsupportedValueError):
                    app.execute(statement)
    app.execute(insert(letters).values(id=1, clinic_id=1, body=letters.c.seal))


@case("a SQL expression as an attribute of a new object")
def expression_attribute(app: App) -> None:
    patient = Patient(id=1, clinic_id=1)
    patient.ssn = func.lower("canary")
    with silent(app):
        app.add(patient)


@case("a SQL expression as the owner")
def expression_owner(app: App) -> None:
    app.execute(insert(letters).values(id=1, clinic_id=select(func.max(Clinic.id)).scalar_subquery(), body="canary"))


@case("INSERT FROM SELECT of the same encrypted column beside its own owner")
def copied(app: App) -> None:
    app.execute(letters.insert(), ROWS)
    source = select(letters.c.id + 9, letters.c.clinic_id, letters.c.body)
    app.execute(insert(drafts).from_select(["id", "clinic_id", "body"], union_all(source, source.with_only_columns(
        letters.c.id + 19, letters.c.clinic_id, letters.c.body
    ))))  # fmt: skip
    found = stored(app, select(drafts.c.clinic_id, drafts.c.body).order_by(drafts.c.id))
    assert found == [(1, "canary 1"), (2, "canary 2")] * 2
    assert {bytes(row["body"]) for row in app.stored("drafts")} == {
        bytes(row["body_text"]) for row in app.stored("letters")
    }


@case("INSERT FROM SELECT of anything else into an encrypted column")
def not_copied(app: App) -> None:
    app.execute(letters.insert(), ROWS)
    a, b = letters.alias(), letters.alias()
    names = ["id", "clinic_id", "body"]
    for source in (
        select(a.c.id, literal(1), a.c.body),
        select(a.c.id, b.c.clinic_id, a.c.body).join(b, a.c.id != b.c.id),
        select(a.c.id, a.c.clinic_id, a.c.seal),
        select(a.c.id, a.c.clinic_id, literal("canary")),
        select(a.c.id, a.c.id, a.c.body),
        select(a.c.id, a.c.clinic_id, text("'canary'")),
    ):
        with silent(app), pytest.raises(OwnerChangedError):
            app.execute(insert(drafts).from_select(names, source))
    app.execute(insert(archive).from_select(names, select(a.c.id, a.c.clinic_id, a.c.body)))


@case("INSERT FROM SELECT that would fill a default of an encrypted column")
def default_of_many(app: App) -> None:
    app.execute(insert(Note).from_select(["id", "title", "author"], select(Clinic.id, Clinic.name, Clinic.name)))


@case("INSERT that does nothing on conflict")
def nothing(app: App) -> None:
    slots(app)
    if app.dialect == "mariadb":
        app.execute(mysql.insert(Slot).prefix_with("IGNORE"), MOVED)
    else:
        make: Any = postgresql.insert if app.dialect == "postgresql" else sqlite.insert
        app.execute(make(Slot).on_conflict_do_nothing(), MOVED)
    assert read_slots(app) == [(1, "canary 1", "canary 2"), (2, "canary 3", None)]


def slots(app: App) -> None:
    app.add(
        Slot(id=1, clinic_id=1, number=7, first="canary 1", second="canary 2"),
        Slot(id=2, clinic_id=2, number=8, first="canary 3"),
    )


def read_slots(app: App) -> list[tuple[Any, ...]]:
    return stored(app, select(Slot.clinic_id, Slot.first, Slot.second).order_by(Slot.id))


@case("upsert that sets the owner and all its encrypted columns")
def upsert_all(app: App) -> None:
    slots(app)
    given = [MOVED, SLOT | {"id": 2, "number": 8}, SLOT | {"id": 3, "number": 9}]
    with silent(app):
        app.execute(upsert(app, ALL, [Slot.id]), given)
    assert read_slots(app) == [(owner, "canary new 1", "canary new 2") for owner in (2, 1, 1)]
    with silent(app):
        app.execute(
            upsert(app, {"clinic_id": 3, "first": "canary literal", "second": None}, [Slot.id]).values(
                SLOT | {"clinic_id": 3}
            )
        )
        app.execute(upsert(app, ALL, [Slot.id]).values([MOVED | {"id": 2}, SLOT | {"id": 3}]))
    assert [row[:2] for row in read_slots(app)] == [(3, "canary literal"), (2, "canary new 1"), (1, "canary new 1")]


@case("upsert with the owner in the conflict target", not_on=["mariadb"])
def upsert_by_owner(app: App) -> None:
    slots(app)
    target = [Slot.clinic_id, Slot.number]
    with silent(app):
        app.execute(upsert(app, {"first": NEW}, target), [SLOT | {"id": 9}, SLOT | {"id": 8, "number": 6}])
    assert read_slots(app)[::2] == [(1, "canary new 1", "canary 2"), (1, "canary new 1", "canary new 2")]


@case("upsert of other columns only")
def upsert_plain(app: App) -> None:
    slots(app)
    app.execute(upsert(app, {"number": 70}, [Slot.id]).values(MOVED))
    assert read_slots(app)[0] == (1, "canary 1", "canary 2")


@case("any other upsert that sets an encrypted column or the owner")
def upsert_some(app: App) -> None:
    slots(app)
    for assigned in ({"first": NEW}, {"first": "canary"}, {"clinic_id": NEW}, {"clinic_id": 2}, ALL | {"clinic_id": 3}):
        for form in ((upsert(app, assigned, [Slot.id]).values(MOVED), None), (upsert(app, assigned, [Slot.id]), MOVED)):
            with silent(app), pytest.raises(OwnerChangedError):
                app.execute(*form)
    assert read_slots(app)[0] == (1, "canary 1", "canary 2")
    app.execute(upsert(app, ALL | {"first": "canary literal"}, [Slot.id]), [MOVED, SLOT | {"id": 2}])


@case("upsert that sets an encrypted column to an expression or to another column")
def upsert_expression(app: App) -> None:
    slots(app)
    statement = upsert(app, ALL, [Slot.id])
    new = statement.inserted if app.dialect == "mariadb" else statement.excluded
    for value in (func.lower("canary"), func.coalesce(Slot.first, "canary"), new["second"]):
        with silent(app), pytest.raises(UnsupportedValueError):
            app.execute(upsert(app, ALL | {"first": value}, [Slot.id]).values(MOVED))
    app.execute(upsert(app, ALL | {"first": Slot.second}, [Slot.id]).values(MOVED))


@case("upsert that sets another column to ciphertext, or has an encrypted column in its where= or target")
def upsert_condition(app: App) -> None:
    if app.dialect == "mariadb":
        on_duplicate = mysql.insert(Slot).values(SLOT)
        app.execute(on_duplicate.on_duplicate_key_update(number=func.length(on_duplicate.inserted.first)))
        return
    make: Any = postgresql.insert if app.dialect == "postgresql" else sqlite.insert
    statement = make(Slot).values(SLOT)
    for options in (
        {"where": literal("canary") == Slot.first},
        {"where": Slot.first == statement.excluded.first},
        {"index_where": literal("canary") == Slot.first},
        {"set_": {"number": statement.excluded.first}},
        {"index_elements": ["first"]},
    ):
        with silent(app), pytest.raises(UnsupportedOperatorError):
            app.execute(statement.on_conflict_do_update(**{"set_": {"number": 1}, "index_elements": ["id"]} | options))
    app.execute(statement.on_conflict_do_update(set_={"number": func.length(Slot.first)}, index_elements=["id"]))


@case("INSERT in a CTE", not_on=["sqlite", "mariadb"])
def in_a_cte(app: App) -> None:
    added = insert(letters).values(ROWS).returning(*letters.c).cte("added")
    with silent(app):
        assert sorted(app.rows(select(added.c.id, added.c.body))) == [(1, "canary 1"), (2, "canary 2")]
    assert stored(app) == LETTERS
    app.execute(letters.delete())
    with silent(app):
        app.execute(select(literal(1)).add_cte(insert(letters).values(ROWS).cte("added")))
    assert stored(app) == LETTERS


@case('INSERT as SQL text: text("INSERT …"), exec_driver_sql')
def sql_text(app: App) -> None:
    with app.engine.begin() as connection:
        connection.execute(
            text("INSERT INTO letters (id, clinic_id, body_text) VALUES (1, 1, :body)"), {"body": b"plain"}
        )
    with pytest.raises(MalformedCellError):
        stored(app)


@case("INSERT on an engine without an Asherah")
def detached(app: App) -> None:
    app.asherah.detach(app.engine)
    try:
        app.execute(insert(letters).values(id=1, clinic_id=1, body="canary"))
    finally:
        app.asherah = app.new_asherah()
        app.asherah.attach(app.engine)


@case("a session bound to a Connection")
def on_a_connection(app: App) -> None:
    with (
        silent(app),
        app.engine.begin() as connection,
        Session(connection, join_transaction_mode="create_savepoint") as session,
    ):
        session.add(Letter(**ROWS[0]))
        session.flush()
        session.execute(
            insert(Letter).values(clinic_id=bindparam("owner"), **{k: ROWS[1][k] for k in ("id", "body", "seal")}),
            {"owner": 2},
        )
        session.commit()
    assert stored(app) == LETTERS
