# SPDX-License-Identifier: Apache-2.0
"""AppRole: secret ids that are wrong, spent, locked, wrapped or forged."""

from __future__ import annotations

from pathlib import Path

import pytest

from sa_asherah.errors import KmsAuthError, KmsUnavailableError
from tests.integration.conftest import Access, AuditedAccess
from tests.integration.methods import AppRole
from tests.servers.openbao import OpenBao, transit_policy

KEY = bytes(range(32))


def test_a_wrong_role_id_and_a_wrong_secret_id(audited: AuditedAccess) -> None:
    role = AppRole.made_on(audited.server, audited.policy)
    good, wrong = audited.secret(role.secret_id()), audited.secret("a1b2c3d4-wrong-secret-id")
    for options in (role.options(secret_id=wrong), role.options(secret_id=good, role_id="no")):
        kms = audited.kms(**options)
        error = audited.refusal(KmsAuthError, lambda kms=kms: kms.encrypt_key(KEY))  # type: ignore[misc]
        assert str(error).startswith("Vault approle auth failed: invalid role or secret ID (")
        assert f"mount 'auth/{role.mount}'" in str(error)
        assert (error.retryable, error.operation, error.status) == (False, "login", 400)
    assert role.logins() == 2


@pytest.mark.parametrize("spent", ["used", "destroyed"])
def test_a_secret_id_that_is_no_longer_good(audited: AuditedAccess, spent: str) -> None:
    role = AppRole.made_on(audited.server, audited.policy)
    secret_id = audited.secret(role.secret_id(num_uses=1))
    if spent == "used":
        role.post("login", role_id=role.role_id, secret_id=secret_id)
    else:
        role.post(f"role/{role.name}/secret-id/destroy", secret_id=secret_id)
    kms = audited.kms(**role.options(secret_id=secret_id))
    assert "invalid role or secret ID" in str(audited.refusal(KmsAuthError, lambda: kms.encrypt_key(KEY)))


def test_a_role_that_wants_a_secret_id(audited: AuditedAccess) -> None:
    role = AppRole.made_on(audited.server, audited.policy)
    error = audited.refusal(KmsAuthError, lambda: audited.kms(**role.options()).encrypt_key(KEY))
    assert "role requires a secret_id: set VAULT_APPROLE_SECRET_ID" in str(error)


def test_a_mount_that_does_not_exist(audited: AuditedAccess) -> None:
    role = AppRole.made_on(audited.server, audited.policy)
    options = role.options(secret_id=audited.secret(role.secret_id()), auth_mount="nowhere")
    error = audited.refusal(KmsAuthError, lambda: audited.kms(**options).encrypt_key(KEY))
    assert "or auth/nowhere/ does not exist" in str(error)


def test_a_locked_role_says_so(audited: AuditedAccess) -> None:
    role = AppRole.made_on(audited.server, audited.policy)
    good = audited.secret(role.secret_id())
    for number in range(5):
        with pytest.raises(Exception, match="invalid role or secret ID"):
            role.post("login", role_id=role.role_id, secret_id=f"wrong-{number}")
    error = audited.refusal(KmsAuthError, lambda: audited.kms(**role.options(secret_id=good)).encrypt_key(KEY))
    assert str(error).startswith("Vault approle auth failed: permission denied (")
    assert "lock" in str(error)


def test_a_secret_id_file_replaced_between_logins(audited: AuditedAccess, tmp_path: Path) -> None:
    role = AppRole.made_on(audited.server, audited.policy, secret_id_num_uses=1)
    path = tmp_path / "secret-id"
    path.write_text(audited.secret(role.secret_id()))
    kms = audited.kms(**role.options(secret_id_file=path))
    for logins in (1, 2, 3):
        assert kms.encrypt_key(KEY)
        assert role.logins() == logins
        role.revoke()
        path.write_text(audited.secret(role.secret_id()))
    kms.close()


def test_tokens_for_a_few_uses_are_replaced_and_complained_about(
    audited: AuditedAccess, caplog: pytest.LogCaptureFixture
) -> None:
    role = AppRole.made_on(audited.server, audited.policy, token_num_uses=2)
    kms = audited.kms(**role.options(secret_id=audited.secret(role.secret_id())))
    for _ in range(3):
        assert kms.decrypt_key(kms.encrypt_key(KEY)) == KEY
    assert role.logins() >= 3
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any("token_num_uses=0" in text for text in warnings), warnings
    kms.close()


