# SPDX-License-Identifier: Apache-2.0
"""The key table from beginning to end, of all services: in one statement, or in pages that hold nothing open."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import TIMESTAMP, BigInteger, Text, and_, cast, extract, func, literal, or_, select

from sa_asherah.core.ids import MAX_CREATED
from sa_asherah.core.ports import KeyRow
from sa_asherah.metastore.table import encryption_key, seconds_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy import ColumnElement, Connection, Engine, Select

__all__ = ["pages", "stored_rows"]

_FETCH = 500
_key = encryption_key.c


def stored_rows(connection: Connection) -> Iterator[KeyRow]:
    """Read the key table in one statement, in the order of its primary key, as it is at one moment.

    Args:
        connection: A connection to its database.

    Yields:
        The rows, without those whose date no Asherah implementation writes.
    """
    statement = _select(connection.dialect.name)
    yield from _rows(connection.execution_options(yield_per=_FETCH).execute(statement))


def pages(engine: Engine, prefix: str = "", size: int = _FETCH) -> Iterator[list[KeyRow]]:
    """Read the key table in the order of id and date; between two pages no transaction is open.

    Args:
        engine: The engine of its database.
        prefix: What the ids begin with.
        size: How many rows a page has.

    Yields:
        The rows, without those whose date no Asherah implementation writes.
    """
    name = engine.dialect.name
    statement = _select(name).limit(size)
    if prefix:
        statement = statement.where(_key.id.startswith(prefix, autoescape=True))
    last: tuple[Any, ...] | None = None
    while True:
        with engine.connect() as connection:
            found = connection.execute(statement if last is None else statement.where(_after(last, name))).all()
        yield [row for row in _rows(found) if row.id.startswith(prefix)]
        if len(found) < size:
            return
        last = tuple(found[-1])


def _select(dialect: str) -> Select[Any]:
    is_postgresql = dialect == "postgresql"
    created = cast(extract("epoch", _key.created), BigInteger()) if is_postgresql else cast(_key.created, Text())
    columns: list[ColumnElement[Any]] = [_key.id, created, cast(_key.key_record, Text())]
    statement = select(*columns).order_by(_key.id, _key.created)
    if not is_postgresql:
        return statement
    # Rows of other programs: infinity, fractions of a second.
    first, last = (datetime.fromtimestamp(second, UTC) for second in (0, MAX_CREATED))
    is_whole = _key.created == func.date_trunc("second", _key.created)
    return statement.where(_key.created.between(first, last), is_whole)


def _after(last: tuple[Any, ...], dialect: str) -> ColumnElement[bool]:
    key_id, moment = literal(last[0], Text()), last[1]
    date: ColumnElement[Any]
    if dialect == "postgresql":
        date = literal(datetime.fromtimestamp(moment, UTC), TIMESTAMP(timezone=True))
    else:
        date = literal(moment, Text())
    # The first condition is for MariaDB, which finds the place by it.
    return and_(_key.id >= key_id, or_(_key.id > key_id, _key.created > date))


def _rows(found: Iterable[Any]) -> Iterator[KeyRow]:
    for key_id, moment, text in found:
        seconds = seconds_of(moment) if isinstance(moment, str) else int(moment)
        if seconds is not None:
            yield KeyRow(key_id, seconds, text)
