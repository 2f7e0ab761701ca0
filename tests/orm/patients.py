# SPDX-License-Identifier: Apache-2.0
"""Two patients of one clinic, and how to read them again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select

from tests.orm.models import Patient

if TYPE_CHECKING:
    from tests.orm.app import App


def fill(app: App) -> None:
    """Add both patients."""
    app.add(
        Patient(id=1, clinic_id=1, name="a", ssn="canary 1", notes="canary note 1"),
        Patient(id=2, clinic_id=1, name="b", ssn="canary 2"),
    )


def read(app: App, *numbers: int) -> list[tuple[object, ...]]:
    """Read patients as a process that just started does."""
    app.cold()
    query = select(Patient.clinic_id, Patient.ssn, Patient.notes).order_by(Patient.id)
    return app.rows(query.where(Patient.id.in_(numbers)) if numbers else query)
