# SPDX-License-Identifier: Apache-2.0
"""What a real server refuses, and what we make of it."""

from __future__ import annotations

import base64
import socket
import time
from typing import TYPE_CHECKING

import hvac.exceptions
import pytest

from sa_asherah.errors import (
    ConfigurationError,
    KmsAuthError,
    KmsCiphertextError,
    KmsKeyNotFoundError,
    KmsPermissionError,
    KmsUnavailableError,
    UsageError,
)
from sa_asherah.kms.vault import VaultTransitKMS
from sa_asherah.kms.vault.settings import VaultOptions
from tests.integration.conftest import Access
from tests.servers.openbao import OpenBao, SealableOpenBao

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = bytes(range(32))

pytestmark = pytest.mark.usefixtures("openbao")  # which skips where there is no OpenBao


@pytest.fixture(scope="module")
def sealable() -> Iterator[SealableOpenBao]:
    """A server that may be sealed; whoever seals it unseals it."""
    with SealableOpenBao() as server:
        yield server


def test_policy_denial(access: Access) -> None:
    reader = access.server.token(f'path "{access.mount}/decrypt/{access.key}" {{ capabilities = ["update"] }}')
    error = access.failure(KmsPermissionError, lambda: access.kms(token=reader).encrypt_key(KEY), tokens=(reader,))
    assert str(error) == (
        "Vault Transit encrypt failed: 1 error occurred: permission denied. Check: vault token capabilities "
        f"{access.mount}/encrypt/{access.key}; key and mount exist; namespace"
    )
    assert (error.retryable, error.operation, error.status) == (False, "encrypt", 403)


@pytest.mark.parametrize("change", [{"mount": "nowhere"}, {"key": "mistyped"}])
def test_wrong_mount_or_key_without_the_right_to_see_it(access: Access, change: VaultOptions) -> None:
    error = access.failure(KmsPermissionError, lambda: access.kms(**change).encrypt_key(KEY))
    assert str(error).startswith("Vault Transit encrypt failed: 1 error occurred: permission denied. Check: ")


def test_missing_key_is_not_created(access: Access) -> None:
    update_only = access.server.token(f'path "{access.mount}/encrypt/*" {{ capabilities = ["update"] }}')
    access.failure(KmsPermissionError, lambda: access.kms(token=update_only, key="mistyped").encrypt_key(KEY))
    with pytest.raises(hvac.exceptions.InvalidPath):
        access.server.root.secrets.transit.read_key("mistyped", mount_point=access.mount)


def test_unknown_and_revoked_token(access: Access) -> None:
    unknown = "s.abcdefghijklmnopqrstuvwx"
    error = access.failure(
        KmsAuthError, lambda: access.kms(token=unknown).decrypt_key(b"vault:v1:AAAA"), tokens=(unknown,)
    )
    assert str(error).startswith("Vault Transit decrypt failed: permission denied. ")
    assert "token is expired or revoked; VAULT_AUTH_METHOD=token cannot renew it" in str(error)
    assert (error.retryable, error.operation, error.status) == (False, "decrypt", 403)
    kms = access.kms()
    kms.encrypt_key(KEY)
    access.server.root.auth.token.revoke(access.token)
    access.failure(KmsAuthError, lambda: kms.encrypt_key(KEY))


def test_used_up_and_expired_token(access: Access) -> None:
    once = access.kms(token=access.server.transit_token(access.mount, access.key, num_uses=1))
    blob = once.encrypt_key(KEY)
    access.failure(KmsAuthError, lambda: once.decrypt_key(blob))
    brief = access.server.transit_token(access.mount, access.key, ttl="1s")
    kms = access.kms(token=brief)
    with pytest.raises(KmsAuthError):
        _call_for_ten_seconds(kms)
    access.failure(KmsAuthError, lambda: kms.encrypt_key(KEY), tokens=(brief,))


def test_missing_key_on_decrypt(access: Access) -> None:
    token = access.server.transit_token(access.mount, "absent")
    error = access.failure(
        KmsKeyNotFoundError,
        lambda: access.kms(token=token, key="absent").decrypt_key(b"vault:v1:AAAA"),
        tokens=(token,),
    )
    assert f"Transit key 'absent' not found at '{access.mount}/'" in str(error)
    assert (error.retryable, error.status) == (False, 400)


def test_missing_key_on_encrypt_where_the_mount_creates_none(access: Access) -> None:
    access.configure("config/keys", disable_upsert=True)
    kms = access.kms(token=access.server.root_token, key="absent")
    assert "Transit key 'absent' not found at" in str(access.failure(KmsKeyNotFoundError, lambda: kms.encrypt_key(KEY)))


