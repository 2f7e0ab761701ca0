# SPDX-License-Identifier: Apache-2.0
"""`assert_encrypted_at_rest` passes for what is encrypted and fails for everything else, without showing it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import Engine, delete, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, aliased, scoped_session, sessionmaker

from sa_asherah import NotAttachedError, UsageError, partition_scope
from sa_asherah.core import cell
from sa_asherah.testing import AttachEngines, assert_encrypted_at_rest, static_asherah
from tests.servers.database import async_url
from tests.testing_kit.application import SECRET, Clinic, Patient, Visit, attached, imports, run

COLUMNS = [Patient.ssn, Patient.notes, Visit.finding, Visit.remark]


def failure(bind: Any, attribute: Any) -> str:
    """Tell why the assertion fails; it may show no value and no key of a row."""
    with pytest.raises(AssertionError) as caught:
        assert_encrypted_at_rest(bind, attribute)
    assert SECRET not in repr(caught.value)
    assert caught.value.__cause__ is None
    return str(caught.value)


def test_encrypted_columns_pass_and_every_value_is_counted(engine: Engine) -> None:
    assert [assert_encrypted_at_rest(engine, attribute) for attribute in COLUMNS] == [4, 4, 4, 4]
    run(engine, "UPDATE patients SET ssn = NULL, notes = NULL WHERE id = 1")
    assert [assert_encrypted_at_rest(engine, attribute) for attribute in COLUMNS] == [3, 3, 4, 4]


def test_columns_of_tables_and_aliases_are_taken_for_what_they_are(sqlite_engine: Engine) -> None:
    assert assert_encrypted_at_rest(sqlite_engine, imports.c.ssn) == 1
    assert assert_encrypted_at_rest(sqlite_engine, aliased(Patient).ssn) == 4


def test_planted_plaintext_fails(engine: Engine) -> None:
    quote = engine.dialect.identifier_preparer.quote
    for attribute in COLUMNS:
        column: Any = attribute.property.columns[0]
        plaintext = SECRET * 20 if column.type.storage == "text" else SECRET.encode() * 20
        statement = f"UPDATE {quote(column.table.name)} SET {quote(column.name)} = :value WHERE id = 2"  # noqa: S608
        run(engine, statement, value=plaintext)
        assert failure(engine, attribute).startswith(f"1 of 4 stored values of {column} are not encrypted as declared")


def test_plaintext_of_another_type_than_the_column_fails(sqlite_engine: Engine) -> None:
    """SQLite stores what it is given."""
    run(sqlite_engine, "UPDATE patients SET ssn = :value WHERE id = 1", value=SECRET)
    assert "value 1: a str is stored" in failure(sqlite_engine, Patient.ssn)


def test_a_column_that_lost_its_type_fails(sqlite_engine: Engine) -> None:
    assert "patients.name is not an Encrypted column" in failure(sqlite_engine, Patient.name)


def test_a_column_without_values_fails(engine: Engine) -> None:
    run(engine, "DELETE FROM patients")
    assert "holds no value" in failure(engine, Patient.ssn)


def test_a_cell_of_another_kind_fails(engine: Engine) -> None:
    """Padded where no padding is declared, and the other way round, although both are genuine cells."""
    run(engine, "UPDATE patients SET ssn = notes WHERE id = 1")
    assert "the column declares not row-bound and unpadded" in failure(engine, Patient.ssn)
    run(engine, "UPDATE patients SET notes = ssn WHERE id = 11")
    assert "the column declares not row-bound and padded" in failure(engine, Patient.notes)


def test_a_genuine_cell_of_another_owner_or_damaged_fails(engine: Engine) -> None:
    with engine.connect() as connection:
        other = connection.exec_driver_sql("SELECT ssn FROM patients WHERE id = 2").scalar_one()
    run(engine, "UPDATE patients SET ssn = :other WHERE id = 1", other=bytes(other))
    run(engine, "UPDATE patients SET ssn = :damaged WHERE id = 11", damaged=bytes(other)[:-1] + b"!")
    assert failure(engine, Patient.ssn).startswith("2 of 4 ")
    run(engine, "UPDATE patients SET clinic_id = NULL WHERE id = 12")
    assert failure(engine, Patient.ssn).startswith("3 of 4 ")


def test_marking_unreadable_values_hides_nothing(sqlite_engine: Engine) -> None:
    run(sqlite_engine, "UPDATE patients SET clinic_id = 2 WHERE id = 1")
    with attached(sqlite_engine).unreadable("mark"):
        assert failure(sqlite_engine, Patient.ssn).startswith("1 of 4 ")


def test_a_text_cell_must_have_the_text_form(engine: Engine) -> None:
    quote = engine.dialect.identifier_preparer.quote
    with engine.connect() as connection:
        stored = connection.exec_driver_sql(f"SELECT remark FROM {quote('Visits made')} WHERE id = 1").scalar_one()  # noqa: S608
    assert stored.startswith("sa1:")
    run(engine, f"UPDATE {quote('Visits made')} SET remark = :cell WHERE id = 1", cell=stored.removeprefix("sa1:"))  # noqa: S608
    assert failure(engine, Visit.remark).startswith("1 of 4 ")
    assert cell.from_text(stored)


def test_many_faults_make_a_short_text(sqlite_engine: Engine) -> None:
    with Session(sqlite_engine) as session:
        session.add_all([Patient(id=number, clinic_id=1, ssn=SECRET) for number in range(100, 120)])
        session.commit()
    run(sqlite_engine, "UPDATE patients SET ssn = x'00'")
    said = failure(sqlite_engine, Patient.ssn)
    assert said.startswith("24 of 24 ")
    assert "; value 5: " in said
    assert said.endswith("; ...")


def test_a_connection_or_session_is_left_as_it_was(sqlite_engine: Engine) -> None:
    with sqlite_engine.connect() as connection:
        assert assert_encrypted_at_rest(connection, Patient.ssn) == 4
        assert not connection.in_transaction()
        connection.begin()
        assert assert_encrypted_at_rest(connection, Patient.ssn) == 4
        assert connection.in_transaction()
    scoped = scoped_session(sessionmaker(sqlite_engine))
    assert assert_encrypted_at_rest(scoped, Patient.ssn) == 4
    scoped.remove()


def test_rows_of_an_open_session_count_and_stay_uncommitted(engine: Engine) -> None:
    with Session(engine) as session:
        session.execute(delete(Patient))
        session.add(Patient(id=50, clinic_id=1, ssn=SECRET))
        assert assert_encrypted_at_rest(session, Patient.ssn) == 1
        assert session.in_transaction()
    with Session(engine) as session:
        assert session.scalar(select(Patient).where(Patient.id == 50)) is None


def test_an_asynchronous_connection_is_looked_into(database_url: str) -> None:
    async def body() -> None:
        engine = await attach(create_async_engine(async_url(database_url)))
        async with engine.begin() as connection:
            await connection.run_sync(Patient.metadata.create_all)
        async with AsyncSession(engine) as session:
            session.add_all([Clinic(id=1), Patient(id=1, clinic_id=1, ssn=SECRET)])
            await session.commit()
        async with engine.connect() as connection:
            assert await connection.run_sync(assert_encrypted_at_rest, Patient.ssn) == 1
            with pytest.raises(AssertionError, match="holds no value"):
                await connection.run_sync(assert_encrypted_at_rest, Patient.notes)
        with pytest.raises(UsageError, match=r"await connection\.run_sync"):
            assert_encrypted_at_rest(engine, Patient.ssn)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
        await engine.dispose()

    with static_asherah() as asherah:
        attach = AttachEngines(asherah)
        asyncio.run(body())


def test_what_prevents_the_check_is_no_verdict(sqlite_engine: Engine) -> None:
    """Neither a pass nor a failed assertion, which somebody might expect."""
    with pytest.raises(UsageError, match=r"Model\.attribute"):
        assert_encrypted_at_rest(sqlite_engine, Patient)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    with partition_scope("2"):
        said = failure(sqlite_engine, Patient.ssn)
    assert "outside the current partition_scope" in said
    attached(sqlite_engine).detach(sqlite_engine)
    with pytest.raises(NotAttachedError):
        assert_encrypted_at_rest(sqlite_engine, Patient.ssn)
