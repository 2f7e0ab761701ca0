# SPDX-License-Identifier: Apache-2.0
"""The shapes of statements that the machine sends, each for either twin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, aliased

from tests.machine.model import NAMES, Changes, Model, columns

Rows = list[Changes]

BY_KEY: Final = ("orm", "mappings")
READS: Final = ("entities", "anew", "alias", "subquery", "pages")
UPDATES: Final = ("core", "parameters", "evaluate", "fetch", "unsynchronised", "returning")
CRITERIA: Final[dict[str, Callable[[Any, int, int], Any]]] = {
    "id": lambda c, side, number: c.id == row_id(side, number),
    "owner": lambda c, side, number: (c.side == side) & (c.tenant == number),
    "other owner": lambda c, side, number: (c.side == side) & (c.region == ("north", "south")[number % 2]),
    "null": lambda c, side, _: (c.side == side) & c.a.is_(None),
    "all": lambda c, side, _: c.side == side,
}


def row_id(side: int, number: int) -> int:
    """Give the primary key of a row of one session."""
    return side * 10 + number


def loaded(instance: Any) -> list[Any]:
    """Read every attribute, which loads what is not loaded."""
    return [getattr(instance, name) for name in NAMES]


def _upsert(session: Session, model: Model, rows: Rows) -> None:
    dialect: Any = sqlite if session.get_bind().dialect.name == "sqlite" else postgresql
    statement = dialect.insert(model)
    inserted = {name: statement.excluded[name] for name in NAMES[1:]}
    session.execute(statement.on_conflict_do_update(index_elements=["id"], set_=inserted), rows)


def _one_by_one(connection: Connection, rows: Rows, make: Callable[[Changes], tuple[Any, ...]]) -> None:
    for row in rows:
        connection.execute(*make(row))


INSERTS: Final[dict[str, Callable[[Session, Model, Rows], Any]]] = {
    "values": lambda session, model, rows: _one_by_one(
        session.connection(), rows, lambda row: (insert(_table(model)).values(row),)
    ),
    "rows": lambda session, model, rows: session.connection().execute(insert(_table(model)).values(rows)),
    "parameters": lambda session, model, rows: _one_by_one(
        session.connection(), rows, lambda row: (insert(_table(model)), row)
    ),
    "executemany": lambda session, model, rows: session.connection().execute(insert(_table(model)), rows),
    "objects": lambda session, model, rows: session.bulk_save_objects([model(**row) for row in rows]),
    "mappings": lambda session, model, rows: session.bulk_insert_mappings(model.__mapper__, rows),
    "orm": lambda session, model, rows: session.execute(insert(model), rows),
    "upsert": _upsert,
}


def insert_returning(session: Session, model: Model, rows: Rows) -> list[Any]:
    """Insert rows and read them in the same statement."""
    return sorted(map(tuple, session.execute(insert(model).returning(*columns(model)), rows)))


def update_by(session: Session, model: Model, how: str, criteria: Callable[[Any], Any], values: Changes) -> Any:
    """Update rows by criteria; give their number, or what they are now."""
    table = _table(model)
    match how:
        case "core":
            return session.connection().execute(update(table).where(criteria(table.c)).values(values)).rowcount
        case "parameters":
            return session.connection().execute(update(table).where(criteria(table.c)), values).rowcount
        case "returning":
            statement = update(model).where(criteria(model)).values(values).returning(*columns(model))
            return sorted(map(tuple, session.execute(statement)))
        case _:
            options = {"synchronize_session": False if how == "unsynchronised" else how}
            return count(
                session.execute(update(model).where(criteria(model)).values(values), execution_options=options)
            )


def update_by_key(session: Session, model: Model, how: str, rows: Rows) -> None:
    """Update many rows by their primary keys."""
    if how == "mappings":
        session.bulk_update_mappings(model.__mapper__, rows)
    else:
        session.execute(update(model), rows)


def read(session: Session, model: Model, how: str) -> list[Any]:
    """Read all rows."""
    match how:
        case "alias":
            other = aliased(model)
            return list(session.execute(select(*columns(other)).order_by(other.id)).all())
        case "subquery":
            inner = select(model).subquery().c
            return list(session.execute(select(*columns(inner)).order_by(inner.id)).all())
        case "pages":
            return [loaded(each) for each in session.scalars(select(model).order_by(model.id)).yield_per(2)]
        case _:
            options = {"populate_existing": how == "anew"}
            found = session.scalars(select(model).order_by(model.id), execution_options=options)
            return [loaded(each) for each in found]


def count(result: Any) -> int:
    """Give the number of rows that a statement matched."""
    matched: int = result.rowcount
    return matched


def _table(model: Model) -> Any:
    return model.__table__
