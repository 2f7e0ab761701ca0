# SPDX-License-Identifier: Apache-2.0
"""Where a column comes from: its table, its label, and the owner column of the very same source.

Never by name: in a join or a subquery a column called `tenant_id` may be another table's, another row's or a literal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy.schema import Column, Table
from sqlalchemy.sql.elements import ColumnElement, Grouping, Label

from sa_asherah.errors import UnsupportedOperatorError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sa_asherah.orm.types import Encrypted

__all__ = ["bare", "is_beside", "label_of", "neighbour", "origin"]


def bare(element: Any) -> Any:
    """Strip annotations, labels and parentheses; they do not change what a column is."""
    found: Any = element._deannotate()
    while isinstance(found, (Label, Grouping)):
        inner: Any = found.element
        found = inner._deannotate()
    return found


def label_of(column: Column[Any], type_: Encrypted | None = None) -> str:
    """Name what the ciphertext of a table's column is bound to.

    Args:
        column: An encrypted column of a table.
        type_: Its type, if it is not the one that the column declares.

    Returns:
        The type's own label, else `table.column`.
    """
    declared: Encrypted = type_ or column.type  # type: ignore[assignment] # of an encrypted column
    return declared.label or f"{column.table.name}.{column.name}"


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


def neighbour(
    column: ColumnElement[Any], tables: Iterable[Column[Any]], which: Literal["owner", "bind_row"]
) -> ColumnElement[Any] | None:
    """Find the owner or the primary key that stands beside an encrypted column in the same selectable.

    Args:
        column: The encrypted column, of a table or of any selectable.
        tables: Its `origin`.
        which: The argument of the type that names the neighbour.

    Returns:
        The column to render, `None` where it is not in reach or the type names none.

    Raises:
        UnsupportedOperatorError: Branches of a union disagree about it.
    """
    names = {getattr(leaf.type, which) for leaf in tables}
    if len(names) != 1:
        raise UnsupportedOperatorError(f"the branches of this union have encrypted columns of different {which}=")
    name = names.pop()
    element = bare(column)
    source = element.table
    if name is None:
        return None
    if isinstance(_source(element), Table):
        return source.c[name]  # type: ignore[no-any-return]
    return next((candidate for candidate in source.c if is_beside(element, candidate, name)), None)


def is_beside(column: Any, candidate: Any, name: str) -> bool:
    """Tell whether two columns of one selectable come from the same row of the same table, by every step.

    Args:
        column: A column of a selectable.
        candidate: Another one.
        name: `Column.key` that the other has in the table.
    """
    column, candidate = bare(column), bare(candidate)
    table = _source(column)
    if table is None or table is not _source(candidate):
        return False
    if isinstance(table, Table):
        return candidate is table.c.get(name)
    below, beside = column._proxies, candidate._proxies
    return len(below) == len(beside) > 0 and all(map(is_beside, below, beside, [name] * len(below)))


def _source(element: Any) -> Any:
    table = getattr(element, "table", None)
    return None if table is None else table._deannotate()