@pytest.mark.parametrize(
    "blob", [b"", bytes(range(60, 120)), b"\xff\xfe", b"AQICAHh", b"vault:vx:AAAA", b"VAULT:v1:AAAA"]
)
def test_foreign_blob_is_refused_without_asking(access: Access, blob: bytes, closed_port: int) -> None:
    kms = access.kms(addr=f"http://127.0.0.1:{closed_port}")
    error = access.failure(KmsCiphertextError, lambda: kms.decrypt_key(blob))
    assert str(error).startswith("Vault Transit decrypt: ")
    assert (error.retryable, error.status) == (False, None)


def test_texts_for_foreign_blobs(access: Access) -> None:
    error = access.failure(KmsCiphertextError, lambda: access.kms().decrypt_key(b"\xff" * 60))
    assert str(error).startswith("Vault Transit decrypt: blob is not valid UTF-8")
    error = access.failure(KmsCiphertextError, lambda: access.kms().decrypt_key(b"AQICAHh"))
    assert "not a Vault Transit ciphertext (encrypted by another KMS?)" in str(error)


@pytest.mark.parametrize("blob", [b"vault:v1:", b"vault:v1:?!", b"vault:v1:AAAA"])
def test_blob_that_vault_calls_no_ciphertext(access: Access, blob: bytes) -> None:
    error = access.failure(KmsCiphertextError, lambda: access.kms().decrypt_key(blob))
    assert "not a Vault Transit ciphertext (encrypted by another KMS?)" in str(error)
    assert error.status == 400


def test_damaged_blob_and_other_key(access: Access) -> None:
    kms, blob = access.kms(), access.kms().encrypt_key(KEY)
    damaged = blob[:40] + (b"A" if blob[40:41] != b"A" else b"B") + blob[41:]
    error = access.failure(KmsCiphertextError, lambda: kms.decrypt_key(damaged), damaged.decode())
    assert str(error).startswith("Vault Transit decrypt failed: cipher: message authentication failed: ")
    for cause in ("damaged", "another Transit key", "another namespace", "deleted and created again"):
        assert cause in str(error)
    other = Access.made_on(access.server)
    access.failure(KmsCiphertextError, lambda: other.kms().decrypt_key(blob), blob.decode())


def test_key_created_again_under_the_same_name(access: Access) -> None:
    blob = access.kms().encrypt_key(KEY)
    access.configure(f"keys/{access.key}/config", deletion_allowed=True)
    access.server.root.secrets.transit.delete_key(access.key, mount_point=access.mount)
    access.failure(KmsKeyNotFoundError, lambda: access.kms().decrypt_key(blob))
    access.configure(f"keys/{access.key}")
    access.failure(KmsCiphertextError, lambda: access.kms().decrypt_key(blob))


def test_soft_deleted_key(access: Access) -> None:
    blob = access.kms().encrypt_key(KEY)
    access.server.root.adapter.delete(f"/v1/{access.mount}/keys/{access.key}/soft-delete")
    error = access.failure(KmsKeyNotFoundError, lambda: access.kms().decrypt_key(blob))
    assert f"{access.mount}/keys/{access.key}/soft-delete-restore" in str(error)
    access.configure(f"keys/{access.key}/soft-delete-restore")
    assert access.kms().decrypt_key(blob) == KEY


def test_raised_min_decryption_version_and_trim(access: Access) -> None:
    kms, path = access.kms(), f"keys/{access.key}"
    blob = kms.encrypt_key(KEY)
    access.configure(f"{path}/rotate")
    access.configure(f"{path}/config", min_decryption_version=2)
    error = access.failure(KmsCiphertextError, lambda: kms.decrypt_key(blob))
    assert "min_decryption_version was raised above this key record; lower it or re-wrap" in str(error)
    access.configure(f"{path}/config", min_decryption_version=1)
    assert kms.decrypt_key(blob) == KEY
    access.configure(f"{path}/config", min_decryption_version=2, min_encryption_version=2)
    access.configure(f"{path}/trim", min_available_version=2)
    access.failure(KmsCiphertextError, lambda: kms.decrypt_key(blob))


def test_version_that_the_server_does_not_know_yet(access: Access) -> None:
    blob = access.kms().encrypt_key(KEY).replace(b":v1:", b":v7:")
    error = access.failure(KmsCiphertextError, lambda: access.kms().decrypt_key(blob))
    assert error.retryable
    assert "version is too new" in str(error)


def test_blob_that_holds_no_system_key(access: Access) -> None:
    short = base64.b64encode(b"short").decode()
    blob = access.ask("encrypt", plaintext=short)["ciphertext"]
    error = access.failure(KmsCiphertextError, lambda: access.kms().decrypt_key(blob.encode()), short)
    assert "holds 5 bytes instead of a system key of 32" in str(error)


