# SPDX-License-Identifier: Apache-2.0
"""The preflight, finding by finding, against a real server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import hvac.exceptions
import pytest

from sa_asherah.kms.vault import VaultTransitKMS
from sa_asherah.kms.vault.check import Finding, check
from tests.integration.conftest import Access, AuditedAccess
from tests.servers.canned import CannedServer
from tests.servers.openbao import OpenBao, SealableOpenBao

CAPABILITIES = 'path "sys/capabilities-self" { capabilities = ["update"] }\n'
LOOKUP = 'path "auth/token/lookup-self" { capabilities = ["read"] }\n'


def token(access: Access, rights: Mapping[str, str] | None = None, **options: Any) -> str:
    """Make a token with Vault's policy `default`'s rights and these; those for encrypt and decrypt are `update`."""
    granted = {"encrypt/{key}": "update", "decrypt/{key}": "update"} | dict(rights or {})
    lines = [
        f'path "{access.mount}/{path.format(key=access.key)}" {{ capabilities = [{_quoted(words)}] }}'
        for path, words in granted.items()
    ]
    return access.server.token(CAPABILITIES + LOOKUP + "\n".join(lines), **options)


def _quoted(words: str) -> str:
    return ", ".join(f'"{word}"' for word in words.split())


def found(kms: VaultTransitKMS, level: str, *, creates: bool = True) -> dict[str, str]:
    """Return subjects and texts of a level."""
    return {finding.subject: finding.text for finding in check(kms, creates=creates) if finding.level == level}


def test_least_rights_have_no_findings_but_plain_http(access: Access) -> None:
    kms = access.kms(token=token(access, ttl="1h"))
    assert list(found(kms, "warning")) == ["VAULT_ADDR"]
    assert found(kms, "error") == {}
    path = f"{access.mount}/%s/{access.key}"
    assert list(found(kms, "ok")) == [
        access.server.addr, "token", path % "encrypt", path % "decrypt", path % "keys", "sys/audit",
    ]  # fmt: skip


def test_nothing_is_encrypted_and_no_key_made(audited: AuditedAccess) -> None:
    root = audited.server.root_token
    assert found(audited.kms(token=root, key="absent"), "error") == {
        f"{audited.mount}/keys/absent": f"there is no such key: vault write -f {audited.mount}/keys/absent"
    }
    with pytest.raises(hvac.exceptions.InvalidPath):
        audited.server.root.secrets.transit.read_key("absent", mount_point=audited.mount)
    assert audited.calls("encrypt") == audited.calls("decrypt") == []


def test_tls_has_no_warning(tls_server: OpenBao) -> None:
    access = Access.made_on(tls_server)
    assert found(access.kms(token=token(access, ttl="1h")), "warning") == {}


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_skip_verify(tls_server: OpenBao) -> None:
    access = Access.made_on(tls_server)
    kms = access.kms(token=token(access, ttl="1h"), ca_cert=None, skip_verify=True)
    assert list(found(kms, "warning")) == ["VAULT_SKIP_VERIFY"]


def test_denied_rights(access: Access) -> None:
    encrypt, decrypt = (f"{access.mount}/{name}/{access.key}" for name in ("encrypt", "decrypt"))
    kms = access.kms(token=token(access, {"encrypt/{key}": "deny"}))
    assert list(found(kms, "error")) == [encrypt]
    assert "`update`, it has nothing" in found(kms, "error")[encrypt]
    assert "VAULT_TRANSIT_KEY" in found(kms, "error")[encrypt]
    assert found(kms, "error", creates=False) == {}
    assert "as it should be" in found(kms, "ok", creates=False)[encrypt]
    kms = access.kms(token=token(access, {"decrypt/{key}": "read"}))
    assert "`update`, it has read" in found(kms, "error")[decrypt]
    assert "take `update` away" in found(access.kms(token=token(access)), "warning", creates=False)[encrypt]


@pytest.mark.parametrize(
    ("rights", "subject", "text"),
    [
        ({"encrypt/{key}": "create update"}, "encrypt/{key}", "a mistyped key name silently makes a new key"),
        ({"encrypt/*": "update"}, "encrypt/*", "may use every key in"),
        ({"export/*": "read"}, "export/encryption-key/{key}", "may export the Transit key"),
        ({"keys/{key}": "delete"}, "keys/{key}", "may delete the Transit key"),
    ],
)
def test_rights_that_are_too_wide(access: Access, rights: dict[str, str], subject: str, text: str) -> None:
    warnings = found(access.kms(token=token(access, rights, ttl="1h")), "warning")
    assert text in warnings.pop(f"{access.mount}/{subject.format(key=access.key)}")
    assert list(warnings) == ["VAULT_ADDR"]


def test_root(access: Access) -> None:
    warnings = found(access.kms(token=access.server.root_token), "warning")
    assert "has the policy root" in warnings["token"]
    assert "Grant `update` only" in warnings[f"{access.mount}/decrypt/{access.key}"]
    assert access.server.root_token not in str(warnings)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"num_uses": 50, "ttl": "1h"}, "more calls only"),
        ({"renewable": False, "ttl": "1h"}, "cannot be renewed"),
    ],
)
def test_tokens_that_end(access: Access, options: dict[str, Any], text: str) -> None:
    assert text in found(access.kms(token=token(access, **options)), "warning")["token"]


def test_tokens_that_are_dead_or_may_not_look(access: Access) -> None:
    errors = found(access.kms(token="s.unknown"), "error")
    assert "The token is expired or revoked; VAULT_AUTH_METHOD=token cannot renew it" in errors["token"]
    mute = access.kms()
    assert "may not look itself up" in found(mute, "ok")["token"]
    assert "Rights were not checked" in found(mute, "warning")["sys/capabilities-self"]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"exportable": True}, "is exportable"),
        ({"allow_plaintext_backup": True}, "allows plaintext backups"),
        ({"deletion_allowed": True}, "may be deleted, and every value with it"),
    ],
)
def test_keys_that_can_get_lost(access: Access, settings: dict[str, bool], text: str) -> None:
    access.configure(f"keys/{access.key}/config", **settings)
    reader = access.kms(token=token(access, {"keys/{key}": "read"}, ttl="1h"))
    path = f"{access.mount}/keys/{access.key}"
    assert text in " ".join(f.text for f in check(reader) if (f.level, f.subject) == ("warning", path))
    assert "newest version 1" in found(reader, "ok")[path]


def test_key_of_a_type_that_does_not_fit(openbao: OpenBao) -> None:
    derived, rsa = Access.made_on(openbao, derived=True), Access.made_on(openbao, type="rsa-2048")
    texts = found(derived.kms(token=openbao.root_token), "error")
    assert "of type aes256-gcm96, derived" in texts[f"{derived.mount}/keys/{derived.key}"]
    texts = found(rsa.kms(token=openbao.root_token), "warning")
    assert "of type rsa-2048" in texts[f"{rsa.mount}/keys/{rsa.key}"]


def test_audit_devices(access: Access, audited: AuditedAccess) -> None:
    assert "no audit device" in found(access.kms(token=access.server.root_token), "warning")["sys/audit"]
    assert "audit devices: " in found(audited.kms(token=audited.server.root_token), "ok")["sys/audit"]


def test_nodes(access: Access, closed_port: int) -> None:
    down = f"http://127.0.0.1:{closed_port}"
    with CannedServer(status=418) as other:
        findings = check(access.kms(addr=f"{down},{other.addr},{access.server.addr}", token=token(access, ttl="1h")))
        levels = {finding.subject: finding.level for finding in findings}
        assert (levels[down], levels[other.addr], levels[access.server.addr]) == ("warning", "warning", "ok")
        assert [finding.level for finding in check(access.kms(addr=f"{down},{other.addr}"))] == [
            "warning",
            "error",
            "error",
        ]
        asked = dict(zip(other.asked, other.received, strict=True))
        assert "X-Vault-Token" not in asked["/v1/sys/health"]


def test_sealed_and_not_initialised() -> None:
    with SealableOpenBao(initialise=False) as server:
        kms = VaultTransitKMS(addr=server.addr, key="k", token="s.x")
        assert "not initialised" in found(kms, "error")[server.addr]
        server.initialise()
        server.seal()
        assert [finding.text for finding in check(kms)][1:] == ["sealed: the Vault operator must unseal it"]


def test_secret_ids_and_context(access: Access, closed_port: int) -> None:
    approle: dict[str, Any] = {"auth_method": "approle", "role_id": "r", "secret_id": "hunter2"}
    addr = f"http://127.0.0.1:{closed_port}"
    assert "secret_id_num_uses=0" in found(access.kms(addr=addr, **approle), "ok")["VAULT_APPROLE_SECRET_ID"]
    wrapped = found(access.kms(addr=addr, **approle, secret_id_wrapped=True), "warning")
    assert "is for one process" in wrapped["VAULT_APPROLE_SECRET_ID_WRAPPED"]
    bound = check(access.kms(addr=addr, bind_context=True, service="records", product="clinic"))
    assert "service 'records' and product 'clinic'" in bound[1].text
    assert isinstance(bound[1], Finding)


def test_rejected_login_is_an_error(access: Access) -> None:
    kms = access.kms(auth_method="approle", auth_mount="absent", role_id="r", secret_id="hunter2")
    errors = found(kms, "error")
    assert errors["token"].startswith("Vault approle auth failed: ")
    assert "hunter2" not in str(errors)
