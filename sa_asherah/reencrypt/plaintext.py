# SPDX-License-Identifier: Apache-2.0
"""Plaintext as a column stores it, by the conversions of the column's own type."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from sa_asherah.errors import MalformedCellError, UnsupportedValueError
from sa_asherah.orm.windows import holds_text
from sa_asherah.reencrypt.form import Form, Text, bytes_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.engine import Connection, Dialect
    from sqlalchemy.schema import Column
    from sqlalchemy.types import TypeEngine

__all__ = ["PlainForm"]

_NUMERIC_OIDS: Final[dict[type[Any], int]] = {int: 20, float: 701, Decimal: 1700}
"""What PostgreSQL calls the numbers that a driver gives; SQLAlchemy asks for it."""


class PlainForm(Form):
    """Plaintext, by the type's own conversions."""

    is_encrypted = False

    def __init__(
        self, column: Column[Any], type_: TypeEngine[Any], dialect: Dialect, others: Sequence[Form] = ()
    ) -> None:
        """Prepare the conversions.

        Args:
            column: The column of the plan's table.
            type_: The type.
            dialect: The engine's dialect.
            others: Forms of ciphertext that the column may hold, too.
        """
        super().__init__(column, type_, dialect)
        self._others = others
        self._impl = type_.dialect_impl(dialect)
        self._bind = self._impl.bind_processor(dialect)
        self._is_text = holds_text(type_)

    def recognises(self, raw: Any) -> bool:
        """Take what is no ciphertext."""
        return not any(other.recognises(raw) for other in self._others)

    def seal(
        self,
        values: Sequence[Any],
        owners: Sequence[Text] = (),  # noqa: ARG002 -- plaintext has none
        rows: Sequence[Text] = (),  # noqa: ARG002
        connection: Connection | None = None,  # noqa: ARG002
    ) -> list[Any]:
        """Make what the driver takes, as a statement would."""
        try:
            return [value if value is None or self._bind is None else self._bind(value) for value in values]
        except Exception:  # noqa: BLE001, S110 -- a decorator of the application's; its error may hold the value
            pass
        raise UnsupportedValueError(f"a value for {self.column} does not fit {self.type!r}")

    def _open(self, raw: Any, owner: Text, row: Text) -> Any:  # noqa: ARG002
        if self._is_text and not isinstance(raw, str):
            raw = self._text(bytes_of(raw))
        number = next((oid for kind, oid in _NUMERIC_OIDS.items() if isinstance(raw, kind)), None)
        process = self._impl.result_processor(self.dialect, number)
        try:
            return raw if process is None else process(raw)
        except Exception:  # noqa: BLE001, S110 -- as above
            pass
        raise MalformedCellError(f"a value of {self.column} is none of {self.type!r}")

    def _text(self, stored: bytes) -> str:
        try:
            return stored.decode()
        except UnicodeDecodeError:
            pass
        raise MalformedCellError(f"a value of {self.column} is not UTF-8")
