# SPDX-License-Identifier: Apache-2.0
"""Attaching an `Asherah` to engines, taking it off, and engines side by side."""

from __future__ import annotations

import gc
import logging
import types
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import (
    Column,
    Engine,
    Integer,
    MetaData,
    StaticPool,
    String,
    Table,
    create_engine,
    event,
    insert,
    select,
    text,
)
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from sa_asherah import Asherah, ConfigurationError, Encrypted, MetastoreError, NotAttachedError, UsageError
from sa_asherah.errors import AsherahError
from sa_asherah.kms.static import StaticKMS
from tests.orm.app import App
from tests.orm.models import Base, Clinic, Patient
from tests.servers.database import async_url

if TYPE_CHECKING:
    from collections.abc import Iterator


def test_without_asherah_nothing_goes_through(app: App) -> None:
    app.add(Patient(id=1, clinic_id=1, ssn="canary 1"))
    app.asherah.detach(app.engine)
    with pytest.raises(NotAttachedError, match="attach"):
        app.rows(select(Patient.ssn))
    with pytest.raises(NotAttachedError) as caught:
        app.add(Patient(id=2, clinic_id=1, ssn="canary 2"))
    assert "canary" not in str(caught.value)
    assert app.rows(select(Patient.id)) == [(1,)]
    app.add(Patient(id=3, clinic_id=1))
    app.asherah.attach(app.engine)
    assert app.rows(select(Patient.ssn).order_by(Patient.id)) == [("canary 1",), (None,)]


def test_attaching_again_is_harmless_and_another_asherah_is_refused(app: App) -> None:
    app.asherah.attach(app.engine)
    app.asherah.attach(app.engine.execution_options(logging_token="x"))
    listeners = len(list(app.engine.dispatch.before_execute))
    app.asherah.attach(app.engine)
    assert len(list(app.engine.dispatch.before_execute)) == listeners
    with pytest.raises(ConfigurationError, match="another Asherah"):
        app.new_asherah().attach(app.engine)
    app.add(Patient(id=1, clinic_id=1, ssn="canary 1"))
    assert app.rows(select(Patient.ssn)) == [("canary 1",)]


def test_detaching_leaves_no_listener(app: App) -> None:
    app.asherah.detach(app.engine)
    app.asherah.detach(app.engine)
    assert not list(app.engine.dispatch.before_execute)
    assert not list(app.engine.dispatch.before_cursor_execute)
    assert not list(app.engine.dispatch.after_cursor_execute)
    app.new_asherah().detach(app.engine)


def test_detaching_a_clone_detaches_its_engine(app: App) -> None:
    app.asherah.detach(app.engine.execution_options(logging_token="x"))
    with pytest.raises(NotAttachedError):
        app.add(Patient(id=2, clinic_id=1, ssn="canary"))


def test_checking_on_demand(app: App) -> None:
    with app.engine.connect() as connection:
        app.asherah.check(connection)
        with pytest.raises(NotAttachedError):
            app.new_asherah().check(connection)


@pytest.fixture
def static(static_kms: StaticKMS) -> Iterator[Asherah]:
    """An `Asherah` that is attached to nothing."""
    with Asherah("records", "clinic", static_kms) as asherah:
        yield asherah


def memory() -> Engine:
    return create_engine("sqlite://", poolclass=StaticPool)


def test_an_engine_of_another_family_is_refused(static: Asherah) -> None:
    driver = types.ModuleType("pymssql")  # the dialect is real; it asks its driver for nothing but its style
    driver.__dict__.update(__version__="2.3", paramstyle="pyformat")
    engine = create_engine("mssql+pymssql://127.0.0.1/nowhere", module=driver)
    with pytest.raises(ConfigurationError, match="'mssql' is not supported; use PostgreSQL, MySQL, MariaDB or SQLite"):
        static.attach(engine)
    assert not list(engine.dispatch.before_execute)


def test_attaching_connects_to_nothing(static: Asherah) -> None:
    static.attach(create_engine("postgresql+psycopg://127.0.0.1:1/nowhere"))
    static.attach(create_async_engine("postgresql+asyncpg://127.0.0.1:1/nowhere"))


def test_the_key_table_must_be_there(static: Asherah) -> None:
    engine = memory()
    static.attach(engine)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Clinic(patients=[Patient(ssn="canary")]))
        with pytest.raises(MetastoreError, match="create_metastore"):
            session.flush()
    static.create_metastore(engine)
    with Session(engine) as session:
        session.add(Clinic(patients=[Patient(ssn="canary")]))
        session.commit()
        assert session.scalars(select(Patient.ssn)).all() == ["canary"]
    engine.dispose()


