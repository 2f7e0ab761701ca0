# SPDX-License-Identifier: Apache-2.0
"""Every way to select an encrypted column with Core and through entities."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import exists, func, literal, null, select, text, true, union, union_all
from sqlalchemy.orm import Bundle, Session, aliased, contains_eager, with_polymorphic

from sa_asherah import OwnerRequiredError, UsageError, partition_scope
from sa_asherah.errors import DecryptionError
from tests.orm.app import App
from tests.orm.models import Clinic, Doctor, Patient, Person, Visit, letters


def fill(app: App) -> None:
    """Two patients of clinic 1, one of clinic 2 without notes, each with a visit at the next clinic; cold keys."""
    app.add(
        Patient(id=1, clinic_id=1, name="a", ssn="canary 1", notes="canary note 1", visits=[visit(1, 2)]),
        Patient(id=2, clinic_id=1, name="b", ssn="canary 2", notes="canary note 2", visits=[visit(2, 2)]),
        Patient(id=3, clinic_id=2, name="c", ssn="canary 3", visits=[visit(3, 3)]),
    )
    app.cold()


def visit(number: int, clinic: int) -> Visit:
    return Visit(id=number, place_id=clinic, finding=f"canary finding {number}")


SSNS = [("canary 1",), ("canary 2",), ("canary 3",)]


def test_entities(app: App) -> None:
    fill(app)
    with app.session() as session:
        patients = session.scalars(select(Patient).order_by(Patient.id)).all()
        assert [(each.ssn, each.notes) for each in patients] == [
            ("canary 1", "canary note 1"), ("canary 2", "canary note 2"), ("canary 3", None),
        ]  # fmt: skip


def test_column_tuples_and_labels(app: App) -> None:
    fill(app)
    query = select(Patient.id, Patient.ssn.label("number"), Patient.notes).order_by(Patient.id)
    with app.session() as session:
        row = session.execute(query).first()
        assert row is not None
        assert (row.id, row.number, row.notes) == (1, "canary 1", "canary note 1")
        assert session.scalars(select(Patient.ssn).order_by(Patient.id)).all() == ["canary 1", "canary 2", "canary 3"]
        assert session.scalar(select(Patient.ssn).where(Patient.id == 3)) == "canary 3"


def test_the_same_column_twice(app: App) -> None:
    fill(app)
    query = select(Patient.ssn, Patient.ssn.label("again"), Patient).where(Patient.id == 1)
    ((first, again, patient),) = app.rows(query)
    assert first == again == "canary 1"
    assert isinstance(patient, Patient)


def test_bundles(app: App) -> None:
    fill(app)
    ((bundle,),) = app.rows(select(Bundle("pair", Patient.ssn, Patient.notes)).where(Patient.id == 2))
    assert (bundle.ssn, bundle.notes) == ("canary 2", "canary note 2")


def test_columns_of_the_table_by_core(app: App) -> None:
    fill(app)
    patients = Patient.__table__
    with app.engine.connect() as connection:
        row = connection.execute(select(patients).where(patients.c.id == 1)).one()
        assert (row.ssn, row._mapping[patients.c.notes]) == ("canary 1", "canary note 1")
        assert connection.execute(select(patients.c.ssn).order_by(patients.c.id)).all() == SSNS
        assert connection.execute(patients.select().with_only_columns(patients.c.ssn)).scalars().first() is not None


def test_a_core_table_whose_key_is_not_its_name(app: App) -> None:
    app.execute(letters.insert(), [{"id": 1, "clinic_id": 1, "body": "canary b", "seal": "canary s"}])
    app.cold()
    with app.engine.connect() as connection:
        row = connection.execute(select(letters)).one()
        assert (row.body, row.seal) == ("canary b", "canary s")
        alias = letters.alias("l")
        assert connection.execute(select(alias.c.body)).scalar_one() == "canary b"
        inner = select(letters).subquery()
        assert connection.execute(select(inner.c.body)).scalar_one() == "canary b"


def test_attribute_key_and_name_may_differ(app: App) -> None:
    fill(app)
    assert app.rows(select(Visit.finding).order_by(Visit.id)) == [(f"canary finding {n}",) for n in (1, 2, 3)]
    other = aliased(Visit)
    assert app.rows(select(other.finding).where(other.place_id == 3)) == [("canary finding 3",)]
    inner = select(Visit).subquery()
    assert app.rows(select(aliased(Visit, inner).finding).where(inner.c.id == 1)) == [("canary finding 1",)]


def test_aliases(app: App) -> None:
    fill(app)
    one, other = aliased(Patient), aliased(Patient, name="o")
    query = select(one.ssn, other).join(other, one.id + 1 == other.id).order_by(one.id)
    assert [(ssn, patient.ssn) for ssn, patient in app.rows(query)] == [
        ("canary 1", "canary 2"), ("canary 2", "canary 3"),
    ]  # fmt: skip
    flat = Patient.__table__.alias()
    assert app.rows(select(flat.c.ssn).order_by(flat.c.id)) == SSNS


def test_joins_of_tables_with_different_owners(app: App) -> None:
    fill(app)
    query = select(Patient.ssn, Visit.finding, Clinic.name).join(Patient.visits).join(Patient.clinic)
    assert app.rows(query.where(Patient.id == 1)) == [("canary 1", "canary finding 1", "Clinic 1")]
    inner = select(Patient, Visit).join(Visit).subquery()
    columns = select(inner.c.ssn, inner.c.finding_text).where(inner.c.id == 1)
    assert app.rows(columns) == [("canary 1", "canary finding 1")]


def test_the_null_side_of_an_outer_join_is_none(app: App) -> None:
    fill(app)
    later = aliased(Patient)
    query = select(Patient.ssn, later.ssn).outerjoin(later, later.id == Patient.id + 1).order_by(Patient.id)
    assert app.rows(query)[-1] == ("canary 3", None)
    inner = select(Visit).where(Visit.id == 1).subquery()
    joined = select(Patient.id, inner.c.finding_text).outerjoin(inner, inner.c.patient_id == Patient.id)
    assert sorted(app.rows(joined)) == [(1, "canary finding 1"), (2, None), (3, None)]


def test_subqueries_with_the_owner(app: App) -> None:
    fill(app)
    inner = select(Patient.id, Patient.clinic_id.label("c"), Patient.ssn.label("s")).subquery()
    assert app.rows(select(inner.c.s).order_by(inner.c.id)) == SSNS
    twice = select(inner.c.s, inner.c.c, inner.c.id).subquery()
    assert app.rows(select(twice.c.s).order_by(twice.c.id)) == SSNS
    entity = aliased(Patient, select(Patient).where(Patient.id > 1).subquery())
    with app.session() as session:
        assert [each.ssn for each in session.scalars(select(entity).order_by(entity.id))] == ["canary 2", "canary 3"]


def test_subqueries_without_the_owner_need_a_scope(app: App) -> None:
    fill(app)
    inner = select(Patient.ssn, Patient.id).where(Patient.clinic_id == 1).subquery()
    query = select(inner.c.ssn).order_by(inner.c.id)
    with pytest.raises(OwnerRequiredError, match="select the owner column"):
        app.rows(query)
    with partition_scope("1"):
        assert app.rows(query) == SSNS[:2]
    with partition_scope("2"), pytest.raises(DecryptionError):
        app.rows(query)
    with partition_scope("1", "2"), pytest.raises(OwnerRequiredError):
        app.rows(query)


def test_an_owner_of_the_same_name_is_not_the_owner(app: App) -> None:
    fill(app)
    joined = select(Patient.ssn, Person.clinic_id).outerjoin(Person, true()).subquery()
    forged = select(Patient.ssn, literal(1).label("clinic_id")).subquery()
    for inner in (joined, forged):
        with pytest.raises(OwnerRequiredError):
            app.rows(select(inner.c.ssn))


def test_common_table_expressions(app: App) -> None:
    fill(app)
    first = select(Patient).where(Patient.clinic_id == 1).cte("first")
    assert app.rows(select(first.c.ssn).order_by(first.c.id)) == SSNS[:2]
    start = select(Patient.id, Patient.clinic_id, Patient.ssn).where(Patient.id == 1).cte("chain", recursive=True)
    chain = start.union_all(
        select(Patient.id, Patient.clinic_id, Patient.ssn).join(start, Patient.id == start.c.id + 1)
    )
    assert app.rows(select(chain.c.ssn).order_by(chain.c.id)) == SSNS


def test_laterals(app: App) -> None:
    fill(app)
    if app.dialect != "postgresql":
        return
    newest = select(Patient).where(Patient.clinic_id == Clinic.id).order_by(Patient.id.desc()).limit(1).lateral()
    query = select(Clinic.id, newest.c.ssn).outerjoin(newest, true()).order_by(Clinic.id)
    assert app.rows(query) == [(1, "canary 2"), (2, "canary 3"), (3, None)]


def test_unions(app: App) -> None:
    fill(app)
    left = select(Patient.id, Patient.clinic_id, Patient.ssn).where(Patient.id < 3)
    right = select(Patient.id, Patient.clinic_id, Patient.ssn).where(Patient.id > 1)
    assert sorted(row[2] for row in app.rows(union(left, right))) == ["canary 1", "canary 2", "canary 3"]
    assert len(app.rows(union_all(left, right))) == 4
    inner = union_all(left, right).subquery()
    assert len(app.rows(select(inner.c.ssn))) == 4
    with app.session() as session:
        entities = select(Patient).from_statement(union_all(left, right))
        assert {each.ssn for each in session.scalars(entities)} == {"canary 1", "canary 2", "canary 3"}


def test_unions_with_null(app: App) -> None:
    fill(app)
    query = union_all(
        select(Patient.id, Patient.clinic_id, Patient.notes).where(Patient.id == 1),
        select(Patient.id, Patient.clinic_id, Patient.notes).where(Patient.id == 3),
    )
    assert {(row[0], row[2]) for row in app.rows(query)} == {(1, "canary note 1"), (3, None)}


def test_a_union_of_different_columns_is_refused(app: App) -> None:
    fill(app)
    with pytest.raises(UsageError):
        app.rows(select(union_all(select(Patient.clinic_id, Patient.ssn), select(Patient.clinic_id, Patient.notes))
                        .subquery().c.ssn))  # fmt: skip
    with pytest.raises((UsageError, DecryptionError)):
        app.rows(union_all(select(Patient.clinic_id, Patient.ssn), select(Patient.clinic_id, Patient.notes)))


def test_distinct_with_the_primary_key(app: App) -> None:
    fill(app)
    assert len(app.rows(select(Patient.id, Patient.ssn).join(Patient.visits).distinct())) == 3


def test_count_and_null_tests(app: App) -> None:
    fill(app)
    assert app.rows(select(func.count(Patient.notes))) == [(2,)]
    assert app.rows(select(func.count()).select_from(Patient).where(Patient.notes.is_(None))) == [(1,)]
    assert app.rows(select(Patient.id).where(Patient.notes.is_not(None)).order_by(Patient.id)) == [(1,), (2,)]
    assert app.rows(select(Patient.id).where(Patient.notes == null())) == [(3,)]
    assert app.rows(select(Patient.id).where(Patient.notes != None).order_by(Patient.id)) == [(1,), (2,)]  # noqa: E711 # the operator
    assert (
        app.rows(select(Patient.id).where(exists().where(Visit.patient_id == Patient.id, Visit.finding.is_(None))))
        == []
    )


def test_from_statement_of_a_column_expression(app: App) -> None:
    fill(app)
    with app.session() as session:
        query = select(Patient).from_statement(select(Patient.__table__).where(Patient.id == 1))
        assert session.scalars(query).one().ssn == "canary 1"


def test_a_joined_entity_is_taken_from_the_query(app: App) -> None:
    fill(app)
    query = (
        select(Clinic).join(Clinic.patients).options(contains_eager(Clinic.patients)).order_by(Clinic.id, Patient.id)
    )
    with app.session() as session:
        clinics = session.scalars(query.where(Patient.id != 1)).unique().all()
        assert [[patient.ssn for patient in clinic.patients] for clinic in clinics] == [["canary 2"], ["canary 3"]]


def test_with_polymorphic(app: App) -> None:
    app.add(
        Doctor(id=1, clinic_id=1, alias="canary a", ward="north", licence="canary l"),
        Person(id=2, clinic_id=2, alias="canary p"),
    )
    app.cold()
    people: Any = with_polymorphic(Person, [Doctor], flat=True)
    assert app.rows(select(people.alias, people.Doctor.licence).order_by(people.id)) == [
        ("canary a", "canary l"), ("canary p", None),
    ]  # fmt: skip
    with app.session() as session:
        doctor, person = session.scalars(select(Person).order_by(Person.id))
        assert isinstance(doctor, Doctor)
        assert (doctor.alias, doctor.licence, person.alias) == ("canary a", "canary l", "canary p")


def test_legacy_query(app: App) -> None:
    fill(app)
    with app.session() as session:
        query = session.query(Patient.ssn, Patient.clinic_id).order_by(Patient.id)
        assert [row.ssn for row in query] == ["canary 1", "canary 2", "canary 3"]
        both = session.query(Patient).filter(Patient.id == 1).union(session.query(Patient).filter(Patient.id == 3))
        assert {each.ssn for each in both} == {"canary 1", "canary 3"}
        assert session.query(Patient).filter_by(id=2).one().notes == "canary note 2"


def test_locking(app: App) -> None:
    fill(app)
    with app.session() as session:
        assert (
            session.scalars(select(Patient).where(Patient.id == 1).with_for_update(of=Patient)).one().ssn == "canary 1"
        )


def test_streaming_and_yield_per(app: App) -> None:
    fill(app)
    with app.session() as session:
        streamed = session.scalars(select(Patient).order_by(Patient.id).execution_options(yield_per=2))
        assert [[each.ssn for each in part] for part in streamed.partitions()] == [
            ["canary 1", "canary 2"],
            ["canary 3"],
        ]
    with app.engine.connect() as connection:
        cursor = connection.execution_options(stream_results=True, max_row_buffer=1).execute(
            select(Patient.__table__.c.ssn).order_by(Patient.__table__.c.id)
        )
        assert list(cursor) == SSNS


def test_frozen_and_partitioned_results(app: App) -> None:
    fill(app)
    with app.session() as session:
        frozen = session.execute(select(Patient.ssn).order_by(Patient.id)).freeze()
        assert frozen().all() == SSNS


def test_an_option_clone_of_the_engine(app: App) -> None:
    fill(app)
    clone = app.engine.execution_options(logging_token="clone")
    with Session(clone) as session:
        assert session.scalars(select(Patient.ssn).order_by(Patient.id)).all() == ["canary 1", "canary 2", "canary 3"]
        session.add(Patient(id=4, clinic_id=3, ssn="canary 4"))
        session.commit()
    assert app.rows(select(Patient.ssn).where(Patient.id == 4)) == [("canary 4",)]


def test_a_query_of_text_with_columns_declared(app: App) -> None:
    fill(app)
    query = text("SELECT ssn, clinic_id, id FROM patients ORDER BY id").columns(
        Patient.ssn, Patient.clinic_id, Patient.id
    )
    with pytest.raises(OwnerRequiredError):
        app.rows(query)
    with partition_scope("1"), pytest.raises((OwnerRequiredError, DecryptionError)):
        app.rows(query)  # no label: text() does not tell which column the value is


def test_rows_whose_owner_was_taken_away_do_not_read_as_none(app: App) -> None:
    fill(app)
    with app.engine.begin() as connection:
        connection.execute(text("UPDATE patients SET clinic_id = NULL WHERE id = 1"))
    with pytest.raises(OwnerRequiredError):
        app.rows(select(Patient.ssn))
    assert app.rows(select(Patient.notes).where(Patient.id == 3)) == [(None,)]


def test_cells_moved_to_another_row_or_column_are_refused(app: App) -> None:
    fill(app)
    with app.engine.begin() as connection:
        connection.execute(text("UPDATE patients SET notes = ssn WHERE id = 1"))
        connection.execute(text("UPDATE patients SET clinic_id = 3 WHERE id = 3"))
    for query in (select(Patient.notes).where(Patient.id == 1), select(Patient.ssn).where(Patient.id == 3)):
        with pytest.raises(DecryptionError):
            app.rows(query)
    assert app.rows(select(Patient.ssn).where(Patient.id == 1)) == [("canary 1",)]
