# SPDX-License-Identifier: Apache-2.0
"""Where a column comes from: its table, its label, and the owner column of the very same source.

Never by name: in a join or a subquery a column called `tenant_id` may be another table's, another row's or a literal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.schema import Column, Table
from sqlalchemy.sql.elements import ColumnElement, Grouping, Label

from sa_asherah.errors import UnsupportedOperatorError
from sa_asherah.orm.types import Encrypted

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["bare", "label_of", "origin", "owner_of"]


def bare(element: Any) -> Any:
    """Strip annotations, labels and parentheses; they do not change what a column is."""
    found: Any = element._deannotate()
    while isinstance(found, (Label, Grouping)):
        inner: Any = found.element
        found = inner._deannotate()
    return found


def label_of(column: Column[Any]) -> str:
    """Name what the ciphertext of a table's column is bound to.

    Args:
        column: An encrypted column of a table.

    Returns:
        The type's own label, else `table.column`.
    """
    type_: Encrypted = column.type  # type: ignore[assignment]
    return type_.label or f"{column.table.name}.{column.name}"


def origin(column: ColumnElement[Any]) -> list[Column[Any]]:
    """Follow a column down to the table columns it shows; a union has one for each branch.

    Args:
        column: Any SQL element.

    Returns:
        The table columns; empty if the element is not simply a column of something.
    """
    element = bare(column)
    if isinstance(element, Column) and isinstance(_source(element), Table):
        return [element]
    found: list[Column[Any]] = []
    for proxied in getattr(element, "_proxies", ()):
        below = origin(proxied)
        if not below:
            return []
        found += below
    return found


def owner_of(column: ColumnElement[Any], tables: Iterable[Column[Any]]) -> ColumnElement[Any] | None:
    """Find the owner column that stands beside an encrypted column in the same selectable.

    Args:
        column: The encrypted column, of a table or of any selectable.
        tables: Its `origin`.

    Returns:
        The column to render, `None` where the owner is not in reach.

    Raises:
        UnsupportedOperatorError: Branches of a union disagree about the owner.
    """
    owners = {type_.owner for leaf in tables if isinstance(type_ := leaf.type, Encrypted)}
    if len(owners) != 1:
        raise UnsupportedOperatorError("the branches of this union have encrypted columns of different owners")
    name = owners.pop()
    element = bare(column)
    source = element.table
    if name is None:
        return None
    if isinstance(_source(element), Table):
        return source.c[name]  # type: ignore[no-any-return]
    return next((candidate for candidate in source.c if _beside(element, candidate, name)), None)


def _beside(column: Any, candidate: Any, owner: str) -> bool:
    """Tell whether two columns of one selectable come from the same row of the same table, by every step."""
    column, candidate = bare(column), bare(candidate)
    table = _source(column)
    if table is None or table is not _source(candidate):
        return False
    if isinstance(table, Table):
        return candidate is table.c.get(owner)
    below, beside = column._proxies, candidate._proxies
    return len(below) == len(beside) > 0 and all(map(_beside, below, beside, [owner] * len(below)))


def _source(element: Any) -> Any:
    table = getattr(element, "table", None)
    return None if table is None else table._deannotate()
