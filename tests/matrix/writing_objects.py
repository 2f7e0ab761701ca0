# SPDX-License-Identifier: Apache-2.0
"""What a flush does with changed, moved and deleted objects."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import ForeignKey, String, event, func, select, text, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, defer, load_only, mapped_column, relationship
from sqlalchemy.orm.exc import StaleDataError

from sa_asherah import Encrypted, OwnerChangedError
from tests.matrix.registration import case
from tests.matrix.writing_inserts import silent, skip_numbers, stored
from tests.orm.app import App
from tests.orm.models import Clinic, Doctor, Ledger, Patient
from tests.orm.patients import fill, read

BOTH = [(1, "canary 1", "canary note 1"), (1, "canary 2", None)]


@contextmanager
def flushed(app: App, *options: Any) -> Generator[tuple[Session, Patient]]:
    """Give a session with the first patient; commit what was done to it, and see that no plaintext was sent."""
    fill(app)
    with silent(app), app.session() as session:
        yield session, session.scalars(select(Patient).options(*options).where(Patient.id == 1)).one()
        session.commit()


@case("attributes of loaded objects")
def changed(app: App) -> None:
    with flushed(app) as (_, patient):
        patient.ssn = "canary changed"
    assert read(app) == [(1, "canary changed", "canary note 1"), BOTH[1]]


@case("attributes of expired, deferred and partly loaded objects")
def partly_loaded(app: App) -> None:
    for options in (
        [],
        [load_only(Patient.name)],
        [defer(Patient.clinic_id, raiseload=True), defer(Patient.notes, raiseload=True)],
    ):
        app.execute(Patient.__table__.delete())  # type: ignore[attr-defined]
        with flushed(app, *options) as (session, patient):
            if not options:
                session.expire(patient)
            patient.ssn = "canary changed"
        assert read(app, 1) == [(1, "canary changed", "canary note 1")]


@case("many objects in one flush")
def many(app: App) -> None:
    app.add(*(Patient(id=n, clinic_id=n % 3 + 1, ssn=f"canary {n}") for n in range(1, 30)))
    with silent(app), app.session() as session:
        for patient in session.scalars(select(Patient)):
            patient.ssn = f"canary new {patient.id}"
            patient.notes = f"canary note {patient.id}" if patient.id % 2 else None
        session.commit()
    assert read(app) == [(n % 3 + 1, f"canary new {n}", f"canary note {n}" if n % 2 else None) for n in range(1, 30)]


@case("a detached object, changed and added again or merged")
def detached(app: App) -> None:
    fill(app)
    for again in ("add", "merge"):
        with app.session() as session:
            patient = session.get_one(Patient, 1)
        patient.notes = f"canary {again}"
        with silent(app), app.session() as session:
            getattr(session, again)(patient)
            session.commit()
        assert read(app, 1) == [(1, "canary 1", f"canary {again}")]


@case("session.merge of an object with another owner")
def merged(app: App) -> None:
    fill(app)
    with silent(app), app.session() as session:
        session.merge(Patient(id=1, clinic_id=2, ssn="canary merged"))
        session.commit()
    assert read(app, 1) == [(2, "canary merged", "canary note 1")]


@case("an attribute set to None and back, or to the value it has")
def back(app: App) -> None:
    with flushed(app) as (session, patient):
        patient.ssn = None
        session.flush()
        assert session.scalar(select(Patient.ssn.is_(None)).where(Patient.id == 1))
        patient.ssn = "canary 1"
    before = app.stored("patients")
    with app.session() as session:
        patient = session.get_one(Patient, 1)
        assert patient.ssn == "canary 1"
        patient.ssn, patient.name = "canary 1", "renamed"
        session.commit()
    after = app.stored("patients")
    assert [row["ssn"] for row in after] == [row["ssn"] for row in before]
    assert read(app) == BOTH


@case("a SQL expression as an attribute of a loaded object")
def expression(app: App) -> None:
    with flushed(app) as (_, patient):
        patient.ssn = func.lower("canary")


@case("another owner set on a loaded, expired or partly loaded object")
def moved(app: App) -> None:
    for options in ([], [load_only(Patient.name)]):
        app.execute(Patient.__table__.delete())  # type: ignore[attr-defined]
        with flushed(app, *options) as (session, patient):
            before = app.stored("patients")
            patient.clinic_id = 2
            session.flush()
            session.expire(patient)
            patient.clinic_id = 3
            patient.notes = "canary changed"
        assert read(app) == [(3, "canary 1", "canary changed"), BOTH[1]]
        after = app.stored("patients")
        assert before[0]["ssn"] != after[0]["ssn"]
        assert before[1] == after[1]


@case("another owner through a relationship")
def moved_by_relationship(app: App) -> None:
    skip_numbers(app)
    with flushed(app) as (session, patient):
        second = session.get_one(Clinic, 2)
        patient.clinic = Clinic(name="numbered by the server in this flush")
        second.patients.append(session.get_one(Patient, 2))
        session.flush()
        made = patient.clinic_id
    assert read(app) == [(made, "canary 1", "canary note 1"), (2, "canary 2", None)]


@case("another owner where the owner is in the primary key, or each table of a class has its own")
def moved_in_key(app: App) -> None:
    app.add(Ledger(tenant_id=1, number=1, entry="canary 1"), Ledger(tenant_id=2, number=1, entry="canary 2"))
    app.add(Doctor(id=1, clinic_id=1, alias="canary a", ward="north", licence="canary l"))
    with silent(app), app.session() as session:
        one, two = session.scalars(select(Ledger).order_by(Ledger.tenant_id))
        one.entry, two.tenant_id = "canary changed", 3
        doctor = session.get_one(Doctor, 1)
        doctor.ward = "south"
        session.flush()
        doctor.clinic_id = 2
        session.commit()
    query = select(Ledger.tenant_id, Ledger.entry).order_by(Ledger.tenant_id)
    assert stored(app, query) == [(1, "canary changed"), (3, "canary 2")]
    assert stored(app, select(Doctor.alias, Doctor.licence)) == [("canary a", "canary l")]


@case("the owner of an object set to None while it holds encrypted values")
def owner_taken(app: App) -> None:
    fill(app)
    with app.session() as session:
        patient = session.get_one(Patient, 2)
        patient.clinic_id = patient.ssn = patient.notes = None
        session.commit()
    assert read(app) == [BOTH[0], (None, None, None)]
    with silent(app), app.session() as session:
        session.get_one(Patient, 1).clinic = None
        session.flush()


@case("the parent deleted that owns its children's rows, without a cascade")
def parent_deleted(app: App) -> None:
    fill(app)
    with silent(app), app.session() as session:
        session.delete(session.get_one(Clinic, 1))
        session.flush()


@case("an object whose row got another owner since it was read")
def owner_lost(app: App) -> None:
    fill(app)
    with app.session() as session:
        patient = session.get_one(Patient, 1)
        session.commit()
        assert patient.clinic_id == 1
        session.expunge(patient)
    with app.engine.begin() as connection:
        values = {"clinic_id": 2, "ssn": "canary moved", "notes": None}
        connection.execute(update(Patient.__table__).where(Patient.id == 1).values(values))  # type: ignore[arg-type]
    patient.ssn = "canary late"
    with app.session() as session:
        session.add(patient)
        with silent(app), pytest.raises(OwnerChangedError) as caught:
            session.flush()
    assert read(app, 1) == [(2, "canary moved", None)]
    raise caught.value


@case("session.delete")
def deleted(app: App) -> None:
    with flushed(app) as (session, patient):
        session.delete(patient)
    assert read(app) == BOTH[1:]


class Later(DeclarativeBase):
    """Tables that only the cases below have."""


class Owner(Later):
    __tablename__ = "owners"

    id: Mapped[int] = mapped_column(primary_key=True)
    favourite_id: Mapped[int | None] = mapped_column(ForeignKey("belongings.id", name="favourite", use_alter=True))
    label: Mapped[str | None] = mapped_column(Encrypted(String(), owner="id", partition="owner-{}"))
    favourite: Mapped[Belonging | None] = relationship(foreign_keys=favourite_id, post_update=True)
    belongings: Mapped[list[Belonging]] = relationship(
        foreign_keys="Belonging.owner_id", cascade="all, delete-orphan", passive_deletes=True, back_populates="owner"
    )


class Belonging(Later):
    """Versioned; its owner is known from a relationship, its defaults are fetched at once."""

    __tablename__ = "belongings"

    id: Mapped[int] = mapped_column(primary_key=True)
    owner_id: Mapped[int] = mapped_column(ForeignKey("owners.id", ondelete="CASCADE"))
    version: Mapped[int] = mapped_column()
    made: Mapped[str] = mapped_column(String(9), server_default="now")
    words: Mapped[str | None] = mapped_column(Encrypted(String(), owner="owner_id", partition="owner-{}"))
    owner: Mapped[Owner] = relationship(foreign_keys=owner_id, back_populates="belongings")

    __mapper_args__ = {"version_id_col": version, "eager_defaults": True, "confirm_deleted_rows": True}  # noqa: RUF012


@contextmanager
def later(app: App) -> Generator[Session]:
    """Give a session on the further tables."""
    if app.dialect == "sqlite":
        event.listen(app.engine, "connect", lambda raw, _: raw.execute("PRAGMA foreign_keys = ON"))
        app.engine.dispose()
    with app.engine.begin() as connection:
        Later.metadata.drop_all(connection)
        Later.metadata.create_all(connection)
    try:
        with silent(app), app.session() as session:
            session.add_all(Owner(id=n, label=f"canary {n}") for n in (1, 2))
            session.commit()
            yield session
    finally:
        with app.engine.begin() as connection:
            Later.metadata.drop_all(connection)


@case("version_id_col: the version in each UPDATE and DELETE")
def versions(app: App) -> None:
    with later(app) as session:
        thing = Belonging(id=1, owner_id=1, words="canary a")
        session.add(thing)
        session.flush()
        for number, (owner, words) in enumerate([(1, "canary b"), (2, "canary b"), (1, "canary c")], 2):
            thing.owner_id, thing.words = owner, words
            session.flush()
            assert thing.version == number
        session.commit()
        assert stored(app, select(Belonging.words)) == [("canary c",)]
        session.delete(thing)
        session.commit()


@case("eager_defaults: values that the server made, fetched with the row")
def eager_defaults(app: App) -> None:
    with later(app) as session:
        things = [Belonging(owner_id=n % 2 + 1, words=f"canary {n}") for n in range(4)]
        session.add_all(things)
        session.flush()
        assert [(thing.made, thing.words) for thing in things] == [("now", f"canary {n}") for n in range(4)]
        session.commit()
        assert sorted(stored(app, select(Belonging.words))) == [(f"canary {n}",) for n in range(4)]


@case("post_update: rows that point at each other")
def post_update(app: App) -> None:
    with later(app) as session:
        owner = session.get_one(Owner, 1)
        favourite = owner.favourite = Belonging(words="canary a", owner=owner)
        owner.label = "canary new"
        session.commit()
        assert owner.favourite_id == favourite.id
        assert stored(app, select(Owner.label, Belonging.words).join(Owner.favourite)) == [("canary new", "canary a")]
        owner.favourite = None
        session.commit()
        assert stored(app, select(Owner.label).where(Owner.id == 1)) == [("canary new",)]


@case("passive_deletes, confirm_deleted_rows and ON DELETE CASCADE")
def passive_deletes(app: App) -> None:
    with later(app) as session:
        session.add_all(Belonging(id=n, owner_id=n % 2 + 1, words=f"canary {n}") for n in range(1, 5))
        session.commit()
        session.delete(session.get_one(Owner, 1))
        session.commit()
        assert stored(app, select(Belonging.words).order_by(Belonging.id)) == [("canary 1",), ("canary 3",)]
        thing = session.get_one(Belonging, 1)
        session.execute(text("DELETE FROM belongings"))
        session.delete(thing)
        with pytest.raises(StaleDataError):
            session.flush()


@case("delete-orphan: an object taken out of its parent's collection, or moved to another's")
def orphans(app: App) -> None:
    with later(app) as session:
        one, two = session.scalars(select(Owner).order_by(Owner.id))
        one.belongings = [Belonging(id=n, words=f"canary {n}") for n in (1, 2, 3)]
        session.commit()
        one.belongings.pop(0)
        two.belongings.append(one.belongings[0])
        session.commit()
        found = stored(app, select(Belonging.owner_id, Belonging.words).order_by(Belonging.id))
        assert found == [(2, "canary 2"), (1, "canary 3")]
