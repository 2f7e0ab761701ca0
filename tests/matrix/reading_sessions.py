# SPDX-License-Identifier: Apache-2.0
"""Where statements run: caches, schemas, engines, shards, isolation levels, two phases."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine, MetaData, insert, lambda_stmt, select, text
from sqlalchemy.ext.horizontal_shard import ShardedSession
from sqlalchemy.orm import Session, sessionmaker

from sa_asherah.errors import DecryptionError
from tests.matrix.places import again, elsewhere, other_schema
from tests.matrix.reading import SSNS, first, patients
from tests.matrix.registration import assert_refuses_moved, case, reading
from tests.orm.app import App
from tests.orm.models import Base, Clinic, Letter, Patient, letters

IN_ORDER = select(Patient.ssn).order_by(Patient.id)


def _writes_and_reads(session: Session) -> None:
    """Read what is there; write a row of an owner that has no key yet, read it and delete it again."""
    assert session.scalars(IN_ORDER).all() == SSNS
    session.add(Patient(id=9, clinic_id=3, ssn="canary 9"))
    session.commit()
    assert session.get_one(Patient, 9).ssn == "canary 9"
    session.delete(session.get_one(Patient, 9))
    session.commit()


def _works_on(engine: Engine) -> None:
    with Session(engine) as session:
        _writes_and_reads(session)


@reading("lambda_stmt")
def lambdas(app: App) -> None:
    def numbered(number: int) -> Any:
        return lambda_stmt(lambda: select(Patient.ssn).where(Patient.id == number))

    assert [first(app, numbered(number)) for number in (1, 2, 3)] == [[ssn] for ssn in SSNS]
    query = lambda_stmt(lambda: select(Patient))
    query += lambda statement: statement.order_by(Patient.id)
    assert [each.ssn for each in first(app, query)] == SSNS


@case("schema_translate_map")
def translated_schemas(app: App) -> None:
    with other_schema(app) as schema:
        other = MetaData()
        for table in (Base.metadata.tables["clinics"], Base.metadata.tables["patients"]):
            table.to_metadata(other, schema=schema)
        other.create_all(app.engine)
        clone = app.engine.execution_options(schema_translate_map={None: schema})
        with Session(clone) as session:
            session.add_all(Clinic(id=n, patients=[Patient(id=n, ssn=f"canary {n}")]) for n in (1, 2))
            session.commit()
            session.get_one(Patient, 1).ssn = "canary new"
            session.commit()
        assert first(app, IN_ORDER) == []

        def read(_: App) -> None:
            with Session(clone) as session:
                assert session.scalars(IN_ORDER).all() == ["canary new", "canary 2"]

        app.cold()
        read(app)
        assert_refuses_moved(app, other.sorted_tables, read)


@reading("sessions bound to several engines")
def bound_to_several_engines(app: App) -> None:
    with elsewhere(app) as engine:
        binds: dict[Any, Any] = {Clinic: app.engine, Patient: app.engine, Letter: engine}
        with Session(binds=binds) as session:
            session.add(Letter(id=9, clinic_id=1, body="canary 9"))
            session.commit()
            assert session.scalars(IN_ORDER).all() == SSNS
            assert session.scalars(select(Letter.body)).all() == ["canary 9"]
        _refuses_copied(app, engine)


def _refuses_copied(app: App, engine: Engine) -> None:
    """A cell copied to another database is refused there, beside the same owner."""
    with app.engine.connect() as connection:
        cell = connection.execute(text("SELECT body_text FROM letters WHERE id = 1")).scalar_one()
    with engine.begin() as connection:
        connection.execute(text("UPDATE letters SET body_text = :cell"), {"cell": cell})
    with engine.connect() as connection, pytest.raises(DecryptionError):
        connection.execute(select(letters.c.body)).all()


@reading("horizontal sharding")
def shards(app: App) -> None:
    with elsewhere(app) as engine:
        make = sessionmaker(
            class_=ShardedSession,
            shards={"here": app.engine, "there": engine},
            shard_chooser=lambda _mapper, row, _clause=None: "there" if row.clinic_id == 3 else "here",
            identity_chooser=lambda *_arguments, **_options: ["here", "there"],
            execute_chooser=lambda _context: ["here", "there"],
        )
        with engine.begin() as connection:
            connection.execute(insert(Clinic), {"id": 3})
        with make() as session:
            session.add(Patient(id=9, clinic_id=3, ssn="canary 9"))
            session.commit()
            assert set(session.scalars(IN_ORDER)) == {*SSNS, "canary 9"}
            assert session.get_one(Patient, 9).ssn == "canary 9"
            session.get_one(Patient, 9).notes = "canary note 9"
            session.commit()
        assert first(app, IN_ORDER) == SSNS


@reading("an engine for reading only, attach(engine, metastore=...)")
def engines_for_reading(app: App) -> None:
    with again(app) as engine:
        app.asherah.attach(engine, metastore=app.engine)
        with Session(engine) as session:
            assert session.scalars(IN_ORDER).all() == SSNS
        app.asherah.detach(engine)


@reading("Engine.execution_options(...), an option clone")
def option_clones(app: App) -> None:
    _works_on(app.engine.execution_options(logging_token="clone"))
    _works_on(app.engine.execution_options(compiled_cache=None))


@reading("AUTOCOMMIT")
def autocommit(app: App) -> None:
    _works_on(app.engine.execution_options(isolation_level="AUTOCOMMIT"))


@reading("every isolation level")
def isolation_levels(app: App) -> None:
    with app.engine.connect() as connection:
        levels = set(app.engine.dialect.get_isolation_level_values(connection.connection.dbapi_connection))  # type: ignore[arg-type]
    for level in levels - ({"READ UNCOMMITTED"} if app.dialect == "sqlite" else set()):
        _works_on(app.engine.execution_options(isolation_level=level))


@reading("writing under READ UNCOMMITTED on SQLite", not_on={"postgresql", "mariadb"}, opens=False)
def writing_what_others_have_not_committed(app: App) -> None:
    _works_on(app.engine.execution_options(isolation_level="READ UNCOMMITTED"))


@reading("two-phase commit", not_on={"sqlite"})
def two_phases(app: App) -> None:
    with app.session(twophase=True) as session:
        _writes_and_reads(session)


@reading("an engine without an Asherah")
def unattached(app: App) -> None:
    with again(app) as engine, Session(engine) as session:
        assert session.scalars(select(patients.c.name).order_by(patients.c.id)).all() == ["a", "b", "c"]
        session.scalars(IN_ORDER).all()
