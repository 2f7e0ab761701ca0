# SPDX-License-Identifier: Apache-2.0
"""Key tables for both implementations, on each database, with and without a region suffix."""

from __future__ import annotations

from pathlib import Path

import pytest

from sa_asherah.metastore import create
from tests.interop.shared_table import SharedTable, opened


def _table(request: pytest.FixtureRequest, folder: Path, kind: str, suffix: str = "") -> SharedTable:
    url = f"sqlite:///{folder / 'keys.sqlite'}" if kind == "sqlite" else request.getfixturevalue(f"{kind}_url")
    with opened(url) as engine:
        create(engine)
    return SharedTable(url, folder, suffix=suffix)


@pytest.fixture(params=["sqlite", "postgresql-us-west-2", "mariadb"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> SharedTable:
    """An empty key table, on each database in turn, on one with a region suffix."""
    kind, _, suffix = str(request.param).partition("-")
    return _table(request, tmp_path, kind, suffix)


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def plain(request: pytest.FixtureRequest, tmp_path: Path) -> SharedTable:
    """An empty key table without suffix, on each database in turn."""
    return _table(request, tmp_path, str(request.param))
