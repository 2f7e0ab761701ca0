# SPDX-License-Identifier: Apache-2.0
"""Inheritance: one table, joined tables, a table for each class."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ForeignKey, String, select
from sqlalchemy.ext.declarative import ConcreteBase
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sa_asherah import Encrypted
from tests.matrix.mapping import SSN, round_trip
from tests.matrix.registration import case
from tests.orm.app import App


class Single(DeclarativeBase):
    pass


class Animal(Single):
    __tablename__ = "m_animals"
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}  # noqa: RUF012 # SQLAlchemy's way

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(10))
    clinic_id: Mapped[int]
    chip: Mapped[str | None] = mapped_column(SSN)


class Dog(Animal):
    __mapper_args__ = {"polymorphic_identity": "dog"}  # noqa: RUF012 # SQLAlchemy's way

    bark: Mapped[str | None] = mapped_column(SSN, use_existing_column=True)


class Hound(Dog):
    __mapper_args__ = {"polymorphic_identity": "hound"}  # noqa: RUF012 # SQLAlchemy's way


@case("single-table inheritance")
def single_table(app: App) -> None:
    round_trip(app, Single.metadata, lambda owner, chip: Animal(clinic_id=owner, chip=chip), Animal.chip)
    round_trip(app, Single.metadata, lambda owner, chip: Hound(clinic_id=owner, chip=chip, bark="canary"), Dog.chip)
    round_trip(app, Single.metadata, lambda owner, bark: Hound(clinic_id=owner, bark=bark), Dog.bark)


class Tables(DeclarativeBase):
    pass


class Owner(Tables):
    __tablename__ = "m_owners"

    id: Mapped[int] = mapped_column(primary_key=True)


class Person(Tables):
    __tablename__ = "m_persons"
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}  # noqa: RUF012 # SQLAlchemy's way

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(10))
    clinic_id: Mapped[int]
    alias: Mapped[str | None] = mapped_column(SSN)


class Doctor(Person):
    """The row of the lower table has an owner column of its own."""

    __tablename__ = "m_doctors"
    __mapper_args__ = {"polymorphic_identity": "doctor"}  # noqa: RUF012 # SQLAlchemy's way

    id: Mapped[int] = mapped_column(ForeignKey("m_persons.id"), primary_key=True)
    ward: Mapped[str] = mapped_column(String(40))
    licence: Mapped[str | None] = mapped_column(Encrypted(String(), owner="ward", partition="ward-{}"))


class Surgeon(Doctor):
    """The row of the lowest table is its own owner, by its key."""

    __tablename__ = "m_surgeons"
    __mapper_args__ = {"polymorphic_identity": "surgeon"}  # noqa: RUF012 # SQLAlchemy's way

    id: Mapped[int] = mapped_column(ForeignKey("m_doctors.id"), primary_key=True)
    knife: Mapped[str | None] = mapped_column(Encrypted(String(), owner="id", partition="surgeon-{}"))


@case("joined inheritance")
def joined_tables(app: App) -> None:
    def doctor(owner: int, text: str) -> Doctor:
        return Doctor(clinic_id=owner, alias=text, ward=f"ward {owner}", licence=f"canary licence {owner}")

    round_trip(app, Tables.metadata, doctor, Person.alias)
    round_trip(app, Tables.metadata, doctor, Doctor.alias)
    round_trip(
        app, Tables.metadata, lambda owner, text: Doctor(clinic_id=1, ward=f"ward {owner}", licence=text),
        Doctor.licence,
    )  # fmt: skip
    round_trip(
        app, Tables.metadata, lambda owner, text: Surgeon(id=owner, clinic_id=1, ward="w", knife=text), Surgeon.knife
    )


class Concrete(DeclarativeBase):
    pass


class Employee(ConcreteBase, Concrete):
    __tablename__ = "m_employees"
    __mapper_args__ = {"polymorphic_identity": "employee", "concrete": True}  # noqa: RUF012 # SQLAlchemy's way

    id: Mapped[int] = mapped_column(primary_key=True)
    clinic_id: Mapped[int]
    ssn: Mapped[str | None] = mapped_column(Encrypted(String(), owner="clinic_id", partition="employee-{}"))


class Manager(Employee):
    __tablename__ = "m_managers"
    __mapper_args__ = {"polymorphic_identity": "manager", "concrete": True}  # noqa: RUF012 # SQLAlchemy's way

    id: Mapped[int] = mapped_column(primary_key=True)
    clinic_id: Mapped[int]
    ssn: Mapped[str | None] = mapped_column(Encrypted(String(), owner="clinic_id", partition="employee-{}"))


@case("concrete inheritance")
def concrete_tables(app: App) -> None:
    round_trip(app, Concrete.metadata, lambda owner, ssn: Manager(clinic_id=owner, ssn=ssn), Manager.ssn)


@case("concrete inheritance, loading by the base class")
def concrete_tables_by_their_base(app: App) -> None:
    Concrete.metadata.create_all(app.engine)
    try:
        app.add(Employee(clinic_id=1, ssn="canary 1"), Manager(clinic_id=2, ssn="canary 2"))
        with app.session() as session:
            found: Any = session.scalars(select(Employee)).all()
            assert {each.ssn for each in found} == {"canary 1", "canary 2"}
    finally:
        Concrete.metadata.drop_all(app.engine)