def test_two_engines_with_two_hierarchies_work_side_by_side(static: Asherah) -> None:
    other = Asherah("billing", "clinic", StaticKMS(bytes(reversed(range(32))), {}))
    first, second = memory(), memory()
    for asherah, engine in ((static, first), (other, second)):
        asherah.attach(engine)
        asherah.create_metastore(engine)
        Base.metadata.create_all(engine)
    for number in range(3):
        for engine in (first, second):
            with Session(engine) as session:
                session.add(Clinic(id=number, patients=[Patient(id=number, ssn=f"canary {number}")]))
                session.commit()
    for engine in (first, second):
        with Session(engine) as session:
            assert session.scalars(select(Patient.ssn).order_by(Patient.id)).all() == [f"canary {n}" for n in range(3)]
    with first.connect() as source, second.begin() as target:
        cell = source.execute(text("SELECT ssn FROM patients WHERE id = 1")).scalar_one()
        target.execute(text("UPDATE patients SET ssn = :cell WHERE id = 1"), {"cell": cell})
    with Session(second) as session, pytest.raises(AsherahError):
        session.scalars(select(Patient.ssn).where(Patient.id == 1)).all()
    other.close()
    with Session(first) as session:
        assert session.scalars(select(Patient.ssn).where(Patient.id == 1)).all() == ["canary 1"]
    first.dispose()
    second.dispose()


def test_one_asherah_on_two_engines_keeps_their_keys_apart(static: Asherah) -> None:
    engines = memory(), memory()
    for engine in engines:
        static.attach(engine)
        static.create_metastore(engine)
        Base.metadata.create_all(engine)
        with Session(engine) as session:
            session.add(Clinic(id=1, patients=[Patient(id=1, ssn="canary")]))
            session.commit()
    with pytest.raises(UsageError, match="several engines"):
        static.session("1")
    for engine in engines:
        with Session(engine) as session:
            assert session.scalars(select(Patient.ssn)).all() == ["canary"]
        engine.dispose()


def test_an_engine_keeps_its_asherah_and_goes_with_it(static_kms: StaticKMS) -> None:
    engine = memory()
    kept = weakref.ref(asherah := Asherah("records", "clinic", static_kms))
    asherah.attach(engine)
    del asherah
    gc.collect()
    assert kept() is not None
    gone = weakref.ref(engine)
    engine.dispose()
    del engine
    gc.collect()
    assert gone() is None
    gc.collect()  # what the engine's end let go
    assert kept() is None


def test_an_earlier_listener_is_warned_of(static: Asherah, caplog: pytest.LogCaptureFixture) -> None:
    engine = memory()
    event.listen(engine, "before_execute", lambda *_: None)
    with caplog.at_level(logging.WARNING):
        static.attach(engine)
    assert "sees plaintext" in caplog.text


def test_a_wrong_column_is_refused_at_the_first_statement(static: Asherah) -> None:
    engine = memory()
    static.attach(engine)
    static.create_metastore(engine)
    for table in wrong_tables():
        table.create(engine)
        with engine.begin() as connection, pytest.raises(ConfigurationError):
            connection.execute(insert(table), {"id": 1, "owner": 1, "secret": "canary"})
    engine.dispose()


def wrong_tables() -> Iterator[Table]:
    def table(name: str, owner: Any, secret: Encrypted, **options: Any) -> Table:
        owner_column = Column("owner", owner)
        return Table(
            name, MetaData(), Column("id", Integer, primary_key=True), owner_column, Column("secret", secret, **options)
        )

    from sqlalchemy import CHAR, Numeric  # noqa: PLC0415

    yield table("no_owner_column", Integer, Encrypted(String(), owner="nobody"))
    yield table("numeric_owner", Numeric, Encrypted(String(), owner="owner"))
    yield table("padded_owner", CHAR(4), Encrypted(String(), owner="owner"))
    yield table("server_default", Integer, Encrypted(String(), owner="owner"), server_default="x")
    yield table("dotted.name", Integer, Encrypted(String(), owner="owner"))


def test_the_pool_may_have_one_connection(sqlite_url: str, static: Asherah) -> None:
    engine = create_engine(sqlite_url, pool_size=1, max_overflow=0)
    static.attach(engine)
    static.create_metastore(engine)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Clinic(patients=[Patient(ssn="canary")]))
        session.commit()
        assert session.scalars(select(Patient.ssn)).all() == ["canary"]
    engine.dispose()


async def test_an_async_engine_is_attached_by_its_synchronous_one(sqlite_url: str, static: Asherah) -> None:
    engine = create_async_engine(async_url(sqlite_url))
    static.attach(engine)
    static.attach(engine.sync_engine)
    static.detach(engine)
    assert not list(engine.sync_engine.dispatch.before_execute)
