# SPDX-License-Identifier: Apache-2.0
"""Logging in: one class per method, each of them gives a token or says why there is none."""

from __future__ import annotations

import logging
import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from sa_asherah.errors import KmsAuthError, KmsError, KmsUnavailableError
from sa_asherah.kms.vault.credentials import Hidden, read_secret
from sa_asherah.kms.vault.refusal import is_transient, members, words
from sa_asherah.kms.vault.rejection import HostRejections, Rejections, fingerprint

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sa_asherah.kms.vault.clock import Clock
    from sa_asherah.kms.vault.connection import Answer
    from sa_asherah.kms.vault.credentials import Credentials

__all__ = ["Asker", "Login", "LoginMethod", "granted", "login_method"]

logger = logging.getLogger(__name__)

_OK = 200
_FORBIDDEN = 403
_SPENT = (
    "the wrapped secret_id was already unwrapped or has expired. If nobody on your side used it, treat it as "
    "intercepted and revoke the secret_id"
)
# Final, although the server calls them errors of its own (500).
_FINAL = ("x509: certificate has expired", "could not load backend configuration")
# What to do about words of Vault's, the first that fit.
_COMMON = {
    "namespace not found": "check VAULT_NAMESPACE",
    "no handler for route": "nothing is mounted there; check VAULT_AUTH_MOUNT and VAULT_NAMESPACE",
    "unsupported path": "another kind of engine is mounted there; check VAULT_AUTH_MOUNT",
    "unsupported operation": "another kind of engine is mounted there; check VAULT_AUTH_MOUNT",
}
_KUBERNETES_ADVICE = {
    "service account name not authorized": "add the pod's service account to the role's bound_service_account_names",
    "namespace not authorized": "add the pod's namespace to the role's bound_service_account_namespaces",
    "token is expired": "the service account token has expired; is VAULT_K8S_TOKEN_PATH a projected token that "
    "Kubernetes replaces?",
    "(aud) claim": "the role's audience and that of the projected service account token differ",
    "(iss) claim": "the issuer in auth/{mount}/config and that of the service account token differ",
    "invalid role name": "check VAULT_AUTH_ROLE",
    "could not load backend configuration": "the Vault operator must write auth/{mount}/config",
    "permission denied": "check bound service account and namespace, kubernetes_host, its CA and the reviewer's "
    "rights; or auth/{mount}/ does not exist (VAULT_AUTH_MOUNT, VAULT_NAMESPACE)",
}
_APPROLE_ADVICE = {
    "invalid role or secret ID": "the role id is wrong, or the secret id is wrong, spent or expired; if it is a "
    "wrapping token, set VAULT_APPROLE_SECRET_ID_WRAPPED=1",
    "permission denied": "after five rejected logins the role is locked for 15 minutes; or auth/{mount}/ does not "
    "exist (VAULT_AUTH_MOUNT, VAULT_NAMESPACE)",
}
_CERT_ADVICE = {
    "no client certificate found": "Vault did not see VAULT_CLIENT_CERT; a proxy that ends TLS hides it",
    "certificate has expired": "VAULT_CLIENT_CERT has expired; put a new one in its place",
    "invalid certificate": "register the certificate's authority at auth/{mount}/certs; check VAULT_AUTH_ROLE",
    "no chain matching": "the certificate does not meet the constraints of any role at auth/{mount}/certs; check "
    "VAULT_AUTH_ROLE",
    "permission denied": "auth/{mount}/ may not exist (VAULT_AUTH_MOUNT, VAULT_NAMESPACE)",
}


class Asker(Protocol):
    """Asks Vault; `caller.Caller` is one."""

    def ask(
        self,
        path: str,
        body: Mapping[str, object] | None,
        *,
        operation: str,
        token: str | None,
        until: float,
        get: bool = False,
        retry: bool = True,
    ) -> Answer:
        """Send a request to `/v1/<path>`.

        Args:
            path: The path.
            body: The body, JSON.
            operation: What to call it in an error.
            token: The token, if any.
            until: When to give up, on the clock that is never set.
            get: Whether it is a GET.
            retry: Whether it may be sent again; if not, any answer is returned, whatever its status.

        Returns:
            The answer.

        Raises:
            KmsError: There was no answer, or only transient ones until the end.
        """
        ...


@dataclass(frozen=True, slots=True)
class Login:
    """A token, and how long it lives.

    Attributes:
        token: The token.
        lease: Seconds from the moment it was asked for; infinite for one that never expires.
        renewable: Whether it can be renewed.
    """

    token: str = field(repr=False)
    lease: float = math.inf
    renewable: bool = False


