# SPDX-License-Identifier: Apache-2.0
"""Settings of authentication: who asks Vault, where that comes from, and every check that needs no network."""

from __future__ import annotations

import os
import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypedDict, cast

from sa_asherah.environ import read_flag
from sa_asherah.errors import ConfigurationError, KmsAuthError
from sa_asherah.kms.vault.environment import either, which

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["CredentialOptions", "Credentials", "Hidden", "read_credentials", "read_secret"]

_METHODS = ("token", "kubernetes", "approle", "cert")
_POD_TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount/token"  # noqa: S105 # a path
_VARIABLES = {
    "auth_method": "AUTH_METHOD",
    "auth_mount": "AUTH_MOUNT",
    "token": "TOKEN",
    "token_file": "TOKEN_FILE",
    "auth_role": "AUTH_ROLE",
    "k8s_token_path": "K8S_TOKEN_PATH",
    "role_id": "APPROLE_ROLE_ID",
    "secret_id": "APPROLE_SECRET_ID",
    "secret_id_file": "APPROLE_SECRET_ID_FILE",
    "secret_id_wrapped": "APPROLE_SECRET_ID_WRAPPED",
    "client_cert": "CLIENT_CERT",
    "client_key": "CLIENT_KEY",
}
# Of each pair one is enough: an explicit one makes that of the environment count for nothing.
_RIVALS = {
    "token": "token_file",
    "token_file": "token",
    "secret_id": "secret_id_file",
    "secret_id_file": "secret_id",
}


