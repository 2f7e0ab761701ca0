# SPDX-License-Identifier: Apache-2.0
"""Why Vault did not do it: from its answers to errors of ours that say what to do next."""

from __future__ import annotations

import math
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
from sa_asherah.kms.vault.failure import TRANSIT, subject

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sa_asherah.kms.vault.connection import Answer
    from sa_asherah.kms.vault.settings import VaultSettings

__all__ = ["foreign_ciphertext", "is_transient", "items", "members", "not_from_vault", "patience", "refusal", "words"]

_QUOTED = 200
_FOREIGN = "not a Vault Transit ciphertext (encrypted by another KMS?)"
_KEY_TYPE = ": use a Transit key of type aes256-gcm96 or chacha20-poly1305 (VAULT_TRANSIT_KEY)"
_NO_ENGINE = ": no Transit engine at '{mount}/' (VAULT_TRANSIT_MOUNT)"
# Besides 5xx: request timeout, precondition failed, too early, too many requests, and Vault's 472 and 473 (standbys).
_TRANSIENT = frozenset({408, 412, 425, 429, 472, 473})
_FINAL, _TO_THE_END = 0.0, math.inf
_LAG_SECONDS = 2.0  # a standby learns of a new version of the key within a third of a second


@dataclass(frozen=True, slots=True)
class _Rule:
    """What a text of Vault's means.

    Attributes:
        text: The text, or a part of it.
        error: What to raise.
        advice: What to say after it.
        patience: Seconds for which to ask again.
        quotes: Whether Vault's own words stand before the advice.
    """

    text: str
    error: type[AsherahError]
    advice: str
    patience: float = _FINAL
    quotes: bool = True


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
        ": the wrapped key is damaged, or was wrapped by another Transit key, in another namespace, with another "
        "VAULT_TRANSIT_AAD, service or product, or before Transit key '{key}' was deleted and created again",
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
        _LAG_SECONDS,
    ),
    _Rule("not supported for key type", ConfigurationError, _KEY_TYPE),
    _Rule("non-AEAD cipher suite", ConfigurationError, _KEY_TYPE),
    _Rule(
        "for key derivation",
        ConfigurationError,
        ": Transit key '{key}' is a derived one; use one made without 'derived' (VAULT_TRANSIT_KEY)",
    ),
    _Rule("illegal base64", KmsUnavailableError, ""),
    _Rule("certificate has expired", KmsAuthError, ": put a new certificate in the place of VAULT_CLIENT_CERT"),
    _Rule("could not load backend configuration", KmsAuthError, ": the Vault operator must configure this method"),
    _Rule("Vault is sealed", KmsUnavailableError, " (VAULT_ADDR={addr}); unseal it", _TO_THE_END),
    _Rule("Vault is not initialised", KmsUnavailableError, " (VAULT_ADDR={addr})", _TO_THE_END),
    _Rule("rate limit quota exceeded", KmsUnavailableError, "; try again later, or raise the quota", _TO_THE_END),
    _Rule("active cluster node not found", KmsUnavailableError, "; Vault has no leader now", _TO_THE_END),
    _Rule(
        "internal error",
        KmsUnavailableError,
        " (the Vault operator should look at audit devices)",
        _TO_THE_END,
    ),
)
_CHECK = ". Check: vault token capabilities {path}; key and mount exist; namespace"
_POLICY = _Rule("", KmsPermissionError, _CHECK)
_DEAD = _Rule(
    "",
    KmsAuthError,
    ". The token is expired or revoked; {hint}. With an older Vault it may also lack the right" + _CHECK,
)
_SERVED = _Rule("", KmsUnavailableError, "")
_NOTHING = _Rule("", ConfigurationError, ": nothing is there; check the path in VAULT_ADDR={addr}")
_REDIRECTED = _Rule(
    "",
    KmsUnavailableError,
    "redirected (HTTP {status}) to {target}; redirects are not followed to an address that VAULT_ADDR does not name, "
    "since they would carry the token and the system key there. Set VAULT_ADDR to all nodes, or to a load balancer "
    "that answers itself",
    _TO_THE_END,
    quotes=False,
)
# Measured with kv and cubbyhole: any path may be written there, and what was sent is kept.
_STORED = _Rule(
    "",
    ConfigurationError,
    "HTTP 204" + _NO_ENGINE + ". The engine there has probably stored what was sent: delete '{path}' in it",
    quotes=False,
)


