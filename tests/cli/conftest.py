# SPDX-License-Identifier: Apache-2.0
"""Sites for the tests of the command line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cli.site import BASE, Site
from tests.servers.openbao import OpenBao


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))  # where rejected credentials are remembered
    for name in os.environ:
        if name.startswith(("VAULT_", "BAO_", "ASHERAH_")) or name.endswith(("_BUNDLE", "_PROXY", "_proxy")):
            monkeypatch.delenv(name)


@pytest.fixture(params=["sqlite", "postgresql", pytest.param("mariadb", marks=pytest.mark.long)])
def database_url(request: pytest.FixtureRequest) -> str:
    """URL of an empty database, for each supported kind in turn."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def vault(openbao: OpenBao) -> dict[str, str]:
    """The settings of a Transit key of the test's own, with a token for `vault rewrap` and for the application."""
    mount, key = openbao.new_transit()
    rights = "".join(
        f'path "{mount}/{operation}/{key}" {{ capabilities = ["update"] }}\n'
        for operation in ("encrypt", "decrypt", "rewrap")
    )
    return {
        "VAULT_ADDR": openbao.addr,
        "VAULT_TOKEN": openbao.token(rights),
        "VAULT_TRANSIT_KEY": key,
        "VAULT_TRANSIT_MOUNT": mount,
    }


@pytest.fixture
def site(database_url: str, vault: dict[str, str]) -> Site:
    """A site on each database in turn."""
    return Site(database_url, {**BASE, **vault, "ASHERAH_DATABASE_URL": database_url})


@pytest.fixture
def small_site(sqlite_url: str, vault: dict[str, str]) -> Site:
    """A site on SQLite."""
    return Site(sqlite_url, {**BASE, **vault, "ASHERAH_DATABASE_URL": sqlite_url})


@pytest.fixture
def static_site(sqlite_url: str) -> Site:
    """A site on SQLite, without Vault."""
    return Site(sqlite_url, {**BASE, "ASHERAH_DATABASE_URL": sqlite_url})
