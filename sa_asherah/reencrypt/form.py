# SPDX-License-Identifier: Apache-2.0
"""Between what a driver gives for a stored value and the value itself, for one column under one type on one engine.

A raw value is what the driver gives and takes when no column type stands in between. Owners and primary keys are given
as the text that the database makes of them, as for a query. An error of `UNOPENED` speaks of one value and is given in
its place; any other (key service, key table) is nobody's fault, and is raised: it must not condemn a row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, Final

from sa_asherah.errors import (
    DecryptionError,
    KeyRecordError,
    OwnerRequiredError,
    UnsupportedValueError,
    WrongPartitionError,
)
from sa_asherah.reencrypt.foreign.written import stored_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy.engine import Connection, Dialect
    from sqlalchemy.schema import Column
    from sqlalchemy.types import TypeEngine

__all__ = ["UNOPENED", "Form", "Text", "bytes_of", "each"]

UNOPENED: Final = (DecryptionError, KeyRecordError, OwnerRequiredError, UnsupportedValueError)
"""What opening or sealing raises because of one value. `WrongPartitionError`, which is a scope's, is none of them."""

Text = str | bytes | None
"""What the database makes of an owner or a primary key."""


class Form(ABC):
    """How the values of a column stand in the database under one type.

    Attributes:
        column: The column.
        type: The type.
        owner: `key` of the column whose text is given as owner; `None` if none is needed.
        row: `key` of the primary key column whose text is given as such; `None` if none is needed.
        is_encrypted: Whether it is ciphertext.
        is_cell: Whether it is a cell, whose header and nonce no other value has.
    """

    is_encrypted: ClassVar[bool] = True
    is_cell: bool = False

    def __init__(self, column: Column[Any], type_: TypeEngine[Any], dialect: Dialect) -> None:
        """Describe; nothing is read yet.

        Args:
            column: The column of the plan's table.
            type_: The type.
            dialect: The engine's dialect.
        """
        self.column = column
        self.type = type_
        self.dialect = dialect
        self.owner: str | None = None
        self.row: str | None = None

    @abstractmethod
    def recognises(self, raw: Any) -> bool:
        """Tell by its looks whether a value is in this form: then it must open as such, and is nothing else.

        Args:
            raw: What the driver gave; not `None`.
        """

    def open(self, raws: Sequence[Any], owners: Sequence[Text] = (), rows: Sequence[Text] = ()) -> list[Any]:
        """Make values.

        Args:
            raws: What the driver gave; not `None`.
            owners: Texts of the column `owner`, one for each value; not used without such a column.
            rows: Texts of the column `row`, likewise.

        Returns:
            For each the value, as the application knows it, or why it does not open, one of `UNOPENED`.

        Raises:
            AsherahError: It is not the values' fault.
        """
        places = zip(raws, each(owners, raws), each(rows, raws), strict=True)
        return [_attempt(self._open, raw, owner, row) for raw, owner, row in places]

    def seal(
        self,
        values: Sequence[Any],
        owners: Sequence[Text] = (),
        rows: Sequence[Text] = (),
        connection: Connection | None = None,
    ) -> list[Any]:
        """Make what the driver takes, for a whole page at once.

        Args:
            values: The values; `None` stays NULL.
            owners: Texts of the column `owner`, one for each value; not used without such a column.
            rows: Texts of the column `row`, likewise.
            connection: Where the database has only one (SQLite in memory): keys are read and made on it, in a
                transaction that writes. Else it is left out; on SQLite no transaction may be open then.

        Returns:
            For each what the driver takes.

        Raises:
            AsherahError: One of `UNOPENED` if a value cannot be sealed: seal them one by one to find it.
        """
        raise NotImplementedError  # what others wrote is a source only: a plan refuses it as a target

    def key_of(self, raw: Any) -> str:
        """Say for the counts what a value is under: the date of its key, which many owners share, or what else it is.

        Args:
            raw: What the driver gave.
        """
        coordinates = self.coordinates(raw)
        if coordinates is None:
            return type(self.type).__name__ if self.is_encrypted else "plaintext"
        return f"key of {datetime.fromtimestamp(coordinates[1], UTC):%Y-%m-%dT%H:%M:%SZ}"

    def coordinates(self, raw: Any, owner: Text = None) -> tuple[str | None, int] | None:  # noqa: ARG002
        """Tell the key that a value says it is under, without opening it.

        Args:
            raw: What the driver gave.
            owner: Text of the column `owner`.

        Returns:
            Id and date of the key; the id of a cell is that of its owner's keys in this region, `None` without an
            owner. `None` if the value is not under a key of an owner.
        """
        return None

    @abstractmethod
    def _open(self, raw: Any, owner: Text, row: Text) -> Any: ...


def each(texts: Sequence[Text], values: Sequence[Any]) -> Sequence[Text]:
    """Give a text for each value, `None` where a form was given none because it needs none.

    Args:
        texts: Owners or primary keys.
        values: The values.
    """
    return texts or [None] * len(values)


def _attempt(work: Callable[[Any, Text, Text], Any], raw: Any, owner: Text, row: Text) -> Any:
    try:
        return work(raw, owner, row)
    except UNOPENED as error:
        if isinstance(error, WrongPartitionError):
            raise  # a partition out of scope is the program's mistake
        return error.with_traceback(None)


def bytes_of(raw: Any) -> bytes:
    """Give the bytes of what a driver gave; none of what is neither text nor bytes.

    Args:
        raw: What the driver gave.
    """
    return stored_bytes(raw) or b""
