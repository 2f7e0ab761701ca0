# SPDX-License-Identifier: Apache-2.0
"""Reads the whole key table, rows of any shape too, in keyset pages."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Column, MetaData, Table, Text, and_, cast, extract, literal, or_, select
from sqlalchemy.dialects.postgresql import TIMESTAMP
from sqlalchemy.types import NullType

from sa_asherah.core.ids import MAX_CREATED
from sa_asherah.metastore.table import seconds_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import ColumnElement, Connection

__all__ = ["Stored", "stored_keys"]

_table = Table(
    "encryption_key",
    MetaData(),
    Column("id", NullType()),
    Column("created", NullType()),
    Column("key_record", NullType()),
)
_id, _created, _record = _table.c.id, _table.c.created, _table.c.key_record


class Stored(NamedTuple):
    """A row of the key table as it is.

    Attributes:
        id: The id.
        created: The date in whole seconds; `None` if it is none, so that no reader finds the row.
        date: The date as text, for people.
        text: The record.
    """

    id: str
    created: int | None
    date: str
    text: str


def stored_keys(connection: Connection, batch: int, ids: Sequence[str] | None = None) -> Iterator[Stored]:
    """Read the key table in the order of id and date.

    Args:
        connection: Whose transaction ends with each page.
        batch: How many rows a page has.
        ids: Only these ids.

    Yields:
        Its rows.
    """
    is_postgresql = connection.dialect.name == "postgresql"
    seconds = cast(extract("epoch", _created), Text()) if is_postgresql else literal(None, Text())
    date: ColumnElement[Any] = _created if connection.dialect.name == "sqlite" else cast(_created, Text())
    query = select(_id, date, seconds, cast(_record, Text())).order_by(_id, _created).limit(batch)
    if ids is not None:
        query = query.where(_id.in_([literal(each, Text()) for each in ids]))
    last: Sequence[Any] | None = None
    while True:
        page = connection.execute(query if last is None else query.where(_after(last, is_cast=is_postgresql))).all()
        connection.rollback()
        for key_id, text, epoch, record in page:
            yield Stored(str(key_id), _whole(epoch) if is_postgresql else seconds_of(text), str(text), str(record))
        if len(page) < batch:
            return
        last = page[-1]


def _after(last: Sequence[Any], *, is_cast: bool) -> ColumnElement[bool]:
    key_id = literal(last[0], Text())
    date: ColumnElement[Any] = literal(last[1], Text() if is_cast else NullType())
    if is_cast:
        date = cast(date, TIMESTAMP(timezone=True))
    return or_(_id > key_id, and_(_id == key_id, _created > date))


def _whole(epoch: str) -> int | None:
    """Read PostgreSQL's epoch, which may have a fraction or be infinite."""
    number = Decimal(epoch)
    if not number.is_finite() or number != int(number) or not 0 <= number <= MAX_CREATED:
        return None
    return int(number)