def test_system_key_of_another_size(access: Access) -> None:
    access.failure(UsageError, lambda: access.kms().encrypt_key(bytes(31)))


@pytest.mark.parametrize("options", [{"type": "ed25519"}, {"derived": True}])
def test_key_of_a_type_that_does_not_fit(openbao: OpenBao, options: dict[str, object]) -> None:
    access = Access.made_on(openbao, **options)
    error = access.failure(ConfigurationError, lambda: access.kms().encrypt_key(KEY))
    assert "VAULT_TRANSIT_KEY" in str(error)


def test_missing_namespace_and_engine_as_root(access: Access) -> None:
    root = access.server.root_token
    error = access.failure(ConfigurationError, lambda: access.kms(token=root, namespace="absent").encrypt_key(KEY))
    assert str(error) == "Vault Transit encrypt failed: namespace not found: check VAULT_NAMESPACE ('absent')"
    error = access.failure(ConfigurationError, lambda: access.kms(token=root, mount="absent").encrypt_key(KEY))
    assert ": no Transit engine at 'absent/' (VAULT_TRANSIT_MOUNT)" in str(error)
    error = access.failure(ConfigurationError, lambda: access.kms(token=root, mount="sys").encrypt_key(KEY))
    assert ": no Transit engine at 'sys/' (VAULT_TRANSIT_MOUNT)" in str(error)


def test_engine_that_stores_what_it_is_sent(access: Access) -> None:
    kms = access.kms(token=access.server.root_token, mount="cubbyhole")
    error = access.failure(ConfigurationError, lambda: kms.encrypt_key(KEY))
    assert "no Transit engine at 'cubbyhole/'" in str(error)
    assert f"delete 'cubbyhole/encrypt/{access.key}'" in str(error)
    access.server.root.adapter.delete(f"/v1/cubbyhole/encrypt/{access.key}")


def test_wrong_path_in_the_address(access: Access) -> None:
    kms = access.kms(addr=f"{access.server.addr}/vault")
    assert "check the path in VAULT_ADDR" in str(access.failure(ConfigurationError, lambda: kms.encrypt_key(KEY)))


def test_quota(access: Access) -> None:
    quota = f"/v1/sys/quotas/rate-limit/{access.mount}"
    access.server.root.adapter.post(quota, json={"path": f"{access.mount}/", "rate": 0.01})
    try:
        kms = access.kms(deadline=0.5)
        kms.encrypt_key(KEY)
        error = access.failure(KmsUnavailableError, lambda: kms.encrypt_key(KEY))
    finally:
        access.server.root.adapter.delete(quota)
    assert (error.retryable, error.status) == (True, 429)
    assert "rate limit quota exceeded" in str(error)


def test_sealed_and_unsealed_again(sealable: SealableOpenBao) -> None:
    access = Access.made_on(sealable)
    kms = access.kms(deadline=0.5)
    blob = kms.encrypt_key(KEY)
    sealable.seal()
    try:
        error = access.failure(KmsUnavailableError, lambda: kms.decrypt_key(blob), blob.decode())
    finally:
        sealable.unseal()
    assert str(error) == f"Vault Transit decrypt failed: Vault is sealed (VAULT_ADDR={sealable.addr}); unseal it"
    assert (error.retryable, error.status) == (True, 503)
    assert kms.decrypt_key(blob) == KEY


def test_not_initialised() -> None:
    with SealableOpenBao(initialise=False) as server:
        access = Access(server, "transit", "asherah-master", "s.not-yet-a-token")
        error = access.failure(KmsUnavailableError, lambda: access.kms(deadline=0.5).encrypt_key(KEY))
    assert str(error) == f"Vault Transit encrypt failed: Vault is not initialised (VAULT_ADDR={server.addr})"
    assert error.retryable


def test_broken_audit_device() -> None:
    with socket.create_server(("127.0.0.1", 0)) as log:
        options = {"address": f"127.0.0.1:{log.getsockname()[1]}", "socket_type": "tcp", "write_timeout": "200ms"}
        with SealableOpenBao(audit=[{"type": "socket", "path": "to-socket", "options": options}]) as server:
            access = Access.made_on(server)
            assert access.kms().encrypt_key(KEY)
            for _ in range(2):  # one to see whether it answers, one for the lines
                log.accept()[0].close()
            log.close()
            error = access.failure(KmsUnavailableError, lambda: access.kms(deadline=2).encrypt_key(KEY))
            assert server.health() == 200
    assert "internal error (the Vault operator should look at audit devices)" in str(error)
    assert (error.retryable, error.status) == (True, 500)


def _call_for_ten_seconds(kms: VaultTransitKMS) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        kms.encrypt_key(KEY)
        time.sleep(0.02)
