# SPDX-License-Identifier: Apache-2.0
"""Asks the key service, for `online`: does it wrap and open, and is Vault set up as it should be?"""

from __future__ import annotations

import hmac
import os
from typing import TYPE_CHECKING, cast

from sa_asherah.core import aead
from sa_asherah.doctor.findings import Place
from sa_asherah.errors import KmsError
from sa_asherah.kms.succession import Succession

if TYPE_CHECKING:
    from sa_asherah.core.ports import KeyManagementService
    from sa_asherah.doctor.findings import Findings
    from sa_asherah.kms.vault.transit import VaultTransitKMS

__all__ = ["examine_service"]

_CODES = {"error": "vault-error", "warning": "vault"}


def examine_service(service: KeyManagementService, findings: Findings, *, creates: bool, has_keys: bool) -> None:
    """Look at the key service.

    Args:
        service: The service.
        findings: Where to note what is wrong.
        creates: Whether the application makes system keys, and so may wrap.
        has_keys: Whether the service opened a system key: only then is a trial key wrapped, since with a mistyped
            name of the master key and too many rights that would make a new master key.
    """
    current = service.current if isinstance(service, Succession) else service
    if type(current).__module__.startswith("sa_asherah.kms.vault"):
        from sa_asherah.kms.vault.check import check  # noqa: PLC0415 # hvac takes 0.2 s to import

        for found in check(cast("VaultTransitKMS", current), creates=creates):
            if found.level in _CODES:
                findings.add(_CODES[found.level], Place(""), f"{found.subject}: {found.text}")
    if not creates or not has_keys:
        why = "no system key opened" if creates else "this process makes no system keys"
        findings.not_checked.append(f"no trial key was wrapped: {why}")
        return
    key, reason = os.urandom(aead.KEY_SIZE), "another key came back"
    try:
        is_same = hmac.compare_digest(current.decrypt_key(current.encrypt_key(key)), key)
    except KmsError as error:
        is_same, reason = False, str(error)
    if not is_same:
        findings.add("canary-failed", Place(""), reason)
