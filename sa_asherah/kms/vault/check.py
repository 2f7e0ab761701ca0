# SPDX-License-Identifier: Apache-2.0
"""The preflight behind `sa-asherah vault check`: what can be known before the first key. It wraps and opens nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from sa_asherah.errors import AsherahError, KmsPermissionError
from sa_asherah.kms.vault.refusal import members, refusal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sa_asherah.kms.vault.transit import VaultTransitKMS

__all__ = ["Finding", "check"]

_OK, _NOT_FOUND = 200, 404
_SERVING = {200: "active", 429: "standby", 472: "disaster recovery secondary", 473: "performance standby"}
_BROKEN = {
    501: "not initialised: the Vault operator must run `vault operator init`",
    503: "sealed: the Vault operator must unseal it",
}
_ENCRYPTING = frozenset({"aes128-gcm96", "aes256-gcm96", "chacha20-poly1305", "xchacha20-poly1305"})


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: `ok`, `warning` (works, but should not stay so) or `error` (does not work).
        subject: What was looked at: a setting, an address, a path of Vault's, or `token`.
        text: What is the case and what to do; no secrets.
    """

    level: Literal["ok", "warning", "error"]
    subject: str
    text: str


def check(kms: VaultTransitKMS, *, creates: bool = True) -> list[Finding]:
    """Look at settings, nodes, token, rights and the Transit key, as far as the token may.

    Nothing is encrypted on trial: that could make a new Transit key.

    Args:
        kms: The service.
        creates: Whether it is to make system keys; not so with `ASHERAH_CREATE_SYSTEM_KEYS=0`.

    Returns:
        The findings in the order of the questions; where one of them is decisive, no more are asked.
    """
    return list(_findings(kms, creates=creates))


def _findings(kms: VaultTransitKMS, *, creates: bool) -> Iterator[Finding]:
    yield from _settings(kms)
    nodes = [_node(kms, node) for node in kms.settings.nodes]
    serves = any(finding.level == "ok" for finding in nodes)
    for finding in nodes:  # one of several may be down
        yield Finding("warning", finding.subject, finding.text) if serves and finding.level == "error" else finding
    if not serves:
        return
    try:
        yield from _rights(kms, creates=creates)
    except AsherahError as error:
        yield Finding("error", "token", str(error))


def _settings(kms: VaultTransitKMS) -> Iterator[Finding]:
    settings, credentials = kms.settings, kms.settings.credentials
    if not settings.is_encrypted:
        yield Finding("warning", "VAULT_ADDR", "plain http: the system keys travel in clear text. Use https")
    if settings.skip_verify:
        yield Finding(
            "warning",
            "VAULT_SKIP_VERIFY",
            "Vault's certificate is not verified: whoever answers can read the system keys. Set VAULT_CACERT instead",
        )
    if settings.bind_context:
        yield Finding(
            "ok",
            "VAULT_TRANSIT_AAD",
            f"wrapped keys open only for service {settings.service!r} and product {settings.product!r}, with this "
            "setting and by this library. It must never change; re-wrapping unwraps and wraps",
        )
    if credentials.secret_id_wrapped:
        yield Finding(
            "warning",
            "VAULT_APPROLE_SECRET_ID_WRAPPED",
            "a wrapped secret id is for one process: a server that forks must log in before it does (preload), or use "
            "a token file of an agent, or kubernetes. Give the role a token_period, so that the token lives on",
        )
    elif credentials.auth_method == "approle" and credentials.secret_id:
        yield Finding(
            "ok",
            "VAULT_APPROLE_SECRET_ID",
            "works for several processes, and for longer than token_max_ttl, only if its role has "
            "secret_id_num_uses=0 and secret_id_ttl=0",
        )


def _node(kms: VaultTransitKMS, node: str) -> Finding:
    try:
        status = kms.health(node)
    except AsherahError as error:
        return Finding("error", node, str(error))
    if status in _SERVING:
        return Finding("ok", node, _SERVING[status])
    return Finding("error", node, _BROKEN.get(status, f"answers HTTP {status} to sys/health; is it Vault?"))


def _rights(kms: VaultTransitKMS, *, creates: bool) -> Iterator[Finding]:
    yield from _token(kms)
    mount, key = kms.settings.mount, kms.settings.key
    encrypt, decrypt, read = f"{mount}/encrypt/{key}", f"{mount}/decrypt/{key}", f"{mount}/keys/{key}"
    other = f"{mount}/encrypt/{key}-{os.urandom(4).hex()}"
    export = f"{mount}/export/encryption-key/{key}"
    answer = kms.look("sys/capabilities-self", {"paths": [encrypt, decrypt, read, other, export, "sys/audit"]})
    if answer.status != _OK:
        text = "the token may not ask for its capabilities; Vault's policy `default` allows it"
        yield Finding("warning", "sys/capabilities-self", f"{text}. Rights were not checked")
        return
    rights = members(answer.body)
    yield from _right(encrypt, _capabilities(rights, encrypt), wanted=creates)
    yield from _right(decrypt, _capabilities(rights, decrypt), wanted=True)
    if _capabilities(rights, other) & {"create", "update", "root"}:
        text = f"the token may use every key in '{mount}/', not only '{key}': its policy has `*` or `+` in a path"
        yield Finding("warning", f"{mount}/encrypt/*", text)
    if _capabilities(rights, export) & {"read", "root"}:
        yield Finding("warning", export, "the token may export the Transit key, were it exportable")
    if _capabilities(rights, read) & {"delete", "root"}:
        yield Finding(
            "warning", read, "the token may delete the Transit key, were it deletable: every value is lost then"
        )
    if _capabilities(rights, read) & {"read", "root"}:
        yield from _key(kms, read)
    else:
        yield Finding("ok", read, "the token may not read the key's settings, as it should be; they were not checked")
    if _capabilities(rights, "sys/audit") & {"sudo", "root"}:
        yield from _audit(kms)
    else:
        yield Finding("ok", "sys/audit", "not visible to the token, as it should be; ask for an audit device")


