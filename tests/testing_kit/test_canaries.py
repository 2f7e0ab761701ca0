# SPDX-License-Identifier: Apache-2.0
"""`LeakCanaries` finds a value wherever it can leak to, says where, and never shows it."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, select, text, update
from sqlalchemy.exc import StatementError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool

from sa_asherah import UnsupportedValueError
from sa_asherah.testing import AttachEngines, LeakCanaries, static_asherah
from tests.servers.database import async_url
from tests.testing_kit.application import Base, Clinic, Patient, Visit, application, run

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def canaries() -> Iterator[LeakCanaries]:
    """Canaries that listen."""
    with LeakCanaries() as canaries:
        yield canaries


def leak(canaries: LeakCanaries, check: Callable[[], None] | None = None) -> str:
    """Tell what is found; it never shows the value."""
    with pytest.raises(AssertionError) as caught:
        (check or canaries.check)()
    assert canaries("ssn") not in repr(caught.value)
    assert caught.value.__cause__ is None
    return str(caught.value)


def write(engine: Engine, canaries: LeakCanaries, number: int = 100) -> None:
    with Session(engine) as session:
        session.add(Patient(id=number, clinic_id=1, ssn=canaries("ssn"), notes=canaries("notes")))
        session.add(Visit(id=number, clinic_id=1, remark=canaries("remark")))
        session.commit()


def test_canaries_are_unique_and_hidden() -> None:
    first, second = LeakCanaries(), LeakCanaries()
    values = [first("ssn"), first("notes"), second("ssn"), second("notes")]
    assert len(set(values)) == 4
    assert first("ssn") == values[0]
    assert all(value.isalnum() and value.isascii() for value in values)
    assert repr(first) == "<LeakCanaries ssn, notes>"


def test_encrypted_columns_leak_nothing(engine: Engine, canaries: LeakCanaries) -> None:
    """Written, read, changed and refused, with everything logged that this package can prevent from showing values."""
    canaries.watch(engine)
    write(engine, canaries)
    with Session(engine) as session:
        patient = session.scalars(select(Patient).where(Patient.id == 100)).one()
        assert patient.ssn == canaries("ssn")
        patient.notes = canaries("changed")
        session.execute(update(Visit).where(Visit.id == 100).values(remark=canaries("values")))
        session.commit()
        session.add(Patient(id=101, clinic_id=1, ssn={canaries("wrong type"): 1}))
        with pytest.raises(UnsupportedValueError) as caught:
            session.flush()
        canaries.look("the error", caught.value)
    canaries.check()


def test_a_plain_column_is_a_leak(engine: Engine, canaries: LeakCanaries) -> None:
    canaries.watch(engine)
    write(engine, canaries)
    canaries.check()
    run(engine, "UPDATE patients SET name = :value WHERE id = 100", value=f"about {canaries('ssn')}")
    said = leak(canaries)
    assert "canary 'ssn' shows in the database: table patients, column name" in said
    assert "a log record of 'sqlalchemy.engine.Engine' at INFO" in said
    assert "notes" not in said


def test_tables_that_the_application_does_not_map_are_looked_at(canaries: LeakCanaries) -> None:
    with application("sqlite://", poolclass=StaticPool) as engine:
        run(engine, "ATTACH ':memory:' AS apart")
        run(engine, 'CREATE TABLE apart."Odd name" (a BLOB)')
        with engine.connect() as connection:
            raw: Any = connection.connection.dbapi_connection
            raw.execute('INSERT INTO "Odd name" (a) VALUES (?)', [canaries("ssn").encode()])
            raw.commit()
        canaries.watch(engine)
        assert leak(canaries) == "canary 'ssn' shows in the database: table Odd name, column a"


def test_other_schemas_and_structured_columns_are_looked_at(postgresql_url: str, canaries: LeakCanaries) -> None:
    with application(postgresql_url) as engine:
        run(engine, "CREATE SCHEMA apart")
        run(engine, "CREATE TABLE apart.audit (entry JSONB, words TEXT[])")
        canaries.watch(engine)
        canaries.check()
        engine.dispose()
        with engine.connect() as connection:
            raw: Any = connection.connection.dbapi_connection
            raw.execute("INSERT INTO apart.audit VALUES (%s, %s)", [f'{{"a": ["{canaries("ssn")}"]}}', [canaries("b")]])
            raw.commit()
        assert leak(canaries) == (
            "canary 'ssn' shows in the database: table audit, column entry; "
            "canary 'b' shows in the database: table audit, column words"
        )


def test_deleted_rows_in_the_file_are_found(sqlite_engine: Engine, canaries: LeakCanaries) -> None:
    canaries.watch(sqlite_engine)
    file = sqlite3.connect(str(sqlite_engine.url.database))
    file.execute("PRAGMA secure_delete = OFF")
    file.execute("INSERT INTO patients (id, name) VALUES (100, ?)", [canaries("ssn")])
    file.commit()
    file.execute("DELETE FROM patients WHERE id = 100")
    file.commit()
    file.close()
    assert leak(canaries) == "canary 'ssn' shows in the file test.db, perhaps in a deleted row"


def test_the_write_ahead_log_is_looked_at(sqlite_engine: Engine, canaries: LeakCanaries) -> None:
    canaries.watch(sqlite_engine)
    file = sqlite3.connect(str(sqlite_engine.url.database))
    file.execute("PRAGMA journal_mode = WAL")
    file.execute("INSERT INTO patients (id, name) VALUES (100, ?)", [canaries("ssn")])
    file.commit()
    assert "the file test.db-wal" in leak(canaries)
    file.close()


def test_a_cached_statement_is_a_leak(sqlite_engine: Engine, canaries: LeakCanaries) -> None:
    logging.getLogger("sqlalchemy.engine").setLevel(logging.WARNING)
    canaries.watch(sqlite_engine)
    with Session(sqlite_engine) as session:
        session.execute(select(Patient.id).where(Patient.name == canaries("ssn"))).all()
    assert leak(canaries).startswith("canary 'ssn' shows in the cache of compiled statements of Engine(sqlite:///")


def log_with(how: str, value: str) -> None:
    logger = logging.getLogger("application.under.test")
    if how == "message":
        logger.debug(f"patient {value}")  # noqa: G004
    elif how == "arguments":
        logger.debug("patient %s", {"ssn": value})
    elif how == "extra":
        logger.debug("patient", extra={"patient": {"ssn": value}})
    elif how == "exception":
        try:
            int(value)
        except ValueError:
            logger.exception("no patient")
    else:
        own = logging.getLogger("application.on.its.own")
        own.propagate = False
        with LeakCanaries() as canaries:  # a logger that is there when listening begins
            canaries._values["ssn"] = value
            own.warning("patient %s", value)
            leak(canaries)
        own.propagate = True
        own.warning("patient %s", value)


@pytest.mark.parametrize("how", ["message", "arguments", "extra", "exception", "not propagated"])
def test_a_log_record_is_a_leak(how: str, canaries: LeakCanaries) -> None:
    log_with(how, canaries("ssn"))
    assert leak(canaries).startswith("canary 'ssn' shows in a log record of 'application.")


def test_a_record_that_cannot_be_formatted_does_not_stop_the_application(
    canaries: LeakCanaries, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [canaries._handler])
    logging.getLogger("application").debug("%d patients", canaries("ssn"))
    assert "Logging error" in capsys.readouterr().err
    assert "at DEBUG" in leak(canaries)


def test_logging_is_as_before_when_it_ends() -> None:
    loggers = [logging.getLogger(name) for name in ("", "sqlalchemy.engine")]
    before = [(logger.level, list(logger.handlers)) for logger in loggers], warnings.showwarning
    with LeakCanaries() as canaries:
        assert loggers[0].level == logging.NOTSET
    assert ([(logger.level, list(logger.handlers)) for logger in loggers], warnings.showwarning) == before
    logging.getLogger("application").warning(canaries("ssn"))
    canaries.check()


def test_a_warning_is_a_leak_and_still_a_warning(canaries: LeakCanaries) -> None:
    seen: list[Any] = []
    canaries._showwarning = lambda *arguments, **_: seen.append(arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(f"no patient {canaries('ssn')}", stacklevel=1)
    assert leak(canaries) == "canary 'ssn' shows in a UserWarning"
    assert len(seen) == 1


class DetailedError(Exception):
    def __init__(self, detail: object) -> None:
        super().__init__("no patient")
        self.detail = detail


def error_with(how: str, value: str) -> BaseException:
    error: BaseException = DetailedError(None)
    if how == "text":
        return LookupError(value)
    if how == "attribute":
        return DetailedError({"ssn": [value]})
    if how == "note":
        error.add_note(value)
    elif how == "cause":
        error.__cause__ = LookupError(value)
    elif how == "context":
        error.__context__ = DetailedError(value)
    elif how == "group":
        return ExceptionGroup("several", [LookupError("a"), ExceptionGroup("more", [LookupError(value)])])
    else:
        hidden = StatementError("refused", "SELECT 1", {"ssn": value}, None, hide_parameters=True)
        assert value not in f"{hidden}{hidden!r}"
        return hidden
    return error


@pytest.mark.parametrize("how", ["text", "attribute", "note", "cause", "context", "group", "hidden parameters"])
def test_an_exception_is_a_leak(how: str, canaries: LeakCanaries) -> None:
    canaries.look("the error", error_with(how, canaries("ssn")))
    assert leak(canaries) == "canary 'ssn' shows in the error"


def test_an_error_of_a_statement_is_a_leak_even_if_it_is_caught(engine: Engine, canaries: LeakCanaries) -> None:
    logging.getLogger("sqlalchemy.engine").setLevel(logging.WARNING)
    canaries.watch(engine)
    with engine.connect() as connection, pytest.raises(StatementError):
        connection.execute(text("INSERT INTO patients (id, name) VALUES (1, :name)"), {"name": canaries("ssn")})
    assert "canary 'ssn' shows in the IntegrityError of a statement" in leak(canaries)


FORMS: dict[str, Callable[[str], object]] = {
    "text": str,
    "bytes": str.encode,
    "bytearray": lambda value: bytearray(value.encode()),
    "object": lambda value: {1: [value]},
}


@pytest.mark.parametrize("form", FORMS)
def test_anything_else_can_be_searched(form: str, canaries: LeakCanaries) -> None:
    canaries.look("the queue", "nothing", FORMS[form](canaries("other")))
    canaries("ssn")
    assert leak(canaries) == "canary 'other' shows in the queue"


def test_the_tables_of_an_asynchronous_engine_must_be_looked_at(database_url: str, canaries: LeakCanaries) -> None:
    async def body() -> None:
        engine = canaries.watch(await AttachEngines(asherah)(create_async_engine(async_url(database_url))))
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
            await connection.execute(Base.metadata.tables["clinics"].insert(), {"id": 1})
            await connection.execute(
                Base.metadata.tables["patients"].insert(), {"id": 1, "clinic_id": 1, "ssn": canaries("ssn")}
            )
        assert "await connection.run_sync(leak_canaries.check_database)" in leak(canaries)
        async with engine.connect() as connection:
            await connection.run_sync(canaries.check_database)
            canaries.check()
            await connection.execute(text("UPDATE patients SET name = :name"), {"name": canaries("ssn")})
            with pytest.raises(AssertionError, match="table patients, column name"):
                await connection.run_sync(canaries.check_database)
        await engine.dispose()

    with static_asherah() as asherah:
        asyncio.run(body())


def test_uncommitted_rows_in_memory_are_seen(canaries: LeakCanaries) -> None:
    with application("sqlite://", poolclass=StaticPool) as engine, Session(canaries.watch(engine)) as session:
        session.add(Clinic(id=3))
        session.execute(text("UPDATE patients SET name = :name"), {"name": canaries("ssn")})
        assert "table patients, column name" in leak(canaries, lambda: canaries.check_database(session.connection()))
        assert session.get_one(Clinic, 3).id == 3
