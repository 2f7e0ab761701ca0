# SPDX-License-Identifier: Apache-2.0
"""What each printed policy allows and denies on a real server."""

from __future__ import annotations

import base64
import os
import re
from itertools import product
from typing import TYPE_CHECKING

import hvac.exceptions
import pytest

from sa_asherah.errors import KmsPermissionError
from sa_asherah.kms.vault import VaultTransitKMS
from sa_asherah.kms.vault.policy import policies

if TYPE_CHECKING:
    from tests.integration.conftest import Access

KEY = os.urandom(32)
PLAINTEXT = base64.b64encode(KEY).decode()
MAY = {
    "application": {"encrypt", "decrypt"},
    "application-decrypt-only": {"decrypt"},
    "officer": {"encrypt", "decrypt"},
    "rewrap": {"rewrap", "decrypt"},
}


def holder(access: Access, job: str, *, hardened: bool = False) -> Access:
    """Return the access of somebody who has this job's policy only; hardened: with its lines of hardening, too."""
    text = policies(access.mount, access.key)[job]
    if hardened:
        assert "hardening" in text
        text = re.sub(r"# (\w+ *=)", r"\1", text)
    return type(access)(access.server, access.mount, access.key, access.server.token(text))


def is_allowed(access: Access, operation: str, **body: object) -> bool:
    """Ask Transit for an operation on the key; say whether the policy lets it pass."""
    client = access.server.client(access.token)
    try:
        client.adapter.post(f"/v1/{access.mount}/{operation}", json=body)
    except hvac.exceptions.Forbidden:
        return False
    return True


@pytest.mark.parametrize(("job", "operation"), sorted(product(MAY, ["decrypt", "encrypt", "rewrap"])))
def test_each_job_may_do_its_own_operations_only(access: Access, job: str, operation: str) -> None:
    blob = access.kms().encrypt_key(KEY).decode()
    body = {"plaintext": PLAINTEXT} if operation == "encrypt" else {"ciphertext": blob}
    allowed = is_allowed(holder(access, job), f"{operation}/{access.key}", **body)
    assert allowed is (operation in MAY[job])


@pytest.mark.parametrize("job", sorted(MAY))
def test_no_job_administers_the_key_or_reaches_another(access: Access, job: str) -> None:
    access.configure("keys/other")
    own = holder(access, job)
    assert not is_allowed(own, f"keys/{access.key}/rotate")
    assert not is_allowed(own, f"keys/{access.key}/config", deletion_allowed=True)
    assert not is_allowed(own, f"datakey/plaintext/{access.key}")
    assert not is_allowed(own, "encrypt/other", plaintext=PLAINTEXT)
    assert not is_allowed(own, "encrypt/new", plaintext=PLAINTEXT)  # it would make the key `new`
    client = access.server.client(own.token)
    for path in (f"keys/{access.key}", f"export/encryption-key/{access.key}"):
        with pytest.raises(hvac.exceptions.Forbidden):
            client.adapter.get(f"/v1/{access.mount}/{path}")


@pytest.mark.parametrize("job", ["application", "officer"])
def test_the_service_wraps_and_unwraps_under_the_policy(access: Access, job: str) -> None:
    for hardened in (False, True):
        kms = holder(access, job, hardened=hardened).kms()
        assert kms.decrypt_key(kms.encrypt_key(KEY)) == KEY


def test_an_application_that_may_only_decrypt_unwraps_many_at_once_and_wraps_none(access: Access) -> None:
    blobs = [access.kms().encrypt_key(KEY) for _ in range(3)]
    kms = holder(access, "application-decrypt-only").kms()
    assert kms.decrypt_keys(blobs) == [KEY] * 3
    with pytest.raises(KmsPermissionError):
        kms.encrypt_key(KEY)


def test_hardening_denies_many_at_once_when_encrypting(access: Access) -> None:
    many = {"batch_input": [{"plaintext": PLAINTEXT}]}
    assert is_allowed(holder(access, "application"), f"encrypt/{access.key}", **many)
    assert not is_allowed(holder(access, "application", hardened=True), f"encrypt/{access.key}", **many)


def test_the_rewrap_job_brings_a_key_to_the_newest_version(access: Access) -> None:
    old = access.kms().encrypt_key(KEY)
    access.configure(f"keys/{access.key}/rotate")
    kms = holder(access, "rewrap").kms()
    new = kms.rewrap_key(old)
    assert (old[:9], new[:9]) == (b"vault:v1:", b"vault:v2:")
    assert kms.decrypt_key(new) == KEY


def test_with_associated_data_the_rewrap_job_decrypts_and_encrypts(access: Access) -> None:
    bound = policies(access.mount, access.key, bind_context=True)
    hardened = re.sub(r"# (\w+ *=)", r"\1", bound["application"])
    application = _bound_kms(access, hardened)
    old = application.encrypt_key(KEY)
    assert not is_allowed(
        type(access)(access.server, access.mount, access.key, access.server.token(hardened)),
        f"encrypt/{access.key}",
        plaintext=PLAINTEXT,  # without associated data
    )
    access.configure(f"keys/{access.key}/rotate")
    new = _bound_kms(access, bound["rewrap"]).rewrap_key(old)
    assert (old[:9], new[:9]) == (b"vault:v1:", b"vault:v2:")
    assert application.decrypt_key(new) == KEY


def _bound_kms(access: Access, policy: str) -> VaultTransitKMS:
    return VaultTransitKMS(
        addr=access.server.addr,
        key=access.key,
        mount=access.mount,
        token=access.server.token(policy),
        bind_context=True,
        service="records",
        product="clinic",
    )
