# SPDX-License-Identifier: Apache-2.0
"""The assertion that a column is really encrypted in the database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import Column, ColumnElement, inspect, select

from sa_asherah.errors import DecryptionError, OwnerRequiredError, UsageError
from sa_asherah.orm.lineage import origin
from sa_asherah.orm.types import Encrypted
from sa_asherah.testing.stored import Bind, cell_of, connected, raw_table

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.orm import InstrumentedAttribute

__all__ = ["assert_encrypted_at_rest"]

_SHOWN = 5


def assert_encrypted_at_rest(bind: Bind, attribute: InstrumentedAttribute[Any] | Column[Any]) -> int:
    """Assert that every value of a column is stored as a cell of the declared kind that opens in its own row.

    The stored bytes are read past the column type, so a type that was forgotten, or data that were written past the
    ORM, cannot pass. A column without any value fails: nothing would have been checked. No text of the error shows a
    value or a key of a row.

    Args:
        bind: The attached engine, or a connection or session on it, whose uncommitted rows count too. With an
            asynchronous one: `await connection.run_sync(assert_encrypted_at_rest, Model.attribute)`.
        attribute: `Model.attribute` or a column of a `Table`. Of a type without `owner=` inside `partition_scope`.

    Returns:
        How many values were checked.

    Raises:
        AssertionError: The column is not encrypted, holds no value, or a value is not as it should be.
        AsherahError: It could not be found out, e.g. because no `Asherah` is attached to the engine.
    """
    __tracebackhide__ = True
    column = _table_column(attribute)
    if not isinstance(column.type, Encrypted):
        raise AssertionError(f"{column} is not an Encrypted column")  # noqa: TRY004 -- the verdict, not a wrong argument
    with connected(bind, column.table) as connection:
        faults = _faults(connection, column, column.type)
    if not faults:
        raise AssertionError(f"{column} holds no value, so nothing was checked: write a row first")
    found = [f"value {number}: {fault}" for number, fault in enumerate(faults, 1) if fault]
    if found:
        shown = found[:_SHOWN] + ["..."] * (len(found) > _SHOWN)
        raise AssertionError(
            f"{len(found)} of {len(faults)} stored values of {column} are not encrypted as declared (counted in the "
            f"order of the primary key): {'; '.join(shown)}"
        )
    return len(faults)


def _table_column(attribute: Any) -> Column[Any]:
    inspected: Any = inspect(attribute, raiseerr=False)
    element: Any = getattr(inspected, "expression", inspected)
    if isinstance(element, ColumnElement) and len(tables := origin(cast("Any", element))) == 1:
        return tables[0]
    raise UsageError("assert_encrypted_at_rest takes Model.attribute or a column of a Table")


def _faults(connection: Connection, column: Column[Any], type_: Encrypted) -> list[str]:
    """Say of each value what is wrong with it, in the order of the primary key."""
    keys = list(column.table.primary_key.columns)
    raw = raw_table(column.table, [*keys, column])
    stored = select(raw.c[column.key]).where(raw.c[column.key].is_not(None)).order_by(*(raw.c[key.key] for key in keys))
    faults = [_fault(value, type_) for value in connection.scalars(stored)]
    opened = connection.execute(select(column).where(column.is_not(None)).order_by(*keys))
    for number, fault in enumerate(faults):
        try:
            opened.fetchone()  # the value itself gets no name that a traceback could show
        except (DecryptionError, OwnerRequiredError) as error:
            faults[number] = fault or str(error)
    return faults


def _fault(stored: object, type_: Encrypted) -> str:
    try:
        cell_of(stored, type_)
    except DecryptionError as error:
        return str(error)
    return ""
