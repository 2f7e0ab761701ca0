# SPDX-License-Identifier: Apache-2.0
"""Answers to a login that no real server gives on demand; the rest: tests/integration/test_vault_auth.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from sa_asherah.errors import KmsAuthError, KmsUnavailableError
from sa_asherah.kms.vault.credentials import Credentials
from sa_asherah.kms.vault.login import Login, LoginMethod, login_method
from tests.unit.kms.fakes import DENIED, FakeVault, Time

JWT = "eyJhbGciOi.eyJzdWIiOi.c2lnbmF0dXJl"
SECRET = "a1b2c3d4-secret-id"
GOOD: dict[str, object] = {"client_token": "hvs.good", "lease_duration": 60, "renewable": True, "num_uses": 0}


@pytest.fixture(autouse=True)
def _own_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def vault(time: Time) -> FakeVault:
    return FakeVault(time)


@pytest.fixture
def pod(vault: FakeVault, tmp_path: Path) -> LoginMethod:
    (tmp_path / "jwt").write_text(f"{JWT}\n")
    credentials = Credentials(auth_method="kubernetes", auth_role="asherah-role", k8s_token_path=tmp_path / "jwt")
    return login_method(credentials, vault, "https://vault", vault.time.clock)


def host(vault: FakeVault, **options: object) -> LoginMethod:
    credentials = Credentials(auth_method="approle", role_id="e5f6-role-id", secret_id=SECRET, **options)  # type: ignore[arg-type]
    return login_method(credentials, vault, "https://vault", vault.time.clock)


def log_in(method: LoginMethod, seconds: float = 20) -> Login:
    return method.log_in(method._clock.now() + seconds)


@pytest.mark.parametrize(
    "auth",
    [
        None,
        [],
        "hvs.good",
        {},
        {**GOOD, "client_token": ""},
        {**GOOD, "client_token": None},
        {**GOOD, "client_token": "two\r\nlines"},
        {**GOOD, "client_token": ["hvs.good"]},
        {**GOOD, "lease_duration": -1},
        {**GOOD, "lease_duration": "60"},
        {**GOOD, "lease_duration": True},
        {**GOOD, "lease_duration": None},
        {**GOOD, "renewable": 1},
        {**GOOD, "renewable": None},
    ],
)
def test_an_answer_of_another_form_is_no_login_and_no_rejection(vault: FakeVault, auth: object) -> None:
    method = host(vault)
    vault.faults["login"] = (200, {"auth": auth})
    for _ in range(2):
        with pytest.raises(KmsUnavailableError, match="answer is not from Vault") as caught:
            log_in(method)
        assert caught.value.retryable
    vault.faults["login"] = (200, {"auth": GOOD})
    assert log_in(method) == Login("hvs.good", 60, renewable=True)


@pytest.mark.parametrize(("status", "body"), [(403, None), (403, "<html>"), (400, ["x"]), (404, {"errors": "x"})])
def test_a_refusal_by_something_else_than_vault_is_no_rejection(vault: FakeVault, status: int, body: object) -> None:
    method = host(vault)
    vault.faults["login"] = (status, body)
    with pytest.raises(KmsUnavailableError, match=f"answer is not from Vault .*; HTTP {status}"):
        log_in(method)
    vault.faults.clear()
    assert log_in(method).renewable


def test_a_refusal_that_quotes_what_was_sent(vault: FakeVault, pod: LoginMethod) -> None:
    vault.faults["login"] = (400, {"errors": [f"no {JWT} and no {SECRET}"]})
    for method, secret in ((host(vault), SECRET), (pod, JWT)):
        with pytest.raises(KmsAuthError) as caught:
            log_in(method)
        assert secret not in str(caught.value)


def test_few_uses_are_warned_of(vault: FakeVault, caplog: pytest.LogCaptureFixture) -> None:
    log_in(host(vault))
    assert caplog.text == ""
    vault.faults["login"] = (200, {"auth": {**GOOD, "num_uses": 10}})
    log_in(host(vault))
    assert "auth/approle gives tokens for 10 uses" in caplog.text


def test_a_path_where_nothing_is(vault: FakeVault) -> None:
    vault.faults["login"] = (404, {"errors": []})
    with pytest.raises(KmsAuthError) as caught:
        log_in(host(vault))
    assert str(caught.value) == (
        "Vault approle auth failed: HTTP 404 (mount 'auth/approle'): nothing is there; check the path in VAULT_ADDR"
    )


# Kubernetes


def test_a_plain_refusal_is_asked_again_twice(vault: FakeVault, time: Time, pod: LoginMethod) -> None:
    vault.faults["login"] = (403, DENIED)
    with pytest.raises(KmsAuthError) as caught:
        log_in(pod)
    assert str(caught.value).startswith(
        "Vault kubernetes auth failed: permission denied (role 'asherah-role', mount 'auth/kubernetes'): "
        "check bound service account and namespace, kubernetes_host, its CA and the reviewer's rights"
    )
    assert vault.count("login") == 3
    assert len(time.pauses) == 2
    assert min(time.pauses) >= 1
    with pytest.raises(KmsAuthError):
        log_in(pod)
    assert vault.count("login") == 3, "after that it is remembered like any rejection"


@pytest.mark.parametrize(("seconds", "logins"), [(0.5, 1), (1.5, 2), (2.5, 3), (20, 3)])
def test_asking_again_keeps_the_deadline(
    vault: FakeVault, time: Time, pod: LoginMethod, seconds: float, logins: int
) -> None:
    vault.faults["login"] = (403, DENIED)
    until = time.now + seconds
    with pytest.raises(KmsAuthError):
        log_in(pod, seconds)
    assert vault.count("login") == logins
    assert time.now < until


@pytest.mark.parametrize(
    "said", ["namespace not authorized", "invalid audience (aud) claim: x", "invalid issuer (iss) claim"]
)
def test_a_refusal_with_a_reason_is_final(vault: FakeVault, pod: LoginMethod, said: str) -> None:
    vault.faults["login"] = (403, {"errors": [said]})
    with pytest.raises(KmsAuthError, match=r"\): .+"):
        log_in(pod)
    assert vault.count("login") == 1


def test_the_service_accounts_token_is_sent_without_its_newline(vault: FakeVault, pod: LoginMethod) -> None:
    log_in(pod)
    assert vault.bodies == [{"role": "asherah-role", "jwt": JWT}]


# A wrapped secret id


def test_a_secret_id_is_unwrapped_once_and_kept(vault: FakeVault) -> None:
    vault.faults["lookup"] = (200, {"data": {"creation_path": "auth/approle/role/asherah/secret-id"}})
    vault.faults["unwrap"] = (200, {"data": {"secret_id": "the-real-one"}})
    method = host(vault, secret_id_wrapped=True)
    for _ in range(3):
        log_in(method)
    assert [path for path, _, _ in vault.asked[:2]] == ["sys/wrapping/lookup", "sys/wrapping/unwrap"]
    assert [token for _, token, _ in vault.asked] == [None, SECRET, None, None, None]
    assert vault.bodies[2:] == [{"role_id": "e5f6-role-id", "secret_id": "the-real-one"}] * 3


@pytest.mark.parametrize(
    "path",
    ["sys/wrapping/wrap", "auth/approle/role/a/b/secret-id", "auth/other/role/a/secret-id", "auth/approle/login", None],
)
def test_a_wrapping_token_of_another_making_is_not_opened(vault: FakeVault, path: str | None) -> None:
    vault.faults["lookup"] = (200, {"data": {"creation_path": path}})
    with pytest.raises(KmsAuthError, match=r"wrapping token was not made by auth/approle/role/\*/secret-id"):
        log_in(host(vault, secret_id_wrapped=True))
    assert len(vault.asked) == 1


@pytest.mark.parametrize("data", [None, {}, {"secret_id": ""}, {"secret_id": 7}, {"token": "x"}])
def test_a_wrapping_token_without_a_secret_id(vault: FakeVault, data: object) -> None:
    vault.faults["lookup"] = (200, {"data": {"creation_path": "auth/approle/role/asherah/secret-id"}})
    vault.faults["unwrap"] = (200, {"data": data})
    with pytest.raises(KmsAuthError, match="the wrapping token held no secret_id"):
        log_in(host(vault, secret_id_wrapped=True))
