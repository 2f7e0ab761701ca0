# SPDX-License-Identifier: Apache-2.0
"""Why Vault did not do it: from its answers to errors of ours that say what to do next."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from sa_asherah.errors import (
    AsherahError,
    ConfigurationError,
    KmsAuthError,
    KmsCiphertextError,
    KmsError,
    KmsKeyNotFoundError,
    KmsPermissionError,
    KmsUnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sa_asherah.kms.vault.connection import Answer, Operation
    from sa_asherah.kms.vault.settings import VaultSettings

__all__ = ["foreign_ciphertext", "members", "not_from_vault", "refusal"]

_QUOTED = 200
_FOREIGN = "not a Vault Transit ciphertext (encrypted by another KMS?)"
_NO_ENGINE = ": no Transit engine at '{mount}/' (VAULT_TRANSIT_MOUNT)"
# Besides 5xx: request timeout, precondition failed, too early, too many requests, and Vault's 472 and 473 (standbys).
_TRANSIENT = frozenset({408, 412, 425, 429, 472, 473})


@dataclass(frozen=True, slots=True)
class _Rule:
    """What a text of Vault's means, and what is to be said after it."""

    text: str
    error: type[AsherahError]
    advice: str
    retryable: bool = False


# By text, whatever the status: some Vault versions answer 500 where others answer 400. The first that fits counts.
_RULES = (
    _Rule("namespace not found", ConfigurationError, ": check VAULT_NAMESPACE ({namespace!r})"),
    _Rule("no handler for route", ConfigurationError, _NO_ENGINE),
    _Rule("unsupported path", ConfigurationError, _NO_ENGINE),
    _Rule("unsupported operation", ConfigurationError, _NO_ENGINE),
    _Rule(
        "encryption key not found",
        KmsKeyNotFoundError,
        ": Transit key '{key}' not found at '{mount}/'. Check VAULT_TRANSIT_KEY, VAULT_TRANSIT_MOUNT, VAULT_NAMESPACE",
    ),
    _Rule(
        "soft-deleted key",
        KmsKeyNotFoundError,
        ": Transit key '{key}' was deleted; restore it at {mount}/keys/{key}/soft-delete-restore",
    ),
    _Rule("no prefix", KmsCiphertextError, f": {_FOREIGN}"),
    _Rule("could not decode base64", KmsCiphertextError, f": {_FOREIGN}"),
    _Rule("invalid ciphertext length", KmsCiphertextError, f": {_FOREIGN}"),
    _Rule("missing ciphertext", KmsCiphertextError, f": {_FOREIGN}"),
    _Rule(
        "message authentication failed",
        KmsCiphertextError,
        ": the wrapped key is damaged, or was wrapped by another Transit key, in another namespace, with associated "
        "data, or before Transit key '{key}' was deleted and created again",
    ),
    _Rule(
        "disallowed by policy (too old)",
        KmsCiphertextError,
        ": min_decryption_version was raised above this key record; lower it or re-wrap",
    ),
    _Rule(
        "min available version",
        KmsCiphertextError,
        ": the version of Transit key '{key}' that wrapped this key was trimmed; restore it from a backup",
    ),
    _Rule(
        "version is too new",
        KmsCiphertextError,
        ": this node does not know the newest version of Transit key '{key}' yet; try again. If it stays so, Vault was "
        "restored from before the rotation",
        retryable=True,
    ),
    _Rule(
        "not supported for key type",
        ConfigurationError,
        ": use a Transit key of type aes256-gcm96 or chacha20-poly1305 (VAULT_TRANSIT_KEY)",
    ),
    _Rule(
        "for key derivation",
        ConfigurationError,
        ": Transit key '{key}' is a derived one; use one made without 'derived' (VAULT_TRANSIT_KEY)",
    ),
    _Rule("Vault is sealed", KmsUnavailableError, " (VAULT_ADDR={addr}); unseal it", retryable=True),
    _Rule("Vault is not initialised", KmsUnavailableError, " (VAULT_ADDR={addr})", retryable=True),
    _Rule("rate limit quota exceeded", KmsUnavailableError, "; try again later, or raise the quota", retryable=True),
    _Rule("active cluster node not found", KmsUnavailableError, "; Vault has no leader now", retryable=True),
    _Rule(
        "internal error",
        KmsUnavailableError,
        " (the Vault operator should look at audit devices)",
        retryable=True,
    ),
)
_POLICY = ". Check: vault token capabilities {mount}/{operation}/{key}; key and mount exist; namespace"
_TOKEN = (
    ". The token is expired or revoked; VAULT_AUTH_METHOD=token cannot renew it: set a new VAULT_TOKEN. With an older "
    "Vault it may also lack the right" + _POLICY
)


