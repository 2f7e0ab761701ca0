# SPDX-License-Identifier: Apache-2.0
"""Where ciphertext has no meaning, and what to do there instead."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy.sql.elements import BinaryExpression, Case, Cast, ColumnElement, Over, TypeCoerce, WithinGroup
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.selectable import Join, ScalarSelect

from sa_asherah.orm.lineage import bare, origin

__all__ = [
    "ADVICE",
    "CASE",
    "CAST",
    "COMPARISON",
    "CRITERIA",
    "DISTINCT_ON",
    "FUNCTION",
    "GROUP_BY",
    "JOIN",
    "ORDER_BY",
    "PLACES",
    "PLAIN_COLUMN",
    "SUBQUERY",
    "TARGET",
    "WINDOW",
    "name_of",
]

COMPARISON: Final = "a comparison"
CRITERIA: Final = "a condition or operand"
JOIN: Final = "a join"
FUNCTION: Final = "a function"
CAST: Final = "a cast"
CASE: Final = "CASE"
WINDOW: Final = "a window"
SUBQUERY: Final = "a scalar subquery"
ORDER_BY: Final = "ORDER BY"
GROUP_BY: Final = "GROUP BY"
DISTINCT_ON: Final = "DISTINCT ON"
PLAIN_COLUMN: Final = "a value of another column"
TARGET: Final = "the conflict target of an upsert"

_IN_PYTHON: Final = "select the column as it is and compute in Python"
ADVICE: Final = {
    COMPARISON: "ciphertext differs each time; only IS NULL works. Select or join by other columns, or compare in "
    "Python",
    CRITERIA: f"only IS NULL works; {_IN_PYTHON}",
    JOIN: "equal values have different ciphertexts; join on another column",
    FUNCTION: f"only count() works; {_IN_PYTHON}",
    CAST: f"the database would convert ciphertext; {_IN_PYTHON}",
    CASE: f"only IS NULL works; {_IN_PYTHON}",
    WINDOW: "partition and order by other columns, or in Python",
    SUBQUERY: "join the table or select from the subquery with the owner column, so that the value has an owner",
    ORDER_BY: "ciphertext has no order; order by another column, or sort in Python",
    GROUP_BY: "equal values have different ciphertexts; group by another column or in Python, or by the row's primary "
    "key as well",
    DISTINCT_ON: "equal values have different ciphertexts; use another column or Python",
    PLAIN_COLUMN: "its ciphertext would be stored there; read the value and write it with the other column's own type",
    TARGET: "equal values have different ciphertexts, so there is never a conflict; use the key of the row",
}
"""What to do instead, by place."""

PLACES: Final[tuple[tuple[Any, str], ...]] = (
    (BinaryExpression, COMPARISON),
    (Join, JOIN),
    (Over, WINDOW),
    ((Cast, TypeCoerce), CAST),
    (Case, CASE),
    (ScalarSelect, SUBQUERY),
    ((FunctionElement, WithinGroup), FUNCTION),
)
"""Elements that are such a place."""


def name_of(element: Any) -> str:
    """Name an encrypted element for an error text.

    Args:
        element: A SQL element.

    Returns:
        Its table and column, or what it is.
    """
    inner = bare(element)
    leaves = origin(inner) if isinstance(inner, ColumnElement) else []
    if leaves:
        return str(leaves[0])
    if isinstance(inner, FunctionElement):
        return f"in {getattr(inner, 'name', 'a function')}()"
    return str(getattr(inner, "name", None) or type(inner).__name__)
