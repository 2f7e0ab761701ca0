# SPDX-License-Identifier: Apache-2.0
"""What a SELECT can have in its column list and in its FROM."""

from __future__ import annotations

from typing import Any, Final

import pytest
from sqlalchemy import except_, func, insert, intersect, lateral, literal, select, tablesample, true, union, union_all
from sqlalchemy.orm import Bundle, aliased, with_polymorphic

from sa_asherah import OwnerRequiredError, partition_scope
from sa_asherah.errors import DecryptionError, WrongPlaceError
from tests.matrix.registration import case, reading
from tests.orm.app import App
from tests.orm.models import Clinic, Doctor, Patient, Person, Visit, letters, table_of

SSNS: Final = ["canary 1", "canary 2", "canary 3"]
OWNED: Final = select(Patient.id, Patient.clinic_id, Patient.ssn)
"""What a subquery or a branch of a union must have."""
patients: Final = table_of(Patient)


def first(app: App, statement: Any) -> list[Any]:
    """List the first column of each row."""
    return [row[0] for row in app.rows(statement)]


@reading("select(Patient)")
def entities(app: App) -> None:
    with app.session() as session:
        found = session.scalars(select(Patient).order_by(Patient.id)).all()
        assert [(each.ssn, each.notes) for each in found] == [
            ("canary 1", "canary note 1"), ("canary 2", None), ("canary 3", "canary note 3"),
        ]  # fmt: skip


@reading("select(Patient.ssn)")
def columns(app: App) -> None:
    assert first(app, select(Patient.ssn).order_by(Patient.id)) == SSNS
    query = select(Patient.id, Patient.ssn, Patient.notes, Patient.ssn.label("again"), Patient).order_by(Patient.id)
    number, ssn, notes, again, patient = app.rows(query)[0]
    assert (number, ssn, notes, again, patient.ssn) == (1, "canary 1", "canary note 1", "canary 1", "canary 1")


@reading("select(Patient.ssn)")
def columns_whose_key_is_not_their_name(app: App) -> None:
    assert first(app, select(Visit.finding).order_by(Visit.id)) == [f"canary finding {n}" for n in (1, 2, 3)]
    assert first(app, select(letters.c.body).order_by(letters.c.id)) == ["canary body 1", "canary body 2"]


@reading("session.scalar, session.scalars, Result.mappings, Result.partitions")
def results(app: App) -> None:
    with app.session() as session:
        assert session.scalar(select(Patient.ssn).where(Patient.id == 3)) == "canary 3"
        query = select(Patient.ssn).order_by(Patient.id)
        assert session.scalars(query).all() == SSNS
        assert [row["ssn"] for row in session.execute(query).mappings()] == SSNS
        assert [len(part) for part in session.execute(query).partitions(2)] == [2, 1]
        assert session.execute(query).unique().scalars().all() == SSNS


@reading("label")
def labels(app: App) -> None:
    with app.session() as session:
        row = session.execute(select(Patient.ssn.label("number")).where(Patient.id == 1)).one()
        assert row.number == "canary 1"


@reading("Bundle")
def bundles(app: App) -> None:
    bundle: Bundle[Any] = Bundle("pair", Patient.ssn, Bundle("inner", Patient.notes))
    found = first(app, select(bundle).order_by(Patient.id))
    assert [(each.ssn, each.inner.notes) for each in found][0::2] == [
        ("canary 1", "canary note 1"), ("canary 3", "canary note 3"),
    ]  # fmt: skip


@reading("session.query")
def legacy_queries(app: App) -> None:
    with app.session() as session:
        assert [row.ssn for row in session.query(Patient.ssn, Patient.clinic_id).order_by(Patient.id)] == SSNS
        assert session.query(Patient).filter_by(id=2).one().ssn == "canary 2"
        assert session.query(Patient).with_entities(Patient.ssn).filter(Patient.id == 2).scalar() == "canary 2"


