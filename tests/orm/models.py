# SPDX-License-Identifier: Apache-2.0
"""The tables of the ORM suite: every kind of owner, of inheritance and of inner type."""

from __future__ import annotations

import enum
import itertools
import uuid
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Enum,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from sa_asherah import Encrypted

CANARY: Final = "canary"
"""Every plaintext text of the suite contains this, and nothing else does; no database may hold it."""

revisions = itertools.count(1)


class Base(DeclarativeBase):
    pass


class Clinic(Base):
    __tablename__ = "clinics"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(40), default="")
    patients: Mapped[list[Patient]] = relationship(back_populates="clinic", order_by="Patient.id")


class Patient(Base):
    __tablename__ = "patients"

    id: Mapped[int] = mapped_column(primary_key=True)
    clinic_id: Mapped[int | None] = mapped_column(ForeignKey("clinics.id"))
    name: Mapped[str | None] = mapped_column(String(40))
    ssn: Mapped[str | None] = mapped_column(Encrypted(String(), owner="clinic_id"))
    notes: Mapped[str | None] = mapped_column(Encrypted(Text(), owner="clinic_id"))
    clinic: Mapped[Clinic | None] = relationship(back_populates="patients")
    visits: Mapped[list[Visit]] = relationship(back_populates="patient", order_by="Visit.id")


class Visit(Base):
    """Attribute, `Column.key` and name differ for the owner, attribute and name for the encrypted column."""

    __tablename__ = "visits"

    id: Mapped[int] = mapped_column(primary_key=True)
    patient_id: Mapped[int | None] = mapped_column(ForeignKey("patients.id"))
    place_id: Mapped[int] = mapped_column("owning_clinic", Integer(), ForeignKey("clinics.id"), key="place")
    finding: Mapped[str | None] = mapped_column("finding_text", Encrypted(String(), owner="place"))
    patient: Mapped[Patient | None] = relationship(back_populates="visits")


class Person(Base):
    __tablename__ = "persons"
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}  # noqa: RUF012 # SQLAlchemy's way

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(10))
    clinic_id: Mapped[int] = mapped_column(ForeignKey("clinics.id"))
    alias: Mapped[str | None] = mapped_column(Encrypted(String(), owner="clinic_id"))


class Doctor(Person):
    """Joined inheritance; the two tables of a row have different owners."""

    __tablename__ = "doctors"
    __mapper_args__ = {"polymorphic_identity": "doctor"}  # noqa: RUF012 # SQLAlchemy's way

    id: Mapped[int] = mapped_column(ForeignKey("persons.id"), primary_key=True)
    ward: Mapped[str] = mapped_column(String(40))
    licence: Mapped[str | None] = mapped_column(Encrypted(String(), owner="ward", partition="ward-{}"))


class Animal(Base):
    __tablename__ = "animals"
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}  # noqa: RUF012 # SQLAlchemy's way

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(10))
    clinic_id: Mapped[int] = mapped_column(ForeignKey("clinics.id"))
    chip: Mapped[str | None] = mapped_column(Encrypted(String(), owner="clinic_id"))


class Dog(Animal):
    """Single-table inheritance; `bark` is in the table but not in the class above."""

    __mapper_args__ = {"polymorphic_identity": "dog"}  # noqa: RUF012 # SQLAlchemy's way

    bark: Mapped[str | None] = mapped_column(Encrypted(String(), owner="clinic_id"))


class Department(enum.Enum):
    RADIOLOGY = "x-rays"
    SURGERY = "knives"


class Device(Base):
    __tablename__ = "devices"

    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[uuid.UUID] = mapped_column(Uuid())
    code: Mapped[str | None] = mapped_column(Encrypted(String(), owner="tenant", partition="tenant-{}"))


class Account(Base):
    __tablename__ = "accounts"

    id: Mapped[int] = mapped_column(primary_key=True)
    login: Mapped[str] = mapped_column(String(40))
    hint: Mapped[str | None] = mapped_column(Encrypted(String(), owner="login", partition="account-{}"))


class Report(Base):
    __tablename__ = "reports"

    id: Mapped[int] = mapped_column(primary_key=True)
    department: Mapped[Department] = mapped_column(Enum(Department))
    body: Mapped[str | None] = mapped_column(Encrypted(Text(), owner="department", partition="department-{}"))


class User(Base):
    """Rows that own themselves."""

    __tablename__ = "users"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    name: Mapped[str | None] = mapped_column(String(40))
    mail: Mapped[str | None] = mapped_column(Encrypted(String(), owner="id", partition="user-{}"))


class Ledger(Base):
    """The owner is part of the primary key."""

    __tablename__ = "ledgers"

    tenant_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    entry: Mapped[str | None] = mapped_column(Encrypted(String(), owner="tenant_id", partition="ledger-{}"))


def author_of_row(context: Any) -> str:
    return f"team {context.get_current_parameters()['title']}"


