# SPDX-License-Identifier: Apache-2.0
"""Fixtures for the tests against a real OpenBao."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

import pytest

from sa_asherah.errors import AsherahError
from sa_asherah.kms.vault import VaultTransitKMS
from sa_asherah.kms.vault.settings import VaultOptions
from tests.integration.secrecy import failure_of
from tests.servers.openbao import OpenBao
from tests.servers.process import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

E = TypeVar("E", bound=AsherahError)


@dataclass
class Access:
    """A Transit key of the test's own, and a token that may just use it."""

    server: OpenBao
    mount: str
    key: str
    token: str

    @classmethod
    def made_on(cls, server: OpenBao, **options: Any) -> Access:
        """Make mount, key, policy and token."""
        mount, key = server.new_transit(**options)
        return cls(server, mount, key, server.transit_token(mount, key))

    def kms(self, **options: Unpack[VaultOptions]) -> VaultTransitKMS:
        """Return the service with this access, changed by the options."""
        own = VaultOptions(addr=self.server.addr, key=self.key, token=self.token, mount=self.mount)
        own["ca_cert"] = self.server.ca_cert
        own.update(options)
        return VaultTransitKMS(**own)

    def ask(self, operation: str, **body: str) -> dict[str, Any]:
        """Ask for an operation as root; return the data of the answer."""
        answer = self.server.root.adapter.post(f"/v1/{self.mount}/{operation}/{self.key}", json=body)
        data: dict[str, Any] = answer["data"]
        return data

    def failure(self, kind: type[E], call: Callable[[], object], *sent: str, tokens: tuple[str, ...] = ()) -> E:
        """Return the error that the call raises, after making sure that it holds no token and nothing sent."""
        return failure_of(kind, call, (self.token, self.server.root_token, *tokens), sent)

    def configure(self, path: str, **settings: Any) -> None:
        """Change something below the mount, as root."""
        self.server.root.adapter.post(f"/v1/{self.mount}/{path}", json=settings)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("VAULT_", "BAO_")) or name.endswith(("_BUNDLE", "_PROXY", "_proxy")):
            monkeypatch.delenv(name)


@pytest.fixture
def access(openbao: OpenBao, caplog: pytest.LogCaptureFixture) -> Iterator[Access]:
    """A new Transit key on the shared server; the log of the test must not show its token."""
    access = Access.made_on(openbao)
    with caplog.at_level(logging.DEBUG):
        yield access
    assert access.token not in caplog.text


@pytest.fixture(scope="session")
def tls_server(openbao: OpenBao) -> Iterator[OpenBao]:  # noqa: ARG001 # it skips where there is no OpenBao
    """A running OpenBao server that speaks TLS."""
    with OpenBao(tls=True) as server:
        yield server


@pytest.fixture
def closed_port() -> int:
    """A port where nothing listens."""
    return free_port()