class LoginMethod(ABC):
    """One way to come by a token. One thread at a time uses it.

    Args:
        credentials: Who asks.
        caller: Asks Vault.
        scope: Which Vault: address and namespace.
        clock: Tells the time.
    """

    def __init__(self, credentials: Credentials, caller: Asker, scope: str, clock: Clock) -> None:
        self._credentials = credentials
        self._caller = caller
        self._clock = clock
        self._place = (scope, str(credentials.auth_mount))
        self._rejections = Rejections(clock)

    @abstractmethod
    def log_in(self, until: float) -> Login:
        """Get a token.

        Args:
            until: When to give up, on the clock that is never set.

        Returns:
            The token.

        Raises:
            KmsAuthError: Vault rejects the credential, or there is none to send.
            KmsUnavailableError: Vault cannot be reached.
        """

    def _sent(self, body: Mapping[str, object], until: float) -> Answer:
        path = f"auth/{self._credentials.auth_mount}/login"
        return self._caller.ask(path, body, operation="login", token=None, until=until)

    def _granted(self, answer: Answer, advice: Mapping[str, str], *secrets: str) -> Login:
        """Return the token of an answer, or raise why there is none, with the advice for the words it says."""
        if answer.status != _OK:
            raise self._refused(answer, advice, *secrets)
        login = granted(answer)
        if login is None:
            raise self._failed("answer is not from Vault (proxy or wrong port?)", _OK, is_final=False)
        uses = members(members(answer.body).get("auth")).get("num_uses")
        if isinstance(uses, int) and uses:
            logger.warning(
                "auth/%s gives tokens for %d uses: each call to Vault is one; set token_num_uses=0 in the role",
                self._credentials.auth_mount,
                uses,
            )
        return login

    def _refused(self, answer: Answer, advice: Mapping[str, str], *secrets: str) -> KmsError:
        said = words(answer.body, secrets)
        if said is None:
            return self._failed(
                f"answer is not from Vault (proxy or wrong port?); HTTP {answer.status}", answer.status, is_final=False
            )
        is_final = any(text in said for text in _FINAL) or not is_transient(answer.status)
        hint = next((hint for text, hint in {**_COMMON, **advice}.items() if text in said), "")
        if not said:
            hint = "nothing is there; check the path in VAULT_ADDR"
        credentials = self._credentials
        role = f"role {credentials.auth_role!r}, " if credentials.auth_role else ""
        where = f"({role}mount 'auth/{credentials.auth_mount}')"
        reason = f"{said or f'HTTP {answer.status}'} {where}{': ' if hint else ''}{hint}"
        return self._failed(reason.format(mount=credentials.auth_mount), answer.status, is_final=is_final)

    def _failed(self, reason: str, status: int | None, *, is_final: bool) -> KmsError:
        message = f"Vault {self._credentials.auth_method} auth failed: {reason}"
        if is_final:
            return KmsAuthError(message, operation="login", status=status)
        return KmsUnavailableError(message, retryable=True, operation="login", status=status)


class GivenToken(LoginMethod):
    """A token that someone else made; from a file it may be another one each time."""

    def log_in(self, until: float) -> Login:
        """Take the token as it is; asks nobody.

        Args:
            until: Not needed.

        Returns:
            The token; nothing is known about its life.

        Raises:
            KmsAuthError: The file cannot be read.
        """
        del until
        path = self._credentials.token_file
        return Login(read_secret(str(path), f"VAULT_TOKEN_FILE {path!r}") if path else self._credentials.token)


class KubernetesLogin(LoginMethod):
    """With the token of the pod's service account."""

    _ATTEMPTS = 3
    _PAUSE = 1.0

    def log_in(self, until: float) -> Login:
        """Send the service account's token, as it is now.

        Args:
            until: When to give up, on the clock that is never set.

        Returns:
            The token.

        Raises:
            KmsAuthError: Vault rejects the service account, or its token cannot be read.
            KmsUnavailableError: Vault cannot be reached.
        """
        role, path = str(self._credentials.auth_role), str(self._credentials.k8s_token_path)
        jwt = read_secret(path, f"the service account token {path!r} (VAULT_K8S_TOKEN_PATH)")
        with self._rejections.watch(fingerprint(*self._place, role, jwt)):
            answer = self._sent({"role": role, "jwt": jwt}, until)
            for _ in range(self._ATTEMPTS - 1):
                # A plain refusal is also what Vault says when the API server does not answer it.
                if not self._may_be_outage(answer) or self._clock.now() + self._PAUSE >= until:
                    break
                self._clock.pause(self._PAUSE)
                answer = self._sent({"role": role, "jwt": jwt}, until)
            return self._granted(answer, _KUBERNETES_ADVICE, jwt)

    @staticmethod
    def _may_be_outage(answer: Answer) -> bool:
        said = words(answer.body, ())
        return answer.status == _FORBIDDEN and said is not None and not re.search("not authorized|claim", said)