def refusal(answer: Answer, operation: str, settings: VaultSettings, hint: str = "") -> AsherahError:
    """Explain an answer that is no success.

    Args:
        answer: The answer; what was sent is not repeated, should it quote that.
        operation: What was asked.
        settings: How it was asked.
        hint: Why no other token cured a 403.

    Returns:
        The error to raise.
    """
    rule = _rule(answer)
    advice = rule.advice.format(
        mount=settings.mount,
        key=settings.key,
        namespace=settings.namespace or "",
        addr=answer.node or settings.addr,
        path=f"{settings.mount}/{operation if operation in TRANSIT else 'encrypt'}/{settings.key}",
        status=answer.status,
        target=_host(answer.location),
        hint=hint,
    )
    said = (words(answer.body, answer.secrets) or f"HTTP {answer.status}") if rule.quotes else ""
    message, kind = f"{subject(operation)} failed: {said}{advice}", rule.error
    if issubclass(kind, KmsError):
        return kind(message, retryable=rule.patience > 0, operation=operation, status=answer.status)
    return kind(message)


def patience(answer: Answer) -> float:
    """Tell for how long it makes sense to ask again.

    Args:
        answer: The answer.

    Returns:
        Seconds: 0 for a final answer, infinite for a fault that passes.
    """
    if items(answer) is not None:  # of a batch; each speaks for itself
        return _FINAL
    return _rule(answer).patience


def is_transient(status: int) -> bool:
    """Tell what an HTTP status means if the text that comes with it says nothing.

    Args:
        status: The status.

    Returns:
        Whether the fault may pass.
    """
    return status >= 500 or status in _TRANSIENT  # noqa: PLR2004 # HTTP's class of server errors


def words(body: object, secrets: Sequence[str]) -> str | None:
    """Return Vault's own words in one line.

    Args:
        body: The body of an answer.
        secrets: What they must not repeat.

    Returns:
        The words, without the secrets and cut if they are long; `None` if the body is no error of Vault's.
    """
    said = _said(body)
    if said is None:
        return None
    for secret in secrets:
        said = said.replace(secret, "…")
    return said if len(said) <= _QUOTED else said[: _QUOTED - 1] + "…"


def items(answer: Answer) -> list[Mapping[str, object]] | None:
    """Return the results of a batch, which come with an error status, too.

    Args:
        answer: The answer.

    Returns:
        One object for each item; `None` if it is no answer to a batch.
    """
    results = members(members(answer.body).get("data")).get("batch_results")
    return [members(result) for result in cast("list[object]", results)] if isinstance(results, list) else None


def members(body: object) -> Mapping[str, object]:
    """Return the members of a JSON object; none of anything else.

    Args:
        body: Parsed JSON.

    Returns:
        The members.
    """
    return cast("Mapping[str, object]", body) if isinstance(body, dict) else {}


def not_from_vault(operation: str, status: int) -> KmsUnavailableError:
    """Say that something else answered, without quoting it: it may repeat what it was sent.

    Args:
        operation: What was asked.
        status: The HTTP status.

    Returns:
        The error to raise.
    """
    rule = _stranger(status)
    message = f"{subject(operation)} failed: {rule.advice.format(status=status)}"
    return KmsUnavailableError(message, retryable=rule.patience > 0, operation=operation, status=status)


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


def _rule(answer: Answer) -> _Rule:
    """Decide what an answer means: the one place for it."""
    status = answer.status
    if 300 <= status < 400:  # noqa: PLR2004 # HTTP's class of redirects
        return _REDIRECTED
    if status == 204:  # noqa: PLR2004 # No Content: how engines that store things answer
        return _STORED
    said = _said(answer.body)
    if status < 300 and members(answer.body):  # noqa: PLR2004 # HTTP's class of successes
        return _SERVED
    if said is None:
        return _stranger(status)
    return next((rule for rule in _RULES if rule.text in said), None) or _by_status(status, said)


def _by_status(status: int, said: str) -> _Rule:
    if status == 403:  # noqa: PLR2004 # Forbidden
        # OpenBao tells a policy's refusal from a dead token by this form; newer Vaults by "invalid token".
        return _POLICY if re.match("[0-9]+ errors? occurred", said) and "invalid token" not in said else _DEAD
    if status == 404:  # noqa: PLR2004 # Not Found
        return _NOTHING
    advice = " (HTTP {status})" if said else ""
    return _Rule("", KmsUnavailableError, advice, _TO_THE_END if is_transient(status) else _FINAL)


def _stranger(status: int) -> _Rule:
    passes = status < 400 or is_transient(status)  # noqa: PLR2004 # HTTP's first class of errors
    advice = "answer is not from Vault (proxy or wrong port?); HTTP {status}"
    return _Rule("", KmsUnavailableError, advice, _TO_THE_END if passes else _FINAL, quotes=False)


def _host(location: str) -> str:
    # The host only: the rest may hold anything.
    host = re.match(r"https?://((?:[A-Za-z0-9.-]{1,255}|\[[0-9A-Fa-f:.]+\])(?::[0-9]+)?)(?:/|$)", location)
    return repr(host[1]) if host else "another address"


def _said(body: object) -> str | None:
    errors = members(body).get("errors")
    if not isinstance(errors, list):
        return None
    texts = (str(error) for error in cast("list[object]", errors))
    return " ".join("; ".join(texts).replace("* ", "").split())
