# SPDX-License-Identifier: Apache-2.0
"""Script directories with migrations, each on a fresh database of each kind."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import pytest
from alembic.runtime import plugins

from sa_asherah import Asherah, StaticKeyWarning
from sa_asherah.alembic import plugin
from sa_asherah.kms.static import StaticKMS
from tests.migrations.site import MASTER_KEY, Site

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

if "sa_asherah" not in plugins._all_plugins:  # not installed with its entry point; `Site.alembic` uses a real one
    plugins.Plugin.setup_plugin_from_module(plugin, "sa_asherah")


@pytest.fixture
def asherah() -> Iterator[Asherah]:
    """The keys of the application."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StaticKeyWarning)
        kms = StaticKMS(bytes.fromhex(MASTER_KEY), {})
    with Asherah("records", "clinic", kms) as found:
        yield found


@pytest.fixture
def static_key_warning() -> Iterator[Callable[[], None]]:
    """Let the warning about static keys pass, which comes once per process: here, or somewhere earlier."""
    with warnings.catch_warnings():
        yield lambda: warnings.simplefilter("ignore", StaticKeyWarning)


@pytest.fixture
def site(database_url: str, tmp_path: Path, asherah: Asherah) -> Iterator[Site]:
    """A script directory for an empty database."""
    with Site(tmp_path / "site", database_url, asherah) as found:
        yield found


@pytest.fixture
def sqlite_site(sqlite_url: str, tmp_path: Path, asherah: Asherah) -> Iterator[Site]:
    """The same, for SQLite only."""
    with Site(tmp_path / "site", sqlite_url, asherah) as found:
        yield found


@pytest.fixture
def postgresql_site(postgresql_url: str, tmp_path: Path, asherah: Asherah) -> Iterator[Site]:
    """The same, for PostgreSQL only."""
    with Site(tmp_path / "site", postgresql_url, asherah) as found:
        yield found
