# SPDX-License-Identifier: Apache-2.0
"""No plaintext anywhere: 0 hits, or a line in docs/explanation/threats.md that says where it is and why."""

from __future__ import annotations

import base64
import io
import logging
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Column, Engine, LargeBinary, MetaData, Table, event, insert, inspect, lambda_stmt
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.engine import Dialect, make_url
from sqlalchemy.exc import StatementError
from sqlalchemy.orm import Mapper, Session
from sqlalchemy.pool import Pool
from sqlalchemy.sql import lambdas

from sa_asherah import Encrypted, UnsupportedOperatorError
from sa_asherah.config import Settings
from sa_asherah.orm.types import Sealed
from tests.attacks.canaries import FAILURES, Canaries, insert_by_lambda, write_and_read
from tests.attacks.registry import Base, Clinic, Patient, Place, place_of
from tests.servers.mariadb import MariaDB
from tests.servers.postgresql import PostgreSQL

THREATS: Final = Path(__file__).parents[2] / "docs" / "explanation" / "threats.md"
_ELSEWHERE: Final = (Engine, Dialect, Pool, Mapper, Table, Column, MetaData, Session)


@pytest.fixture
def canaries() -> Canaries:
    """Values that were never there."""
    return Canaries()


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    """Everything that is logged, at every level."""
    handler, sqlalchemy = _Records(), logging.getLogger("sqlalchemy")
    level = sqlalchemy.level
    sqlalchemy.setLevel(logging.DEBUG)
    logging.getLogger().addHandler(handler)
    yield handler.kept
    logging.getLogger().removeHandler(handler)
    sqlalchemy.setLevel(level)


@pytest.fixture
def used(place: Place, canaries: Canaries, records: list[logging.LogRecord]) -> Engine:  # noqa: ARG001
    """An engine after all usual writes and reads; it logs all it can."""
    place.create(Base.metadata)
    engine = place.restart(engine_options={"echo": "debug", "echo_pool": "debug"})
    write_and_read(engine, canaries)
    return engine


class _Records(logging.Handler):
    """Keeps every record of every logger."""

    def __init__(self) -> None:
        super().__init__(logging.NOTSET)
        self.kept: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append(record)


