# SPDX-License-Identifier: Apache-2.0
"""A life of keys in which every event happens, and a class of patients."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from sqlalchemy import Engine, String, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sa_asherah import Asherah, Encrypted, KeyRecordError, StaticKeyWarning
from sa_asherah.kms import StaticKMS, Succession
from sa_asherah.shred import OwnerShred

DAY = 86_400
_ZERO = timedelta(0)
OLD_MASTER_KEY, NEW_MASTER_KEY = bytes(range(32)), bytes(range(32, 64))

Told = list[tuple[str, dict[str, Any]]]


class Base(DeclarativeBase):
    """The tables of these tests."""


class Patient(Base):
    """Two encrypted columns, a record in the other format, and a number that is not encrypted."""

    __tablename__ = "patients"
    id: Mapped[int] = mapped_column(primary_key=True)
    clinic_id: Mapped[int]
    ssn: Mapped[str | None] = mapped_column(Encrypted(String(), owner="clinic_id"))
    note: Mapped[str | None] = mapped_column(Encrypted(String(), owner="clinic_id", storage="text"))
    card: Mapped[str | None] = mapped_column(Encrypted(String(), owner="clinic_id", format="asherah", storage="text"))


class Visit(Base):
    """A column that still takes what was written before it was encrypted."""

    __tablename__ = "visits"
    id: Mapped[int] = mapped_column(primary_key=True)
    clinic_id: Mapped[int]
    reason: Mapped[str] = mapped_column(
        Encrypted(String(), owner="clinic_id", partition="visits-{}", storage="text", reads=("plaintext@2029-12-31",))
    )


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def static(key: bytes = OLD_MASTER_KEY) -> StaticKMS:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StaticKeyWarning)  # it comes once per process: here, or somewhere earlier
        return StaticKMS(key, {})


class Stage:
    """Processes of one clinic on one database; each writes down what it is told.

    Attributes:
        told: Names and attributes of all events.
        watch: Called with each new process.
    """

    def __init__(self, engine: Engine, new_engine: Callable[[], Engine]) -> None:
        self.engine = engine
        self.clock = Clock()
        self.told: Told = []
        self.watch: Callable[[Asherah], object] = lambda _asherah: None
        self._new_engine = new_engine

    def hear(self, name: str, attributes: Mapping[str, object]) -> None:
        self.told.append((name, dict(attributes)))

    def process(self, kms: Any = None, check_interval: timedelta = _ZERO) -> tuple[Asherah, Engine]:
        """Start another process, so to speak: with an engine and caches of its own."""
        kms = kms or Succession(static(), static(NEW_MASTER_KEY))
        asherah = Asherah("records", "clinic", kms, clock=self.clock, check_interval=check_interval)
        asherah.events.listen(self.hear, decrypts=True)
        self.watch(asherah)
        engine = self._new_engine()
        asherah.attach(engine)
        return asherah, engine

    def edit(self, key_id: str, **members: Any) -> None:
        """Change the newest record of a key, as somebody with access to the database."""
        with self.engine.begin() as connection:
            created, record = connection.execute(
                text("SELECT created, key_record FROM encryption_key WHERE id = :id ORDER BY created DESC"),
                {"id": key_id},
            ).first() or ("", "{}")
            connection.execute(
                text("UPDATE encryption_key SET key_record = :record WHERE id = :id AND created = :created"),
                {"id": key_id, "created": created, "record": json.dumps(json.loads(record) | members)},
            )

    def play(self, canary: str) -> None:
        """Let every event happen, with a value that must show nowhere."""
        first, engine = self.process()
        first.create_metastore(engine)
        Base.metadata.create_all(engine)
        self._write(engine, 1, canary)  # created
        _, other = self.process()
        assert self._read(other, 1) == canary  # loaded, decrypted
        self.clock.now += 100 * DAY
        self._write(engine, 2, canary)  # rotated
        self.edit("_IK_7_records_clinic", Revoked=True)
        self._write(engine, 3, canary)  # revoked, rotated
        with first.system_keys(engine) as system_keys:
            assert system_keys.rotate(force=True).made
        self.clock.now += 1
        self._write(engine, 4, canary)  # appeared
        self._move()  # rewrapped
        self._read_through(engine)  # read in an older form
        OwnerShred(engine, first, "9").begin()  # erased
        with first.session("8") as session:
            assert session.decrypt(session.encrypt(canary.encode())) == canary.encode()
        self.edit("_IK_7_records_clinic", Bind="A" * 43 + "=")
        _, last = self.process()
        try:
            self._write(last, 5, canary)  # refused
        except KeyRecordError:
            return
        raise AssertionError("an altered record was taken")

    @staticmethod
    def _read_through(engine: Engine) -> None:
        with Session(engine) as session:
            session.execute(text("INSERT INTO visits (id, clinic_id, reason) VALUES (1, 7, 'a check')"))
            assert session.scalars(select(Visit.reason)).one() == "a check"

    def _move(self) -> None:
        asherah, engine = self.process(Succession(static(NEW_MASTER_KEY), static()))
        with asherah.system_keys(engine) as system_keys:
            assert system_keys.migrate(static()).is_complete

    @staticmethod
    def _write(engine: Engine, number: int, value: str) -> None:
        with Session(engine) as session:
            session.add(Patient(id=number, clinic_id=7, ssn=value, note=value, card=value))
            session.commit()

    @staticmethod
    def _read(engine: Engine, number: int) -> str | None:
        with Session(engine) as session:
            return session.scalars(select(Patient.ssn).where(Patient.id == number)).one()
