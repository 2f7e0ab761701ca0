# SPDX-License-Identifier: Apache-2.0
"""`reads=`: what a column accepts besides the form that it writes, each until the end of a day.

A window decides by what a value looks like, and never falls back: what looks like a cell or a record must open as one.
Writing to the database therefore is the power to plant a plaintext while a window for plaintext is open.
"""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from sa_asherah.core import cell, row_record
from sa_asherah.errors import ConfigurationError, MalformedCellError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sa_asherah.core.hierarchy import Hierarchy
    from sa_asherah.orm.types import Encrypted

__all__ = ["PLAINTEXT", "RECORD", "Windows", "check_windows", "form_of", "holds_text", "innermost"]

PLAINTEXT: Final = "plaintext"
RECORD: Final = "asherah"
UNPADDED: Final = "unpadded"
NOT_ROW_BOUND: Final = "not-row-bound"

_WINDOW: Final = re.compile(r"([a-z-]+)@([0-9]{4}-[0-9]{2}-[0-9]{2})")
_FORMS: Final = (PLAINTEXT, RECORD, UNPADDED, NOT_ROW_BOUND)
_MISSING: Final = {cell.PADDED: UNPADDED, cell.ROW_BOUND: NOT_ROW_BOUND}


class Windows:
    """The parsed `reads=` of a column. Immutable."""

    __slots__ = ("_ends",)

    def __init__(self, reads: tuple[str, ...]) -> None:
        """Parse.

        Args:
            reads: `form@YYYY-MM-DD`, each form once.

        Raises:
            ConfigurationError: One is malformed, or a form comes twice.
        """
        self._ends: Mapping[str, date] = dict(map(_parse, reads))
        if len(self._ends) != len(reads):
            raise ConfigurationError("reads= names a form twice: give each one date")

    def __bool__(self) -> bool:
        return bool(self._ends)

    def __contains__(self, form: object) -> bool:
        return form in self._ends

    def is_over(self, form: str, now: float) -> bool:
        """Tell whether the last day of a form is over.

        Args:
            form: One of the forms that are named.
            now: The time in seconds.
        """
        end = self._ends[form]
        return now >= (datetime(end.year, end.month, end.day, tzinfo=UTC) + timedelta(days=1)).timestamp()

    def enter(self, form: str, hierarchy: Hierarchy, label: str | None) -> None:
        """Accept a value in a form, and count it, if its date is not over.

        Args:
            form: One of the forms that are named.
            hierarchy: Whose clock tells the day (UTC) and whose events count.
            label: The column's label.

        Raises:
            MalformedCellError: The date is over.
        """
        if self.is_over(form, hierarchy.policy.clock()):
            raise MalformedCellError(
                f"a value of {label} is still {_DESCRIBED[form]}, which reads= accepted until {self._ends[form]} only: "
                "re-encrypt the column (sa-asherah reencrypt), or give reads= a later date until that is done"
            )
        table, _, column = (label or "").rpartition(".")
        hierarchy.events.count("window.read", form=form, table=table, column=column)

    def enter_flags(self, missing: int, hierarchy: Hierarchy, label: str | None) -> bool:
        """Accept a cell without flags that its column declares.

        Args:
            missing: These flags.
            hierarchy: As for `enter`.
            label: The column's label.

        Returns:
            Whether there is a window for each of them.

        Raises:
            MalformedCellError: There is, but the date is over.
        """
        forms = [form for flag, form in _MISSING.items() if missing & flag]
        if not all(form in self for form in forms):
            return False
        for form in forms:
            self.enter(form, hierarchy, label)
        return True


_DESCRIBED: Final = {
    PLAINTEXT: "plaintext",
    RECORD: "a data row record",
    UNPADDED: "a cell without padding",
    NOT_ROW_BOUND: "a cell that is not bound to its row",
}


def _parse(window: object) -> tuple[str, date]:
    found = _WINDOW.fullmatch(window) if isinstance(window, str) else None
    end = None
    with suppress(ValueError):
        end = date.fromisoformat(found[2]) if found else None
    if found is None or end is None or end == date.max or found[1] not in _FORMS:
        raise ConfigurationError(
            "reads= is a tuple of forms that are read besides the one that is written, each with its last day, e.g. "
            f"('plaintext@2027-06-30',); the forms are {', '.join(_FORMS)}"
        )
    return found[1], end


def check_windows(type_: Encrypted) -> None:
    """Refuse windows that the column cannot have.

    Args:
        type_: The column's type.

    Raises:
        ConfigurationError: A window has no meaning, or would decide between values that look alike.
    """
    windows = type_.windows
    if PLAINTEXT in windows and (not holds_text(type_.inner) or type_.storage == "json"):
        raise ConfigurationError(
            f"reads='plaintext' is for text: nothing tells whether the bytes of a {type(type_.inner).__name__} were "
            "encrypted. Encrypt into a new column instead: encrypt_column(..., into=...) or Change(..., into=...)"
        )
    if RECORD in windows and type_.format == RECORD:
        raise ConfigurationError("reads='asherah' is for format='cell': with format='asherah' it is what is written")
    if RECORD in windows:
        type_.plain_codec  # noqa: B018 -- refuses what no record holds
    if (UNPADDED in windows and not type_.pad) or (NOT_ROW_BOUND in windows and type_.bind_row is None):
        raise ConfigurationError("reads='unpadded' goes with pad=, and reads='not-row-bound' with bind_row=")


def innermost(type_: Any) -> Any:
    """Look through decorators at the type that they wrap.

    Args:
        type_: A type.

    Returns:
        What it stores in the end.
    """
    while isinstance(type_, sa.TypeDecorator):
        type_ = type_.impl_instance
    return type_


def holds_text(type_: Any) -> bool:
    """Tell whether a plain type stores text (`String`, `Enum`, decorators over these).

    Args:
        type_: The type.
    """
    return isinstance(innermost(type_), sa.String)


def form_of(type_: Encrypted, stored: bytes) -> str:
    """Tell by its looks what a stored value is to be opened as.

    Args:
        type_: The column's type.
        stored: The value; text as UTF-8.

    Returns:
        `cell`, `asherah` or `plaintext`.
    """
    windows = type_.windows
    if not type_.reads:
        return type_.format
    if type_.format == "cell":
        if cell.is_marked(stored, text=type_.storage == "text"):
            return "cell"
        if RECORD in windows and row_record.is_marked(stored):
            return RECORD
    elif row_record.is_marked(stored):
        return RECORD
    return PLAINTEXT if PLAINTEXT in windows else type_.format
