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

SSN: Any = Patient.ssn
OTHER: Any = aliased(Patient).ssn

AT_CONSTRUCTION: dict[str, Callable[[], Any]] = {
    "equal": lambda: SSN == "canary",
    "not equal": lambda: SSN != "canary",
    "equal to a literal": lambda: literal("canary") == SSN,
    "equal to a parameter": lambda: bindparam("p", "canary") == SSN,
    "less": lambda: SSN < "canary",
    "greater": lambda: SSN >= "canary",
    "in": lambda: SSN.in_(["canary"]),
    "not in": lambda: SSN.not_in(["canary"]),
    "in a subquery": lambda: SSN.in_(select(letters.c.body)),
    "like": lambda: SSN.like("canary%"),
    "ilike": lambda: SSN.ilike("canary%"),
    "startswith": lambda: SSN.startswith("canary"),
    "contains": lambda: SSN.contains("canary"),
    "regular expression": lambda: SSN.regexp_match("canary"),
    "match": lambda: SSN.match("canary"),
    "between": lambda: SSN.between("canary", "canary"),
    "distinct from": lambda: SSN.is_distinct_from("canary"),
    "concatenate": lambda: SSN + "canary",
    "concat": lambda: SSN.concat("canary"),
    "any operator": lambda: SSN.op("@>")("canary"),
    "descending": SSN.desc,
    "ascending": SSN.asc,
    "distinct": SSN.distinct,
    "collate": lambda: SSN.collate("C"),
    "by a core column": lambda: letters.c.body == "canary",
    "filter_by": lambda: select(Patient).filter_by(ssn="canary"),
}


@pytest.mark.parametrize("form", AT_CONSTRUCTION)
def test_an_operator_is_refused_where_it_is_written(form: str) -> None:
    with pytest.raises(UnsupportedOperatorError, match="encrypted column") as caught:
        AT_CONSTRUCTION[form]()
    assert "canary" not in str(caught.value)


AT_EXECUTION: dict[str, Callable[[], Any]] = {
    "literal == column": lambda: select(Patient.id).where(literal("canary") == SSN),
    "parameter == column": lambda: select(Patient.id).where(bindparam("p", "canary") == SSN),
    "function of the column": lambda: select(Patient.id).where(func.lower(SSN) == "canary"),
    "coalesce in the criteria": lambda: select(Patient.id).where(func.coalesce(SSN, "canary") == "canary"),
    "type_coerce to text": lambda: select(Patient.id).where(type_coerce(SSN, String) == "canary"),
    "cast to text": lambda: select(Patient.id).where(cast(SSN, String) == "canary"),
    "case == column": lambda: select(Patient.id).where(case((Patient.id == 1, "canary"), else_="canary") == SSN),
    "case over the column": lambda: select(case((Patient.id == 1, SSN), else_=null())),
    "tuple": lambda: select(Patient.id).where(tuple_(SSN, Patient.id).in_([("canary", 1)])),
    "column == column": lambda: select(Patient.id).where(SSN == OTHER),
    "ORDER BY": lambda: select(Patient.id).order_by(SSN),
    "ORDER BY a name": lambda: select(Patient.id, SSN).order_by("ssn"),
    "GROUP BY": lambda: select(func.count()).group_by(SSN),
    "HAVING": lambda: select(Patient.clinic_id).group_by(Patient.clinic_id).having(func.max(SSN) == "canary"),
    "DISTINCT": lambda: select(SSN).distinct(),
    "count(distinct)": lambda: select(func.count(distinct(SSN))),
    "max": lambda: select(func.max(SSN)),
    "a function in the list": lambda: select(func.lower(SSN)),
    "coalesce in the list": lambda: select(func.coalesce(SSN, "canary")),
    "a scalar subquery": lambda: select(select(SSN).limit(1).scalar_subquery()),
    "a window": lambda: select(func.row_number().over(order_by=SSN)),
    "UNION": lambda: union(select(Patient.clinic_id, SSN), select(Patient.clinic_id, SSN)),
    "EXISTS": lambda: select(Patient.id).where(exists().where(literal("canary") == OTHER)),
    "a CTE": lambda: select(select(Patient.id).where(literal("canary") == SSN).cte().c.id),
    "a subquery": lambda: select(select(Patient.id).where(func.lower(SSN) == "canary").subquery().c.id),
    "JOIN ON": lambda: select(Patient.id).join(letters, func.lower(letters.c.body) == Patient.name),
    "DELETE": lambda: delete(Patient).where(literal("canary") == SSN),
    "UPDATE": lambda: update(Patient).where(func.lower(SSN) == "canary").values(name="x"),
    "UPDATE of an encrypted column": lambda: update(Patient).where(literal("canary") == SSN).values(notes="canary"),
    "a plain column from it": lambda: update(Patient).values(name=SSN),
    "a plain column from a function of it": lambda: update(Patient).values(name=func.lower(SSN)),
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