def fail(engine: Engine, name: str, canaries: Canaries) -> Exception:
    """Let a statement fail with a value in hand."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 # whatever it is, nothing may show
        FAILURES[name](engine, canaries.new())
    return caught.value


def documented(entry: str) -> bool:
    """Tell whether the page on threats has an entry."""
    return f"- **{entry}.**" in THREATS.read_text(encoding="utf-8")


def test_the_search_finds_every_form(canaries: Canaries) -> None:
    value, others = canaries.new(), Canaries()
    shown: list[Any] = [value, value.encode("utf-16"), f"'{value}'", value.encode().hex(), repr([value.encode()])]
    shown += [
        base64.b64encode(f"{before}{value}!".encode(encoding))
        for before in ("", "a", "ab", "abc")
        for encoding in ("utf-8", "utf-16-le")
    ]
    for thing in shown:
        assert canaries.show_in(thing)
        assert not others.show_in(thing)
    assert canaries.are_reachable_from([{"a": (object(), value)}])
    assert canaries.show_in_error(ValueError(value))


def test_only_sqlalchemys_own_log_of_rows_shows_values(
    used: Engine, canaries: Canaries, records: list[logging.LogRecord]
) -> None:
    assert records
    shown = {(record.name, record.msg) for record in records if canaries.show_in(record.getMessage(), record.args)}
    assert shown == {("sqlalchemy.engine.Engine", "Row %r")}
    assert documented("SQLAlchemy's log of rows")
    for name in FAILURES:
        records.clear()
        fail(used, name, canaries)
        for record in records:
            if record.msg != "Row %r":
                assert not canaries.show_in(record.getMessage(), record.args, record.exc_text), (name, record.msg)


def test_no_error_shows_a_value(used: Engine, canaries: Canaries) -> None:
    for name in FAILURES:
        assert not canaries.show_in_error(fail(used, name, canaries)), name


def test_no_cache_keeps_a_value(used: Engine, canaries: Canaries) -> None:
    for name in FAILURES:
        fail(used, name, canaries)
    caches: list[Any] = [used._compiled_cache, *(mapper._compiled_cache for mapper in Base.registry.mappers)]
    assert any(caches)
    for cache in caches:
        assert not canaries.are_reachable_from(list(cache.items()), *_ELSEWHERE)


def test_only_what_a_lambda_encloses_stays_in_sqlalchemys_cache_of_lambdas(used: Engine, canaries: Canaries) -> None:
    cache: Any = lambdas._closure_per_cache_key
    cache.clear()  # it keeps what a lambda enclosed when it was first executed in this process
    with Session(used) as session:
        insert_by_lambda(session, 96, canaries.new())
        session.execute(lambda_stmt(lambda: insert(Patient)), [{"id": 97, "clinic_id": 8, "ssn": canaries.new()}])
    held = [key[0].co_qualname for key, rec in cache.items() if canaries.are_reachable_from(rec, *_ELSEWHERE)]
    assert len(cache) == 2
    assert held == ["insert_by_lambda.<locals>.<lambda>"]
    assert documented("Lambda statements")


def test_no_listener_after_ours_sees_a_value(place: Place, canaries: Canaries) -> None:
    seen: list[Any] = []

    def look(_connection: Any, _cursor: Any, statement: str, parameters: Any, context: Any, _many: Any) -> None:
        seen.append((statement, parameters, vars(context)))

    place.create(Base.metadata)
    engine = place.restart()
    event.listen(engine, "before_cursor_execute", look)
    event.listen(engine, "after_cursor_execute", look)
    write_and_read(engine, canaries)
    assert any("INSERT INTO patients" in statement and "compiled_parameters" in held for statement, _, held in seen)
    for shown in seen:
        assert not canaries.show_in(*map(repr, shown))


@pytest.mark.parametrize("dialect", [sqlite, postgresql, mysql], ids=["sqlite", "postgresql", "mysql"])
def test_sql_text_and_offline_migrations_are_refused(dialect: Any, canaries: Canaries) -> None:
    table: Any = Patient.__table__
    row = {"id": 1, "clinic_id": 1, "ssn": canaries.new()}
    with pytest.raises(UnsupportedOperatorError) as caught:
        insert(table).values(row).compile(dialect=dialect.dialect(), compile_kwargs={"literal_binds": True})
    assert not canaries.show_in_error(caught.value)
    migrations: list[Callable[[Operations], None]] = [
        lambda operations: operations.bulk_insert(table, [row]),
        lambda operations: operations.execute(insert(table).values(row)),
    ]
    for migrate in migrations:
        script = io.StringIO()
        context = MigrationContext.configure(
            dialect=dialect.dialect(), opts={"as_sql": True, "literal_binds": True, "output_buffer": script}
        )
        with pytest.raises(UnsupportedOperatorError) as caught:
            migrate(Operations(context))
        assert not canaries.show_in_error(caught.value)
        assert not canaries.show_in(script.getvalue())


def test_no_representation_shows_a_value_or_a_key(used: Engine, canaries: Canaries) -> None:
    attachment: Any = used.dialect._sa_asherah  # type: ignore[attr-defined]
    hierarchy = attachment.hierarchy
    keys = [*hierarchy._keyring.intermediate._newest.values(), *hierarchy._keyring.system._newest.values()]
    assert keys
    secret = canaries.new()
    settings = Settings.from_env(
        {
            "SERVICE_NAME": "s",
            "PRODUCT_ID": "p",
            "KMS": "vault",
            "VAULT_TOKEN": secret,
            "VAULT_ADDR": "https://localhost",
        }
    )
    with Session(used) as session:
        patient = session.get_one(Patient, 80)
        things: list[Any] = [
            *(
                used,
                used.dialect,
                session,
                patient,
                inspect(patient),
                Patient.__table__,
                insert(Patient).values(id=1, ssn=secret),
            ),
            *(attachment, attachment.owner, hierarchy, hierarchy._keyring, hierarchy._keyring._kms, *keys, settings),
            *(Encrypted(LargeBinary()), Sealed(secret.encode()), attachment.owner.session("8", engine=used)),
        ]
    raw = [bytes(part) for key in keys for part in (key.secret, key.cell_key)]
    for thing in things:
        for shown in (repr(thing), str(thing), f"{thing}"):
            assert not canaries.show_in(shown)
            assert not any(part.hex() in shown or repr(part)[2:-1] in shown for part in raw)


def test_what_holds_plaintext_by_nature_is_documented(used: Engine, canaries: Canaries) -> None:
    with Session(used) as session:
        patient = session.get_one(Patient, 80)
        patient.ssn = canaries.new()
        assert canaries.show_in(*inspect(patient).attrs.ssn.history.added)
        assert canaries.show_in(pickle.dumps(patient))
        session.rollback()
    assert canaries.show_in(insert(Patient).values(id=1, ssn=canaries.new()).compile().params)
    assert documented("Objects of the application")


def test_a_sealed_value_is_pickled_as_a_text_that_says_so(used: Engine, canaries: Canaries) -> None:
    pickled = pickle.dumps([Sealed(canaries.new().encode())])
    assert not canaries.show_in(pickled)
    assert pickle.loads(pickled) == ["<sealed>"]  # noqa: S301
    rows = [{"id": number, "clinic_id": 1, "ssn": canaries.new()} for number in (90, 91)]
    with used.connect() as connection, pytest.raises(StatementError) as caught:
        connection.execute(insert(Patient), [rows[0] | {"name": "only here"}, rows[1]])
    error = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
    assert "<sealed>" in repr(error.params)


@pytest.mark.parametrize("journal", ["wal", "delete", "truncate"])
def test_no_file_of_sqlite_holds_a_value(sqlite_url: str, canaries: Canaries, journal: str) -> None:
    control, folder = Canaries(), Path(str(make_url(sqlite_url).database)).parent

    def content() -> bytes:
        return b"".join(path.read_bytes() for path in folder.glob("test.db*"))

    with place_of(sqlite_url) as place:
        place.create(Base.metadata)
        place.sql(f"PRAGMA journal_mode = {journal}")
        engine = place.restart()
        write_and_read(engine, canaries)
        for name in FAILURES:
            fail(engine, name, canaries)
        with engine.connect() as connection, Session(connection) as session:
            connection.exec_driver_sql("PRAGMA cache_size = 2")  # what is not committed is written to the file, too
            session.add(Clinic(id=40, name=control.new()))
            session.add_all([Patient(id=n, clinic_id=8, ssn=canaries.new() * 40) for n in range(100, 200)])
            session.flush()
            assert len(list(folder.glob("test.db*"))) > 1, "the journal is there"
            assert control.show_in(content())
            assert not canaries.show_in(content())
            session.commit()
        assert not canaries.show_in(content())


def test_no_file_of_postgresql_holds_a_value(
    postgresql_server: PostgreSQL, postgresql_url: str, canaries: Canaries
) -> None:
    control, folder = Canaries(), postgresql_server._folder
    with place_of(postgresql_url) as place:
        name = make_url(postgresql_url).database
        for setting in (
            "log_statement = 'all'",
            "log_min_duration_statement = 0",
            "log_parameter_max_length = -1",
            "log_parameter_max_length_on_error = -1",
            "log_error_verbosity = 'verbose'",
        ):
            place.sql(f'ALTER DATABASE "{name}" SET {setting}')
        _work(place.create(Base.metadata), canaries, control)
        place.sql("CHECKPOINT")
    log = (folder / "log").read_bytes()
    journal = b"".join(path.read_bytes() for path in (folder / "data" / "pg_wal").iterdir() if path.is_file())
    tables = b"".join(path.read_bytes() for path in (folder / "data" / "base").rglob("*") if path.is_file())
    for content in (log, journal, tables):
        assert control.show_in(content)
        assert not canaries.show_in(content)
    assert b"\\xa5010100" in log, "the parameters are in the log"


def test_no_file_of_mariadb_holds_a_value(mariadb_server: MariaDB, mariadb_url: str, canaries: Canaries) -> None:
    control = Canaries()
    with mariadb_server._connection() as connection, connection.cursor() as cursor:
        cursor.execute("SET GLOBAL log_output = 'TABLE'")
        cursor.execute("SET GLOBAL general_log = 1")
        try:
            with place_of(mariadb_url) as place:
                _work(place.create(Base.metadata), canaries, control)
        finally:
            cursor.execute("SET GLOBAL general_log = 0")
        cursor.execute("SELECT argument FROM mysql.general_log")
        log = b"".join(row[0] if isinstance(row[0], bytes) else row[0].encode() for row in cursor.fetchall())
        cursor.execute("TRUNCATE mysql.general_log")
    data = mariadb_server._folder / "data"
    files = b"".join(path.read_bytes() for path in data.rglob("*") if path.is_file())
    for content in (log, files):
        assert control.show_in(content)
        assert not canaries.show_in(content)


def _work(engine: Engine, canaries: Canaries, control: Canaries) -> None:
    """Do everything, and write one value that must be found."""
    write_and_read(engine, canaries)
    for name in FAILURES:
        fail(engine, name, canaries)
    with Session(engine) as session:
        session.add(Clinic(id=40, name=control.new()))
        session.commit()
