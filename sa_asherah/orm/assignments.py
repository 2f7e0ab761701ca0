# SPDX-License-Identifier: Apache-2.0
"""What a DML statement writes into which column, wherever the application put the values, and putting values back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import bindparam
from sqlalchemy.sql.elements import BindParameter, ColumnElement, Null
from sqlalchemy.util import immutabledict

from sa_asherah.errors import UnsupportedValueError

if TYPE_CHECKING:
    from sqlalchemy.schema import Table
    from sqlalchemy.sql.dml import ValuesBase

__all__ = ["ABSENT", "NULL_GUARD", "STRICT_GUARD", "Assignments", "column_key", "cut_off", "literal_value"]

ABSENT: Final = object()
STRICT_GUARD: Final = "sa_asherah_guard_"
"""Start of the parameter names whose rows must all be matched."""
NULL_GUARD: Final = "sa_asherah_null_"
"""Start of the names of parameters that say that a row belongs to nobody."""

Row = dict[Any, Any]


def column_key(table: Table, key: Any) -> str | None:
    """Resolve a key of `values()`, a name or a column, to the `Column.key` of a table.

    Args:
        table: The table that is written.
        key: The key as SQLAlchemy keeps it.

    Returns:
        The key, `None` if it belongs to another table.
    """
    if isinstance(key, str):
        return key if key in table.c else None
    key = key._deannotate()
    return next((column.key for column in table.c if column is key), None)


def literal_value(value: Any, parameters: Mapping[str, Any], what: object) -> Any:
    """Give the Python value behind what `values()` holds.

    Args:
        value: A Python value or a SQL element.
        parameters: The parameters of the row, for `bindparam("name")`.
        what: The column, for the error text.

    Returns:
        The Python value.

    Raises:
        UnsupportedValueError: It is a SQL expression, whose result would be stored as plaintext.
    """
    if hasattr(value, "__clause_element__"):
        value = value.__clause_element__()
    if isinstance(value, BindParameter):
        return parameters.get(value.key, value.effective_value)
    if isinstance(value, Null):
        return None
    if isinstance(value, ColumnElement):
        raise UnsupportedValueError(
            f"a SQL expression cannot be the value of {what}: the database would store its result in plaintext or for "
            "an unknown owner; compute the value in Python"
        )
    return value


def cut_off(statement: Any) -> None:
    """Take away from a rebuilt statement what leads to the one it was made of.

    SQLAlchemy's caches keep the compiled statement, and with it everything that can be reached from it: the
    plaintext values of the application's statement, too.

    Args:
        statement: A statement that was made by `Assignments.statement`.
    """
    parts: dict[str, Any] = statement.__dict__
    parts.pop("_is_clone_of", None)
    annotated: Any = parts.get("_Annotated__element")
    if annotated is not None:
        plain = annotated.__class__.__new__(annotated.__class__)
        own = {"_Annotated__element", "_annotations", "_hash"}
        plain.__dict__.update((name, value) for name, value in parts.items() if name not in own)
        parts["_Annotated__element"], parts["_hash"] = plain, hash(plain)


class Assignments:
    """The values that one INSERT or UPDATE writes into one table.

    Nothing of the caller's is changed: rows are copied, the statement is rebuilt once by `statement`.
    """

    def __init__(self, statement: ValuesBase, parameters: Sequence[Mapping[str, Any]], table: Table) -> None:
        """Look at a statement.

        Args:
            statement: The INSERT or UPDATE.
            parameters: Its parameter sets, possibly none.
            table: The table of interest, which in a multi-table UPDATE need not be the statement's.
        """
        self._original = statement
        self.table = table
        self.parameters: list[Row] = [dict(row) for row in parameters] or [{}]
        self._values: dict[Any, Any] = dict(statement._values or {})
        self._ordered: list[tuple[Any, Any]] | None = getattr(statement, "_ordered_values", None)
        if self._ordered is not None:
            self._values = dict(self._ordered)
        self._multi: list[Row] = [
            dict(row) if isinstance(row, Mapping) else dict(zip(table.c.keys(), row, strict=False))
            for rows in statement._multi_values
            for row in rows
        ]
        self._rows = self._multi or self.parameters
        self._named = _names(table, self._multi[0] if self._multi else self._values)
        self._own_parameters = not self._multi and statement.table._deannotate() is table

    def __len__(self) -> int:
        """Count the rows that are written, or the parameter sets of an UPDATE."""
        return len(self._rows)

    def __contains__(self, key: str) -> bool:
        """Tell whether the column with this `Column.key` is written."""
        return key in self._named or (self._own_parameters and key in self.parameters[0])

    def column(self, key: str) -> list[Any]:
        """List what is written into a column, row by row.

        Args:
            key: `Column.key`.

        Returns:
            Python values; `None` where nothing is written.
        """
        if self._own_parameters and key in self.parameters[0]:
            return [row.get(key) for row in self.parameters]
        if key not in self._named:
            return [None] * len(self._rows)
        name, what = self._named[key], self.table.c[key]
        if self._multi:
            return [literal_value(row.get(name), self.parameters[0], what) for row in self._multi]
        return [literal_value(self._values[name], row, what) for row in self.parameters]

    def seen(self) -> list[Row]:
        """Show the values of each row by `Column.key`, SQL expressions left out, for defaults that depend on them."""
        shown: list[Row] = []
        for row in self._rows:
            named = row if self._multi else self._values
            values = {key: _plain(named.get(name), row) for key, name in self._named.items()}
            shown.append(values if self._multi else values | row)
        return shown

    def put(self, key: str, values: Sequence[Any]) -> None:
        """Write a column, in the place where the application wrote it.

        Args:
            key: `Column.key`.
            values: One for each row.
        """
        if key not in self._named:
            if self._multi:
                self._named[key] = key
            for row, value in zip(self._rows, values, strict=True):
                row[key] = value
        elif self._multi:
            for row, value in zip(self._multi, values, strict=True):
                row[self._named[key]] = value
        elif self._own_parameters and key in self.parameters[0]:
            self._values.pop(self._named.pop(key))
            self.put(key, values)
        elif len(self.parameters) == 1:
            self._values[self._named[key]] = bindparam(None, values[0], type_=self.table.c[key].type, unique=True)
        else:
            name = f"sa_asherah_{self.table.name}_{key}"
            self._values[self._named[key]] = bindparam(name, type_=self.table.c[key].type)
            for row, value in zip(self.parameters, values, strict=True):
                row[name] = value

    def statement(self) -> Any:
        """Rebuild the statement with the values put; SQLAlchemy's own `values()` would keep the old ones too."""
        statement: Any = self._original._generate()  # copy.copy() would undo what an annotated statement gained
        if self._multi:
            statement._multi_values = (self._multi,)
        elif self._ordered is not None:
            statement._ordered_values = list(self._values.items())
        elif self._values or statement._values:
            statement._values = immutabledict(self._values) if self._values else None
        return statement


def _names(table: Table, row: Mapping[Any, Any]) -> dict[str, Any]:
    return {key: name for name in row if (key := column_key(table, name)) is not None}


def _plain(value: Any, parameters: Mapping[str, Any]) -> Any:
    try:
        return literal_value(value, parameters, "a default")
    except UnsupportedValueError:
        return None
