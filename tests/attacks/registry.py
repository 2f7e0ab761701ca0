# SPDX-License-Identifier: Apache-2.0
"""A registry of patients, a database that outlives every engine, and what a refusal must look like."""

from __future__ import annotations

import traceback
import warnings
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Connection, Engine, ForeignKey, Integer, LargeBinary, NullPool, String, Text, create_engine, text
from sqlalchemy.exc import PendingRollbackError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from sa_asherah import Asherah, Encrypted
from sa_asherah.errors import AsherahError
from sa_asherah.kms.static import StaticKMS

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from sqlalchemy import MetaData

NOW = 1_800_000_000
CANARY = "canary-plaintext-4711"
"""Stands in every value that must not get out."""


class Base(DeclarativeBase):
    pass


class Clinic(Base):
    __tablename__ = "clinics"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(String(40))
    patients: Mapped[list[Patient]] = relationship(back_populates="clinic", order_by="Patient.id")


class Patient(Base):
    __tablename__ = "patients"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    clinic_id: Mapped[int | None] = mapped_column(ForeignKey("clinics.id"))
    name: Mapped[str | None] = mapped_column(String(40))
    ssn: Mapped[str | None] = mapped_column(Encrypted(String(), owner="clinic_id"))
    notes: Mapped[str | None] = mapped_column(Encrypted(Text(), owner="clinic_id"))
    clinic: Mapped[Clinic | None] = relationship(back_populates="patients")


class Visit(Base):
    """Shares the owner and the name of a column with another table."""

    __tablename__ = "visits"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    clinic_id: Mapped[int] = mapped_column(ForeignKey("clinics.id"))
    patient_id: Mapped[int] = mapped_column(ForeignKey("patients.id"))
    notes: Mapped[str | None] = mapped_column(Encrypted(String(), owner="clinic_id"))
    scan: Mapped[bytes | None] = mapped_column(Encrypted(LargeBinary(), owner="clinic_id"))
    age: Mapped[int | None] = mapped_column(Encrypted(Integer(), owner="clinic_id"))


def asherah_of(product: str = "clinic", **options: Any) -> Asherah:
    """Make an `Asherah` with empty caches, as a process that just started has it."""
    options.setdefault("clock", lambda: NOW)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kms = StaticKMS(bytes(range(32)), {})
    return Asherah("records", product, kms, **options)


class Place:
    """A database; nothing but what it holds is known after `restart`."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.raw = create_engine(url, poolclass=NullPool)
        self._ends: list[Callable[[], object]] = []

    @property
    def name(self) -> str:
        """Kind of the database."""
        return self.raw.dialect.name

    def restart(self, product: str = "clinic", engine_options: dict[str, Any] | None = None, **options: Any) -> Engine:
        """Make a new engine with a new `Asherah`, as a new process does."""
        engine = create_engine(self.url, **(engine_options or {}))
        asherah = asherah_of(product, **options)
        asherah.attach(engine)
        asherah.create_metastore(engine)
        self._ends += [engine.dispose, asherah.close]
        return engine

    def create(self, metadata: MetaData) -> Engine:
        """Create tables; return a new engine."""
        metadata.create_all(self.raw)
        return self.restart()

    def sql(self, statement: str, **parameters: Any) -> list[Any]:
        """Run SQL past everything, as somebody who can write to the database."""
        with self.raw.begin() as connection:
            result = connection.execute(text(statement), parameters)
            return list(result) if result.returns_rows else []

    def content(self) -> dict[str, list[tuple[Any, ...]]]:
        """Read all tables as they are, the key table left out."""
        content: dict[str, list[tuple[Any, ...]]] = {}
        names = {
            "sqlite": "SELECT name FROM sqlite_master WHERE type = 'table'",
            "postgresql": "SELECT tablename FROM pg_tables WHERE schemaname = 'public'",
            "mysql": "SHOW TABLES",
        }[self.name if self.name in {"sqlite", "postgresql"} else "mysql"]
        with self.raw.connect() as connection:
            for (name,) in connection.exec_driver_sql(names):
                if name != "encryption_key":
                    rows = connection.exec_driver_sql(f"SELECT * FROM {name}")  # noqa: S608 -- a name of our own
                    content[name] = sorted((tuple(row) for row in rows), key=repr)
        return content

    def close(self) -> None:
        """Close what was opened."""
        for end in reversed(self._ends):
            end()
        self.raw.dispose()


@contextmanager
def place_of(url: str) -> Generator[Place]:
    """Use a database and close everything in the end."""
    place = Place(url)
    try:
        yield place
    finally:
        place.close()


def fill(engine: Engine) -> None:
    """Write two clinics with equal tables; each value is unlike all others."""
    with Session(engine) as session:
        for owner in (1, 2):
            session.add(Clinic(id=owner, name=f"clinic {owner}"))
            for number in (owner, owner + 10):
                session.add(Patient(id=number, clinic_id=owner, ssn=secret("ssn", number), notes=secret("n", number)))
            session.flush()
            for number in (owner, owner + 10):
                visit = Visit(id=number, clinic_id=owner, patient_id=number, notes=secret("v", number), age=number)
                session.add(visit)
                visit.scan = secret("scan", number).encode()
        session.commit()


def secret(column: str, number: int) -> str:
    """Return the value that `fill` writes."""
    return f"{CANARY} {column} {number}"


@contextmanager
def refused(
    kind: type[AsherahError],
    place: Place,
    user: Session | Connection,
    log: pytest.LogCaptureFixture,
) -> Generator[pytest.ExceptionInfo[AsherahError]]:
    """Run a write that must be refused, commit, and find the database as it was and no canary outside."""
    before = place.content()
    with pytest.raises(AsherahError) as caught:
        yield caught
    assert type(caught.value) is kind, f"{type(caught.value).__name__}: {caught.value}"
    assert_silent(caught.value, log)
    with suppress(PendingRollbackError):
        user.commit()
    user.rollback()
    assert place.content() == before


def assert_refused(kind: type[AsherahError], call: Callable[[], object], log: pytest.LogCaptureFixture) -> AsherahError:
    """Run a read; it must raise exactly this error and show nothing of the value."""
    log.clear()
    seen: list[object] = []
    with pytest.raises(AsherahError) as caught:
        seen.append(call())
    assert not seen
    assert type(caught.value) is kind, f"{type(caught.value).__name__}: {caught.value}"
    assert_silent(caught.value, log)
    return caught.value


def assert_silent(error: BaseException, log: pytest.LogCaptureFixture) -> None:
    """Find no plaintext in an error, in what caused it, or in the log."""
    waiting, seen = [error], [error]
    while waiting:
        link = waiting.pop()
        shown = f"{link}{link!r}{link.args!r}{vars(link)!r}{getattr(link, '__notes__', '')!r}"
        assert CANARY not in shown, f"{type(link).__name__} shows the value"
        linked = [each for each in (link.__cause__, link.__context__) if each is not None and each not in seen]
        waiting += linked
        seen += linked
    assert CANARY not in "".join(traceback.format_exception_only(error))
    assert CANARY not in log.text


def assert_nowhere(engine: Engine) -> None:
    """Find no plaintext among the statements that the engine remembers."""
    cache: Any = engine._compiled_cache
    for key, compiled in cache.items():
        bound = [parameter.value for parameter in compiled.binds.values()]
        cached = [parameter.value for parameter in getattr(key, "bindparams", ())]
        kept = [parameter.value for parameter in getattr(compiled.cache_key, "bindparams", ())]
        assert CANARY not in repr((bound, cached, kept, compiled.string))
