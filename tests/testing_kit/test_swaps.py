# SPDX-License-Identifier: Apache-2.0
"""`assert_swaps_refused` moves everything everywhere, leaves nothing behind and fails where a moved value is read."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    create_engine,
    insert,
    literal,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool

from sa_asherah import Encrypted, NotAttachedError, UsageError, partition_scope
from sa_asherah.orm.element import pack
from sa_asherah.testing import AttachEngines, SwapReport, assert_swaps_refused, static_asherah
from tests.orm import models as shapes
from tests.servers.database import async_url
from tests.testing_kit.application import (
    SECRET,
    Base,
    Clinic,
    Patient,
    Visit,
    application,
    attached,
    content,
    imports,
    run,
)


def failure(bind: Any, *targets: Any) -> str:
    """Tell why the assertion fails; it may show no value."""
    with pytest.raises(AssertionError) as caught:
        assert_swaps_refused(bind, *targets)
    assert SECRET not in repr(caught.value)
    return str(caught.value)


def test_every_value_is_moved_to_every_kind_of_place(engine: Engine) -> None:
    """Four columns of four values each, two columns to a table, two rows to an owner, one column row-bound."""
    before = content(engine)
    report = assert_swaps_refused(engine, Base)
    assert report == SwapReport({"owner": 16, "column": 16, "table": 32, "row": 4}, accepted=12, untried=())
    assert report.tried == 68
    assert str(report).startswith("68 moved values refused (16 to another owner, ")
    assert "12 read in another row of the same owner, where no bind_row= forbids it" in str(report)
    assert content(engine) == before


@pytest.mark.parametrize(
    "targets",
    [[Base], [Base.metadata], [Patient, Visit], [Clinic, Patient.__table__, Visit, Visit]],
    ids=["base", "metadata", "models", "mixed"],
)
def test_models_bases_tables_and_metadata_say_the_same(sqlite_engine: Engine, targets: list[Any]) -> None:
    assert assert_swaps_refused(sqlite_engine, *targets).tried == 68


def test_every_kind_of_owner_key_and_inheritance_is_moved(database_url: str) -> None:
    """The models of the ORM suite: owners of all kinds, composite keys, self-owned rows, inheritance."""
    rows: list[Any] = []
    for number, department in enumerate(shapes.Department, 1):
        rows += [
            shapes.Doctor(id=number, clinic_id=number, alias=SECRET, ward=f"ward {number}", licence=SECRET),
            shapes.Device(id=number, tenant=uuid.UUID(int=number), code=SECRET),
            shapes.Report(id=number, department=department, body=SECRET),
            shapes.User(id=uuid.UUID(int=number), mail=SECRET),
            shapes.Ledger(tenant_id=number, number=7, entry=SECRET),
            shapes.Letter(id=number, clinic_id=number, body=SECRET, seal=SECRET),
        ]
    models: list[Any] = [shapes.Person, shapes.Device, shapes.Report, shapes.User, shapes.Ledger, shapes.Letter]
    models += [shapes.Setting, shapes.Note]
    with application(database_url) as engine, Session(engine) as session:
        Base.metadata.drop_all(engine)
        shapes.Base.metadata.create_all(engine)
        session.add_all([shapes.Clinic(id=1), shapes.Clinic(id=2)])
        session.flush()
        session.add_all(rows)
        report = assert_swaps_refused(session, *models)
        sizes = [1, 1, 1, 1, 1, 1, 2]  # columns of each table that holds values
        assert report.refused["owner"] == 2 * sum(sizes)
        assert report.refused["column"] == 2 * 2
        assert report.refused["table"] == 2 * sum(size * (sum(sizes) - size) for size in sizes)
        assert "settings.value: it has no owner=, so try it inside partition_scope('...')" in report.untried
        assert "memos.body: it holds no value" in report.untried


def test_a_column_without_owner_is_moved_inside_a_scope(sqlite_url: str) -> None:
    table = Table(
        "settings",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("one", Encrypted(String())),
        Column("two", Encrypted(String())),
    )
    with application(sqlite_url) as engine:
        table.create(engine)
        with partition_scope("company"):
            with engine.begin() as connection:
                connection.execute(insert(table), [{"id": 1, "one": SECRET, "two": SECRET}])
            assert assert_swaps_refused(engine, table).refused == {"column": 2}
        assert "settings.one: it has no owner=" in failure(engine, table)


def test_columns_that_share_a_label_are_found_out(engine: Engine) -> None:
    """A value of one is read in the other, for the same owner."""
    said = failure(engine, Patient, imports)
    assert "patients.ssn of another table in patients.ssn: " in said


class OwnerBlind(Encrypted):
    """A type that takes a constant for the owner: what a mistake in this package would look like."""

    cache_ok = True

    def column_expression(self, column: Any) -> Any:
        packed: Any = pack(column, self)
        packed.places = [literal("1") for _ in packed.places]
        return packed


class Gullible(Encrypted):
    """A type that reads anything."""

    cache_ok = True

    def column_expression(self, column: Any) -> Any:
        return literal("x", String()).label(column.name)


@pytest.mark.parametrize("type_", [OwnerBlind, Gullible])
def test_a_type_that_does_not_bind_is_found_out(database_url: str, type_: type[Encrypted]) -> None:
    table = Table(
        "loose",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("owner", Integer),
        Column("first", Encrypted(String(), owner="owner")),
        Column("second", Encrypted(String(), owner="owner")),
    )
    twin = Table(
        "loose",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("owner", Integer),
        Column("first", type_(String(), owner="owner")),
    )
    with application(database_url) as engine:
        table.create(engine)
        with engine.begin() as connection:
            rows = [{"id": number, "owner": 1, "first": SECRET, "second": SECRET} for number in (1, 2)]
            connection.execute(insert(table), [*rows, {"id": 3, "owner": 2, "first": None, "second": SECRET}])
        assert assert_swaps_refused(engine, table).tried > 0
        assert "2 moved values were read where they do not belong" in failure(engine, twin)
        assert "loose.first of another owner in loose.first: 2" in failure(engine, twin)


def test_nothing_to_try_fails_and_says_why(sqlite_engine: Engine) -> None:
    assert "no Encrypted column" in failure(sqlite_engine, Clinic)
    assert "no Encrypted column" in failure(sqlite_engine)
    said = failure(sqlite_engine, imports)
    assert "imports.ssn, 1 of 1 values to another owner: all rows have the same owner" in said
    assert "imports.ssn, 1 of 1 values to another row: the owner has one row only" in said
    assert "the table has no other encrypted column" in said
    assert "no other table with encrypted columns" in said
    run(sqlite_engine, "DELETE FROM imports")
    assert "imports.ssn: it holds no value" in failure(sqlite_engine, imports)


def test_what_could_not_be_tried_is_reported(sqlite_engine: Engine) -> None:
    run(sqlite_engine, "DELETE FROM patients WHERE clinic_id = 2")
    run(sqlite_engine, "UPDATE patients SET notes = NULL")
    report = assert_swaps_refused(sqlite_engine, Patient)
    assert report.refused == {"column": 2}
    assert "patients.ssn, 2 of 2 values to another owner: all rows have the same owner" in report.untried
    assert "patients.notes: it holds no value" in report.untried
    assert "\n  not tried: patients.notes: it holds no value" in str(report)


def test_a_table_without_a_primary_key_is_reported(sqlite_engine: Engine) -> None:
    keyless = Table("keyless", MetaData(), Column("owner", Integer), Column("a", Encrypted(String(), owner="owner")))
    report = assert_swaps_refused(sqlite_engine, Patient, keyless)
    assert report.untried[0] == "keyless: it has no primary key"


def test_a_value_that_does_not_open_in_its_own_place_fails(engine: Engine) -> None:
    """Else its refusal elsewhere would say nothing."""
    run(engine, "UPDATE patients SET clinic_id = 2 WHERE id = 1")
    assert "a value of patients.ssn does not open where it belongs" in failure(engine, Patient)
    run(engine, "UPDATE patients SET clinic_id = 1, ssn = :value WHERE id = 1", value=SECRET.encode() * 10)
    assert "patients.ssn holds a value that is not encrypted as declared" in failure(engine, Patient)


def test_a_unique_constraint_is_reported_and_stops_nothing(database_url: str) -> None:
    table = Table(
        "tokens",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("owner", Integer),
        Column("token", Encrypted(String(), owner="owner")),
        Column("other", Encrypted(String(), owner="owner")),
        Column("digest", String(10)),
        UniqueConstraint("digest"),
    )
    with application(database_url) as engine:
        table.create(engine)
        if engine.dialect.name in {"mysql", "mariadb"}:
            run(engine, "CREATE UNIQUE INDEX one ON tokens (token(200))")
        else:
            run(engine, "CREATE UNIQUE INDEX one ON tokens (token)")
        with engine.begin() as connection:
            rows = [{"id": number, "owner": number, "token": SECRET, "other": SECRET} for number in (1, 2)]
            connection.execute(insert(table), rows)
        report = assert_swaps_refused(engine, table)
        assert report.refused == {"owner": 2, "column": 4}
        assert "tokens.token, 2 of 2 values to another owner: the database refuses it in tokens.token" in report.untried


def test_rows_of_an_open_session_are_moved_and_the_session_goes_on(engine: Engine) -> None:
    with Session(engine) as session:
        session.add(Patient(id=50, clinic_id=2, ssn=SECRET))
        assert assert_swaps_refused(session, Patient).refused["owner"] == 9
        session.commit()
        patient = session.get_one(Patient, 50)
        assert patient.ssn == SECRET
    with engine.connect() as connection:
        assert assert_swaps_refused(connection, Patient).refused["owner"] == 9
        assert not connection.in_transaction()


def test_a_database_in_memory_is_left_as_it_was() -> None:
    with application("sqlite://", poolclass=StaticPool) as engine:
        before = content(engine)
        assert assert_swaps_refused(engine, Base).tried == 68
        assert content(engine) == before


def test_values_are_moved_on_an_asynchronous_connection(database_url: str) -> None:
    async def body() -> SwapReport:
        engine = await AttachEngines(asherah)(create_async_engine(async_url(database_url)))
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        async with AsyncSession(engine) as session:
            session.add_all([Clinic(id=1), Clinic(id=2)])
            session.add_all([Patient(id=number, clinic_id=number, ssn=SECRET) for number in (1, 2)])
            await session.flush()
            report = await session.run_sync(assert_swaps_refused, Base)
        await engine.dispose()
        return report

    with static_asherah() as asherah:
        assert asyncio.run(body()).refused == {"owner": 2, "column": 2}


def test_an_engine_that_rolls_nothing_back_is_refused_before_anything_is_moved(engine: Engine) -> None:
    before = content(engine)
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
    if engine.dialect.name == "sqlite":  # a savepoint is a transaction there
        assert assert_swaps_refused(autocommit, Patient).tried > 0
    else:
        with pytest.raises(DBAPIError):
            assert_swaps_refused(autocommit, Patient)
    assert content(engine) == before


def test_a_table_without_transactions_is_told_of(mariadb_url: str) -> None:
    with application(mariadb_url) as engine:
        run(engine, "ALTER TABLE imports ENGINE = MyISAM")
        with engine.begin() as connection:
            connection.execute(insert(imports), [{"id": 2, "clinic_id": 2, "ssn": SECRET}])
        with pytest.raises(UsageError, match="did not roll back"):
            assert_swaps_refused(engine, imports)


def test_a_scope_is_a_ceiling_of_the_test_too(sqlite_engine: Engine) -> None:
    """What the scope refuses anyway is not counted as refused."""
    with partition_scope("1"):
        report = assert_swaps_refused(sqlite_engine, Patient)
    assert set(report.refused) == {"column"}
    assert report.accepted == 4


def test_marking_unreadable_values_hides_nothing(sqlite_engine: Engine) -> None:
    with attached(sqlite_engine).unreadable("mark"):
        assert assert_swaps_refused(sqlite_engine, Base).tried == 68


def test_what_prevents_the_test_is_no_verdict(sqlite_url: str) -> None:
    with pytest.raises(UsageError, match="mapped classes, a declarative base"):
        assert_swaps_refused(create_engine(sqlite_url), str)
    with application(sqlite_url) as engine:
        attached(engine).detach(engine)
        with pytest.raises(NotAttachedError):
            assert_swaps_refused(engine, Patient)
