# SPDX-License-Identifier: Apache-2.0
"""DISTINCT and UNION: they compare rows, and equal values have different ciphertexts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.sql.selectable import CompoundSelect, SelectStatementGrouping

from sa_asherah.errors import UnsupportedOperatorError
from sa_asherah.orm.advice import name_of
from sa_asherah.orm.lineage import is_beside, origin
from sa_asherah.orm.types import is_encrypted

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["branches", "has_key", "require_key", "require_same"]


def branches(select: Any) -> list[Any]:
    """List the SELECTs of a union, however nested.

    Args:
        select: A SELECT or a union.
    """
    if isinstance(select, SelectStatementGrouping):
        return branches(select.element)
    if isinstance(select, CompoundSelect):
        return [branch for each in select.selects for branch in branches(each)]
    return [select]


def has_key(column: Any, beside: Iterable[Any]) -> bool:
    """Tell whether the primary key of an encrypted column's row stands beside it.

    Args:
        column: The encrypted column.
        beside: The columns in question.
    """
    keys = [key for leaf in origin(column) for key in leaf.table.primary_key]
    others = list(beside)
    return bool(keys) and all(any(is_beside(column, other, key.key) for other in others) for key in keys)


def require_key(columns: Iterable[Any], what: str) -> None:
    """Refuse to compare rows by ciphertext; with the row's primary key among them, it does not matter.

    Args:
        columns: What is compared.
        what: The word of SQL that compares.

    Raises:
        UnsupportedOperatorError: An encrypted column stands without its primary key.
    """
    columns = list(columns)
    for column in columns:
        if is_encrypted(column) and not has_key(column, columns):
            raise UnsupportedOperatorError(
                f"{what} over the encrypted column {name_of(column)}: equal values have different ciphertexts, so "
                "nothing would be merged; select the primary key of the same row too, or use UNION ALL or Python"
            )


def require_same(compound: CompoundSelect[Any]) -> None:
    """Refuse a UNION whose branches could meet other than the very same cells.

    Args:
        compound: A UNION, INTERSECT or EXCEPT.

    Raises:
        UnsupportedOperatorError: The branches have other encrypted columns, or these without their primary key.
    """
    what = compound.keyword.value
    lists = [list(branch.selected_columns) for branch in branches(compound)]
    for columns in lists:
        require_key(columns, what)
    for position in zip(*lists, strict=False):
        leaves = {leaf for column in position for leaf in origin(column)}
        if len(leaves) > 1 and any(map(is_encrypted, position)):
            raise UnsupportedOperatorError(
                f"{what} of different encrypted columns ({', '.join(sorted(map(str, leaves)))}): equal values have "
                "different ciphertexts, so nothing would be merged; use UNION ALL or Python"
            )
