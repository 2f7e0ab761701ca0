# SPDX-License-Identifier: Apache-2.0
"""Keyset pages over any primary key: in the order of the server's index, which is also the server's comparison.

Positions are what the driver gave for the primary key, untouched by column types, so they compare as they are stored.
"""

from __future__ import annotations

import json
import uuid
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import and_, bindparam, cast, column, func, inspect, or_, select, table
from sqlalchemy.dialects import mysql
from sqlalchemy.exc import NoSuchTableError
from sqlalchemy.types import Float

from sa_asherah.errors import ConfigurationError, ReencryptionError
from sa_asherah.orm.windows import innermost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import BindParameter, ColumnClause, ColumnElement, Connection, Select, Table, TableClause
    from sqlalchemy.engine import Dialect

__all__ = ["Bounds", "Pages", "Position", "check_key", "position_of", "text_of"]

_NUMBERED: Final = (mysql.ENUM, mysql.SET)
Position = tuple[Any, ...]
Bounds = tuple[Position | None, Position | None]
"""After which position, and up to which; `None` for no bound."""

_WRITERS: Final[dict[type[Any], tuple[str, Callable[[Any], str]]]] = {
    bool: ("bool", str),
    int: ("int", str),
    str: ("str", str),
    bytes: ("bytes", bytes.hex),
    uuid.UUID: ("uuid", str),
    Decimal: ("decimal", str),
    float: ("float", repr),  # what SQLite makes of decimals
    datetime: ("datetime", datetime.isoformat),
    date: ("date", date.isoformat),
    time: ("time", time.isoformat),
    timedelta: ("interval", lambda value: f"{value.days} {value.seconds} {value.microseconds}"),
}
_READERS: Final[dict[str, Callable[[str], Any]]] = {
    "bool": lambda text: text == "True",
    "int": int,
    "str": str,
    "bytes": bytes.fromhex,
    "uuid": uuid.UUID,
    "decimal": Decimal,
    "float": float,
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "interval": lambda text: timedelta(*map(int, text.split())),
}


def text_of(position: Sequence[Any]) -> str:
    """Write a position as text.

    Args:
        position: What the driver gave for the columns of the primary key.

    Returns:
        JSON; a primary key of integers and texts reads as `[7, "a"]`.

    Raises:
        ReencryptionError: A part is NULL or of a type that has no text.
    """
    return json.dumps([_written(value) for value in position], ensure_ascii=True)


def position_of(text: str) -> Position:
    """Read a position.

    Args:
        text: What `text_of` wrote.

    Returns:
        The position, equal to the one that was written.
    """
    parts: list[int | str | dict[str, str]] = json.loads(text)
    return tuple(map(_read, parts))


def check_key(connection: Connection, source: Table) -> None:
    """Compare the primary key with what the database says of it.

    Args:
        connection: A connection.
        source: The table.

    Raises:
        ConfigurationError: An ENUM of MySQL is declared as text: rows would be looked for in the order of the alphabet.
    """
    dialect = connection.dialect
    if dialect.name not in {"mysql", "mariadb"}:
        return
    translation: Any = connection.get_execution_options().get("schema_translate_map", {})
    try:
        found = inspect(connection).get_columns(source.name, translation.get(source.schema, source.schema))
    except NoSuchTableError:
        return  # the next statement says so
    numbered = {each["name"].lower() for each in found if isinstance(each["type"], _NUMBERED)}
    for part in source.primary_key:
        if part.name.lower() in numbered and not isinstance(innermost(part.type.dialect_impl(dialect)), _NUMBERED):
            raise ConfigurationError(
                f"{part} is an ENUM or a SET in the database, which sorts it by numbers: declare it as Enum(...) or "
                "sqlalchemy.dialects.mysql.SET(...)"
            )


def _written(value: Any) -> Any:
    kind: type[Any] = value.__class__
    name, write = _WRITERS.get(kind, ("", str))
    if not name:
        raise ReencryptionError(
            f"a part of a primary key is a {kind.__name__}, which cannot be noted as a position: no row of "
            "the table may have NULL in its primary key, and integers, texts, UUIDs, dates, decimals and bytes work"
        )
    return value if name in {"int", "str"} else {name: write(value)}


def _read(part: int | str | dict[str, str]) -> Any:
    if not isinstance(part, dict):
        return part
    ((name, text),) = part.items()
    return _READERS[name](text)


def _position(key: ColumnClause[Any], type_: object) -> ColumnElement[Any]:
    """Select a part of the primary key; an ENUM of MySQL by its number, since it sorts by that and not by its text."""
    return cast(key, mysql.INTEGER(unsigned=True)).label(key.name) if isinstance(type_, _NUMBERED) else key


