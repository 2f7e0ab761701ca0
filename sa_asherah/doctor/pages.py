# SPDX-License-Identifier: Apache-2.0
"""Reads a table in keyset pages of raw values, each in a short transaction of its own, with bounded memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Integer, func, literal, true

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import ColumnElement, Connection, Row

    from sa_asherah.reencrypt.pages import Pages

__all__ = ["read_pages"]

_BUDGET = 8 * 1024 * 1024
"""How many bytes of values are in memory at once, unless one row has more."""
_ALL = 2**31 - 1


def read_pages(
    connection: Connection,
    pages: Pages,
    columns: Sequence[ColumnElement[Any]],
    sized: Sequence[ColumnElement[Any]],
    batch: int,
) -> Iterator[Sequence[Row[Any]]]:
    """Read a table in the order of its primary key.

    Args:
        connection: Whose transaction ends with each page.
        pages: The table.
        columns: What to read besides the primary key.
        sized: Those columns that may be large.
        batch: How many rows to plan for at once.

    Yields:
        Rows: the primary key, then the columns.
    """
    sizes = (func.coalesce(_size_of(column, connection.dialect.name), 0) for column in sized)
    total = sum(sizes, literal(0, Integer())).label("sa_asherah_size")
    last: Sequence[Any] | None = None
    while True:
        heads = connection.execute(*pages.page([total], true(), (_position(last), None), batch)).all()
        for end in _parts(heads):
            # Rows that were inserted meanwhile belong to it, too.
            rows = connection.execute(*pages.page(columns, true(), (_position(last), _position(end)), _ALL)).all()
            connection.rollback()
            yield rows
            last = end
        if len(heads) < batch:
            connection.rollback()
            return


def _position(key: Sequence[Any] | None) -> tuple[Any, ...] | None:
    return None if key is None else tuple(key)


def _size_of(column: ColumnElement[Any], dialect: str) -> ColumnElement[int]:
    """Measure a stored value, as far as the database can without reading it."""
    name = {"postgresql": "pg_column_size", "sqlite": "length"}.get(dialect, "octet_length")
    return getattr(func, name)(column, type_=Integer())  # type: ignore[no-any-return] # a name of `func` is Any


def _parts(heads: Sequence[Row[Any]]) -> Iterator[Sequence[Any]]:
    """Divide a page so that no part has more bytes than the budget: the key of each part's last row."""
    size = 0
    previous: Sequence[Any] | None = None
    for head in heads:
        if previous is not None and size + head[-1] > _BUDGET:
            yield previous
            size = 0
        size += head[-1]
        previous = head[:-1]
    if previous is not None:
        yield previous
