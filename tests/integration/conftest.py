# SPDX-License-Identifier: Apache-2.0
"""Fixtures for the tests against a real OpenBao."""

from __future__ import annotations

import functools
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import hvac.exceptions
import pytest

from sa_asherah.errors import AsherahError
from sa_asherah.kms.vault import VaultTransitKMS
from tests.integration.secrecy import failure_of
from tests.servers.openbao import OpenBao, SealableOpenBao, transit_policy
from tests.servers.process import free_port
from tests.servers.reviewer import Reviewer

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
    def made_on(cls, server: OpenBao, **options: Any) -> Self:
        """Make mount, key, policy and token."""
        mount, key = server.new_transit(**options)
        return cls(server, mount, key, server.transit_token(mount, key))

    @functools.cached_property
    def policy(self) -> str:
        """The name of a policy that suffices for the key."""
        return self.server.policy(transit_policy(self.mount, self.key))

    def kms(self, **options: Any) -> VaultTransitKMS:
        """Return the service with this access, changed by the options."""
        own: dict[str, Any] = {"token": self.token} if not {"auth_method", "token_file"} & options.keys() else {}
        own |= {"addr": self.server.addr, "key": self.key, "mount": self.mount, "ca_cert": self.server.ca_cert}
        return VaultTransitKMS(**own | options)

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


@dataclass
class AuditedAccess(Access):
    """The same on a server that tells who asked for what."""

    server: SealableOpenBao  # pyright: ignore[reportIncompatibleVariableOverride] # never assigned again
    secrets: list[str] = field(default_factory=list[str])

    def secret(self, text: str) -> str:
        """Return a secret that no log may show, nor any error that `refusal` sees."""
        self.secrets.append(text)
        return text

    def refusal(self, kind: type[E], call: Callable[[], object]) -> E:
        """Return the error that the call raises, after making sure that it holds no secret."""
        return self.failure(kind, call, tokens=tuple(self.secrets))

    def calls(self, operation: str) -> list[dict[str, Any]]:
        """Return the audited answers to an operation with the Transit key."""
        return self.server.audit(f"{self.mount}/{operation}/{self.key}")

    def may_unwrap(self, wrapping: str) -> bool:
        """Tell whether a wrapping token is still good; it stays so."""
        try:
            self.server.root.adapter.post("/v1/sys/wrapping/lookup", json={"token": wrapping})
        except hvac.exceptions.InvalidRequest:
            return False
        return True


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))  # where rejected credentials are remembered
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


@pytest.fixture(scope="session")
def audited_server(openbao: OpenBao) -> Iterator[SealableOpenBao]:  # noqa: ARG001 # it skips where there is no OpenBao
    """A running OpenBao server with TLS, an authority for certificates and an audit file; nobody seals it."""
    with SealableOpenBao(tls=True, audited=True) as server:
        yield server


@pytest.fixture
def reviewer() -> Iterator[Reviewer]:
    """A Kubernetes API server of the test's own."""
    with Reviewer() as reviewer:
        yield reviewer


@pytest.fixture
def audited(audited_server: SealableOpenBao, caplog: pytest.LogCaptureFixture) -> Iterator[AuditedAccess]:
    """A new Transit key on the audited server; the log of the test must show none of its secrets."""
    access = AuditedAccess.made_on(audited_server)
    with caplog.at_level(logging.DEBUG):
        yield access
    assert not [secret for secret in (access.token, *access.secrets) if secret in caplog.text]


@pytest.fixture
def closed_port() -> int:
    """A port where nothing listens."""
    return free_port()
