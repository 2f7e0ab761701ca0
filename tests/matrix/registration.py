# SPDX-License-Identifier: Apache-2.0
"""Registering cases, the rows that reading cases read, and the proof that a cell reads beside its owner only."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, Final

import pytest
from sqlalchemy import ColumnClause, MetaData, Table, column, literal_column, select, table, update

from sa_asherah import Encrypted
from sa_asherah.errors import DecryptionError
from tests.orm.app import App
from tests.orm.models import CANARY, Animal, Doctor, Dog, Letter, Patient, Person, Visit, table_of

Body = Callable[[App], None]

DRIVERS: Final = {
    "pysqlite": "sqlite",
    "aiosqlite": "sqlite",
    "psycopg": "postgresql",
    "asyncpg": "postgresql",
    "pymysql": "mariadb",
    "asyncmy": "mariadb",
}
"""Each driver's database."""
ASYNCHRONOUS: Final = {"aiosqlite", "asyncpg", "asyncmy"}


@dataclass(frozen=True)
class Case:
    """One function for one row of the page.

    Attributes:
        row: The row's name.
        name: Where the function is, for the test's id.
        body: What is run on each driver.
        not_on: Databases and drivers that cannot do it.
    """

    row: str
    name: str
    body: Body
    not_on: frozenset[str]

    def drivers(self) -> list[str]:
        """List the drivers it is for."""
        return [driver for driver, database in DRIVERS.items() if self.not_on.isdisjoint({driver, database})]


CASES: Final[list[Case]] = []


def case(row: str, *, not_on: Collection[str] = ()) -> Callable[[Body], Body]:
    """Register a function for a row; it starts with empty tables and three clinics.

    Args:
        row: The row's name.
        not_on: Databases (`mariadb`) and drivers (`asyncpg`) that cannot do it; the row's text must name them.
    """

    def register(body: Body) -> Body:
        module = body.__module__.rpartition(".")[2]
        CASES.append(Case(row, f"{module}.{body.__name__}", body, frozenset(not_on)))
        return body

    return register


def reading(row: str, *, not_on: Collection[str] = (), opens: bool = True) -> Callable[[Body], Body]:
    """Register a function that reads the rows of `fill`, and leaves them as they are.

    Args:
        row: The row's name.
        not_on: As for `case`.
        opens: Whether it reads an encrypted value; then it is run again with the cells of other owners.
    """

    def register(read: Body) -> Body:
        def body(app: App) -> None:
            fill(app)
            app.cold()
            read(app)
            if opens:
                assert_refuses_moved(app, FILLED, read)

        body.__module__, body.__name__ = read.__module__, read.__name__
        case(row, not_on=not_on)(body)
        return read

    return register


FILLED: Final = [table_of(each) for each in (Patient, Visit, Doctor, Person, Animal, Letter)]
"""The tables that `fill` fills."""


def fill(app: App) -> None:
    """Add rows of clinic 1 and of clinic 2, in every table that the reading cases use."""
    app.add(
        Patient(id=1, clinic_id=1, name="a", ssn="canary 1", notes="canary note 1", visits=[_visit(1, 2)]),
        Patient(id=2, clinic_id=1, name="b", ssn="canary 2", visits=[_visit(2, 2)]),
        Patient(id=3, clinic_id=2, name="c", ssn="canary 3", notes="canary note 3", visits=[_visit(3, 3)]),
        Doctor(id=1, clinic_id=1, alias="canary alias 1", ward="north", licence="canary licence 1"),
        Person(id=2, clinic_id=2, alias="canary alias 2"),
        Doctor(id=3, clinic_id=2, alias="canary alias 3", ward="south", licence="canary licence 3"),
        Animal(id=1, clinic_id=1, chip="canary chip 1"),
        Dog(id=2, clinic_id=2, chip="canary chip 2", bark="canary bark 2"),
        Dog(id=3, clinic_id=1, chip="canary chip 3", bark="canary bark 3"),
        Letter(id=1, clinic_id=1, body="canary body 1", seal="canary seal 1"),
        Letter(id=2, clinic_id=2, body="canary body 2"),
    )


def _visit(number: int, clinic: int) -> Visit:
    return Visit(id=number, place_id=clinic, finding=f"canary finding {number}")


def assert_refuses_moved(app: App, tables: Iterable[Table], read: Body) -> None:
    """Move every cell to a row of another owner, past this package; reading must then raise.

    Args:
        app: The application; its tables hold rows of two owners or more.
        tables: The tables that are changed.
        read: What must not return.
    """
    assert sum(_move(app, each) for each in tables) > 1, "there is nothing to move"
    with pytest.raises(DecryptionError):
        read(app)


def assert_nothing_readable(app: App, metadata: MetaData) -> None:
    """Find no plaintext in the tables as the database holds them."""
    with app.engine.connect() as connection:
        for each in metadata.sorted_tables:
            plain = table(each.name, schema=each.schema)
            rows: Any = connection.execute(select(literal_column("*")).select_from(plain)).all()
            for row in rows:
                stored = [bytes(value) if isinstance(value, bytes | memoryview) else str(value) for value in row]
                assert CANARY not in str(stored), f"plaintext is stored in {each}"


def _move(app: App, table_: Table) -> int:
    """Give each cell of a table's encrypted columns to a row of another owner; count them."""
    moved = 0
    for encrypted in table_.columns:
        if not isinstance(encrypted.type, Encrypted) or encrypted.type.owner is None or len(table_.primary_key) != 1:
            continue
        used = (*table_.primary_key, table_.c[encrypted.type.owner], encrypted)
        names: list[ColumnClause[Any]] = [column(each.name) for each in used]
        key, owner, cell = names
        plain = table(table_.name, *{each.name: each for each in names}.values(), schema=table_.schema)
        with app.engine.begin() as connection:
            rows = connection.execute(select(key, owner, cell).select_from(plain)).all()
            for number, whose, stored in rows:
                others = [other for _, somebody, other in rows if somebody != whose and other is not None]
                if stored is not None and others:
                    change = update(plain).where(key == number).values({cell: others[0]})
                    moved += connection.execute(change).rowcount
    return moved