def test_logging_in_inside_a_namespace(openbao: OpenBao) -> None:
    openbao.root.adapter.post("/v1/sys/namespaces/team-e")
    root = openbao.client(openbao.root_token, "team-e")
    root.sys.enable_secrets_engine("transit")
    root.adapter.post("/v1/transit/keys/master")
    root.sys.create_or_update_policy("application", transit_policy("transit", "master"))
    root.sys.enable_auth_method("approle")
    root.adapter.post("/v1/auth/approle/role/app", json={"token_policies": ["application"]})
    role_id = root.adapter.get("/v1/auth/approle/role/app/role-id")["data"]["role_id"]
    secret_id = root.adapter.post("/v1/auth/approle/role/app/secret-id")["data"]["secret_id"]
    access = Access(openbao, "transit", "master", "")
    options = {"namespace": "team-e", "auth_method": "approle", "role_id": role_id, "secret_id": secret_id}
    kms = access.kms(**options)
    assert kms.decrypt_key(kms.encrypt_key(KEY)) == KEY
    kms.close()
    with pytest.raises(KmsAuthError, match="VAULT_NAMESPACE"):
        access.kms(**{**options, "namespace": None}).encrypt_key(KEY)


# A wrapped secret id


def test_a_wrapping_token_is_good_once(audited: AuditedAccess) -> None:
    role = AppRole.made_on(audited.server, audited.policy)
    wrapping = audited.secret(role.wrapped_secret_id())
    first, second = (audited.kms(**role.options(secret_id=wrapping, secret_id_wrapped=True)) for _ in range(2))
    assert first.encrypt_key(KEY)
    error = audited.refusal(KmsAuthError, lambda: second.encrypt_key(KEY))
    assert (
        "the wrapped secret_id was already unwrapped or has expired. If nobody on your side used it, treat it as "
        "intercepted and revoke the secret_id"
    ) in str(error)
    first.close()


@pytest.mark.parametrize("wrapping", ["s.unknown-wrapping-token", "expired", "ordinary"])
def test_something_else_than_a_wrapping_token(audited: AuditedAccess, wrapping: str) -> None:
    role = AppRole.made_on(audited.server, audited.policy)
    if wrapping == "expired":
        wrapping = role.wrapped_secret_id("1s")
        while audited.may_unwrap(wrapping):
            pass
    if wrapping == "ordinary":
        wrapping = audited.server.transit_token(audited.mount, audited.key)
    kms = audited.kms(**role.options(secret_id=audited.secret(wrapping), secret_id_wrapped=True))
    error = audited.refusal(KmsAuthError, lambda: kms.encrypt_key(KEY))
    assert "already unwrapped or has expired" in str(error)
    assert role.logins() == 0


def test_a_secret_id_that_somebody_wrapped_again(audited: AuditedAccess) -> None:
    role = AppRole.made_on(audited.server, audited.policy)
    stolen = audited.secret(role.secret_id())
    forged = audited.server.root.adapter.post("/v1/sys/wrapping/wrap", json={"secret_id": stolen}, wrap_ttl="60s")
    wrapping = audited.secret(forged["wrap_info"]["token"])
    kms = audited.kms(**role.options(secret_id=wrapping, secret_id_wrapped=True))
    error = audited.refusal(KmsAuthError, lambda: kms.encrypt_key(KEY))
    assert f"wrapping token was not made by auth/{role.mount}/role/*/secret-id" in str(error)
    assert role.logins() == 0
    assert audited.may_unwrap(wrapping), "it was not even used"


def test_a_wrapped_secret_id_of_another_mount(audited: AuditedAccess) -> None:
    role, other = (AppRole.made_on(audited.server, audited.policy) for _ in range(2))
    wrapping = audited.secret(other.wrapped_secret_id())
    kms = audited.kms(**role.options(secret_id=wrapping, secret_id_wrapped=True))
    error = audited.refusal(KmsAuthError, lambda: kms.encrypt_key(KEY))
    assert "wrapping token was not made by" in str(error)
    assert audited.may_unwrap(wrapping)


def test_a_wrapping_token_given_as_the_secret_id_itself(audited: AuditedAccess) -> None:
    role = AppRole.made_on(audited.server, audited.policy)
    wrapping = audited.secret(role.wrapped_secret_id())
    error = audited.refusal(KmsAuthError, lambda: audited.kms(**role.options(secret_id=wrapping)).encrypt_key(KEY))
    assert "invalid role or secret ID" in str(error)
    assert "VAULT_APPROLE_SECRET_ID_WRAPPED" in str(error)


def test_a_login_that_cannot_reach_the_server(audited: AuditedAccess, closed_port: int) -> None:
    role = AppRole.made_on(audited.server, audited.policy)
    options = role.options(secret_id=audited.secret(role.secret_id()), addr=f"https://127.0.0.1:{closed_port}")
    kms = audited.kms(deadline=0.5, **options)
    error = audited.refusal(KmsUnavailableError, lambda: kms.encrypt_key(KEY))
    assert "connection refused" in str(error)
    assert (error.retryable, error.operation) == (True, "login")
