# SPDX-License-Identifier: Apache-2.0
"""The shapes of statements that write encrypted columns, each as a function of a connection."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from sqlalchemy import Connection, bindparam, insert, lambda_stmt, null, select, update
from sqlalchemy.orm import Session, with_loader_criteria

from tests.orm.models import Clinic, Letter, letters

Shape = Callable[[Connection], Any]

ROWS: Final[list[dict[str, Any]]] = [
    {"id": 1, "clinic_id": 1, "body": "canary 1", "seal": None},
    {"id": 2, "clinic_id": 2, "body": "canary 2", "seal": "canary seal 2"},
]
"""What every shape of INSERT must leave in `letters`."""

BEFORE: Final[list[dict[str, Any]]] = [
    {"id": 1, "clinic_id": 1, "body": "canary 1", "seal": "canary seal 1"},
    {"id": 2, "clinic_id": 2, "body": "canary 2", "seal": None},
    {"id": 3, "clinic_id": 2, "body": None, "seal": "canary seal 3"},
]
AFTER: Final = [BEFORE[0] | {"body": "canary new"}, *BEFORE[1:]]
"""What every shape of UPDATE must make of `BEFORE`."""

_BY_COLUMN: Final[Callable[[Mapping[str, Any]], Any]] = lambda row: {letters.c[key]: row[key] for key in row}  # noqa: E731
_AS_TUPLE: Final[Callable[[Mapping[str, Any]], Any]] = lambda row: tuple(row.values())  # noqa: E731
_BY_ATTRIBUTE: Final[Callable[[Mapping[str, Any]], Any]] = lambda row: {getattr(Letter, k): row[k] for k in row}  # noqa: E731


def _values(form: Callable[[Mapping[str, Any]], Any], target: Any = letters) -> Shape:
    """INSERT with the values in the statement."""

    def write(connection: Connection) -> None:
        for row in ROWS:
            connection.execute(insert(target).values(form(row)))

    return write


def _multi(form: Callable[[Mapping[str, Any]], Any], target: Any = letters) -> Shape:
    """INSERT with many rows in the statement."""
    return lambda connection: connection.execute(insert(target).values([form(row) for row in ROWS]))


def _each(make: Callable[[dict[str, Any]], tuple[Any, Any]]) -> Shape:
    """INSERT with some of the values in the statement and some in parameters."""

    def write(connection: Connection) -> None:
        for row in ROWS:
            connection.execute(*make(row))

    return write


def _only(row: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: row[key] for key in keys}


def _named(row: Mapping[str, Any]) -> dict[str, Any]:
    return {f"b_{key}": value for key, value in row.items()}


def _binds(*keys: str) -> dict[str, Any]:
    return {key: bindparam(f"b_{key}") for key in keys}


def _lambda_values(connection: Connection) -> None:
    for row in ROWS:
        number, owner, body, seal = row.values()
        statement = lambda_stmt(
            lambda: insert(letters).values(id=number, clinic_id=owner, body=body, seal=seal)  # noqa: B023 # read at once
        )
        connection.execute(statement)


def _in_session(work: Callable[[Session], Any]) -> Shape:
    """A shape of the ORM."""

    def write(connection: Connection) -> None:
        with Session(connection) as session:
            work(session)
            session.commit()

    return write


def _returned(connection: Connection, statement: Any) -> None:
    """INSERT with RETURNING must give back what was written."""
    found = connection.execute(statement, ROWS).all()
    assert sorted(map(tuple, found)) == [tuple(row.values()) for row in ROWS]


INSERTS: Final[dict[str, Shape]] = {
    "values by key": _values(dict),
    "values by column": _values(_BY_COLUMN),
    "values by position": _values(_AS_TUPLE),
    "values with null()": _values(lambda row: {k: null() if v is None else v for k, v in row.items()}),
    "values with bindparam": _values(lambda row: {k: bindparam(None, v) for k, v in row.items()}),
    "rows by key": _multi(dict),
    "rows by column": _multi(_BY_COLUMN),
    "rows by position": _multi(_AS_TUPLE),
    "parameters": _each(lambda row: (insert(letters), row)),
    "executemany": lambda connection: connection.execute(insert(letters), ROWS),
    "executemany inline": lambda connection: connection.execute(insert(letters).inline(), ROWS),
    "bindparam of other names": lambda connection: connection.execute(
        insert(letters).values(_binds("id", "clinic_id", "body", "seal")), [_named(row) for row in ROWS]
    ),
    "owner in parameters": _each(
        lambda row: (insert(letters).values(_only(row, "body", "seal")), _only(row, "id", "clinic_id"))
    ),
    "owner in statement": _each(
        lambda row: (insert(letters).values(_only(row, "clinic_id")), _only(row, "id", "body", "seal"))
    ),
    "owner in statement by column": _each(
        lambda row: (insert(letters).values({letters.c.clinic_id: row["clinic_id"]}), _only(row, "id", "body", "seal"))
    ),
    "owner as bindparam, values in parameters": lambda connection: connection.execute(
        insert(letters).values(_binds("clinic_id")),
        [_only(row, "id", "body", "seal") | {"b_clinic_id": row["clinic_id"]} for row in ROWS],
    ),
    "lambda": lambda connection: connection.execute(lambda_stmt(lambda: insert(letters)), ROWS),
    "lambda with values": _lambda_values,
    "returning": lambda connection: _returned(connection, insert(letters).returning(*letters.c)),
    "returning in order": lambda connection: _returned(
        connection, insert(letters).returning(*letters.c, sort_by_parameter_order=True)
    ),
    "mapped values by attribute": _values(_BY_ATTRIBUTE, Letter),
    "mapped rows": _multi(dict, Letter),
    "unit of work": _in_session(lambda session: session.add_all([Letter(**row) for row in ROWS])),
    "bulk_save_objects": _in_session(lambda session: session.bulk_save_objects([Letter(**row) for row in ROWS])),
    "bulk_insert_mappings": _in_session(lambda session: session.bulk_insert_mappings(Letter.__mapper__, ROWS)),
    "session values": _in_session(lambda session: [session.execute(insert(Letter).values(row)) for row in ROWS]),
    "session rows": _in_session(lambda session: session.execute(insert(Letter).values(ROWS))),
    "session parameters": _in_session(lambda session: session.execute(insert(Letter), ROWS)),
    "session lambda": _in_session(lambda session: session.execute(lambda_stmt(lambda: insert(Letter)), ROWS)),
    "merge": _in_session(lambda session: [session.merge(Letter(**row)) for row in ROWS]),
}


def _set(**values: Any) -> Any:
    return update(letters).where(letters.c.id == 1).values(**values)


def _load_and_set(session: Session) -> None:
    session.get_one(Letter, 1).body = "canary new"


def _detached(session: Session) -> None:
    letter = session.get_one(Letter, 1)
    session.expunge(letter)
    letter.body = "canary new"
    session.bulk_save_objects([letter])


def _synchronised(synchronise: Any) -> Shape:
    def work(session: Session) -> None:
        letter = session.get_one(Letter, 1)
        assert letter.body == "canary 1"
        statement = update(Letter).where(Letter.id == 1).values(body="canary new")
        session.execute(statement, execution_options={"synchronize_session": synchronise})
        if synchronise:
            assert letter.body == "canary new"

    return _in_session(work)


def _by_key(*keys: str) -> list[dict[str, Any]]:
    """Parameters that write row 1 anew and rows 2 and 3 as they are."""
    return [_only(row, "id", *keys) for row in AFTER]


_ALL = ("clinic_id", "body", "seal")
_WHERE_KEY: Final = update(letters).where(letters.c.id == bindparam("b_id"))

UPDATES: Final[dict[str, Shape]] = {
    "values": lambda connection: connection.execute(_set(body="canary new")),
    "values by column": lambda connection: connection.execute(
        update(letters).where(letters.c.id == 1).values({letters.c.body: "canary new"})
    ),
    "ordered values": lambda connection: connection.execute(
        update(letters)
        .where(letters.c.id == 1)
        .ordered_values((letters.c.body, "canary new"), (letters.c.clinic_id, 1), (letters.c.seal, "canary seal 1"))
    ),
    "parameters": lambda connection: connection.execute(
        update(letters).where(letters.c.id == 1), {"body": "canary new"}
    ),
    "bindparam of another name": lambda connection: connection.execute(
        _set(body=bindparam("b_body")), {"b_body": "canary new"}
    ),
    "bindparam in the criteria": lambda connection: connection.execute(
        _WHERE_KEY.values(body="canary new"), {"b_id": 1}
    ),
    "with the owner": lambda connection: connection.execute(_set(clinic_id=1, body="canary new", seal="canary seal 1")),
    "other criteria": lambda connection: connection.execute(
        update(letters).where(letters.c.clinic_id < 2, letters.c.body.is_not(None)).values(body="canary new")
    ),
    "subquery in the criteria": lambda connection: connection.execute(
        update(letters)
        .where(letters.c.clinic_id.in_(select(Clinic.id).where(Clinic.name == "Clinic 1")))
        .values(body="canary new")
    ),
    "executemany by key": lambda connection: connection.execute(
        _WHERE_KEY, [_only(row, "body") | {"b_id": row["id"]} for row in AFTER]
    ),
    "executemany with the owner": lambda connection: connection.execute(
        update(letters).where(letters.c.id == bindparam("b_id")),
        [_only(row, *_ALL) | {"b_id": row["id"]} for row in AFTER],
    ),
    "lambda": lambda connection: connection.execute(
        lambda_stmt(lambda: update(letters).where(letters.c.id == 1).values(body="canary new"))
    ),
    "unit of work": _in_session(_load_and_set),
    "bulk_save_objects": _in_session(_detached),
    "bulk_update_mappings": _in_session(
        lambda session: session.bulk_update_mappings(Letter.__mapper__, _by_key("body"))
    ),
    "bulk update by key": _in_session(lambda session: session.execute(update(Letter), _by_key("body", "seal"))),
    "bulk update by key with the owner": _in_session(lambda session: session.execute(update(Letter), _by_key(*_ALL))),
    "session evaluate": _synchronised("evaluate"),
    "session fetch": _synchronised("fetch"),
    "session auto": _synchronised("auto"),
    "session unsynchronised": _synchronised(synchronise=False),
    "loader criteria": _in_session(
        lambda session: session.execute(
            update(Letter).values(body="canary new").options(with_loader_criteria(Letter, Letter.id == 1)),
            execution_options={"synchronize_session": False},
        )
    ),
    "merge": _in_session(lambda session: session.merge(Letter(id=1, body="canary new"))),
}
