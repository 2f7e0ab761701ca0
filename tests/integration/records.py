# SPDX-License-Identifier: Apache-2.0
"""A database of notes, encrypted for their tenants, whose keys depend on a service under test."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine, String, create_engine, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sa_asherah import Asherah, Encrypted
from sa_asherah.core.ports import KeyManagementService

_numbers = itertools.count(1)


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(String(40))
    text: Mapped[str | None] = mapped_column(Encrypted(String(), owner="tenant"))


class Process:
    """What a process that just started sees of the database."""

    def __init__(
        self, url: str, kms: KeyManagementService, *, clock: Callable[[], float] = time.time, **options: Any
    ) -> None:
        self.kms = kms
        self.engine: Engine = create_engine(url)
        self.asherah = Asherah("records", "clinic", kms, clock=clock, **options)
        self.asherah.attach(self.engine)

    def create_tables(self) -> None:
        """Make the tables."""
        self.asherah.create_metastore(self.engine)
        Base.metadata.create_all(self.engine)

    def write(self, tenant: str = "") -> str:
        """Write a note for a tenant, a new one unless named; return its text."""
        number = next(_numbers)
        note = f"note {number}"
        with Session(self.engine) as session:
            session.add(Note(tenant=tenant or f"tenant-{number}", text=note))
            session.commit()
        return note

    def read(self, tenant: str = "") -> list[str | None]:
        """Read the notes of a tenant, else all notes."""
        query = select(Note.text).order_by(Note.id)
        with Session(self.engine) as session:
            return list(session.scalars(query.where(Note.tenant == tenant) if tenant else query))

    def count(self) -> int:
        """Count the notes, without reading them."""
        with Session(self.engine) as session:
            return session.scalar(select(func.count()).select_from(Note)) or 0

    def close(self) -> None:
        """End the process."""
        self.asherah.close()
        self.kms.close()
        self.engine.dispose()
