# SPDX-License-Identifier: Apache-2.0
"""Databases with notes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.reencrypt.scene import Scene

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def scene(database_url: str) -> Iterator[Scene]:
    """Each kind of database in turn."""
    scene = Scene(database_url)
    yield scene
    scene.close()


@pytest.fixture
def sqlite_scene(sqlite_url: str) -> Iterator[Scene]:
    """For what is the same on every database."""
    scene = Scene(sqlite_url)
    yield scene
    scene.close()