@reading("select(table)")
def core(app: App) -> None:
    with app.engine.connect() as connection:
        row = connection.execute(select(patients).where(patients.c.id == 1)).one()
        assert (row.ssn, row._mapping[patients.c.notes]) == ("canary 1", "canary note 1")
        query = patients.select().with_only_columns(patients.c.ssn).order_by(patients.c.id)
        assert connection.execute(query).scalars().all() == SSNS
        assert connection.execute(letters.select().order_by("id")).first() == (1, 1, "canary body 1", "canary seal 1")


@reading("aliased")
def aliases(app: App) -> None:
    one, other = aliased(Patient), aliased(Patient, name="o")
    query = select(one.ssn, other).join(other, one.id + 1 == other.id).order_by(one.id)
    assert [(ssn, patient.ssn) for ssn, patient in app.rows(query)] == [
        ("canary 1", "canary 2"), ("canary 2", "canary 3"),
    ]  # fmt: skip
    flat, letter = patients.alias(), letters.alias("l")
    assert first(app, select(flat.c.ssn).order_by(flat.c.id)) == SSNS
    assert first(app, select(letter.c.body).order_by(letter.c.id)) == ["canary body 1", "canary body 2"]


@reading("subquery with the owner column")
def subqueries(app: App) -> None:
    inner = select(Patient.id, Patient.clinic_id.label("c"), Patient.ssn.label("s")).subquery()
    assert first(app, select(inner.c.s).order_by(inner.c.id)) == SSNS
    twice = select(inner.c.s, inner.c.c, inner.c.id).subquery()
    assert first(app, select(twice.c.s).order_by(twice.c.id)) == SSNS
    letter = select(letters).subquery()
    assert first(app, select(letter.c.body).order_by(letter.c.id)) == ["canary body 1", "canary body 2"]
    visit = select(Visit).subquery()
    assert first(app, select(aliased(Visit, visit).finding).where(visit.c.id == 1)) == ["canary finding 1"]


@reading("subquery with the owner column")
def entities_of_subqueries(app: App) -> None:
    entity = aliased(Patient, select(Patient).where(Patient.id > 1).subquery())
    with app.session() as session:
        assert [each.ssn for each in session.scalars(select(entity).order_by(entity.id))] == ["canary 2", "canary 3"]


WITHOUT: Final = select(Patient.ssn, Patient.id).where(Patient.clinic_id == 1).subquery()
_WITHOUT_OWNER: Final = select(WITHOUT.c.ssn).order_by(WITHOUT.c.id)


@reading("subquery, CTE or union without the owner column")
def subqueries_without_the_owner(app: App) -> None:
    app.rows(_WITHOUT_OWNER)


@reading("subquery, CTE or union without the owner column")
def common_table_expressions_without_the_owner(app: App) -> None:
    app.rows(select(select(Patient.ssn).cte().c.ssn))


@reading("subquery, CTE or union without the owner column")
def unions_without_the_owner(app: App) -> None:
    app.rows(select(union_all(select(Patient.ssn), select(Patient.ssn)).subquery().c.ssn))


@reading("subquery with a column that only has the owner's name")
def another_column_of_the_owners_name(app: App) -> None:
    joined = select(Patient.ssn, Person.clinic_id).join(Person, true()).subquery()
    with pytest.raises(OwnerRequiredError):
        app.rows(select(joined.c.ssn))
    forged = select(Patient.ssn, literal(1).label("clinic_id")).subquery()
    app.rows(select(forged.c.ssn))


@reading("the same in a partition_scope of one partition")
def subqueries_in_a_scope(app: App) -> None:
    with partition_scope("1"):
        assert first(app, _WITHOUT_OWNER) == SSNS[:2]
    with partition_scope("1", "2"), pytest.raises(OwnerRequiredError):
        app.rows(_WITHOUT_OWNER)
    with partition_scope("2"), pytest.raises(DecryptionError):
        app.rows(_WITHOUT_OWNER)


@reading("CTE")
def common_table_expressions(app: App) -> None:
    cte = select(Patient).where(Patient.clinic_id == 1).cte("first")
    assert first(app, select(cte.c.ssn).order_by(cte.c.id)) == SSNS[:2]
    entity = aliased(Patient, cte)
    assert [each.ssn for each in first(app, select(entity).order_by(entity.id))] == SSNS[:2]


