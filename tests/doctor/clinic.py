# SPDX-License-Identifier: Apache-2.0
"""A clinic whose database is healthy: many owners, every format and storage, keys old, revoked and of other regions."""

from __future__ import annotations

import enum
import json
import uuid
from datetime import date
from typing import Any

from sqlalchemy import JSON, Date, Engine, Enum, ForeignKey, Integer, LargeBinary, MetaData, String, Text, Uuid, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sa_asherah import Asherah, Encrypted, partition_scope
from sa_asherah.core.ports import KeyManagementService
from tests.doctor.surgery import Surgery

START = 1_700_000_000
DAY = 86_400
NOW = START + 400 * DAY
CLINICS = range(1, 6)
REVOKED = 2
"""The clinic whose first key was revoked."""
ABROAD = 5
"""The clinic that wrote in another region."""


class Base(DeclarativeBase):
    pass


class Clinic(Base):
    __tablename__ = "clinics"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


class Patient(Base):
    __tablename__ = "patients"
    id: Mapped[uuid.UUID] = mapped_column(Uuid(), primary_key=True, default=uuid.uuid4)
    clinic_id: Mapped[int | None] = mapped_column(ForeignKey("clinics.id"))
    ssn: Mapped[str | None] = mapped_column(Encrypted(String(), owner="clinic_id"))
    note: Mapped[str | None] = mapped_column(Encrypted(Text(), owner="clinic_id", storage="text", pad=32))
    photo: Mapped[bytes | None] = mapped_column(Encrypted(LargeBinary(), owner="clinic_id", bind_row="id"))


class Visit(Base):
    __tablename__ = "visits"
    clinic_id: Mapped[int] = mapped_column(ForeignKey("clinics.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    fee: Mapped[int | None] = mapped_column(Encrypted(Integer(), owner="clinic_id"))
    summary: Mapped[str | None] = mapped_column(Encrypted(String(), owner="clinic_id", format="asherah"))
    details: Mapped[Any] = mapped_column(Encrypted(JSON(), owner="clinic_id", format="asherah", storage="json"))


class Member(Base):
    __tablename__ = "members"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str | None] = mapped_column(String(300))
    email: Mapped[str | None] = mapped_column(
        Encrypted(String(), owner="name", partition="user-{}", storage="text", bind_row="id", pad=64)
    )


class Level(enum.Enum):
    BASIC = "basic"
    GOLD = "gold"


class Account(Base):
    """Owns itself in one column and belongs to all of its level in others; a window is open and not used."""

    __tablename__ = "accounts"
    id: Mapped[uuid.UUID] = mapped_column(Uuid(), primary_key=True, default=uuid.uuid4)
    level: Mapped[Level] = mapped_column(Enum(Level))
    iban: Mapped[str | None] = mapped_column(
        Encrypted(
            String(), owner="id", partition="account-{}", reads=("plaintext@2099-01-01",), storage="text", bind_row="id"
        )
    )
    perk: Mapped[str | None] = mapped_column(
        Encrypted(
            String(), owner="level", partition="level-{}", reads=("unpadded@2099-01-01", "asherah@2099-01-01"), pad=16
        )
    )
    due: Mapped[date | None] = mapped_column(Encrypted(Date(), owner="level", partition="level-{}", format="asherah"))


class Notice(Base):
    """Nobody's by its columns: a scope says whose it is."""

    __tablename__ = "notices"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    body: Mapped[str | None] = mapped_column(Encrypted(String()))


class Archive(Base):
    """Stays empty: what happens to its columns happens to no data."""

    __tablename__ = "archive"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    clinic_id: Mapped[int] = mapped_column(ForeignKey("clinics.id"))
    body: Mapped[str | None] = mapped_column(Encrypted(String(), owner="clinic_id"))
    remark: Mapped[str | None] = mapped_column(Encrypted(String(), owner="clinic_id", storage="text"))


def metadata() -> MetaData:
    """Return the declared tables, a copy that a test may change."""
    found = MetaData()
    for table in Base.metadata.sorted_tables:
        table.to_metadata(found)
    return found


def asherah(kms: KeyManagementService, now: float = NOW, **options: Any) -> Asherah:
    """Make an Asherah that lives at a moment."""
    options = {"read_suffixes": ("us-east",)} | options
    product = options.pop("product", "clinic")
    return Asherah("records", product, kms, clock=lambda: now, **options)


def build(engine: Engine, kms: KeyManagementService) -> None:
    """Make the tables, and live for more than a year."""
    Base.metadata.create_all(engine)
    asherah(kms).create_metastore(engine)
    with Session(engine) as session:
        session.add_all(Clinic(id=number) for number in CLINICS)
        session.commit()
    for year, age in enumerate((0, 100, 395)):  # each time the keys before are expired
        live(engine, asherah(kms, START + age * DAY), year)
        if not year:
            with engine.begin() as connection:
                surgery = Surgery(connection)
                surgery.change_key(surgery.key(f"_IK_{REVOKED}_records_clinic"), Revoked=True)
            live(engine, asherah(kms, START + DAY), 9, clinics=(REVOKED,))
    live(engine, asherah(kms, START, region_suffix="us-east", read_suffixes=("",)), 7, clinics=(ABROAD,))
    with engine.begin() as connection:
        add_strangers(connection.dialect.name, connection)


def live(engine: Engine, keys: Asherah, number: int, clinics: Any = CLINICS) -> None:
    """Write rows of every table for every clinic."""
    keys.attach(engine)
    with Session(engine) as session:
        for clinic in clinics:
            for place in range(2):
                token = f"token {clinic}-{number}-{place}"
                session.add(Patient(clinic_id=clinic, ssn=f"ssn {token}", note=f"note {token}", photo=token.encode()))
                session.add(
                    Visit(clinic_id=clinic, number=10 * number + place, fee=clinic, summary=token, details={"a": token})
                )
                session.add(Member(id=1000 * clinic + 10 * number + place, name=f"u{clinic}", email=token))
            session.add(
                Account(level=list(Level)[clinic % 2], iban=f"iban {clinic}", perk="a perk", due=date(2024, 2, 29))
            )
        session.add(Patient(clinic_id=clinics[0], ssn=None))
        session.commit()
        for clinic in clinics:
            with partition_scope(str(clinic)):
                session.add(Notice(id=100 * clinic + number, body=f"notice of {clinic}"))
                session.commit()
    keys.detach(engine)


def add_strangers(dialect: str, connection: Any) -> None:
    """Add rows of other services, and of nobody who is known."""
    record = json.dumps({"Created": START, "Key": "a2V5", "ParentKeyMeta": {"KeyId": "_SK_a_b", "Created": START}})
    longer = record.replace("_SK_a_b", "_SK_other_records_clinic")
    for key_id in ("_SK_billing_shop", "_IK_7_billing_shop", "settings", "_IK_9_other_records_clinic", "_XK_7_a_b"):
        value = "CAST(:record AS JSONB)" if dialect == "postgresql" else ":record"
        statement = f"INSERT INTO encryption_key VALUES (:id, '2023-11-14 22:13:20', {value})"  # noqa: S608
        connection.execute(text(statement), {"id": key_id, "record": longer if "other" in key_id else record})
