# SPDX-License-Identifier: Apache-2.0
"""INSERT and UPDATE inside another statement: `add_cte(...)` and `select(cte)` over a DML with RETURNING."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.sql import visitors
from sqlalchemy.sql.dml import Insert, Update, UpdateBase
from sqlalchemy.sql.selectable import CTE, Select

from sa_asherah.orm.assignments import cut_off

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["has_nested", "is_rewritten", "never_cache", "rewrite_nested"]

_MARK = "_sa_asherah_rewritten"


def is_rewritten(statement: Any) -> bool:
    """Tell whether a nested statement's values have been sealed.

    Args:
        statement: An INSERT or UPDATE inside another statement.
    """
    return _MARK in statement.__dict__


def has_nested(statement: Any) -> bool:
    """Look for nested DML where it usually is; this runs for every statement, so it looks no deeper.

    Args:
        statement: The statement to execute.
    """
    if getattr(statement, "_independent_ctes", ()):
        return True
    if isinstance(statement, Select):
        for column in statement._raw_columns:
            source: Any = getattr(column, "table", column)
            if isinstance(source, CTE) and isinstance(source.element, Insert | Update):
                return True
    return False


def never_cache(statement: Any) -> None:
    """Keep a statement out of SQLAlchemy's cache, which would keep what it was made of: plaintext.

    Args:
        statement: A copy that nobody else executes.
    """
    statement.__dict__["_generate_cache_key"] = lambda: None  # SQLAlchemy memoizes the key under the same name


def rewrite_nested(statement: Any, rewrite: Callable[[Any], Any]) -> Any:
    """Replace every INSERT and UPDATE inside a statement.

    Args:
        statement: The outer statement.
        rewrite: Gives the replacement of one.

    Returns:
        A copy of the outer statement.
    """

    def replace(element: Any, **_: Any) -> Any:
        if element is statement or not isinstance(element, Insert | Update) or is_rewritten(element):
            return None
        rewritten = rewrite(element)
        if rewritten is element:
            return None
        rewritten.__dict__[_MARK] = True
        return rewritten

    copy: Any = visitors.replacement_traverse(statement, {}, replace)
    for element in visitors.iterate(copy):
        if isinstance(element, CTE | Select | UpdateBase):
            cut_off(element)
    return copy