@reading("recursive CTE")
def recursive_common_table_expressions(app: App) -> None:
    start = OWNED.where(Patient.id == 1).cte("chain", recursive=True)
    chain = start.union_all(OWNED.join(start, Patient.id == start.c.id + 1))
    assert first(app, select(chain.c.ssn).order_by(chain.c.id)) == SSNS


@reading("LATERAL", not_on={"sqlite", "mariadb"})
def laterals(app: App) -> None:
    newest = lateral(select(Patient).where(Patient.clinic_id == Clinic.id).order_by(Patient.id.desc()).limit(1))
    query = select(Clinic.id, newest.c.ssn).outerjoin(newest, true()).order_by(Clinic.id)
    assert app.rows(query) == [(1, "canary 2"), (2, "canary 3"), (3, None)]


@reading("TABLESAMPLE", not_on={"sqlite", "mariadb"})
def samples(app: App) -> None:
    sample = tablesample(Patient.__table__, func.bernoulli(100))
    assert first(app, select(sample.c.ssn).order_by(sample.c.id)) == SSNS


LEFT: Final = OWNED.where(Patient.id < 3)
RIGHT: Final = OWNED.where(Patient.id > 1)


@reading("union_all")
def unions_of_all(app: App) -> None:
    assert sorted(row[2] for row in app.rows(union_all(LEFT, RIGHT))) == sorted([*SSNS, "canary 2"])
    without_key = union_all(select(Patient.ssn).where(Patient.id == 1), select(Patient.ssn).where(Patient.id == 3))
    assert sorted(first(app, without_key)) == ["canary 1", "canary 3"]
    inner = union_all(LEFT, RIGHT).subquery()
    assert sorted(first(app, select(inner.c.ssn))) == sorted([*SSNS, "canary 2"])
    notes = select(Patient.id, Patient.clinic_id, Patient.notes)
    with_null = union_all(notes.where(Patient.id == 1), notes.where(Patient.id == 2))
    assert sorted(row[::2] for row in app.rows(with_null)) == [(1, "canary note 1"), (2, None)]


@reading("union, intersect, except_ over rows that include the primary key")
def unions_of_rows_with_a_key(app: App) -> None:
    assert sorted(row[2] for row in app.rows(union(LEFT, RIGHT))) == SSNS
    inner = union(LEFT, RIGHT).subquery()
    assert first(app, select(inner.c.ssn).order_by(inner.c.id)) == SSNS
    assert [row[2] for row in app.rows(intersect(LEFT, RIGHT))] == ["canary 2"]
    assert [row[2] for row in app.rows(except_(LEFT, RIGHT))] == ["canary 1"]


@reading("unions of entities")
def unions_of_entities(app: App) -> None:
    with app.session() as session:
        stated = select(Patient).from_statement(union_all(LEFT, RIGHT))
        assert {each.ssn for each in session.scalars(stated)} == set(SSNS)
        entity = aliased(Patient, union_all(select(Patient).where(Patient.id == 1), select(Patient)).subquery())
        assert {each.ssn for each in session.scalars(select(entity))} == set(SSNS)
        one, other = (session.query(Patient).filter(Patient.id == number) for number in (1, 3))
        assert {each.ssn for each in one.union(other)} == {"canary 1", "canary 3"}
        assert {each.ssn for each in one.union_all(other)} == {"canary 1", "canary 3"}


@reading("union of different encrypted columns")
def unions_of_different_columns(app: App) -> None:
    ssn, notes = select(Patient.clinic_id, Patient.ssn), select(Patient.clinic_id, Patient.notes)
    with pytest.raises(WrongPlaceError):  # SQLAlchemy takes the columns of the first branch for those of the union
        app.rows(union_all(ssn, notes))
    app.rows(select(union_all(ssn, notes).subquery().c.ssn))