class Pages:
    """The rows of one table in the order of its primary key.

    Attributes:
        source: The table without types: what the driver gives and takes.
        keys: Its primary key.
        positions: What is selected of it.
    """

    def __init__(self, source: Table, dialect: Dialect) -> None:
        """Look at the primary key.

        Args:
            source: The table.
            dialect: The engine's dialect.

        Raises:
            ConfigurationError: It has no primary key, or one that cannot be compared exactly.
        """
        parts = list(source.primary_key)
        if not parts:
            raise ConfigurationError(f"table {source.name!r} has no primary key: rows need one to be re-encrypted")
        for part in parts:
            if isinstance(part.type, Float):
                raise ConfigurationError(f"{part} is a floating point primary key, which no comparison finds for sure")
        columns: list[ColumnClause[Any]] = [column(each.name) for each in source.columns]
        self.source: TableClause = table(source.name, *columns, schema=source.schema)
        self.keys = [self.source.c[part.name] for part in parts]
        self.positions = [
            _position(self.source.c[part.name], innermost(part.type.dialect_impl(dialect))) for part in parts
        ]

    def page(
        self,
        columns: Sequence[ColumnElement[Any]],
        wanted: ColumnElement[bool],
        bounds: Bounds,
        limit: int,
    ) -> tuple[Select[Any], dict[str, Any]]:
        """Select the next rows: the primary key first, then the columns.

        Args:
            columns: What to select.
            wanted: Which rows.
            bounds: After which position, and up to which; `None` for no bound.
            limit: How many at most.

        Returns:
            The statement and its parameters.
        """
        statement = select(*self.positions, *columns).where(wanted).order_by(*self.keys).limit(limit)
        parameters: dict[str, Any] = {}
        for name, bound, compare in zip(("after", "upto"), bounds, (self._after, self._up_to), strict=True):
            if bound is not None:
                statement = statement.where(compare(name))
                parameters |= {f"{name}_{number}": value for number, value in enumerate(bound)}
        return statement, parameters

    def cuts(self, connection: Connection, size: int) -> Iterator[Position]:
        """Find where to cut the table into ranges, in one walk through the index.

        Args:
            connection: A connection.
            size: Rows in a range.

        Yields:
            The last position of each full range.
        """
        number = func.row_number().over(order_by=self.keys).label("sa_asherah_number")
        numbered = select(*self.positions, number).subquery("numbered")
        positions = [numbered.c[key.name] for key in self.keys]
        chosen = (
            select(*positions).where(numbered.c.sa_asherah_number % size == 0).order_by(numbered.c.sa_asherah_number)
        )
        for row in connection.execute(chosen):
            yield tuple(row)

    def end(self, connection: Connection) -> Position | None:
        """Find the last row.

        Args:
            connection: A connection.

        Returns:
            Its position; `None` if the table is empty.
        """
        last = select(*self.positions).order_by(*(key.desc() for key in self.keys)).limit(1)
        row = connection.execute(last).first()
        return None if row is None else tuple(row)

    def at(self, prefix: str = "pk") -> ColumnElement[bool]:
        """Find one row.

        Args:
            prefix: What the parameters begin with.

        Returns:
            The condition; its parameters are `<prefix>_0`, ….
        """
        return and_(*(key == bindparam(f"{prefix}_{number}") for number, key in enumerate(self.keys)))

    def _after(self, name: str) -> ColumnElement[bool]:
        # The first condition is implied by the second, and the only one for which optimizers use the index.
        beyond = self._beyond(name, 0)
        return and_(self.keys[0] >= bindparam(f"{name}_0"), beyond) if self.keys[1:] else beyond

    def _beyond(self, name: str, number: int) -> ColumnElement[bool]:
        key = self.keys[number]
        bound: BindParameter[Any] = bindparam(f"{name}_{number}")
        if number + 1 == len(self.keys):
            return key > bound
        return or_(key > bound, and_(key == bound, self._beyond(name, number + 1)))

    def _up_to(self, name: str) -> ColumnElement[bool]:
        within = self._within(name, 0)
        return and_(self.keys[0] <= bindparam(f"{name}_0"), within) if self.keys[1:] else within

    def _within(self, name: str, number: int) -> ColumnElement[bool]:
        key = self.keys[number]
        bound: BindParameter[Any] = bindparam(f"{name}_{number}")
        if number + 1 == len(self.keys):
            return key <= bound
        return or_(key < bound, and_(key == bound, self._within(name, number + 1)))