class Hidden(str):
    """A secret text that no `repr` shows: error trackers send those of the local variables of a traceback."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<hidden>"


class CredentialOptions(TypedDict, total=False):
    """The options of `VaultTransitKMS` that say who asks; `Credentials` says what each means."""

    auth_method: str
    auth_mount: str | None
    token: str
    token_file: str | os.PathLike[str] | None
    auth_role: str | None
    k8s_token_path: str | os.PathLike[str] | None
    role_id: str | None
    secret_id: str | None
    secret_id_file: str | os.PathLike[str] | None
    secret_id_wrapped: bool
    client_cert: str | os.PathLike[str] | None
    client_key: str | os.PathLike[str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Who asks Vault. No secret shows in a `repr`, and the credentials cannot be pickled.

    Attributes:
        auth_method: `token`, `kubernetes`, `approle` or `cert`.
        auth_mount: Where the method is mounted below `auth/`; the method's own name unless given.
        token: A token that someone else made.
        token_file: A file with such a token, as an agent writes it; read again when the token no longer works.
        auth_role: The role to log in as: required with `kubernetes`, optional with `cert`.
        k8s_token_path: The service account's token, read at every login, since Kubernetes replaces it.
        role_id: The AppRole's role id.
        secret_id: The AppRole's secret id; none for a role with `bind_secret_id=false`.
        secret_id_file: A file with the secret id, read at every login.
        secret_id_wrapped: Whether the secret id is in truth a wrapping token, made by response wrapping.
        client_cert: PEM file of the client's certificate; sent with every request, whatever the method.
        client_key: PEM file of its key; it may be the same file.
    """

    auth_method: str = "token"
    auth_mount: str | None = None
    token: str = field(default="", repr=False)
    token_file: str | os.PathLike[str] | None = None
    auth_role: str | None = None
    k8s_token_path: str | os.PathLike[str] | None = None
    role_id: str | None = field(default=None, repr=False)
    secret_id: str | None = field(default=None, repr=False)
    secret_id_file: str | os.PathLike[str] | None = None
    secret_id_wrapped: bool = False
    client_cert: str | os.PathLike[str] | None = None
    client_key: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        """Bring the values into their canonical form and check those that the method needs.

        Raises:
            ConfigurationError: A value is missing, malformed or contradicts another.
        """
        for name in _VARIABLES.keys() - {"secret_id_wrapped"}:
            object.__setattr__(self, name, os.fspath(getattr(self, name) or "").strip() or None)
        object.__setattr__(self, "token", Hidden(self.token or ""))
        object.__setattr__(self, "secret_id", Hidden(self.secret_id) if self.secret_id else None)
        object.__setattr__(self, "auth_method", self.auth_method or "token")
        if self.auth_method not in _METHODS:
            raise ConfigurationError(
                f"VAULT_AUTH_METHOD must be token, kubernetes, approle or cert; got {self.auth_method!r}"
            )
        object.__setattr__(self, "auth_mount", _checked_mount((self.auth_mount or self.auth_method).strip("/")))
        object.__setattr__(self, "k8s_token_path", self.k8s_token_path or _POD_TOKEN)
        {
            "token": self._check_token,
            "kubernetes": self._check_kubernetes,
            "approle": self._check_approle,
            "cert": self._check_cert,
        }[self.auth_method]()
        if self.client_cert or self.client_key:
            self._check_pair()

    @property
    def is_reusable(self) -> bool:
        """Whether one can log in again with it at any time: not with a token, nor a secret id that may be spent."""
        if self.auth_method == "approle":
            return not (self.secret_id or self.secret_id_wrapped)
        return self.auth_method != "token"

    @property
    def client_pair(self) -> tuple[str, str] | None:
        """What `requests` calls `cert`."""
        return (str(self.client_cert), str(self.client_key)) if self.client_cert else None

    def check_transport(self, *, is_encrypted: bool) -> None:
        """Check the method against the address of Vault.

        Args:
            is_encrypted: Whether the address is `https`.

        Raises:
            ConfigurationError: The method needs TLS.
        """
        if self.auth_method == "cert" and not is_encrypted:
            raise ConfigurationError("VAULT_AUTH_METHOD=cert needs an https:// address in VAULT_ADDR")

    def _check_token(self) -> None:
        if self.token and self.token_file:
            raise ConfigurationError("set only one of VAULT_TOKEN and VAULT_TOKEN_FILE")
        if self.token_file:
            _checked_secret(str(self.token_file), f"VAULT_TOKEN_FILE {self.token_file!r}")
        elif not self.token:
            raise ConfigurationError("VAULT_AUTH_METHOD=token needs VAULT_TOKEN (or VAULT_TOKEN_FILE)")
        # Otherwise the HTTP library would raise an error that holds the token.
        elif not re.fullmatch("[!-~]+", self.token):
            raise ConfigurationError("VAULT_TOKEN contains control characters, spaces or characters outside ASCII")

    def _check_kubernetes(self) -> None:
        if not self.auth_role:
            raise ConfigurationError("VAULT_AUTH_METHOD=kubernetes needs VAULT_AUTH_ROLE")

    def _check_approle(self) -> None:
        if not self.role_id:
            raise ConfigurationError("VAULT_AUTH_METHOD=approle needs VAULT_APPROLE_ROLE_ID")
        if self.secret_id and self.secret_id_file:
            raise ConfigurationError("set only one of VAULT_APPROLE_SECRET_ID and VAULT_APPROLE_SECRET_ID_FILE")
        if self.secret_id_file:
            _checked_secret(str(self.secret_id_file), f"VAULT_APPROLE_SECRET_ID_FILE {self.secret_id_file!r}")
        elif self.secret_id_wrapped and not self.secret_id:
            raise ConfigurationError(
                "VAULT_APPROLE_SECRET_ID_WRAPPED needs the wrapping token in VAULT_APPROLE_SECRET_ID "
                "(or VAULT_APPROLE_SECRET_ID_FILE)"
            )
        elif self.secret_id and not re.fullmatch("[!-~]+", self.secret_id):
            raise ConfigurationError(
                "VAULT_APPROLE_SECRET_ID contains control characters, spaces or characters outside ASCII"
            )

    def _check_cert(self) -> None:
        if not (self.client_cert and self.client_key):
            raise ConfigurationError("VAULT_AUTH_METHOD=cert needs VAULT_CLIENT_CERT and VAULT_CLIENT_KEY")

    def _check_pair(self) -> None:
        if not (self.client_cert and self.client_key):
            raise ConfigurationError("set both VAULT_CLIENT_CERT and VAULT_CLIENT_KEY, or none of them")
        for name, path in (("VAULT_CLIENT_CERT", self.client_cert), ("VAULT_CLIENT_KEY", self.client_key)):
            try:
                Path(path).open("rb").close()
            except OSError as error:
                raise ConfigurationError(f"cannot read {name} {path!r}: {error.strerror}") from error
        try:
            # With an empty password, since OpenSSL would ask the terminal for one.
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(self.client_cert, self.client_key, password="")
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise ConfigurationError("VAULT_CLIENT_KEY does not belong to VAULT_CLIENT_CERT") from error
            raise ConfigurationError(
                f"VAULT_CLIENT_CERT {self.client_cert!r} and VAULT_CLIENT_KEY {self.client_key!r} must be PEM files of "
                "a certificate and of its key, the key without a password"
            ) from error

    def __reduce__(self) -> NoReturn:
        raise TypeError("Credentials hold secrets and cannot be pickled")


