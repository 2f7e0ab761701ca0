# SPDX-License-Identifier: Apache-2.0
"""Encrypted columns from below: what the database holds, past the type that would open it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import Column, Connection, Engine, MetaData, Table
from sqlalchemy.orm import Session, scoped_session
from sqlalchemy.types import NullType

from sa_asherah.core import cell
from sa_asherah.core.row_record import dump_data_row_record, parse_data_row_record
from sa_asherah.errors import MalformedCellError, UsageError
from sa_asherah.orm.types import Encrypted, is_encrypted
from sa_asherah.orm.unreadable import unreadable

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

__all__ = ["Bind", "cell_of", "connected", "raw_table"]

Bind = Engine | Connection | Session | scoped_session[Any]
"""Where the assertions look."""

_FORMS: dict[str, tuple[type[Any], ...]] = {"text": (str,), "binary": (bytes, bytearray, memoryview)}


@contextmanager
def connected(bind: Bind, table: Table) -> Generator[Connection]:
    """Get at the database and leave the transaction as it was found.

    Args:
        bind: An engine; or a connection or session, whose uncommitted rows count too.
        table: What will be read, for a session with several engines.

    Yields:
        A connection.

    Raises:
        UsageError: It is something else, e.g. asynchronous.
    """
    with unreadable(None, "raise"):  # inside `asherah.unreadable("mark")` nothing would be refused
        if isinstance(bind, scoped_session):
            bind = bind()
        if isinstance(bind, Engine):
            with bind.connect() as connection:
                yield connection
        elif isinstance(bind, Session):
            bind.flush()
            yield bind.connection(bind_arguments={"clause": table})
        elif isinstance(bind, Connection):
            began = not bind.in_transaction()
            try:
                yield bind
            finally:
                if began:
                    bind.rollback()
        else:
            raise UsageError(
                f"a {type(bind).__name__} cannot be looked into: give an Engine, Connection or Session; if "
                "asynchronous: await connection.run_sync(assert_..., ...)"
            )


def raw_table(table: Table, columns: Iterable[Column[Any]]) -> Table:
    """Describe a table so that no encrypted column is opened or sealed.

    Args:
        table: The table.
        columns: Those of its columns that are wanted.

    Returns:
        A table of the same name with these columns, by the same keys.
    """
    raw = [
        Column(column.name, NullType() if is_encrypted(column) else column.type, key=column.key) for column in columns
    ]
    return Table(table.name, MetaData(), *raw, schema=table.schema)


def cell_of(stored: Any, type_: Encrypted) -> bytes:
    """Read a stored value as the cell or data row record that its column declares, without opening it.

    Args:
        stored: What the driver gave.
        type_: The column's type.

    Returns:
        The cell, or the text of the record.

    Raises:
        MalformedCellError: It is neither, or not of the declared kind.
    """
    if type_.format == "asherah":
        if not isinstance(stored, str | Mapping):
            raise MalformedCellError(f"a {type(stored).__name__} is stored, which is no data row record")
        return dump_data_row_record(parse_data_row_record(cast("str | Mapping[str, object]", stored))).encode()
    if not isinstance(stored, _FORMS[type_.storage]):
        raise MalformedCellError(f"a {type(stored).__name__} is stored, which storage={type_.storage!r} does not write")
    found = cell.from_text(stored) if type_.storage == "text" else bytes(stored)
    flags = cell.parse(found).flags
    if flags != type_.flags:
        raise MalformedCellError(
            f"the column declares {cell.describe(type_.flags)}, but the cell is {cell.describe(flags)}"
        )
    return found
