# SPDX-License-Identifier: Apache-2.0
"""One column of a plan, by the forms of its values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sa_asherah.core import cell
from sa_asherah.reencrypt.ciphertext import EncryptedForm
from sa_asherah.reencrypt.forms import forms_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.engine import Dialect
    from sqlalchemy.types import TypeEngine

    from sa_asherah.reencrypt.form import Form
    from sa_asherah.reencrypt.plan import Plan

__all__ = ["Conversion", "conversions_of", "mark_of"]


@dataclass(frozen=True, slots=True)
class Conversion:
    """One column and what is to become of it.

    Attributes:
        column: Name of the column where values are read.
        into: Name of the column where they are written; the same, or another one.
        target: The form wanted.
        sources: The forms so far, in the order in which they are tried.
        newest: Whether values of the form wanted are sealed anew if their key is not the newest.
        moved: Whether a value may stand in `into` only.
    """

    column: str
    into: str
    target: Form
    sources: Sequence[Form]
    newest: bool = False
    moved: bool = False

    @property
    def types(self) -> dict[str, TypeEngine[Any]]:
        """What tells how the columns are stored."""
        return {self.into: self.target.type, self.column: self.sources[0].type}


def conversions_of(plan: Plan, dialect: Dialect) -> list[Conversion]:
    """Give what becomes of each column of a plan.

    Args:
        plan: The plan.
        dialect: The engine's dialect.

    Returns:
        The conversions.
    """
    columns = plan.table.c
    return [
        Conversion(
            columns[change.column].name,
            columns[change.goal].name,
            *forms_of(plan.table, change, dialect),
            plan.newest_key,
            change.moved,
        )
        for change in plan.changes
    ]


def mark_of(form: Form) -> bytes | None:
    """Tell how every value of a form begins, and none of another one.

    Args:
        form: The form.

    Returns:
        The first bytes; `None` if they do not tell.
    """
    if not isinstance(form, EncryptedForm) or not form.is_cell:
        return None
    return cell.TEXT_MARK if form.type.storage == "text" else cell.MARK
