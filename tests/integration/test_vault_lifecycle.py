# SPDX-License-Identifier: Apache-2.0
"""The life of a token: users never see that it ends, and no more logins happen than must."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sa_asherah.errors import KmsAuthError, KmsPermissionError
from sa_asherah.kms.vault import VaultTransitKMS
from tests.integration.conftest import AuditedAccess
from tests.integration.load import in_children, load, round_trip, wait_until
from tests.integration.methods import AppRole, CertRole, KubernetesRole
from tests.servers.openbao import SealableOpenBao, transit_policy
from tests.servers.reviewer import Reviewer

KEY = bytes(range(32))
BRIEF = {"token_ttl": "2s", "token_max_ttl": "3s"}
PERIOD = "4s"
PERIOD_SECONDS = 4
FORKS = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@pytest.fixture
def unlogged(audited_server: SealableOpenBao) -> AuditedAccess:
    """The same access without a log, whose locks a fork would copy."""
    return AuditedAccess.made_on(audited_server)


@pytest.mark.long
def test_every_method_outlives_its_token(audited: AuditedAccess, tmp_path: Path, reviewer: Reviewer) -> None:
    server, policy = audited.server, audited.policy
    pods = KubernetesRole.reviewed_by(reviewer, server, policy, **BRIEF)
    hosts = AppRole.made_on(server, policy, **BRIEF)
    certs = CertRole.trusting(server, policy, **BRIEF)
    once = AppRole.made_on(server, policy, secret_id_num_uses=1, token_period=PERIOD)
    mortal = AppRole.made_on(server, policy, secret_id_num_uses=1, **BRIEF)
    agent = Agent(audited, tmp_path / "agent")
    services = {
        "kubernetes": audited.kms(**pods.options(k8s_token_path=pods.pod(tmp_path))),
        "approle": audited.kms(**hosts.options(secret_id=hosts.secret_id())),
        "cert": audited.kms(**certs.shown(server.authority.client("asherah"))),
        "single-use secret id": audited.kms(**once.options(secret_id=once.secret_id())),
        "token file": audited.kms(token_file=agent.path),
        "periodic token": audited.kms(token=server.transit_token(
            audited.mount, audited.key, period=PERIOD, no_default_policy=False
        )),
    }  # fmt: skip
    idle = audited.kms(**once.options(secret_id=once.secret_id()))
    idle.encrypt_key(KEY)
    ends = audited.kms(**mortal.options(secret_id=mortal.secret_id()))
    ends.encrypt_key(KEY)
    with load({name: round_trip(kms) for name, kms in services.items()}, threads=2) as seen:
        end = time.monotonic() + 1.5 * PERIOD_SECONDS
        wait_until(lambda: agent.writes() and time.monotonic() > end)
        wait_until(lambda: agent.writes() and min(role.logins() for role in (pods, hosts, certs)) >= 3)
        seen.go_on()
    assert seen.failures == []
    assert once.logins() == 2, "both secret ids were good for one login"
    assert idle.encrypt_key(KEY), "it was renewed although nobody used it"
    assert "invalid role or secret ID" in str(audited.refusal(KmsAuthError, lambda: ends.encrypt_key(KEY)))
    for kms in (*services.values(), idle, ends):
        kms.close()


class Agent:
    """Writes a new token into a file about once a second; each lives for four."""

    def __init__(self, access: AuditedAccess, path: Path) -> None:
        self.path = path
        self._access = access
        self._written = 0.0
        self.writes()

    def writes(self) -> bool:
        """Write a token if it is time to; say yes."""
        now = time.monotonic()
        if now - self._written >= 1:
            token = self._access.server.transit_token(self._access.mount, self._access.key, explicit_max_ttl="4s")
            new = self.path.with_suffix(".new")
            new.write_text(self._access.secret(token))
            new.rename(self.path)
            self._written = now
        return True


def test_three_revocations_under_eight_threads_cost_three_logins(audited: AuditedAccess) -> None:
    role = AppRole.made_on(audited.server, audited.policy)
    kms = audited.kms(**role.options(secret_id=audited.secret(role.secret_id())))
    with load({"all": round_trip(kms)}, threads=8) as seen:
        for logins in (1, 2, 3):
            seen.go_on()
            assert role.logins() == logins
            role.revoke()
            wait_until(lambda logins=logins: role.logins() > logins)  # type: ignore[misc]
        seen.go_on(100)
    assert seen.failures == []
    assert role.logins() == 4
    kms.close()


def test_a_removed_policy_costs_one_login_until_it_is_back(audited: AuditedAccess) -> None:
    role = AppRole.made_on(audited.server, audited.policy)
    kms = audited.kms(**role.options(secret_id=audited.secret(role.secret_id())))
    blob = kms.encrypt_key(KEY)
    audited.server.root.sys.delete_policy(audited.policy)
    for _ in range(10):
        error = audited.refusal(KmsPermissionError, lambda: kms.decrypt_key(blob))
        assert "1 error occurred: permission denied" in str(error)
    assert role.logins() == 2
    audited.server.root.sys.create_or_update_policy(audited.policy, transit_policy(audited.mount, audited.key))
    assert kms.decrypt_key(blob) == KEY
    assert role.logins() == 2
    kms.close()


def test_a_wrong_secret_id_never_locks_the_role(
    audited: AuditedAccess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    role = AppRole.made_on(audited.server, audited.policy)
    good, wrong = audited.secret(role.secret_id()), audited.secret("a1b2c3d4-of-another-life")

    def pod() -> VaultTransitKMS:
        return audited.kms(**role.options(secret_id=wrong))

    for host in (1, 2, 3):
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / f"host-{host}"))
        (tmp_path / f"host-{host}").mkdir()
        kms = pod()
        for _ in range(10):
            audited.refusal(KmsAuthError, lambda kms=kms: kms.encrypt_key(KEY))  # type: ignore[misc]
        for _ in range(10):
            audited.refusal(KmsAuthError, lambda: pod().encrypt_key(KEY))  # it was restarted
        assert role.logins() == host
    others = audited.kms(**role.options(secret_id=good))
    assert others.encrypt_key(KEY)
    others.close()


def test_close_revokes_the_token_that_it_logged_in_for(audited: AuditedAccess) -> None:
    role = AppRole.made_on(audited.server, audited.policy)
    kms = audited.kms(**role.options(secret_id=audited.secret(role.secret_id())))
    kms.close()
    assert (role.logins(), _revocations(audited)) == (0, 0), "there was nothing to revoke"
    kms.encrypt_key(KEY)
    kms.close()
    kms.close()
    assert (role.logins(), _revocations(audited)) == (1, 1)


def test_close_does_not_revoke_the_token_of_someone_else(audited: AuditedAccess, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(audited.token)
    for kms in (audited.kms(), audited.kms(token_file=tmp_path / "token")):
        kms.encrypt_key(KEY)
        kms.close()
    assert audited.kms().encrypt_key(KEY)


def test_only_what_cannot_be_used_twice_is_renewed_by_a_thread(
    audited: AuditedAccess, tmp_path: Path, reviewer: Reviewer
) -> None:
    pods = KubernetesRole.reviewed_by(reviewer, audited.server, audited.policy)
    hosts = AppRole.made_on(audited.server, audited.policy)
    certs = CertRole.trusting(audited.server, audited.policy)
    (tmp_path / "secret-id").write_text(audited.secret(hosts.secret_id()))
    for options in (
        pods.options(k8s_token_path=pods.pod(tmp_path)),
        hosts.options(secret_id_file=tmp_path / "secret-id"),
        certs.shown(audited.server.authority.client("asherah")),
    ):
        assert _threads_of(audited.kms(**options)) == set()
    for options in (
        hosts.options(secret_id=audited.secret(hosts.secret_id())),
        hosts.options(secret_id=audited.secret(hosts.wrapped_secret_id()), secret_id_wrapped=True),
    ):
        (renewer,) = _threads_of(kms := audited.kms(**options), close=False)
        assert renewer.daemon
        kms.close()
        renewer.join(5)
        assert not renewer.is_alive()


@FORKS
def test_forked_children_share_one_login(unlogged: AuditedAccess) -> None:
    role = AppRole.made_on(unlogged.server, unlogged.policy, secret_id_num_uses=1)
    kms = unlogged.kms(**role.options(secret_id=role.secret_id()))
    kms.encrypt_key(KEY)
    assert in_children(8, _several(kms)) == ["served"] * 8
    assert role.logins() == 1
    assert kms.encrypt_key(KEY), "close() in a child revokes nothing"
    assert _revocations(unlogged) == 0
    kms.close()
    assert _revocations(unlogged) == 1


@pytest.mark.long
@FORKS
def test_a_child_goes_on_renewing_when_its_parent_is_gone(unlogged: AuditedAccess) -> None:
    role = AppRole.made_on(unlogged.server, unlogged.policy, secret_id_num_uses=1, token_period=PERIOD)
    kms = unlogged.kms(**role.options(secret_id=role.secret_id()))

    def outlive() -> str:
        kms.encrypt_key(KEY)
        if os.fork():
            os._exit(0)
        kms.encrypt_key(KEY)
        threading.Event().wait(1.5 * PERIOD_SECONDS)
        kms.encrypt_key(KEY)
        return "served"

    assert in_children(1, outlive) == ["served"]
    assert role.logins() == 1


@FORKS
def test_thirty_two_workers_with_a_secret_id_for_one(unlogged: AuditedAccess) -> None:
    role = AppRole.made_on(unlogged.server, unlogged.policy, secret_id_num_uses=1)
    options = role.options(secret_id=role.secret_id(), deadline=30)

    def worker() -> str:
        unlogged.kms(**options).encrypt_key(KEY)
        return "served"

    said = in_children(32, worker)
    assert role.logins() <= 2
    assert said.count("served") == 1
    assert sum(text.startswith("KmsAuthError: Vault approle auth failed: ") for text in said) == 31, said
    others = unlogged.kms(**role.options(secret_id=role.secret_id()))
    assert others.encrypt_key(KEY), "the role is not locked"
    others.close()


def _several(kms: VaultTransitKMS) -> Callable[[], str]:
    def work() -> str:
        for _ in range(20):
            round_trip(kms)()
        kms.close()
        return "served"

    return work


def _threads_of(kms: VaultTransitKMS, *, close: bool = True) -> set[threading.Thread]:
    before = set(threading.enumerate())
    kms.encrypt_key(KEY)
    started = {thread for thread in set(threading.enumerate()) - before if "process_request" not in thread.name}
    if close:
        kms.close()
    return started


def _revocations(access: AuditedAccess) -> int:
    entries = access.server.audit("auth/token/revoke-self")
    # A token that was dead already has no policies.
    return sum(access.policy in entry["auth"].get("policies", []) for entry in entries)
