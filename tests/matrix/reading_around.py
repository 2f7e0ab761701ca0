# SPDX-License-Identifier: Apache-2.0
"""What may stand beside and around an encrypted column, and what ciphertext cannot do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import (
    String,
    between,
    cast,
    collate,
    distinct,
    exists,
    extract,
    func,
    literal,
    null,
    or_,
    select,
    tuple_,
    type_coerce,
    union,
)
from sqlalchemy import (
    case as case_when,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import aliased

from tests.matrix.reading import SSNS, first
from tests.matrix.registration import case, reading
from tests.orm.app import App
from tests.orm.models import Clinic, Letter, Patient, Visit


@reading("IS NULL, IS NOT NULL, == None", opens=False)
def null_tests(app: App) -> None:
    for is_null in (Patient.notes.is_(None), Patient.notes == None, Patient.notes == null()):  # noqa: E711 # the operator
        assert first(app, select(Patient.id).where(is_null)) == [2]
    for is_not in (Patient.notes.is_not(None), Patient.notes != None, ~Patient.notes.is_(None)):  # noqa: E711 # the same
        assert sorted(first(app, select(Patient.id).where(is_not))) == [1, 3]
    assert app.rows(select(Patient.notes.is_(None)).where(Patient.id == 2)) == [(True,)]


@reading("func.count(column)", opens=False)
def counts(app: App) -> None:
    assert app.rows(select(func.count(Patient.notes), func.count(Patient.id))) == [(2, 3)]
    by_clinic = select(Patient.clinic_id, func.count(Patient.notes)).group_by(Patient.clinic_id)
    assert sorted(app.rows(by_clinic)) == [(1, 1), (2, 1)]
    with app.session() as session:
        assert session.query(Patient.ssn).count() == 3


@reading("exists(), relationship.any(), relationship.has() by other columns")
def existence(app: App) -> None:
    by_visit = exists().where(Visit.patient_id == Patient.id, Visit.finding.is_not(None), Visit.place_id == 3)
    assert first(app, select(Patient.ssn).where(by_visit)) == ["canary 3"]
    assert first(app, select(Patient.ssn).where(Patient.visits.any(Visit.id == 2))) == ["canary 2"]
    assert first(app, select(Patient.ssn).where(Patient.clinic.has(Clinic.name == "Clinic 2"))) == ["canary 3"]
    assert app.rows(select(exists(select(Patient.ssn)))) == [(True,)]


@reading("scalar subquery over other columns")
def scalar_subqueries(app: App) -> None:
    visits = select(func.count(Visit.id)).where(Visit.patient_id == Patient.id).scalar_subquery()
    last = select(func.max(Patient.id)).scalar_subquery()
    assert app.rows(select(Patient.ssn, visits).where(Patient.id == last)) == [("canary 3", 1)]


@reading("window functions over other columns")
def window_functions(app: App) -> None:
    place = func.row_number().over(partition_by=Patient.clinic_id, order_by=Patient.id)
    assert app.rows(select(Patient.ssn, place).order_by(Patient.id)) == [
        ("canary 1", 1), ("canary 2", 2), ("canary 3", 1),
    ]  # fmt: skip
    newest = select(Patient, place.label("place")).subquery()
    assert first(app, select(newest.c.ssn).where(newest.c.place == 1).order_by(newest.c.id)) == SSNS[::2]


@reading("DISTINCT over rows that include the primary key")
def distinct_rows(app: App) -> None:
    assert sorted(app.rows(select(Patient.id, Patient.ssn).join(Patient.visits).distinct())) == [*enumerate(SSNS, 1)]
    entities = select(Patient).join(Patient.visits).distinct().order_by(Patient.id)
    assert [each.ssn for each in first(app, entities)] == SSNS


def _distinct_on(query: Any, column: Any) -> Any:
    """In SQLAlchemy 2.1 it is an extension, and the older way is deprecated."""
    extension: Any = getattr(postgresql, "distinct_on", None)
    return query.distinct(column) if extension is None else query.ext(extension(column))


@reading("DISTINCT ON other columns", not_on={"sqlite", "mariadb"})
def distinct_on(app: App) -> None:
    query = _distinct_on(select(Patient.ssn), Patient.clinic_id).order_by(Patient.clinic_id, Patient.id)
    assert first(app, query) == ["canary 1", "canary 3"]


@reading("GROUP BY the primary key")
def grouped_by_the_key(app: App) -> None:
    query = select(Patient.ssn, func.count(Visit.id)).join(Patient.visits).group_by(Patient.id).order_by(Patient.id)
    assert app.rows(query) == [(ssn, 1) for ssn in SSNS]


@reading("ORDER BY other columns, LIMIT, OFFSET")
def ordered_and_limited(app: App) -> None:
    query = select(Patient.ssn).order_by(Patient.clinic_id.desc(), Patient.name.desc(), Patient.id)
    assert first(app, query.limit(2).offset(1)) == ["canary 2", "canary 1"]
    with app.session() as session:
        assert [each.ssn for each in session.query(Patient).order_by(Patient.id)[1:3]] == SSNS[1:]


@reading("with_for_update")
def locked(app: App) -> None:
    with app.session() as session:
        query = select(Patient).where(Patient.id == 1)
        assert session.scalars(query.with_for_update(of=Patient)).one().ssn == "canary 1"
        assert session.scalars(query.with_for_update(read=True)).one().ssn == "canary 1"
        assert session.get_one(Patient, 3, with_for_update=True).ssn == "canary 3"
        assert session.execute(select(Patient.ssn).with_for_update().where(Patient.id == 2)).scalar_one() == "canary 2"


def refused(row: str, **statements: Callable[[], Any]) -> None:
    """Register statements that must be refused before anything is sent: the tables hold nothing."""
    for name, make in statements.items():

        def body(app: App, make: Callable[[], Any] = make) -> None:
            app.rows(make())

        body.__name__ = name
        case(row)(body)


LITERAL: Final[Any] = literal("x")
SSN: Final[Any] = Patient.ssn
_LETTERS = select(Letter).subquery()
_PATIENTS = select(Patient).subquery()
_UNION: Any = union(select(Patient.id, Patient.clinic_id, SSN), select(Patient.id, Patient.clinic_id, SSN))
_TUPLE: Any = tuple_(Patient.id, SSN)
_GROUPED = select(func.count()).select_from(Patient).group_by(Patient.clinic_id)

refused(
    "DISTINCT without the primary key",
    distinct_values=lambda: select(SSN).distinct(),
    distinct_with_the_owner=lambda: select(Patient.clinic_id, SSN).distinct(),
)
refused(
    "UNION, INTERSECT, EXCEPT without the primary key",
    union_without_a_key=lambda: union(select(Patient.clinic_id, SSN), select(Patient.clinic_id, SSN)),
)
refused("count(distinct …)", count_distinct=lambda: select(func.count(distinct(SSN))))
refused(
    "==, !=, <, in_, like, between, + with a value",
    equal=lambda: select(Patient).where(SSN == "x"),
    unequal=lambda: select(Patient).where(SSN != "x"),
    less=lambda: select(Patient).where(SSN < "x"),
    in_values=lambda: select(Patient).where(SSN.in_(["x"])),
    not_in_values=lambda: select(Patient).where(SSN.not_in(["x"])),
    like=lambda: select(Patient).where(SSN.like("x%")),
    contains=lambda: select(Patient).where(SSN.contains("x")),
    startswith=lambda: select(Patient).where(SSN.startswith("x")),
    regexp=lambda: select(Patient).where(SSN.regexp_match("x")),
    between_values=lambda: select(Patient).where(between(SSN, "a", "b")),
    concatenated=lambda: select(SSN + "x"),
    filtered_by=lambda: select(Patient).filter_by(ssn="x"),
    aliased_equal=lambda: select(Patient).where(aliased(Patient).ssn == "x"),
    matched=lambda: select(Patient).where(SSN.match("x")),
    distinct_from=lambda: select(Patient).where(SSN.is_distinct_from("x")),
    collated=lambda: select(collate(SSN, "C")),
)
refused(
    'literal("x") == column',
    literal_equal=lambda: select(Patient).where(LITERAL == SSN),
    any_of=lambda: select(Patient).where(or_(Patient.id == 1, LITERAL == SSN)),
)
refused("tuple_ with an encrypted column", in_a_tuple=lambda: select(Patient).where(_TUPLE.in_([(1, "x")])))
refused(
    "column = column, joins on it",
    columns_equal=lambda: select(Patient).where(Patient.notes == SSN),
    joined_on=lambda: select(Patient).join(Letter, Letter.body == SSN),
    subquery_joined_on=lambda: select(Patient).join(_LETTERS, _LETTERS.c.body == SSN),
)
refused(
    "in_(select(...)) of an encrypted column",
    in_select=lambda: select(Patient).where(SSN.in_(select(Patient.ssn))),
    plain_in_select=lambda: select(Patient).where(Patient.name.in_(select(Patient.ssn))),
)
refused(
    "ORDER BY an encrypted column",
    ordered=lambda: select(Patient).order_by(SSN),
    ordered_by_name=lambda: select(SSN).order_by("ssn"),
    ordered_by_label=lambda: select(SSN.label("s")).order_by("s"),
    ordered_descending=lambda: select(Patient).order_by(SSN.desc()),
    ordered_subquery=lambda: select(_PATIENTS.c.id).order_by(_PATIENTS.c.ssn),
    ordered_union=lambda: _UNION.order_by("ssn"),
    window_order=lambda: select(func.row_number().over(order_by=SSN)),
)
refused(
    "GROUP BY an encrypted column",
    grouped=lambda: select(func.count()).select_from(Patient).group_by(SSN),
    grouped_by_name=lambda: select(SSN, func.count()).group_by("ssn"),
)
refused("HAVING over an encrypted column", having=lambda: _GROUPED.having(func.max(SSN) > "x"))
refused(
    "functions, coalesce",
    coalesce=lambda: select(func.coalesce(SSN, "x")),
    lower=lambda: select(func.lower(SSN)),
    length_in_where=lambda: select(Patient).where(func.length(SSN) > 3),
    extracted=lambda: select(extract("year", SSN)),
    typed_function=lambda: select(func.coalesce(SSN, Patient.notes, type_=SSN.type)),
)
refused(
    "aggregate functions",
    maximum=lambda: select(func.max(SSN)),
    array_agg=lambda: select(func.array_agg(SSN)),
    string_agg=lambda: select(func.string_agg(SSN, ",")),
)
refused(
    "window functions over an encrypted column",
    lag=lambda: select(func.lag(SSN).over(order_by=Patient.id)),
    partitioned=lambda: select(func.row_number().over(partition_by=SSN)),
    filtered_aggregate=lambda: select(func.count().filter(LITERAL == SSN)),
)
refused(
    "CASE with an encrypted column",
    case_result=lambda: select(case_when((Patient.id == 1, SSN), else_=None)),
    case_condition=lambda: select(case_when((LITERAL == SSN, 1), else_=0)),
)
refused(
    "cast of an encrypted column",
    cast_to_text=lambda: select(cast(SSN, String())),
    cast_to_itself=lambda: select(cast(SSN, SSN.type)),
)
refused(
    "scalar subquery of an encrypted column",
    scalar_subquery=lambda: select(select(SSN).where(Patient.id == 1).scalar_subquery()),
)
refused(
    "any of these in a subquery, a CTE or exists()",
    in_subquery=lambda: select(select(func.lower(SSN).label("low")).subquery().c.low),
    in_cte=lambda: select(select(Patient.id).where(LITERAL == SSN).cte().c.id),
    in_exists=lambda: select(Clinic).where(exists().where(LITERAL == SSN)),
    in_any=lambda: select(Clinic).where(Clinic.patients.any(LITERAL == SSN)),
    in_a_join=lambda: select(Clinic).join(Patient, LITERAL == SSN),
    in_union_branch=lambda: union(select(Patient.id).where(func.lower(SSN) == "x"), select(Patient.id)),
    coerced=lambda: select(type_coerce(func.lower(SSN), String())),
)


@case("DISTINCT ON an encrypted column", not_on={"sqlite", "mariadb"})
def distinct_on_ciphertext(app: App) -> None:
    app.rows(_distinct_on(select(Patient), SSN))


@case("literal_binds with a value of an encrypted column")
def literal_binds(app: App) -> None:
    statement = Patient.__table__.insert().values(id=1, clinic_id=1, ssn="canary")  # type: ignore[attr-defined]
    statement.compile(app.engine, compile_kwargs={"literal_binds": True})
