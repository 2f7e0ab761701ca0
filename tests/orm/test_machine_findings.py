# SPDX-License-Identifier: Apache-2.0
"""What the state machine of `tests/machine` found, as plain tests."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import bindparam, event, select, update

from sa_asherah import OwnerChangedError
from tests.orm.app import App
from tests.orm.models import Patient, table_of
from tests.orm.patients import fill, read

ROWS: list[dict[str, Any]] = [
    {"id": 1, "name": "renamed 1", "ssn": "canary new"},
    {"id": 2, "name": "renamed 2", "ssn": "canary new"},
    {"id": 3, "name": "renamed 3", "ssn": None},
]


def write_all(app: App, how: str) -> None:
    """Update three rows at once, the last of which belongs to nobody."""
    if how == "core":
        statement = update(table_of(Patient)).where(table_of(Patient).c.id == bindparam("number"))
        app.execute(statement, [{**row, "number": row["id"]} | {"id": row["id"]} for row in ROWS])
        return
    with app.session() as session:
        session.execute(update(Patient), ROWS)
        session.commit()


@pytest.mark.parametrize("how", ["core", "orm"])
def test_a_row_of_nobody_among_others_is_written_too(app: App, how: str) -> None:
    fill(app)
    app.add(Patient(id=3, name="nobody's"))
    write_all(app, how)
    assert app.rows(select(Patient.name).order_by(Patient.id)) == [("renamed 1",), ("renamed 2",), ("renamed 3",)]
    assert read(app) == [(1, "canary new", "canary note 1"), (1, "canary new", None), (None, None, None)]


def test_a_row_of_nobody_does_not_hide_a_row_that_was_moved(app: App) -> None:
    fill(app)
    app.add(Patient(id=3, name="nobody's"))

    moved: list[str] = []

    def move(_connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("UPDATE") and not moved:
            moved.append(statement)
            cursor.execute("UPDATE patients SET clinic_id = 2, ssn = NULL, notes = NULL WHERE id = 2")

    event.listen(app.engine, "before_cursor_execute", move)
    try:
        with pytest.raises(OwnerChangedError):
            write_all(app, "orm")
    finally:
        event.remove(app.engine, "before_cursor_execute", move)
    assert moved
    assert read(app)[0] == (1, "canary 1", "canary note 1")
