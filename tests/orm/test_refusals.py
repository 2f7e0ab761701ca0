# SPDX-License-Identifier: Apache-2.0
"""What ciphertext cannot do is refused before anything is sent, and leaves no plaintext in a cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import (
    String,
    bindparam,
    case,
    cast,
    delete,
    distinct,
    event,
    exists,
    func,
    literal,
    null,
    select,
    tuple_,
    type_coerce,
    union,
    update,
)  # fmt: skip
from sqlalchemy.orm import aliased

from sa_asherah import UnsupportedOperatorError, UsageError
from tests.orm.app import App
from tests.orm.models import Patient, letters
from tests.orm.traces import assert_no_traces

ssn: Any = Patient.ssn
other: Any = aliased(Patient).ssn

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


AT_EXECUTION: dict[str, Callable[[], Any]] = {
    "literal == column": lambda: select(Patient.id).where(literal("canary") == ssn),
    "parameter == column": lambda: select(Patient.id).where(bindparam("p", "canary") == ssn),
    "function of the column": lambda: select(Patient.id).where(func.lower(ssn) == "canary"),
    "coalesce in the criteria": lambda: select(Patient.id).where(func.coalesce(ssn, "canary") == "canary"),
    "type_coerce to text": lambda: select(Patient.id).where(type_coerce(ssn, String) == "canary"),
    "cast to text": lambda: select(Patient.id).where(cast(ssn, String) == "canary"),
    "case == column": lambda: select(Patient.id).where(case((Patient.id == 1, "canary"), else_="canary") == ssn),
    "case over the column": lambda: select(case((Patient.id == 1, ssn), else_=null())),
    "tuple": lambda: select(Patient.id).where(tuple_(ssn, Patient.id).in_([("canary", 1)])),
    "column == column": lambda: select(Patient.id).where(ssn == other),
    "ORDER BY": lambda: select(Patient.id).order_by(ssn),
    "ORDER BY a name": lambda: select(Patient.id, ssn).order_by("ssn"),
    "GROUP BY": lambda: select(func.count()).group_by(ssn),
    "HAVING": lambda: select(Patient.clinic_id).group_by(Patient.clinic_id).having(func.max(ssn) == "canary"),
    "DISTINCT": lambda: select(ssn).distinct(),
    "count(distinct)": lambda: select(func.count(distinct(ssn))),
    "max": lambda: select(func.max(ssn)),
    "a function in the list": lambda: select(func.lower(ssn)),
    "coalesce in the list": lambda: select(func.coalesce(ssn, "canary")),
    "a scalar subquery": lambda: select(select(ssn).limit(1).scalar_subquery()),
    "a window": lambda: select(func.row_number().over(order_by=ssn)),
    "UNION": lambda: union(select(Patient.clinic_id, ssn), select(Patient.clinic_id, ssn)),
    "EXISTS": lambda: select(Patient.id).where(exists().where(literal("canary") == other)),
    "a CTE": lambda: select(select(Patient.id).where(literal("canary") == ssn).cte().c.id),
    "a subquery": lambda: select(select(Patient.id).where(func.lower(ssn) == "canary").subquery().c.id),
    "JOIN ON": lambda: select(Patient.id).join(letters, func.lower(letters.c.body) == Patient.name),
    "DELETE": lambda: delete(Patient).where(literal("canary") == ssn),
    "UPDATE": lambda: update(Patient).where(func.lower(ssn) == "canary").values(name="x"),
    "UPDATE of an encrypted column": lambda: update(Patient).where(literal("canary") == ssn).values(notes="canary"),
    "a plain column from it": lambda: update(Patient).values(name=ssn),
    "a plain column from a function of it": lambda: update(Patient).values(name=func.lower(ssn)),
}


def test_what_the_operator_does_not_see_is_refused_at_execution(app: App) -> None:
    app.add(Patient(id=1, clinic_id=1, name="a", ssn="canary 1"))
    sent: list[object] = []
    event.listen(app.engine, "before_cursor_execute", lambda *arguments: sent.append(arguments[2:4]))
    assert [name for name, form in AT_EXECUTION.items() if not is_refused(app, form)] == []
    assert "canary" not in repr(sent)
    assert_no_traces(app.engine)
    assert app.rows(select(Patient.ssn, Patient.name)) == [("canary 1", "a")]


def is_refused(app: App, form: Callable[[], Any]) -> bool:
    """Tell whether a statement is refused, also when it comes again."""
    for run in (app.execute, app.rows, app.execute):
        try:
            run(form())
        except UsageError as error:
            if "canary" in str(error):
                pytest.fail("the error holds the value")
        else:
            return False
    return True
