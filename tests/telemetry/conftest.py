# SPDX-License-Identifier: Apache-2.0
"""Engines that end with the test, and the stage that runs on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Engine, create_engine

from tests.telemetry.stage import Stage

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def stage(sqlite_url: str) -> Iterator[Stage]:
    """A stage on SQLite."""
    engines: list[Engine] = []

    def new_engine() -> Engine:
        engines.append(create_engine(sqlite_url))
        return engines[-1]

    yield Stage(new_engine(), new_engine)
    for engine in engines:
        engine.dispose()