def read_credentials(environ: Mapping[str, str], explicit: Mapping[str, object]) -> CredentialOptions:
    """Take each option from the explicit arguments, else from `VAULT_*`, else from the `BAO_*` that means the same.

    A token, wherever it comes from, wins over the environment's method; an explicit method wins over any token.

    Args:
        environ: The environment; an empty variable counts as missing.
        explicit: Arguments that win, others than those of authentication too; `None` and empty text count as missing.

    Returns:
        The options that are set anywhere.

    Raises:
        ConfigurationError: `VAULT_*` and `BAO_*` contradict each other, or a flag is malformed.
    """
    options = {name: explicit[name] for name in _VARIABLES if explicit.get(name) not in {None, ""}}
    given = frozenset(options)
    for name, variable in _VARIABLES.items():
        if name in given or _RIVALS.get(name) in given:
            continue
        is_flag = name == "secret_id_wrapped"
        value = read_flag(environ, which(environ, variable)) if is_flag else either(environ, variable)
        if value is not None:
            options[name] = value
    has_token = "token" in options or "token_file" in options
    if has_token and "auth_method" not in given:
        options["auth_method"] = "token"
    if options.get("auth_method", "token") != "token":
        options.pop("token", None)
        options.pop("token_file", None)
    return cast("CredentialOptions", options)


def read_secret(path: str, subject: str) -> str:
    """Read a file that holds one secret.

    Args:
        path: The file.
        subject: What to call it in an error's text.

    Returns:
        Its text without surrounding white space: a newline at the end would be refused by Vault.

    Raises:
        KmsAuthError: The file cannot be read, is empty or holds something else.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise KmsAuthError(f"cannot read {subject}: {error.strerror}", operation="login") from error.with_traceback(
            None
        )
    content = content.strip()
    if not content:
        raise KmsAuthError(f"{subject} is empty", operation="login")
    if not re.fullmatch(b"[!-~]+", content):
        raise KmsAuthError(
            f"{subject} must hold one secret, without control characters, spaces or characters outside ASCII",
            operation="login",
        )
    return Hidden(content.decode())


def _checked_secret(path: str, subject: str) -> None:
    try:
        read_secret(path, subject)
    except KmsAuthError as error:
        raise ConfigurationError(str(error)) from error.__cause__


def _checked_mount(mount: str) -> str:
    if mount.startswith("auth/"):
        raise ConfigurationError(f"write VAULT_AUTH_MOUNT without 'auth/': {mount.removeprefix('auth/')!r}")
    if not all(re.fullmatch("[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?", part) for part in mount.split("/")):
        raise ConfigurationError(f"VAULT_AUTH_MOUNT {mount!r} is not a valid mount path, e.g. kubernetes")
    return mount