def next_revision() -> str:
    return f"{CANARY} revision {next(revisions)}"


class Note(Base):
    """Owner and encrypted columns that Python fills."""

    __tablename__ = "memos"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(String(40))
    author: Mapped[str] = mapped_column(String(60), default=author_of_row)
    body: Mapped[str | None] = mapped_column(
        Encrypted(String(), owner="author", partition="author-{}"), default=f"{CANARY} draft"
    )
    revision: Mapped[str | None] = mapped_column(
        Encrypted(String(), owner="author", partition="author-{}"), default=next_revision, onupdate=next_revision
    )


class Sample(Base):
    """Every inner type."""

    __tablename__ = "samples"

    id: Mapped[int] = mapped_column(primary_key=True)
    clinic_id: Mapped[int] = mapped_column(ForeignKey("clinics.id"))
    text: Mapped[str | None] = mapped_column(Encrypted(Text(), owner="clinic_id"))
    blob: Mapped[bytes | None] = mapped_column(Encrypted(LargeBinary(), owner="clinic_id"))
    small: Mapped[int | None] = mapped_column(Encrypted(Integer(), owner="clinic_id"))
    huge: Mapped[int | None] = mapped_column(Encrypted(BigInteger(), owner="clinic_id"))
    flag: Mapped[bool | None] = mapped_column(Encrypted(Boolean(), owner="clinic_id"))


class Setting(Base):
    """No owner column: every use needs a `partition_scope`."""

    __tablename__ = "settings"

    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[str | None] = mapped_column(Encrypted(String()))


class Slot(Base):
    """For upserts: a unique key with the owner and one without."""

    __tablename__ = "slots"
    __table_args__ = (UniqueConstraint("clinic_id", "number", name="slots_of_clinic"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    clinic_id: Mapped[int] = mapped_column(ForeignKey("clinics.id"))
    number: Mapped[int | None]
    first: Mapped[str | None] = mapped_column(Encrypted(String(), owner="clinic_id"))
    second: Mapped[str | None] = mapped_column(Encrypted(String(), owner="clinic_id"))


class Passport(Base):
    """Values bound to their row, padded, and stored as text."""

    __tablename__ = "passports"

    id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True, default=uuid.uuid4)
    clinic_id: Mapped[int] = mapped_column(ForeignKey("clinics.id"))
    place: Mapped[str | None] = mapped_column(String(40), unique=True)
    number: Mapped[str | None] = mapped_column(Encrypted(String(), owner="clinic_id", bind_row="id"))
    names: Mapped[str | None] = mapped_column(Encrypted(String(), owner="clinic_id", pad=64))
    memo: Mapped[str | None] = mapped_column(Encrypted(String(), owner="clinic_id", storage="text"))
    scan: Mapped[bytes | None] = mapped_column(
        Encrypted(LargeBinary(), owner="clinic_id", storage="text", bind_row="id", pad=16)
    )


class Entry(Base):
    """Values bound to a row whose primary key has the owner in it."""

    __tablename__ = "entries"

    tenant: Mapped[str] = mapped_column(String(40), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    line: Mapped[str | None] = mapped_column(
        Encrypted(String(), owner="tenant", partition="entry-{}", bind_row="number")
    )


class Ticket(Base):
    """Values bound to a row without an owner column: a `partition_scope` names the owner."""

    __tablename__ = "tickets"

    code: Mapped[str] = mapped_column(String(40), primary_key=True)
    words: Mapped[str | None] = mapped_column(Encrypted(String(), bind_row="code"))


letters: Final = Table(
    "letters",
    Base.metadata,
    Column("id", Integer, primary_key=True),
    Column("clinic_id", ForeignKey("clinics.id"), nullable=True),
    Column("body_text", Encrypted(String(), owner="clinic_id"), key="body"),
    Column("seal", Encrypted(String(), owner="clinic_id")),
)

archive: Final = Table(
    "letter_archive",
    Base.metadata,
    Column("id", Integer, primary_key=True),
    Column("clinic_id", ForeignKey("clinics.id")),
    Column("body", Encrypted(String(), owner="clinic_id", label="archive.body")),
)

drafts: Final = Table(
    "drafts",
    MetaData(),  # its ciphertext has the label of letters.body_text, which one MetaData would refuse
    Column("id", Integer, primary_key=True),
    Column("clinic_id", Integer),
    Column("body", Encrypted(String(), owner="clinic_id", label="letters.body_text")),
)


class Letter(Base):
    __table__ = letters

    if TYPE_CHECKING:
        id: Mapped[int]
        clinic_id: Mapped[int | None]
        body: Mapped[str | None]
        seal: Mapped[str | None]


def table_of(model: type[Base]) -> Table:
    """Give a model's table, which SQLAlchemy types as any selectable."""
    table = model.__table__
    assert isinstance(table, Table)
    return table
