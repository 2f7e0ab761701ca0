# SPDX-License-Identifier: Apache-2.0
"""Richer classes on the tables of `tests.orm.models`: a second registry, so that filling them stays the same."""

from __future__ import annotations

from typing import Any

from sqlalchemy.ext.associationproxy import AssociationProxy, association_proxy
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import (
    DeclarativeBase,
    DynamicMapped,
    Mapped,
    WriteOnlyMapped,
    column_property,
    deferred,
    query_expression,
    relationship,
    synonym,
)

from tests.orm import models


class Base(DeclarativeBase):
    pass


class Clinic(Base):
    __table__ = models.table_of(models.Clinic)

    patients: Mapped[list[Patient]] = relationship(order_by="Patient.id", viewonly=True)
    dynamic: DynamicMapped[Patient] = relationship(lazy="dynamic", order_by="Patient.id", viewonly=True)
    write_only: WriteOnlyMapped[Patient] = relationship(lazy="write_only", order_by="Patient.id", viewonly=True)
    numbers: AssociationProxy[list[str | None]] = association_proxy("patients", "ssn")


class Patient(Base):
    __table__ = models.table_of(models.Patient)

    id: Mapped[int] = column_property(__table__.c.id)
    ssn: Mapped[str | None] = column_property(__table__.c.ssn)
    again: Mapped[str | None] = column_property(__table__.c.ssn.label("again"))
    notes: Mapped[str | None] = deferred(__table__.c.notes, group="long")
    other: Mapped[str | None] = synonym("ssn")
    chosen: Mapped[str | None] = query_expression()

    @hybrid_property
    def masked(self) -> str:
        """Show the last character; in SQL, the column as it is."""
        return f"***{(self.ssn or '-')[-1]}"

    @masked.inplace.expression
    @classmethod
    def _masked_expression(cls) -> Any:
        return cls.ssn
