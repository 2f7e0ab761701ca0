# SPDX-License-Identifier: Apache-2.0
"""One bad cell need not stop a page: within `asherah.unreadable("mark")` it yields an `Unreadable` instead."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final, Literal

from sa_asherah.errors import (
    AsherahError,
    DecryptionError,
    KeyRecordError,
    OwnerRequiredError,
    UsageError,
    WrongPartitionError,
)

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["Unreadable", "is_marked", "unreadable"]

# A statement option cannot reach the processors, which SQLAlchemy memoizes.
_marking: ContextVar[object] = ContextVar("sa_asherah_unreadable", default=None)


class Unreadable:
    """Stands for a value that cannot be opened. It is false, equals only itself and cannot be written back.

    Attributes:
        label: The column's label, `None` if the statement does not tell.
        reason: The class of the error that reading it would have raised.
    """

    __slots__ = ("label", "reason")

    def __init__(self, label: str | None, reason: type[AsherahError]) -> None:
        """Name the column and the reason.

        Args:
            label: The column's label.
            reason: The class of the error.
        """
        self.label: Final = label
        self.reason: Final = reason

    def __bool__(self) -> bool:
        """Be false, as a missing value is."""
        return False

    def __repr__(self) -> str:
        """Name the column and the reason."""
        return f"<unreadable {self.label}: {self.reason.__name__}>"


@contextmanager
def unreadable(asherah: object, mode: Literal["mark", "raise"]) -> Generator[None]:
    """Say what reading does with a value that cannot be opened.

    Args:
        asherah: Whose values are meant.
        mode: `"mark"` yields `Unreadable`, `"raise"` raises as outside of any such block.

    Yields:
        Nothing.

    Raises:
        UsageError: The mode is neither.
    """
    if mode not in {"mark", "raise"}:
        raise UsageError("unreadable() takes 'mark' or 'raise'")
    token = _marking.set(asherah if mode == "mark" else None)
    try:
        yield
    finally:
        _marking.reset(token)


def is_marked(error: AsherahError, asherah: object) -> bool:
    """Tell whether an error stands for one value and is to be marked, rather than raised.

    An unreachable key service or database would make every value unreadable, and a partition out of scope is a
    mistake of the program: both are raised.

    Args:
        error: What reading a value raised.
        asherah: The `Asherah` of the engine that reads.
    """
    if _marking.get() is not asherah or isinstance(error, WrongPartitionError):
        return False
    return isinstance(error, DecryptionError | KeyRecordError | OwnerRequiredError)