@reading("join")
def joins(app: App) -> None:
    query = select(Patient.ssn, Visit.finding, Clinic.name).join(Patient.visits).join(Patient.clinic)
    assert app.rows(query.where(Patient.id == 1)) == [("canary 1", "canary finding 1", "Clinic 1")]
    inner = select(Patient, Visit).join(Visit).subquery()
    assert app.rows(select(inner.c.ssn, inner.c.finding_text).where(inner.c.id == 1)) == [
        ("canary 1", "canary finding 1")
    ]


@reading("outer join")
def outer_joins(app: App) -> None:
    later = aliased(Patient)
    query = select(Patient.ssn, later.ssn).outerjoin(later, later.id == Patient.id + 1).order_by(Patient.id)
    assert app.rows(query) == [("canary 1", "canary 2"), ("canary 2", "canary 3"), ("canary 3", None)]
    inner = select(Visit).where(Visit.id == 1).subquery()
    joined = select(Patient.id, inner.c.finding_text).outerjoin(inner, inner.c.patient_id == Patient.id)
    assert sorted(app.rows(joined)) == [(1, "canary finding 1"), (2, None), (3, None)]
    entities = select(Clinic.id, Patient).outerjoin(Clinic.patients).where(Clinic.id > 1).order_by(Clinic.id)
    assert [patient and patient.ssn for _, patient in app.rows(entities)] == ["canary 3", None]


@reading("with_polymorphic")
def polymorphic(app: App) -> None:
    people: Any = with_polymorphic(Person, [Doctor], flat=True)
    assert app.rows(select(people.alias, people.Doctor.licence).order_by(people.id)) == [
        ("canary alias 1", "canary licence 1"), ("canary alias 2", None), ("canary alias 3", "canary licence 3"),
    ]  # fmt: skip
    everyone: Any = with_polymorphic(Person, "*")
    with app.session() as session:
        found = session.scalars(select(everyone).order_by(everyone.id)).all()
        assert [each.licence for each in found if isinstance(each, Doctor)] == ["canary licence 1", "canary licence 3"]


@reading("from_statement(select(...))")
def from_statement(app: App) -> None:
    with app.session() as session:
        query = select(Patient).from_statement(select(Patient.__table__).where(Patient.id == 1))
        assert session.scalars(query).one().ssn == "canary 1"


@reading("INSERT … RETURNING", opens=False)
def returned_by_an_insert(app: App) -> None:
    with app.session() as session:
        row = {"id": 4, "clinic_id": 3, "ssn": "canary 4"}
        assert session.execute(insert(Patient).returning(Patient.ssn, Patient.notes), row).one() == ("canary 4", None)
        rows = [row | {"id": number, "ssn": f"canary {number}"} for number in (5, 6)]
        found = session.scalars(insert(Patient).returning(Patient), rows).all()
        assert sorted(str(each.ssn) for each in found) == ["canary 5", "canary 6"]


@reading("UPDATE … RETURNING", not_on={"mariadb"})
def returned_by_an_update(app: App) -> None:
    with app.engine.connect() as connection:
        change = patients.update().values(name="x")
        assert sorted(connection.execute(change.returning(patients.c.ssn)).scalars().all()) == SSNS
        assert connection.execute(
            change.where(patients.c.id == 1).values(notes="canary new").returning(patients.c.ssn, patients.c.notes)
        ).one() == ("canary 1", "canary new")


@reading("DELETE … RETURNING")
def returned_by_a_delete(app: App) -> None:
    with app.engine.connect() as connection:
        gone = letters.delete().returning(letters.c.body)
        assert sorted(connection.execute(gone).scalars().all()) == ["canary body 1", "canary body 2"]


@case("a row whose owner is NULL")
def rows_without_an_owner(app: App) -> None:
    app.add(Patient(id=1, clinic_id=1, ssn="canary 1"))
    app.execute(patients.update().values(name="x"))
    with app.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE patients SET clinic_id = NULL")
    assert app.rows(select(Patient.notes)) == [(None,)]
    app.rows(select(Patient.ssn))
