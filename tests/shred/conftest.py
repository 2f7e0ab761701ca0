# SPDX-License-Identifier: Apache-2.0
"""Scenes: each database in turn, or one, with keys under a real OpenBao."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.shred.scene import Scene

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers.openbao import OpenBao


@pytest.fixture
def vault(openbao: OpenBao) -> dict[str, str]:
    """The settings of a Transit key of the test's own."""
    mount, key = openbao.new_transit()
    rights = "".join(
        f'path "{mount}/{operation}/{key}" {{ capabilities = ["update"] }}\n'
        for operation in ("encrypt", "decrypt", "rewrap")
    )
    rights += f'path "{mount}/keys/{key}" {{ capabilities = ["read", "update"] }}\n'
    rights += f'path "{mount}/keys/{key}/*" {{ capabilities = ["update"] }}\n'
    return {
        "VAULT_ADDR": openbao.addr,
        "VAULT_TOKEN": openbao.token(rights),
        "VAULT_TRANSIT_KEY": key,
        "VAULT_TRANSIT_MOUNT": mount,
    }


@pytest.fixture
def scene(database_url: str, vault: dict[str, str]) -> Iterator[Scene]:
    """A scene on each database in turn."""
    made = Scene(database_url, vault)
    yield made
    made.close()


@pytest.fixture
def small_scene(sqlite_url: str, vault: dict[str, str]) -> Iterator[Scene]:
    """A scene on SQLite."""
    made = Scene(sqlite_url, vault)
    yield made
    made.close()