class AppRoleLogin(LoginMethod):
    """With a role id and, unless the role does without, a secret id."""

    def __init__(self, credentials: Credentials, caller: Asker, scope: str, clock: Clock) -> None:
        super().__init__(credentials, caller, scope, clock)
        self._host = HostRejections(clock)
        self._unwrapped: tuple[str, str] | None = None

    def log_in(self, until: float) -> Login:
        """Send role id and secret id, unless a process of this host was rejected with them a moment ago.

        Args:
            until: When to give up, on the clock that is never set.

        Returns:
            The token.

        Raises:
            KmsAuthError: Vault rejects role id or secret id, or the secret id's file cannot be read.
            KmsUnavailableError: Vault cannot be reached.
        """
        role_id, secret = str(self._credentials.role_id), self._secret()
        credential = fingerprint(*self._place, role_id, secret)
        with self._rejections.watch(credential), self._host.watch(credential, until):
            if self._credentials.secret_id_wrapped:
                secret = self._unwrap(secret, until)
            body = {"role_id": role_id, "secret_id": secret} if secret else {"role_id": role_id}
            answer = self._sent(body, until)
            if answer.status != _OK and "missing secret_id" in (words(answer.body, ()) or ""):
                reason = "role requires a secret_id: set VAULT_APPROLE_SECRET_ID"
                raise self._failed(reason, answer.status, is_final=True)
            return self._granted(answer, _APPROLE_ADVICE, *([secret] if secret else []))

    def _secret(self) -> str:
        path = self._credentials.secret_id_file
        if path:
            return read_secret(str(path), f"VAULT_APPROLE_SECRET_ID_FILE {path!r}")
        return self._credentials.secret_id or ""

    def _unwrap(self, wrapping: str, until: float) -> str:
        """Exchange a wrapping token for the secret id, after a look at who made it; kept, since it works once."""
        if self._unwrapped and self._unwrapped[0] == wrapping:
            return self._unwrapped[1]
        found = self._caller.ask("sys/wrapping/lookup", {"token": wrapping}, operation="login", token=None, until=until)
        path = self._data(found, wrapping).get("creation_path")
        mount = str(self._credentials.auth_mount)
        if not re.fullmatch(rf"auth/{re.escape(mount)}/role/[^/]+/secret-id", str(path)):
            reason = f"wrapping token was not made by auth/{mount}/role/*/secret-id; treat it as forged"
            raise self._failed(reason, found.status, is_final=True)
        # As the client's own token: only so it opens itself. Never sent twice: the second answer would say "spent".
        opened = self._caller.ask(
            "sys/wrapping/unwrap", None, operation="login", token=wrapping, until=until, retry=False
        )
        secret = self._data(opened, wrapping).get("secret_id")
        if not isinstance(secret, str) or not secret:
            raise self._failed("the wrapping token held no secret_id", opened.status, is_final=True)
        self._unwrapped = (wrapping, Hidden(secret))
        return self._unwrapped[1]

    def _data(self, answer: Answer, wrapping: str) -> Mapping[str, object]:
        if answer.status == _OK:
            return members(members(answer.body).get("data"))
        if "wrapping token is not valid" in (words(answer.body, ()) or ""):
            raise self._failed(_SPENT, answer.status, is_final=True)
        raise self._refused(answer, {}, wrapping)


class CertLogin(LoginMethod):
    """With the client's certificate, which the connection shows."""

    def log_in(self, until: float) -> Login:
        """Ask for a token over the connection with the certificate.

        Args:
            until: When to give up, on the clock that is never set.

        Returns:
            The token.

        Raises:
            KmsAuthError: Vault rejects the certificate.
            KmsUnavailableError: Vault cannot be reached.
        """
        role = self._credentials.auth_role
        with self._rejections.watch(fingerprint(*self._place, str(role), str(self._credentials.client_cert))):
            return self._granted(self._sent({"name": role} if role else {}, until), _CERT_ADVICE)


_METHODS: dict[str, type[LoginMethod]] = {
    "token": GivenToken,
    "kubernetes": KubernetesLogin,
    "approle": AppRoleLogin,
    "cert": CertLogin,
}


def login_method(credentials: Credentials, caller: Asker, scope: str, clock: Clock) -> LoginMethod:
    """Choose the class for the method.

    Args:
        credentials: Who asks.
        caller: Asks Vault.
        scope: Which Vault: address and namespace.
        clock: Tells the time.

    Returns:
        The method.
    """
    return _METHODS[credentials.auth_method](credentials, caller, scope, clock)


def granted(answer: Answer) -> Login | None:
    """Read a token and its life from the answer to a login or a renewal.

    Args:
        answer: The answer, with status 200.

    Returns:
        The token; `None` if the answer has another form, so that something else than Vault gave it.
    """
    auth = members(members(answer.body).get("auth"))
    token, lease, renewable = auth.get("client_token"), auth.get("lease_duration"), auth.get("renewable")
    if not isinstance(token, str) or not re.fullmatch("[!-~]+", token):
        return None
    if not isinstance(lease, int) or isinstance(lease, bool) or lease < 0 or not isinstance(renewable, bool):
        return None
    return Login(Hidden(token), lease or math.inf, renewable)
