# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the testing kit's tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.testing_kit.application import application

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """The application on each database in turn."""
    with application(database_url) as engine:
        yield engine


@pytest.fixture
def sqlite_engine(sqlite_url: str) -> Iterator[Engine]:
    """The application on SQLite, where the database does not matter."""
    with application(sqlite_url) as engine:
        yield engine
