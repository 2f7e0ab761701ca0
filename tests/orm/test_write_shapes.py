# SPDX-License-Identifier: Apache-2.0
"""Each shape of INSERT and UPDATE writes what it says, readable by a new process, and leaves no plaintext behind."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from sqlalchemy import event, select

from tests.orm.app import App
from tests.orm.models import CANARY, letters
from tests.orm.shapes import AFTER, BEFORE, INSERTS, ROWS, UPDATES
from tests.orm.traces import assert_no_traces

SYNCHRONOUS = pytest.mark.parametrize("app", ["sync"], indirect=True)
"""The matrix runs the same shapes on all drivers; here it is about what is logged."""


@pytest.fixture(autouse=True)
def _loud(caplog: pytest.LogCaptureFixture) -> None:
    """Have every logger say all it can, as `echo="debug"` does; rows that are read are logged as they are read."""
    caplog.set_level(logging.DEBUG)
    for name in ("sqlalchemy", "sa_asherah"):
        caplog.set_level(logging.DEBUG, name)


def check(app: App, shape: str, expected: list[dict[str, Any]], caplog: pytest.LogCaptureFixture) -> None:
    """Run a shape and see that it wrote what is expected, and that plaintext is nowhere but in the results."""
    caplog.clear()
    sent: list[object] = []
    event.listen(app.engine, "before_cursor_execute", lambda *arguments: sent.append(arguments[2:4]))
    with app.engine.begin() as connection:
        (INSERTS if expected is ROWS else UPDATES)[shape](connection)
    assert CANARY not in repr(sent)
    assert CANARY not in "\n".join(line for line in caplog.text.splitlines() if " Row " not in line)
    assert_no_traces(app.engine)
    app.cold()
    assert app.rows(select(letters).order_by(letters.c.id)) == [tuple(row.values()) for row in expected]


@SYNCHRONOUS
@pytest.mark.parametrize("shape", INSERTS)
def test_insert(app: App, shape: str, caplog: pytest.LogCaptureFixture) -> None:
    check(app, shape, ROWS, caplog)


@SYNCHRONOUS
@pytest.mark.parametrize("shape", UPDATES)
def test_update(app: App, shape: str, caplog: pytest.LogCaptureFixture) -> None:
    app.execute(letters.insert(), BEFORE)
    app.cold()
    check(app, shape, AFTER, caplog)
