# SPDX-License-Identifier: Apache-2.0
"""Roles to log in with: each on a mount of its own, so that no test counts another's logins."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from tests.servers.certificates import Pair
from tests.servers.openbao import SealableOpenBao
from tests.servers.reviewer import Reviewer

_numbers = itertools.count(1)


@dataclass
class Role:
    """A role of an authentication method."""

    server: SealableOpenBao
    mount: str
    name: str

    method: ClassVar[str]
    roles: ClassVar[str]  # what the method calls the path of its roles

    @classmethod
    def made_on(cls, server: SealableOpenBao, policy: str, *, mount: str = "", **settings: Any) -> Self:
        """Mount the method and make a role whose tokens have this policy and no other."""
        role = cls(server, mount or f"{cls.method}-{next(_numbers)}", "asherah-role")
        server.root.sys.enable_auth_method(cls.method, path=role.mount)
        role.configure(token_policies=[policy], token_no_default_policy=False, **settings)
        return role

    def configure(self, **settings: Any) -> None:
        """Change the role."""
        self.post(f"{self.roles}/{self.name}", **settings)

    def post(self, path: str, *, wrap_ttl: str | None = None, **body: Any) -> dict[str, Any]:
        """Send something to the method, as root."""
        answer = self.server.root.adapter.post(f"/v1/auth/{self.mount}/{path}", json=body, wrap_ttl=wrap_ttl)
        return answer if isinstance(answer, dict) else {}

    def logins(self) -> int:
        """Count the login requests, good and bad."""
        return len(self.server.audit(f"auth/{self.mount}/login"))

    def revoke(self) -> None:
        """Revoke every token that somebody logged in for."""
        self.server.root.adapter.put(f"/v1/sys/leases/revoke-prefix/auth/{self.mount}/", json={"sync": True})

    def options(self, **more: Any) -> dict[str, Any]:
        """Return what `VaultTransitKMS` needs for logging in."""
        return {"auth_method": self.method, "auth_mount": self.mount, **more}


class AppRole(Role):
    """A role with a role id and secret ids."""

    method = "approle"
    roles = "role"

    @property
    def role_id(self) -> str:
        """What names the role at the login."""
        answer = self.server.root.adapter.get(f"/v1/auth/{self.mount}/role/{self.name}/role-id")
        role_id: str = answer["data"]["role_id"]
        return role_id

    def secret_id(self, **settings: Any) -> str:
        """Make a secret id."""
        secret_id: str = self.post(f"role/{self.name}/secret-id", **settings)["data"]["secret_id"]
        return secret_id

    def wrapped_secret_id(self, ttl: str = "60s", **settings: Any) -> str:
        """Make a secret id and return the token that yields it once."""
        answer = self.post(f"role/{self.name}/secret-id", wrap_ttl=ttl, **settings)
        token: str = answer["wrap_info"]["token"]
        return token

    def options(self, **more: Any) -> dict[str, Any]:
        """Return what `VaultTransitKMS` needs for logging in."""
        return super().options(**{"role_id": self.role_id, **more})


class KubernetesRole(Role):
    """A role for the pods of one service account."""

    method = "kubernetes"
    roles = "role"
    reviewer: Reviewer

    @classmethod
    def reviewed_by(
        cls, reviewer: Reviewer, server: SealableOpenBao, policy: str, *, mount: str = "", **settings: Any
    ) -> Self:
        """Make a role whose pods' tokens this API server vouches for."""
        accounts = {"bound_service_account_names": ["asherah-sa"], "bound_service_account_namespaces": ["default"]}
        role = cls.made_on(server, policy, mount=mount, **{**accounts, **settings})
        role.reviewer = reviewer
        role.configure_method()
        return role

    def configure_method(self, **settings: Any) -> None:
        """Say where the API server is."""
        authority = self.server.authority.pem.read_text()
        own = {"kubernetes_host": self.reviewer.url, "kubernetes_ca_cert": authority}
        self.post("config", disable_local_ca_jwt=True, **own, **settings)

    def pod(self, folder: Path, **claims: Any) -> Path:
        """Write the token of a pod as Kubernetes does; return the file."""
        path = folder / "service-account-token"
        path.write_text(self.reviewer.jwt(**claims))
        return path

    def options(self, **more: Any) -> dict[str, Any]:
        """Return what `VaultTransitKMS` needs for logging in."""
        return super().options(**{"auth_role": self.name, **more})


class CertRole(Role):
    """A role for the clients whose certificate names `asherah`."""

    method = "cert"
    roles = "certs"

    @classmethod
    def trusting(cls, server: SealableOpenBao, policy: str, *, mount: str = "", **settings: Any) -> Self:
        """Make a role for certificates of the server's own authority."""
        own = {"certificate": server.authority.pem.read_text(), "allowed_common_names": ["asherah"]}
        return cls.made_on(server, policy, mount=mount, **own, **settings)

    def shown(self, pair: Pair, **more: Any) -> dict[str, Any]:
        """Return what `VaultTransitKMS` needs for logging in with this certificate."""
        return self.options(client_cert=pair.cert, client_key=pair.key, **more)
