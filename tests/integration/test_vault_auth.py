# SPDX-License-Identifier: Apache-2.0
"""Each way of logging in works against a real server, and each refusal says why without showing a secret."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sa_asherah.config import Settings
from sa_asherah.errors import ConfigurationError, KmsAuthError
from sa_asherah.kms.vault import VaultTransitKMS
from tests.integration.conftest import AuditedAccess
from tests.integration.methods import AppRole, CertRole, KubernetesRole
from tests.servers.certificates import Authority
from tests.servers.reviewer import Reviewer

KEY = bytes(range(32))
VARIABLES = {
    "token": "VAULT_TOKEN",
    "token_file": "VAULT_TOKEN_FILE",
    "auth_method": "VAULT_AUTH_METHOD",
    "auth_mount": "VAULT_AUTH_MOUNT",
    "auth_role": "VAULT_AUTH_ROLE",
    "k8s_token_path": "VAULT_K8S_TOKEN_PATH",
    "role_id": "VAULT_APPROLE_ROLE_ID",
    "secret_id": "VAULT_APPROLE_SECRET_ID",
    "secret_id_file": "VAULT_APPROLE_SECRET_ID_FILE",
    "secret_id_wrapped": "VAULT_APPROLE_SECRET_ID_WRAPPED",
    "client_cert": "VAULT_CLIENT_CERT",
    "client_key": "VAULT_CLIENT_KEY",
}


def token_file(access: AuditedAccess, folder: Path, _reviewer: Reviewer) -> dict[str, Any]:
    return {"token_file": _written(folder, f"{access.token}\n")}


def kubernetes(access: AuditedAccess, folder: Path, reviewer: Reviewer) -> dict[str, Any]:
    role = KubernetesRole.reviewed_by(reviewer, access.server, access.policy)
    return role.options(k8s_token_path=role.pod(folder))


def kubernetes_nested(access: AuditedAccess, folder: Path, reviewer: Reviewer) -> dict[str, Any]:
    role = KubernetesRole.reviewed_by(reviewer, access.server, access.policy, mount=f"clusters/{access.mount}")
    path = role.pod(folder)
    path.write_text(f"{path.read_text()}\n")
    return role.options(k8s_token_path=path)


def approle(access: AuditedAccess, _folder: Path, _reviewer: Reviewer) -> dict[str, Any]:
    role = AppRole.made_on(access.server, access.policy)
    return role.options(secret_id=role.secret_id())


def approle_nested(access: AuditedAccess, _folder: Path, _reviewer: Reviewer) -> dict[str, Any]:
    role = AppRole.made_on(access.server, access.policy, mount=f"team/{access.mount}")
    return role.options(secret_id=role.secret_id())


def approle_without_secret_id(access: AuditedAccess, _folder: Path, _reviewer: Reviewer) -> dict[str, Any]:
    bounds: dict[str, Any] = {"bind_secret_id": False, "token_bound_cidrs": ["127.0.0.1/32"]}
    return AppRole.made_on(access.server, access.policy, **bounds).options()


def approle_file(access: AuditedAccess, folder: Path, _reviewer: Reviewer) -> dict[str, Any]:
    role = AppRole.made_on(access.server, access.policy)
    return role.options(secret_id_file=_written(folder, f"{role.secret_id()}\n"))


def approle_wrapped(access: AuditedAccess, _folder: Path, _reviewer: Reviewer) -> dict[str, Any]:
    role = AppRole.made_on(access.server, access.policy, secret_id_num_uses=1)
    return role.options(secret_id=role.wrapped_secret_id(), secret_id_wrapped=True)


def approle_wrapped_file(access: AuditedAccess, folder: Path, _reviewer: Reviewer) -> dict[str, Any]:
    role = AppRole.made_on(access.server, access.policy, mount=f"team/{access.mount}")
    return role.options(secret_id_file=_written(folder, role.wrapped_secret_id()), secret_id_wrapped=True)


def cert(access: AuditedAccess, _folder: Path, _reviewer: Reviewer) -> dict[str, Any]:
    return CertRole.trusting(access.server, access.policy).shown(access.server.authority.client("asherah"))


def cert_with_role(access: AuditedAccess, _folder: Path, _reviewer: Reviewer) -> dict[str, Any]:
    role = CertRole.trusting(access.server, access.policy, mount=f"corp/{access.mount}")
    return role.shown(access.server.authority.client("asherah"), auth_role=role.name)


METHODS: list[Callable[[AuditedAccess, Path, Reviewer], dict[str, Any]]] = [
    token_file,
    kubernetes,
    kubernetes_nested,
    approle,
    approle_nested,
    approle_without_secret_id,
    approle_file,
    approle_wrapped,
    approle_wrapped_file,
    cert,
    cert_with_role,
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("through", ["arguments", "environment"])
def test_logs_in_encrypts_and_decrypts(
    audited: AuditedAccess,
    tmp_path: Path,
    reviewer: Reviewer,
    method: Callable[[AuditedAccess, Path, Reviewer], dict[str, Any]],
    through: str,
) -> None:
    options, key = method(audited, tmp_path, reviewer), os.urandom(32)
    kms = audited.kms(**options) if through == "arguments" else _from_environment(audited, options)
    assert kms.decrypt_key(kms.encrypt_key(key)) == key
    secrets = [str(options[name]) for name in ("secret_id", "token") if name in options]
    assert not [secret for secret in secrets if secret in repr(kms)]
    kms.close()


def test_an_explicit_method_wins_over_the_token_of_the_environment(audited: AuditedAccess) -> None:
    environ = {"VAULT_TOKEN": "s.of-someone-else", "VAULT_AUTH_METHOD": "cert"}
    role = AppRole.made_on(audited.server, audited.policy)
    kms = VaultTransitKMS.from_env(environ, **_place(audited) | role.options(secret_id=role.secret_id()))
    assert kms.encrypt_key(KEY)
    kms.close()


def test_the_token_of_the_environment_wins_over_its_method(audited: AuditedAccess) -> None:
    role = AppRole.made_on(audited.server, audited.policy)
    environ = {"VAULT_TOKEN": audited.token, "VAULT_AUTH_METHOD": "approle", "VAULT_AUTH_MOUNT": role.mount}
    assert VaultTransitKMS.from_env(environ, **_place(audited)).encrypt_key(KEY)
    assert role.logins() == 0


# Kubernetes


@pytest.mark.parametrize(
    ("claims", "text"),
    [
        ({"account": "other-sa"}, "service account name not authorized"),
        ({"namespace": "other"}, "namespace not authorized"),
        ({"lifetime": -600}, "token is expired"),
    ],
)
def test_a_pod_that_the_role_does_not_admit(
    audited: AuditedAccess, tmp_path: Path, reviewer: Reviewer, claims: dict[str, Any], text: str
) -> None:
    role = KubernetesRole.reviewed_by(reviewer, audited.server, audited.policy)
    error = _kubernetes_refusal(audited, role, role.pod(tmp_path, **claims))
    assert str(error).startswith("Vault kubernetes auth failed: ")
    assert text in str(error)
    assert f"role '{role.name}', mount 'auth/{role.mount}'" in str(error)
    assert role.logins() == 1  # final: asking again cannot help


@pytest.mark.parametrize(
    ("settings", "text"),
    [({"audience": "someone-else"}, "invalid audience (aud) claim"), ({}, "invalid issuer (iss) claim")],
)
def test_a_pod_whose_token_is_for_others(
    audited: AuditedAccess, tmp_path: Path, reviewer: Reviewer, settings: dict[str, str], text: str
) -> None:
    role = KubernetesRole.reviewed_by(reviewer, audited.server, audited.policy, **settings)
    if not settings:
        role.configure_method(disable_iss_validation=False, issuer="https://elsewhere.example.com")
    error = _kubernetes_refusal(audited, role, role.pod(tmp_path))
    assert text in str(error)
    assert role.logins() == 1


@pytest.mark.parametrize("fault", ["forged", "drop", "forbid", "break"])
def test_a_refusal_that_may_have_many_causes_names_them(
    audited: AuditedAccess, tmp_path: Path, reviewer: Reviewer, fault: str
) -> None:
    role = KubernetesRole.reviewed_by(reviewer, audited.server, audited.policy)
    path = role.pod(tmp_path)
    if fault == "forged":
        head, body, signature = path.read_text().split(".")
        path.write_text(".".join((head, body, signature[::-1])))
    else:
        reviewer.fault = fault
    error = _kubernetes_refusal(audited, role, path)
    assert str(error).startswith(
        f"Vault kubernetes auth failed: permission denied (role '{role.name}', mount 'auth/{role.mount}'): "
        "check bound service account and namespace, kubernetes_host, its CA and the reviewer's rights"
    )


def test_garbage_instead_of_a_pods_token(audited: AuditedAccess, tmp_path: Path, reviewer: Reviewer) -> None:
    role = KubernetesRole.reviewed_by(reviewer, audited.server, audited.policy)
    path = _written(tmp_path, "garbage-instead-of-a-token")
    assert "Vault kubernetes auth failed: " in str(_kubernetes_refusal(audited, role, path))


@pytest.mark.parametrize("fault", ["drop", "forbid", "break"])
def test_an_api_server_that_recovers_within_the_deadline(
    audited: AuditedAccess, tmp_path: Path, reviewer: Reviewer, fault: str
) -> None:
    role = KubernetesRole.reviewed_by(reviewer, audited.server, audited.policy)
    reviewer.fault, reviewer.faults = fault, 1
    kms = audited.kms(**role.options(k8s_token_path=role.pod(tmp_path)))
    assert kms.encrypt_key(KEY)
    assert role.logins() == 2
    kms.close()


def test_an_unknown_role_and_an_unknown_mount(audited: AuditedAccess, tmp_path: Path, reviewer: Reviewer) -> None:
    role = KubernetesRole.reviewed_by(reviewer, audited.server, audited.policy)
    error = _kubernetes_refusal(audited, role, role.pod(tmp_path), auth_role="mistyped")
    assert str(error).startswith('Vault kubernetes auth failed: invalid role name "mistyped" (')
    error = _kubernetes_refusal(audited, role, role.pod(tmp_path), auth_mount="nowhere")
    assert "auth/nowhere/" in str(error)


def test_a_method_without_its_configuration(audited: AuditedAccess, tmp_path: Path, reviewer: Reviewer) -> None:
    role = KubernetesRole.made_on(
        audited.server, audited.policy, bound_service_account_names=["x"], bound_service_account_namespaces=["x"]
    )
    role.reviewer = reviewer
    path = role.pod(tmp_path)
    audited.secret(path.read_text())
    kms = audited.kms(**role.options(k8s_token_path=path))
    error = audited.refusal(KmsAuthError, lambda: kms.encrypt_key(KEY))
    assert "could not load backend configuration" in str(error)
    assert role.logins() == 1


def test_a_pods_token_is_read_at_every_login(audited: AuditedAccess, tmp_path: Path, reviewer: Reviewer) -> None:
    role = KubernetesRole.reviewed_by(reviewer, audited.server, audited.policy)
    path = role.pod(tmp_path)
    kms = audited.kms(**role.options(k8s_token_path=path))
    kms.encrypt_key(KEY)
    role.pod(tmp_path, lifetime=-600)
    assert kms.encrypt_key(KEY), "the token of Vault still lives"
    role.revoke()
    audited.secret(path.read_text())
    error = audited.refusal(KmsAuthError, lambda: kms.encrypt_key(KEY))
    assert "token is expired" in str(error)
    kms.close()


@pytest.mark.parametrize(("content", "text"), [(None, "No such file"), ("\n", "is empty")])
def test_a_pods_token_that_cannot_be_read(
    audited: AuditedAccess, tmp_path: Path, reviewer: Reviewer, content: str | None, text: str
) -> None:
    role = KubernetesRole.reviewed_by(reviewer, audited.server, audited.policy)
    path = tmp_path / "token"
    if content is not None:
        path.write_text(content)
    kms = audited.kms(**role.options(k8s_token_path=path))
    error = audited.refusal(KmsAuthError, lambda: kms.encrypt_key(KEY))
    assert f"the service account token '{path}' (VAULT_K8S_TOKEN_PATH)" in str(error)
    assert text in str(error)
    assert role.logins() == 0


# Certificates


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        ("other name", "no chain matching all constraints"),
        ("foreign", "invalid certificate or no client certificate supplied"),
        ("unknown role", "invalid certificate or no client certificate supplied"),
        ("expired", "certificate has expired"),
    ],
)
def test_a_certificate_that_the_role_does_not_admit(audited: AuditedAccess, shown: str, text: str) -> None:
    role, authority = CertRole.trusting(audited.server, audited.policy), audited.server.authority
    pair = {
        "other name": lambda: authority.client("someone-else"),
        "foreign": lambda: Authority(audited.server.folder, "foreign").client("asherah"),
        "unknown role": lambda: authority.client("asherah"),
        "expired": lambda: authority.client("asherah", dt.timedelta(days=-1)),
    }[shown]()
    audited.secret("".join(pair.key.read_text().splitlines()[1:3]))
    kms = audited.kms(**role.shown(pair, auth_role="mistyped" if shown == "unknown role" else None))
    error = audited.refusal(KmsAuthError, lambda: kms.encrypt_key(KEY))
    assert str(error).startswith("Vault cert auth failed: ")
    assert text in str(error)
    assert f"mount 'auth/{role.mount}'" in str(error)
    assert role.logins() == 1


def test_certificates_need_tls(audited: AuditedAccess) -> None:
    role, pair = CertRole.trusting(audited.server, audited.policy), audited.server.authority.client("asherah")
    with pytest.raises(ConfigurationError, match="cert needs an https:// address"):
        audited.kms(addr="http://127.0.0.1:8200", **role.shown(pair))


# Tokens


def test_a_token_file_rewritten_by_an_agent(audited: AuditedAccess, tmp_path: Path) -> None:
    path = _written(tmp_path, audited.token)
    kms = audited.kms(token_file=path)
    assert kms.encrypt_key(KEY)
    for _ in range(3):
        path.write_text(audited.secret(audited.server.transit_token(audited.mount, audited.key)))
        audited.server.root.auth.token.revoke(audited.token)
        assert kms.encrypt_key(KEY)
        audited.token = path.read_text()
    kms.close()
    assert audited.kms().encrypt_key(KEY), "close() revokes no token that someone else made"


def test_a_token_file_whose_token_is_dead_or_that_is_gone(audited: AuditedAccess, tmp_path: Path) -> None:
    path = _written(tmp_path, audited.token)
    kms = audited.kms(token_file=path)
    kms.encrypt_key(KEY)
    audited.server.root.auth.token.revoke(audited.token)
    assert "VAULT_TOKEN_FILE" in str(audited.refusal(KmsAuthError, lambda: kms.encrypt_key(KEY)))
    path.unlink()
    error = audited.refusal(KmsAuthError, lambda: kms.encrypt_key(KEY))
    assert f"cannot read VAULT_TOKEN_FILE '{path}': No such file or directory" in str(error)


def _written(folder: Path, text: str) -> Path:
    path = folder / "secret"
    path.write_text(text)
    return path


def _place(access: AuditedAccess) -> dict[str, Any]:
    return {"addr": access.server.addr, "key": access.key, "mount": access.mount, "ca_cert": access.server.ca_cert}


def _from_environment(access: AuditedAccess, options: dict[str, Any]) -> VaultTransitKMS:
    environ = {
        "SERVICE_NAME": "records",
        "PRODUCT_ID": "clinic",
        "KMS": "vault-transit",
        "VAULT_ADDR": access.server.addr,
        "VAULT_TRANSIT_KEY": access.key,
        "VAULT_TRANSIT_MOUNT": access.mount,
        "VAULT_CACERT": str(access.server.ca_cert),
        **{VARIABLES[name]: str(value) for name, value in options.items()},
    }
    kms = Settings.from_env(environ).open_kms()
    assert isinstance(kms, VaultTransitKMS)
    return kms


def _kubernetes_refusal(access: AuditedAccess, role: KubernetesRole, pod: Path, **options: Any) -> KmsAuthError:
    access.secret(pod.read_text())
    kms = access.kms(**role.options(k8s_token_path=pod, deadline=0.5, **options))
    error = access.refusal(KmsAuthError, lambda: kms.encrypt_key(KEY))
    assert error.operation == "login"
    return error
