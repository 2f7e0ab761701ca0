# SPDX-License-Identifier: Apache-2.0
"""Whoever writes one of the two columns alone, old and new value never stand side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations

from sa_asherah.alembic import MigrationError
from sa_asherah.alembic.copying import CreateCopyTriggersOp, _created, settle
from sa_asherah.alembic.names import limited, verbatim

if TYPE_CHECKING:
    from collections.abc import Iterator

X, Y = b"one cell", b"another cell"
ROWS: list[dict[str, Any]] = [
    {"id": 1, "clinic": 1, "ssn": "abc", "copy": None},
    {"id": 2, "clinic": 1, "ssn": "abc", "copy": X},
    {"id": 3, "clinic": 1, "ssn": None, "copy": X},
]
# What is written to which row, and what it holds then: before all is copied, and after.
WRITES: dict[str, tuple[int, dict[str, Any], tuple[object, ...], tuple[object, ...]]] = {
    "first copy": (1, {"ssn_encrypted": X}, ("abc", X), (None, X)),
    "old code": (2, {"ssn": "abx"}, ("abx", None), ("abx", None)),
    "old code, by what collations do not see": (2, {"ssn": "ABC "}, ("ABC ", None), ("ABC ", None)),
    "old code, to NULL": (2, {"ssn": None}, (None, None), (None, None)),
    "old code, the owner": (2, {"clinic id": 2}, ("abc", None), ("abc", None)),
    "old code, the owner of what only new code wrote": (3, {"clinic id": 2}, (None, X), (None, X)),
    "old code, over what only new code wrote": (3, {"ssn": "old"}, ("old", None), ("old", None)),
    "both": (2, {"ssn": "new", "ssn_encrypted": Y}, ("new", Y), ("new", Y)),
    "both, to NULL": (2, {"ssn": None, "ssn_encrypted": None}, (None, None), (None, None)),
    "both, the same value again": (2, {"ssn": "abc", "ssn_encrypted": Y}, ("abc", Y), (None, Y)),
    "both, the owner": (2, {"clinic id": 2, "ssn_encrypted": Y}, ("abc", Y), (None, Y)),
    "new code": (2, {"ssn_encrypted": Y}, ("abc", Y), (None, Y)),
    "new code, to NULL": (2, {"ssn_encrypted": None}, ("abc", None), (None, None)),
    "neither": (2, {"note": "x"}, ("abc", X), ("abc", X)),
}


@pytest.fixture
def connection(database_url: str) -> Iterator[sa.Connection]:
    engine = sa.create_engine(database_url)
    with engine.connect() as found:
        yield found
    engine.dispose()


@pytest.fixture
def patients(connection: sa.Connection) -> sa.Table:
    table = sa.Table(
        "Old patients",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("clinic id", sa.Integer),
        sa.Column("ssn", sa.String(50)),
        sa.Column("ssn_encrypted", sa.LargeBinary),
        sa.Column("note", sa.String(50)),
    )
    table.create(connection)
    values = [{"id": r["id"], "clinic id": r["clinic"], "ssn": r["ssn"], "ssn_encrypted": r["copy"]} for r in ROWS]
    connection.execute(table.insert(), values)
    connection.commit()
    return table


def operations(connection: sa.Connection) -> Any:
    """Return what a migration calls `op`; Alembic adds the operations while it runs."""
    return Operations(MigrationContext.configure(connection))


def outcomes(connection: sa.Connection, patients: sa.Table) -> dict[str, tuple[object, ...]]:
    """Do every write, each to the same rows, and return what they hold then."""
    connection.commit()
    found: dict[str, tuple[object, ...]] = {}
    for name, (row, values, *_) in WRITES.items():
        where = patients.c.id == row
        connection.execute(patients.update().where(where).values(values))
        found[name] = tuple(connection.execute(sa.select(patients.c.ssn, patients.c.ssn_encrypted).where(where)).one())
        connection.rollback()
    return found


@pytest.fixture
def copy(patients: sa.Table) -> CreateCopyTriggersOp:
    return CreateCopyTriggersOp(patients.name, "ssn", "ssn_encrypted", ["clinic id"])


def test_no_side_keeps_a_value_that_the_other_has_replaced(
    connection: sa.Connection, patients: sa.Table, copy: CreateCopyTriggersOp
) -> None:
    operations(connection).invoke(copy)
    before = {name: expected for name, (_, _, expected, _) in WRITES.items()}
    after = {name: expected for name, (_, _, _, expected) in WRITES.items()}
    assert outcomes(connection, patients) == before
    for is_settled, expected in ((True, after), (True, after), (False, before)):
        settle(connection, copy, is_settled=is_settled)
        assert outcomes(connection, patients) == expected
    settle(connection, copy, is_settled=True)
    operations(connection).invoke(copy.reverse())
    connection.execute(patients.update().where(patients.c.id == 2).values(ssn_encrypted=Y))
    assert connection.scalar(sa.select(patients.c.ssn).where(patients.c.id == 2)) == "abc"


@pytest.mark.parametrize("database_url", ["postgresql", "mariadb"], indirect=True)  # SQLite does it in a transaction
@pytest.mark.parametrize("order", [(False, True), (True, False)], ids=["to the copy", "back"])
def test_while_one_trigger_takes_the_place_of_the_other_both_are_right(
    connection: sa.Connection, patients: sa.Table, copy: CreateCopyTriggersOp, order: tuple[bool, bool]
) -> None:
    first, second = order
    settle(connection, copy, is_settled=first)
    for statement in _created(connection.dialect, copy, is_settled=second, has_other=True):
        connection.execute(verbatim(statement))
    assert outcomes(connection, patients) == {name: expected for name, (_, _, _, expected) in WRITES.items()}


def test_the_last_digit_of_a_number_is_a_change(connection: sa.Connection) -> None:
    weights = sa.Table(
        "weights",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("weight", sa.Float(53)),
        sa.Column("single", sa.Float(24)),
        sa.Column("copy", sa.LargeBinary),
        sa.Column("other", sa.LargeBinary),
    )
    weights.create(connection)
    for column, into in (("weight", "copy"), ("single", "other")):
        operations(connection).create_copy_triggers("weights", column, into, [])
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET extra_float_digits = -10")
    connection.execute(weights.insert().values(id=1, weight=0.3, single=1.234561, copy=X, other=Y))
    connection.execute(weights.update().values(weight=0.1 + 0.2))
    assert connection.execute(sa.select(weights.c.copy, weights.c.other)).one() == (None, Y)
    connection.execute(weights.update().values(single=1.234564))
    assert connection.execute(sa.select(weights.c.copy, weights.c.other)).one() == (None, None)


def test_dropped_triggers_do_nothing_any_more(connection: sa.Connection, patients: sa.Table) -> None:
    op = operations(connection)
    for _ in range(2):
        op.create_copy_triggers(patients.name, "ssn", "ssn_encrypted", ["clinic id"])
        op.drop_copy_triggers(patients.name, "ssn", "ssn_encrypted")
    connection.execute(patients.update().where(patients.c.id == 2).values(ssn="abx"))
    assert connection.scalar(sa.select(patients.c.ssn_encrypted).where(patients.c.id == 2)) == X


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_table_whose_rows_triggers_cannot_find_is_refused(connection: sa.Connection) -> None:
    connection.exec_driver_sql("CREATE TABLE visits (id TEXT PRIMARY KEY, ssn TEXT, copy BLOB) WITHOUT ROWID")
    with pytest.raises(MigrationError, match="WITHOUT ROWID"):
        operations(connection).create_copy_triggers("visits", "ssn", "copy", [])


def test_the_gate_lets_nothing_pass_that_was_not_copied(connection: sa.Connection, patients: sa.Table) -> None:
    op = operations(connection)
    with pytest.raises(MigrationError, match="the triggers are gone"):
        op.require_copied(patients.name, "ssn", "ssn_encrypted")
    op.create_copy_triggers(patients.name, "ssn", "ssn_encrypted", ["clinic id"])
    with pytest.raises(MigrationError, match="1 values have no encrypted copy"):
        op.require_copied(patients.name, "ssn", "ssn_encrypted")
    connection.execute(patients.update().where(patients.c.id == 1).values(ssn_encrypted=X))
    op.require_copied(patients.name, "ssn", "ssn_encrypted")


def test_names_are_as_short_as_every_database_wants_and_differ_all_the_same() -> None:
    long = [limited(f"asherah_copy_{'ä' * 40}_{end}") for end in ("ssn", "note")]
    assert len(set(long)) == 2
    assert max(len(name.encode()) for name in long) <= 63
    assert limited("ck_patients_ssn_encrypted") == "ck_patients_ssn_encrypted"
