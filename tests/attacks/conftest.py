# SPDX-License-Identifier: Apache-2.0
"""Fixtures for the attacks."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from tests.attacks.registry import Base, Place, fill, place_of

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _loud(caplog: pytest.LogCaptureFixture) -> None:
    """Have SQLAlchemy and this package log all they can."""
    caplog.set_level(logging.DEBUG)


@pytest.fixture
def place(database_url: str) -> Iterator[Place]:
    """An empty database of each kind in turn."""
    with place_of(database_url) as place:
        yield place


@pytest.fixture
def filled(place: Place) -> Place:
    """Two clinics with patients and visits."""
    fill(place.create(Base.metadata))
    return place