def refusal(answer: Answer, operation: Operation, settings: VaultSettings, sent: str) -> AsherahError:
    """Explain an answer that is no success.

    Args:
        answer: The answer.
        operation: What was asked.
        settings: How it was asked.
        sent: What was sent; it is not repeated, should the answer quote it.

    Returns:
        The error to raise.
    """
    if 300 <= answer.status < 400:  # noqa: PLR2004 # HTTP's class of redirects
        return _redirected(answer, operation)
    if answer.status == 204:  # noqa: PLR2004 # No Content: how engines that store things answer
        return _stored(operation, settings)
    texts = _errors(answer.body)
    if texts is None:
        return not_from_vault(operation, answer.status)
    said = _said(texts, (settings.token, sent))
    rule = next((rule for rule in _RULES if rule.text in said), None) or _by_status(answer.status, said)
    advice = rule.advice.format(
        mount=settings.mount,
        key=settings.key,
        namespace=settings.namespace or "",
        addr=settings.addr,
        operation=operation,
    )
    message = f"Vault Transit {operation} failed: {said or f'HTTP {answer.status}'}{advice}"
    kind = rule.error
    if issubclass(kind, KmsError):
        return kind(message, retryable=rule.retryable, operation=operation, status=answer.status)
    return kind(message)


def members(body: object) -> Mapping[str, object]:
    """Return the members of a JSON object; none of anything else.

    Args:
        body: Parsed JSON.

    Returns:
        The members.
    """
    return cast("Mapping[str, object]", body) if isinstance(body, dict) else {}


def not_from_vault(operation: Operation, status: int) -> KmsUnavailableError:
    """Say that something else answered, without quoting it: it may repeat what it was sent.

    Args:
        operation: What was asked.
        status: The HTTP status.

    Returns:
        The error to raise.
    """
    return KmsUnavailableError(
        f"Vault Transit {operation} failed: answer is not from Vault (proxy or wrong port?); HTTP {status}",
        retryable=status < 400 or _is_transient(status),  # noqa: PLR2004 # HTTP's first class of errors
        operation=operation,
        status=status,
    )


def foreign_ciphertext(reason: str = _FOREIGN) -> KmsCiphertextError:
    """Refuse a blob that no Transit engine made, without asking Vault.

    Args:
        reason: What is wrong with it.

    Returns:
        The error to raise.
    """
    return KmsCiphertextError(
        f"Vault Transit decrypt: {reason}; check that KMS names the service that wrapped this key",
        operation="decrypt",
    )


def _redirected(answer: Answer, operation: Operation) -> KmsUnavailableError:
    # The host only: the rest may hold anything.
    host = re.match(r"https?://((?:[A-Za-z0-9.-]{1,255}|\[[0-9A-Fa-f:.]+\])(?::[0-9]+)?)(?:/|$)", answer.location)
    return KmsUnavailableError(
        f"Vault Transit {operation} failed: redirected (HTTP {answer.status}) to "
        f"{repr(host[1]) if host else 'another address'}; redirects are not followed, since they would carry the token "
        "and the system key there. Set VAULT_ADDR to a node or load balancer that answers itself",
        retryable=True,
        operation=operation,
        status=answer.status,
    )


def _stored(operation: Operation, settings: VaultSettings) -> ConfigurationError:
    # Measured with kv and cubbyhole: any path may be written there, and what was sent is kept.
    path = f"{settings.mount}/{operation}/{settings.key}"
    return ConfigurationError(
        f"Vault Transit {operation} failed: HTTP 204{_NO_ENGINE.format(mount=settings.mount)}. The engine there has "
        f"probably stored what was sent: delete '{path}' in it"
    )


def _by_status(status: int, said: str) -> _Rule:
    if status == 403:  # noqa: PLR2004 # Forbidden
        # OpenBao tells a policy's refusal from a dead token by this form; newer Vaults by "invalid token".
        if re.match("[0-9]+ errors? occurred", said) and "invalid token" not in said:
            return _Rule("", KmsPermissionError, _POLICY)
        return _Rule("", KmsAuthError, _TOKEN)
    if status == 404:  # noqa: PLR2004 # Not Found
        return _Rule("", ConfigurationError, ": nothing is there; check the path in VAULT_ADDR={addr}")
    return _Rule("", KmsUnavailableError, f" (HTTP {status})" if said else "", retryable=_is_transient(status))


def _is_transient(status: int) -> bool:
    return status >= 500 or status in _TRANSIENT  # noqa: PLR2004 # HTTP's class of server errors


def _errors(body: object) -> list[str] | None:
    """Return the texts of an error answer of Vault's, None if it is not one."""
    errors = members(body).get("errors")
    if not isinstance(errors, list):
        return None
    return [str(error) for error in cast("list[object]", errors)]


def _said(texts: list[str], secrets: tuple[str, ...]) -> str:
    """Return Vault's own words in one line, without anything that was sent."""
    said = " ".join("; ".join(texts).replace("* ", "").split())
    for secret in secrets:
        said = said.replace(secret, "…")
    return said if len(said) <= _QUOTED else said[: _QUOTED - 1] + "…"
