# SPDX-License-Identifier: Apache-2.0
"""An application that the kit tests: every form of storage, and what an attacker or a mistake does to it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, Engine, ForeignKey, Integer, MetaData, String, Table, Text, create_engine, insert, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sa_asherah import Asherah, Encrypted
from sa_asherah.testing import AttachEngines, static_asherah

if TYPE_CHECKING:
    from collections.abc import Generator

SECRET = "078-05-1120"


class Base(DeclarativeBase):
    pass


class Clinic(Base):
    __tablename__ = "clinics"
    id: Mapped[int] = mapped_column(primary_key=True)


class Patient(Base):
    __tablename__ = "patients"
    id: Mapped[int] = mapped_column(primary_key=True)
    clinic_id: Mapped[int | None] = mapped_column(ForeignKey("clinics.id"))
    name: Mapped[str | None] = mapped_column(String(200))
    ssn: Mapped[str | None] = mapped_column(Encrypted(String(), owner="clinic_id"))
    notes: Mapped[str | None] = mapped_column(Encrypted(Text(), owner="clinic_id", pad=64))


class Visit(Base):
    """Row-bound, and stored as text under a name that needs quoting."""

    __tablename__ = "Visits made"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    clinic_id: Mapped[int] = mapped_column(ForeignKey("clinics.id"))
    finding: Mapped[str | None] = mapped_column("the finding", Encrypted(String(), owner="clinic_id", bind_row="id"))
    remark: Mapped[str | None] = mapped_column(Encrypted(String(), owner="clinic_id", storage="text"))


imports = Table(
    "imports",
    MetaData(),  # its values may be taken for those of Patient.ssn, which one MetaData would refuse
    Column("id", Integer, primary_key=True),
    Column("clinic_id", Integer),
    Column("ssn", Encrypted(String(), owner="clinic_id", label="patients.ssn")),
)


@contextmanager
def application(url: str, **options: Any) -> Generator[Engine]:
    """An attached engine, and two clinics with two patients and two visits each."""
    engine = create_engine(url, **options)
    with static_asherah() as asherah:
        AttachEngines(asherah)(engine)
        Base.metadata.create_all(engine)
        imports.create(engine)
        with Session(engine) as session:
            session.add_all([Clinic(id=1), Clinic(id=2)])
            session.flush()
            for number in (1, 2, 11, 12):
                place = {"id": number, "clinic_id": number % 10}
                session.add(Patient(**place, ssn=f"{SECRET} {number}", notes=f"{SECRET} note {number}"))
                session.add(Visit(**place, finding=f"{SECRET} finding {number}", remark=f"{SECRET} remark {number}"))
            session.execute(insert(imports), [{"id": 1, "clinic_id": 1, "ssn": f"{SECRET} import"}])
            session.commit()
        try:
            yield engine
        finally:
            engine.dispose()


def run(engine: Engine, statement: str, **values: Any) -> None:
    """Do something past the column types."""
    with engine.begin() as connection:
        connection.execute(text(statement), values)


def content(engine: Engine) -> list[Any]:
    """Everything that is stored in the application's tables."""
    with engine.connect() as connection:
        names = [engine.dialect.identifier_preparer.quote(table.name) for table in Base.metadata.sorted_tables]
        return [connection.execute(text(f"SELECT * FROM {name} ORDER BY id")).all() for name in names]  # noqa: S608


def attached(engine: Engine) -> Asherah:
    """The `Asherah` that is attached."""
    dialect: Any = engine.dialect
    found: Asherah = dialect._sa_asherah.owner
    return found
