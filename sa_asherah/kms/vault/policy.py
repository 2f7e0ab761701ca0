# SPDX-License-Identifier: Apache-2.0
"""The smallest Vault policies, as text for `vault policy write`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sa_asherah.kms.vault.settings import checked_key, checked_mount

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["policies"]

_JOBS = {
    "application": "A process that makes system keys when they are due: `KMS=vault` and nothing else.",
    "application-decrypt-only": "A process with ASHERAH_CREATE_SYSTEM_KEYS=0: it never wraps a key.",
    "officer": "`sa-asherah rotate`: makes system keys ahead of time.",
    "rewrap": "`sa-asherah vault rewrap`: brings system keys to the newest version of the Transit key.",
}
_UPDATE_ONLY = "# Never `create`: Vault would make a new key for a mistyped name."
_HARDENING = {
    "one at a time": '# denied_parameters   = { "batch_input" = [] }         # hardening: one key for each call',
    "bound": '# required_parameters = ["associated_data"]            # hardening: nothing without VAULT_TRANSIT_AAD=1',
}


def policies(mount: str, key: str, *, bind_context: bool = False, comments: bool = True) -> Mapping[str, str]:
    """Write the smallest policy for each job.

    Each grants `update` alone: whoever may also `create` makes a new Transit key by mistyping a name. None grants
    reading, rotating, exporting or deleting the key; that is for who administers Vault. Renewing a token and asking for
    its capabilities is granted by Vault's own policy `default`.

    Args:
        mount: Where the Transit engine is mounted, `VAULT_TRANSIT_MOUNT`.
        key: Name of the Transit key, `VAULT_TRANSIT_KEY`.
        bind_context: Whether the keys are wrapped with associated data (`VAULT_TRANSIT_AAD=1`): Transit cannot rewrap
            those, so that the job decrypts and encrypts.
        comments: Whether to add what each policy is for, and lines of hardening to be taken by removing a `#`.

    Returns:
        The policies by the name of their job: `application`, `application-decrypt-only`, `officer`, `rewrap`.

    Raises:
        ConfigurationError: Mount or key could stand for other paths, too.
    """
    # Neither holds a quote, nor `*` or `+`, which stand for other paths in a policy.
    mount, key = checked_mount(mount.strip("/")), checked_key(key)
    operations = {
        "application": ("encrypt", "decrypt"),
        "application-decrypt-only": ("decrypt",),
        "officer": ("encrypt", "decrypt"),
        "rewrap": ("encrypt", "decrypt") if bind_context else ("rewrap", "decrypt"),
    }
    hardening = {"encrypt": [_HARDENING["one at a time"]]}
    if bind_context:
        hardening["encrypt"].append(_HARDENING["bound"])
    texts: dict[str, str] = {}
    for job, allowed in operations.items():
        lines = [f"# {_JOBS[job]}", _UPDATE_ONLY] if comments else []
        for operation in allowed:
            lines += _rule(f"{mount}/{operation}/{key}", hardening.get(operation, []) if comments else [])
        texts[job] = "\n".join(lines) + "\n"
    return texts


def _rule(path: str, hardening: list[str]) -> list[str]:
    if not hardening:
        return [f'path "{path}" {{ capabilities = ["update"] }}']
    return [f'path "{path}" {{', '  capabilities = ["update"]', *(f"  {line}" for line in hardening), "}"]
