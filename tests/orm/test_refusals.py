# SPDX-License-Identifier: Apache-2.0
"""What ciphertext cannot do is refused before anything is sent, and leaves no plaintext in a cache."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import (
    String,
    all_,
    and_,
    any_,
    bindparam,
    case,
    cast,
    delete,
    desc,
    distinct,
    event,
    except_,
    exists,
    extract,
    func,
    insert,
    intersect,
    lambda_stmt,
    literal,
    null,
    nulls_last,
    select,
    true,
    tuple_,
    type_coerce,
    union,
    union_all,
    update,
)  # fmt: skip
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.orm import Bundle, aliased, joinedload, with_loader_criteria
from sqlalchemy.sql import ddl

from sa_asherah import Encrypted, UnsupportedOperatorError, UsageError, partition_scope
from tests.orm.app import App
from tests.orm.models import Clinic, Patient, Slot, Visit, drafts, letters, table_of
from tests.orm.traces import assert_no_traces

ssn: Any = Patient.ssn
Twin: Any = aliased(Patient)
other: Any = Twin.ssn

AT_CONSTRUCTION: dict[str, Callable[[], Any]] = {
    "equal": lambda: ssn == "canary",
    "not equal": lambda: ssn != "canary",
    "equal to a literal": lambda: ssn == literal("canary"),
    "equal to a parameter": lambda: ssn == bindparam("p", "canary"),
    "less": lambda: ssn < "canary",
    "greater": lambda: ssn >= "canary",
    "in": lambda: ssn.in_(["canary"]),
    "not in": lambda: ssn.not_in(["canary"]),
    "in a subquery": lambda: ssn.in_(select(letters.c.body)),
    "like": lambda: ssn.like("canary%"),
    "ilike": lambda: ssn.ilike("canary%"),
    "startswith": lambda: ssn.startswith("canary"),
    "contains": lambda: ssn.contains("canary"),
    "regular expression": lambda: ssn.regexp_match("canary"),
    "match": lambda: ssn.match("canary"),
    "between": lambda: ssn.between("canary", "canary"),
    "distinct from": lambda: ssn.is_distinct_from("canary"),
    "concatenate": lambda: ssn + "canary",
    "concat": lambda: ssn.concat("canary"),
    "any operator": lambda: ssn.op("@>")("canary"),
    "descending": ssn.desc,
    "ascending": ssn.asc,
    "distinct": ssn.distinct,
    "collate": lambda: ssn.collate("C"),
    "by a core column": lambda: letters.c.body == "canary",
    "filter_by": lambda: select(Patient).filter_by(ssn="canary"),
}


@pytest.mark.parametrize("form", AT_CONSTRUCTION)
def test_an_operator_is_refused_where_it_is_written(form: str) -> None:
    with pytest.raises(UnsupportedOperatorError, match="encrypted column") as caught:
        AT_CONSTRUCTION[form]()
    assert "canary" not in str(caught.value)


patients: Any = table_of(Patient)
slots: Any = table_of(Slot)
sub: Any = select(Patient.id, ssn.label("x")).subquery()
cte: Any = select(Patient.id, ssn.label("x")).cte()
one: Any = select(other).limit(1).scalar_subquery()
"""A scalar subquery of an encrypted column."""
row: Any = {"id": 1, "clinic_id": 1, "number": 7, "first": "canary", "second": "canary"}
SSN = Encrypted(String(), label="patients.ssn")

CONDITIONS: dict[str, Callable[[], Any]] = {
    "literal == column": lambda: literal("canary") == ssn,
    "parameter == column": lambda: bindparam("p", "canary") == ssn,
    "function of the column": lambda: func.lower(ssn) == "canary",
    "coalesce": lambda: func.coalesce(ssn, "canary") == "canary",
    "nullif is NULL": lambda: func.nullif(ssn, "canary").is_(None),
    "type_coerce to text": lambda: type_coerce(ssn, String) == "canary",
    "cast to text": lambda: cast(ssn, String) == "canary",
    "case == column": lambda: case((Patient.id == 1, "canary"), else_="canary") == ssn,
    "tuple": lambda: tuple_(ssn, Patient.id).in_([("canary", 1)]),
    "tuple in a subquery": lambda: tuple_(Patient.id, Patient.name).in_(select(Twin.id, Twin.ssn)),
    "tuple of literals in a subquery": lambda: tuple_(literal(1), literal("canary")).in_(select(Twin.id, Twin.ssn)),
    "literal in a subquery": lambda: literal("canary").in_(select(other)),
    "literal in a union": lambda: literal("canary").in_(union_all(select(other), select(other))),
    "literal == a scalar subquery": lambda: literal("canary") == one,
    "literal == an aggregate": lambda: literal("canary") == select(func.max(other)).scalar_subquery(),
    "any": lambda: literal("canary") == any_(one),
    "all": lambda: literal("canary") != all_(one),
    "column == column": lambda: ssn == other,
    "column != column": lambda: ssn != other,
    "column IS column": lambda: ssn.is_(other),
    "column IS NOT column": lambda: ssn.is_not(other),
    "column IS TRUE": lambda: ssn.is_(true()),
    "the column alone": lambda: ssn,
    "the column in a conjunction": lambda: and_(ssn, true()),
    "literal between": lambda: literal("canary").between(ssn, ssn),
    "an operator of its own": lambda: literal("canary").op("=")(ssn),
    "exists": lambda: exists().where(literal("canary") == other),
    "correlated exists": lambda: exists().where(other == ssn),
    "relationship.any": lambda: Patient.visits.any(literal("canary") == Visit.finding),
    "relationship.has": lambda: Patient.clinic.has(literal("canary") == ssn),
    "column of a subquery": lambda: Patient.id.in_(select(sub.c.id).where(literal("canary") == sub.c.x)),
    "column of a CTE": lambda: Patient.id.in_(select(cte.c.id).where(literal("canary") == cte.c.x)),
    "JSON of the row": lambda: func.to_jsonb(patients.table_valued()) == "canary",
}
"""What stands in a WHERE."""
OF_ONE_TABLE = {name: form for name, form in CONDITIONS.items() if not name.startswith("column")}
"""Those that every database has in an UPDATE and a DELETE."""

LISTED: dict[str, Callable[[], Any]] = {
    "case over the column": lambda: case((Patient.id == 1, ssn), else_=null()),
    "max": lambda: func.max(ssn),
    "lower": lambda: func.lower(ssn),
    "coalesce": lambda: func.coalesce(ssn, "canary"),
    "nullif": lambda: func.nullif(ssn, "canary"),
    "count(distinct)": lambda: func.count(distinct(ssn)),
    "count of a comparison": lambda: func.count(literal("canary") == ssn),
    "count with a filter": lambda: func.count(Patient.id).filter(literal("canary") == ssn),
    "strings put together": lambda: func.aggregate_strings(ssn, ","),
    "an ordered set": lambda: func.percentile_cont(0.5).within_group(ssn),
    "extract": lambda: extract("year", ssn),
    "cast": lambda: cast(ssn, String),
    "a comparison": lambda: literal("canary") == ssn,
    "a scalar subquery": lambda: one,
    "a window ordered by it": lambda: func.row_number().over(order_by=ssn),
    "a window ordered by its name": lambda: func.row_number().over(order_by="ssn"),
    "a window parted by it": lambda: func.row_number().over(partition_by=ssn),
    "its first value in a window": lambda: func.first_value(ssn).over(order_by=Patient.id),
    "its predecessor in a window": lambda: func.lag(ssn).over(order_by=Patient.id),
    "a function in a bundle": lambda: Bundle("b", func.lower(ssn)),
    "an aggregate with a label": lambda: type_coerce(func.max(ssn), SSN),
    "CASE with a label": lambda: type_coerce(case((Patient.name == "canary", ssn)), SSN),
    "a function with a label": lambda: type_coerce(func.nullif(ssn, "canary"), SSN),
}
"""What stands in a column list."""


def _within(what: str, forms: dict[str, Callable[[], Any]], make: Callable[[Any], Any]) -> dict[str, Callable[[], Any]]:
    """Put each form into a statement."""

    def statement(form: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: make(form())

    return {f"{what} {name}": statement(form) for name, form in forms.items()}


AT_EXECUTION: dict[str, Callable[[], Any]] = {
    **_within("WHERE", CONDITIONS, lambda form: select(Patient.id).where(form)),
    **_within("SELECT", LISTED, lambda form: select(Patient.id, form)),
    **_within("DELETE", OF_ONE_TABLE, lambda form: delete(Patient).where(form)),
    **_within("UPDATE", OF_ONE_TABLE, lambda form: update(Patient).where(form).values(name="x")),
    "ORDER BY": lambda: select(Patient.id).order_by(ssn),
    "ORDER BY a label": lambda: select(Patient.id).order_by(ssn.label("x")),
    "ORDER BY a name": lambda: select(Patient.id, ssn).order_by("ssn"),
    "ORDER BY a name, descending": lambda: select(Patient.id, ssn).order_by(desc("ssn")),
    "ORDER BY a name, NULL last": lambda: select(Patient.id, ssn).order_by(nulls_last(desc("ssn"))),
    "ORDER BY the name of a label": lambda: select(Patient.id, ssn.label("x")).order_by(desc("x")),
    "ORDER BY a name of a table's columns": lambda: select(letters).order_by(desc("body")),
    "ORDER BY a name of an entity's columns": lambda: select(Patient).order_by("ssn"),
    "ORDER BY a long name": lambda: select(Patient).order_by("patients_ssn"),
    "ORDER BY of a union": lambda: union_all(select(Patient.id, ssn), select(Patient.id, ssn)).order_by("ssn"),
    "ORDER BY CASE": lambda: select(Patient.id).order_by(case((Patient.id == 1, ssn))),
    "GROUP BY": lambda: select(func.count()).group_by(ssn),
    "GROUP BY a label": lambda: select(ssn.label("x"), func.count()).group_by("x"),
    "GROUP BY rollup": lambda: select(func.count()).group_by(func.rollup(ssn)),
    "GROUP BY with another row's key": lambda: select(func.count()).group_by(Twin.id, ssn),
    "HAVING": lambda: select(Patient.clinic_id).group_by(Patient.clinic_id).having(func.max(ssn) == "canary"),
    "DISTINCT": lambda: select(ssn).distinct(),
    "DISTINCT of a subquery": lambda: select(sub.c.x).distinct(),
    "DISTINCT with another row's key": lambda: select(Twin.id, ssn).join(Twin, Twin.clinic_id == 1).distinct(),
    "UNION": lambda: union(select(Patient.clinic_id, ssn), select(Patient.clinic_id, ssn)),
    "UNION of limits": lambda: union(select(ssn).limit(1), select(ssn).limit(1)),
    "UNION of unions": lambda: union(union_all(select(ssn), select(ssn)), union_all(select(ssn), select(other))),
    "INTERSECT": lambda: intersect(select(ssn), select(other)),
    "EXCEPT of two tables": lambda: except_(select(letters.c.id, letters.c.body), select(drafts.c.id, drafts.c.body)),
    "a CTE": lambda: select(select(Patient.id).where(literal("canary") == ssn).cte().c.id),
    "a CTE beside": lambda: select(Clinic.id).add_cte(select(Patient.id).where(literal("canary") == ssn).cte("q")),
    "a CTE beside an INSERT": lambda: (
        insert(Clinic).values(id=99).add_cte(select(Patient.id).where(literal("canary") == ssn).cte("q"))
    ),
    "a subquery": lambda: select(select(Patient.id).where(func.lower(ssn) == "canary").subquery().c.id),
    "LIMIT": lambda: select(Patient.id).limit(select(func.length(ssn)).limit(1).scalar_subquery()),
    "a table function": lambda: select(func.json_each(ssn).table_valued("value").c.value),
    "a column function": lambda: select(func.unnest(ssn).column_valued()),
    "JOIN ON a function": lambda: select(Patient.id).join(letters, func.lower(letters.c.body) == Patient.name),
    "JOIN ON the column": lambda: select(Patient.id).join(Clinic, Clinic.name == ssn),
    "JOIN ON two columns": lambda: select(Patient.id).join(letters, letters.c.body == ssn),
    "OUTER JOIN": lambda: select(Patient.id).outerjoin(sub, sub.c.x == ssn),
    "UPDATE FROM": lambda: update(patients).where(patients.c.ssn == letters.c.body).values(name="x"),
    "UPDATE of an encrypted column": lambda: update(Patient).where(literal("canary") == ssn).values(notes="canary"),
    "UPDATE of a plain column from it": lambda: update(Patient).values(name=ssn),
    "UPDATE of a plain column from a function of it": lambda: update(Patient).values(name=func.lower(ssn)),
    "UPDATE in order": lambda: update(patients).ordered_values((patients.c.name, func.lower(patients.c.ssn))),
    "UPDATE from another table": lambda: (
        update(patients).where(patients.c.id == letters.c.id).values(name=letters.c.body)
    ),
    "UPDATE RETURNING": lambda: update(patients).values(name="x").returning(func.hex(patients.c.ssn)),
    "DELETE RETURNING": lambda: delete(patients).returning(func.hex(patients.c.ssn)),
    "INSERT RETURNING": lambda: (
        insert(patients).values(id=9, clinic_id=1, ssn="canary").returning(cast(patients.c.ssn, String))
    ),
    "INSERT of a plain column from it": lambda: insert(patients).values(id=9, name=one),
    "INSERT of an owner from it": lambda: insert(patients).values(id=9, clinic_id=one),
    "INSERT of rows": lambda: insert(patients).values([{"id": 8, "name": "a"}, {"id": 9, "name": one}]),
    "INSERT of rows, a query": lambda: insert(patients).values([{"id": 8}, {"id": 9, "name": select(other).limit(1)}]),
    "INSERT of rows of a class": lambda: insert(Patient).values([{"id": 8, "name": "a"}, {"id": 9, "name": one}]),
    "INSERT of rows by position": lambda: insert(patients).values([(9, 1, func.lower(one), None, None)]),
    "INSERT FROM SELECT": lambda: insert(patients).from_select(["id", "name"], select(Patient.id + 9, ssn)),
    "INSERT FROM SELECT of a subquery": lambda: insert(patients).from_select(
        ["id", "name"], select(sub.c.id + 9, sub.c.x)
    ),
    "INSERT FROM a union": lambda: insert(patients).from_select(
        ["id", "name"], union_all(select(Patient.id + 9, ssn).limit(1), select(Patient.id + 19, ssn).limit(1))
    ),
    "INSERT FROM SELECT WHERE": lambda: insert(patients).from_select(
        ["id", "name"], select(Patient.id + 9, Patient.name).where(literal("canary") == ssn)
    ),
    "loader criteria": lambda: select(Patient).options(with_loader_criteria(Patient, literal("canary") == ssn)),
    "loader criteria by lambda": lambda: select(Patient).options(
        with_loader_criteria(Patient, lambda cls: literal("canary") == cls.ssn)
    ),
    "loader criteria of UPDATE": lambda: (
        update(Patient).values(name="x").options(with_loader_criteria(Patient, literal("canary") == ssn))
    ),
    "loader criteria of DELETE": lambda: delete(Patient).options(
        with_loader_criteria(Patient, literal("canary") == ssn)
    ),
    "criteria of an eager load": lambda: select(Clinic).options(
        joinedload(Clinic.patients.and_(literal("canary") == ssn))
    ),
    "a lambda statement": lambda: lambda_stmt(lambda: select(Patient.id).where(literal("canary") == Patient.ssn)),
    "a lambda in the criteria": lambda: select(Patient.id).where(lambda: literal("canary") == Patient.ssn),
    "a statement for an entity": lambda: select(Patient).from_statement(select(patients).order_by(patients.c.ssn)),
}

_THERE: Any = sqlite.insert(Slot).values(row)
_UPSERTS: dict[str, dict[str, Any]] = {
    "WHERE literal == column": {"where": literal("canary") == Slot.first},
    "WHERE column == excluded": {"where": Slot.first == _THERE.excluded.first},
    "WHERE function": {"where": func.lower(Slot.first) == "canary"},
    "target WHERE": {"index_where": literal("canary") == Slot.first},
    "plain column from excluded": {"set_": {"number": _THERE.excluded.first}},
    "plain column from a function of excluded": {"set_": {"number": func.length(_THERE.excluded.first)}},
    "plain column from a function": {"set_": {"number": func.length(Slot.first)}},
    "target": {"index_elements": [Slot.first]},
    "target by name": {"index_elements": ["first"]},
}


def upsert(app: App, changes: dict[str, Any]) -> Any:
    """Make an upsert of the database at hand that would be allowed but for the changes."""
    arguments: dict[str, Any] = {"index_elements": ["id"], "set_": {"number": 1}} | changes
    if app.dialect == "postgresql":
        return postgresql.insert(Slot).values(row).on_conflict_do_update(**arguments)
    return sqlite.insert(Slot).values(row).on_conflict_do_update(**arguments)


def _defined_by(statement: Any) -> dict[str, Callable[[], Any]]:
    """Make a view and a table of a SELECT, where this SQLAlchemy can."""
    makers: dict[str, Any] = {name: getattr(ddl, name, None) for name in ("CreateView", "CreateTableAs")}
    return {f"{name} {statement}": functools.partial(make, statement, "made") for name, make in makers.items() if make}


def _distinct_on(statement: Any) -> Any:
    """Say DISTINCT ON as this SQLAlchemy prefers it."""
    extension: Any = getattr(postgresql, "distinct_on", None)
    return statement.distinct(ssn) if extension is None else statement.ext(extension(ssn))


def forms(app: App) -> dict[str, Callable[[], Any]]:
    """Give all forms that the database at hand can render."""
    definitions = _defined_by(select(Patient.id, ssn)) | _defined_by(select(Patient.id).where(literal("canary") == ssn))
    return _statements(app) | definitions


def _statements(app: App) -> dict[str, Callable[[], Any]]:
    if app.dialect == "mariadb":
        by_mysql: Any = mysql.insert(Slot).values(row)
        return AT_EXECUTION | {
            "ON DUPLICATE KEY": lambda: by_mysql.on_duplicate_key_update(number=by_mysql.inserted.first),
            "ON DUPLICATE KEY, a function": lambda: by_mysql.on_duplicate_key_update(number=func.length(slots.c.first)),
        }
    upserts = {f"upsert, {name}": lambda it=it: upsert(app, it) for name, it in _UPSERTS.items()}
    if app.dialect == "sqlite":
        return AT_EXECUTION | upserts
    return (
        AT_EXECUTION
        | upserts
        | {
            "DISTINCT ON": lambda: _distinct_on(select(Patient.id)),
            "an array": lambda: select(Patient.id).where(literal("canary") == any_(postgresql.array([ssn]))),
            "an ordered aggregate": lambda: select(func.array_agg(postgresql.aggregate_order_by(Patient.id, ssn))),
            "LATERAL JOIN": lambda: select(Clinic.id).join(
                select(Patient.id).where(literal("canary") == ssn, Patient.clinic_id == Clinic.id).lateral(), true()
            ),
        }
    )


@pytest.mark.parametrize("app", ["sync"], indirect=True)  # what is refused reaches no driver
def test_what_the_operator_does_not_see_is_refused_at_execution(app: App) -> None:
    app.add(Patient(id=1, clinic_id=1, name="a", ssn="canary 1"), Slot(**row | {"first": "canary 1"}))
    sent: list[object] = []
    event.listen(app.engine, "before_cursor_execute", lambda *arguments: sent.append(arguments[2:4]))
    with partition_scope("1"):
        assert [name for name, form in forms(app).items() if not is_refused(app, form)] == []
    assert "canary" not in repr(sent)
    assert_no_traces(app.engine)
    assert app.rows(select(Patient.ssn, Patient.name)) == [("canary 1", "a")]


ADVICE = re.compile(r"\b(compute|compare|select|join|order by|sort|group|use|read the|run it)\b", re.IGNORECASE)


def is_refused(app: App, form: Callable[[], Any]) -> bool:
    """Tell whether a statement is refused, also when it comes again, with advice that holds no value."""
    texts: list[str] = []
    for run in (app.execute, app.rows, app.execute):
        try:
            run(form())
        except UsageError as error:
            texts.append(str(error))
    assert "canary" not in repr(texts)
    assert [text for text in texts if not ADVICE.search(text)] == [], "an error does not say what to do"
    return len(texts) == 3  # the runs