def _token(kms: VaultTransitKMS) -> Iterator[Finding]:
    answer = kms.look("auth/token/lookup-self")
    if answer.status != _OK:
        error = refusal(answer, "check", kms.settings, kms.advice)
        if isinstance(error, KmsPermissionError):
            yield Finding("ok", "token", "is alive and may not look itself up (policy `default`); its life is unknown")
            return
        raise error
    data = members(members(answer.body).get("data"))
    policies, ttl, uses = _words(data.get("policies")), data.get("ttl"), data.get("num_uses")
    if "root" in policies:
        yield Finding(
            "warning", "token", "has the policy root: whoever steals it owns Vault. Use a token of this service's own"
        )
    elif ttl == 0:
        yield Finding("warning", "token", "never expires: whoever steals it keeps it. Use a periodic token or a login")
    if uses:
        yield Finding("warning", "token", f"works for {uses} more calls only; set token_num_uses=0")
    if ttl and kms.settings.credentials.auth_method == "token" and not data.get("renewable"):
        yield Finding("warning", "token", f"ends in {ttl} s and cannot be renewed; use a periodic token or a login")
    names = ", ".join(sorted(policies))
    yield Finding("ok", "token", f"is accepted; policies: {names}; lives for {ttl or 'ever'}{' s' if ttl else ''}")


def _right(path: str, capabilities: frozenset[str], *, wanted: bool) -> Iterator[Finding]:
    if "root" in capabilities:
        yield Finding(
            "warning", path, "the token has the policy root; a mistyped key name makes a new key. Grant `update` only"
        )
    elif "create" in capabilities:
        text = "the token may `create`: a mistyped key name silently makes a new key. Grant `update` only"
        yield Finding("warning", path, text)
    if capabilities & {"update", "root"}:
        text = "allowed" if wanted else "allowed, but not needed: take `update` away (ASHERAH_CREATE_SYSTEM_KEYS=0)"
        yield Finding("ok" if wanted else "warning", path, text)
    elif wanted:
        text = f"denied: the token needs `update`, it has {', '.join(sorted(capabilities)) or 'nothing'}"
        yield Finding(
            "error", path, f"{text}. See `sa-asherah vault policy`; check VAULT_TRANSIT_KEY, VAULT_TRANSIT_MOUNT"
        )
    else:
        yield Finding("ok", path, "denied, as it should be: this process makes no system keys")


def _key(kms: VaultTransitKMS, path: str) -> Iterator[Finding]:
    answer = kms.look(path)
    data = members(members(answer.body).get("data"))
    if answer.status == _NOT_FOUND:
        yield Finding("error", path, f"there is no such key: vault write -f {path}")
        return
    if answer.status != _OK or not data:
        yield Finding("warning", path, str(refusal(answer, "check", kms.settings)))
        return
    lost = {
        "exportable": "is exportable: the key can leave Vault, and that cannot be taken back. Use another key",
        "allow_plaintext_backup": "allows plaintext backups: the key can leave Vault. Guard those backups",
        "deletion_allowed": "may be deleted, and every value with it: vault write {path}/config deletion_allowed=false",
        "soft_deleted": "is deleted: vault write -f {path}/soft-delete-restore",
    }
    for name, text in lost.items():
        if data.get(name):
            yield Finding("error" if name == "soft_deleted" else "warning", path, text.format(path=path))
    if data.get("derived") or data.get("type") not in _ENCRYPTING:
        text = (
            f"is of type {data.get('type')}{', derived' if data.get('derived') else ''}; use aes256-gcm96, not derived"
        )
        yield Finding("error" if data.get("derived") else "warning", path, text)
    version = data.get("latest_version")
    yield Finding("ok", path, f"newest version {version}, opens from version {data.get('min_decryption_version')} on")


def _audit(kms: VaultTransitKMS) -> Iterator[Finding]:
    answer = kms.look("sys/audit")
    devices = members(members(answer.body).get("data"))
    if answer.status == _OK and not devices:
        yield Finding("warning", "sys/audit", "no audit device: nobody can tell afterwards who opened which key")
    elif answer.status == _OK:
        yield Finding("ok", "sys/audit", f"audit devices: {', '.join(sorted(devices))}")


def _capabilities(rights: Mapping[str, object], path: str) -> frozenset[str]:
    return _words(rights.get(path)) - {"deny"}


def _words(found: object) -> frozenset[str]:
    return frozenset(map(str, cast("list[object]", found))) if isinstance(found, list) else frozenset()
