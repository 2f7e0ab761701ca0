# SPDX-License-Identifier: Apache-2.0
"""Faults that pass are waited out; faults that stay are named; nothing is sent to where it was not meant for."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Generator

import pytest

from sa_asherah.errors import (
    ConfigurationError,
    KmsAuthError,
    KmsCiphertextError,
    KmsPermissionError,
    KmsUnavailableError,
)
from sa_asherah.kms.vault import VaultTransitKMS
from tests.integration.conftest import Access, AuditedAccess
from tests.integration.load import wait_until
from tests.integration.methods import AppRole
from tests.servers.canned import CannedServer
from tests.servers.openbao import OpenBao, SealableOpenBao

KEY = bytes(range(32))


@contextlib.contextmanager
def soon(call: Callable[[], object]) -> Generator[None]:
    """Let something happen in half a second, while the test waits for an answer."""
    timer = threading.Timer(0.5, call)
    timer.start()
    try:
        yield
    finally:
        timer.join()


# Faults that pass


def test_a_server_that_is_unsealed_within_the_deadline(openbao: object) -> None:  # noqa: ARG001 # or skips
    with SealableOpenBao() as server:
        access = Access.made_on(server)
        role = AppRole.made_on(server, access.policy)
        kms, newcomer = access.kms(), access.kms(**role.options(secret_id=role.secret_id()))
        blob = kms.encrypt_key(KEY)
        server.seal()
        with soon(server.unseal):
            assert kms.decrypt_key(blob) == KEY
        server.seal()
        with soon(server.unseal):
            assert newcomer.decrypt_key(blob) == KEY, "logging in waits, too"
        newcomer.close()


def test_an_audit_device_that_comes_back_within_the_deadline(openbao: object) -> None:  # noqa: ARG001 # or skips
    with contextlib.ExitStack() as logs:
        log = logs.enter_context(socket.create_server(("127.0.0.1", 0)))
        address = log.getsockname()
        options = {"address": f"127.0.0.1:{address[1]}", "socket_type": "tcp", "write_timeout": "200ms"}
        server = logs.enter_context(
            SealableOpenBao(audit=[{"type": "socket", "path": "to-socket", "options": options}])
        )
        kms = Access.made_on(server).kms()
        assert kms.encrypt_key(KEY)
        for _ in range(2):  # one to see whether it answers, one for the lines
            log.accept()[0].close()
        log.close()
        with pytest.raises(Exception, match="internal error"):
            server.root.adapter.get("/v1/sys/mounts")
        with soon(lambda: logs.enter_context(socket.create_server(address))):
            assert kms.encrypt_key(KEY)


def test_a_quota_slows_down_and_fails_nobody(access: Access) -> None:
    quota = f"/v1/sys/quotas/rate-limit/{access.mount}"
    access.server.root.adapter.post(quota, json={"path": f"{access.mount}/", "rate": 5, "interval": "1s"})
    try:
        kms = access.kms()
        for _ in range(12):
            assert kms.encrypt_key(KEY)
    finally:
        access.server.root.adapter.delete(quota)


def test_a_dead_node_is_passed_over(access: Access, closed_port: int) -> None:
    kms = access.kms(addr=f"http://127.0.0.1:{closed_port},{access.server.addr}")
    for _ in range(5):
        assert kms.decrypt_key(kms.encrypt_key(KEY)) == KEY


# What is not sent elsewhere


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_elsewhere_gets_neither_secret_id_nor_token(audited: AuditedAccess, status: int) -> None:
    role = AppRole.made_on(audited.server, audited.policy)
    secret_id = audited.secret(role.secret_id())
    with (
        CannedServer(body='{"auth": {"client_token": "s.x", "lease_duration": 60}}') as elsewhere,
        CannedServer(status=status, location=f"{elsewhere.addr}/v1/auth/approle/login") as server,
    ):
        login = role.options(secret_id=secret_id, addr=server.addr, deadline=0.3)
        for kms in (audited.kms(**login), audited.kms(addr=server.addr, deadline=0.3)):
            audited.refusal(KmsUnavailableError, lambda kms=kms: kms.encrypt_key(KEY))  # type: ignore[misc]
        assert server.received
        assert elsewhere.received == []


@pytest.mark.parametrize("status", [307, 308])
def test_a_redirect_to_a_configured_node_is_followed(access: Access, status: int) -> None:
    with CannedServer(
        status=status, location=f"{access.server.addr}/v1/{access.mount}/encrypt/{access.key}"
    ) as standby:
        assert access.kms(addr=f"{standby.addr},{access.server.addr}").encrypt_key(KEY).startswith(b"vault:v1:")
        assert len(standby.received) <= 1


@pytest.mark.parametrize("host", ["vault.example.com:8200", "10.0.0.7:8200", "[2001:db8::7]:8200"])
def test_plain_http_to_a_remote_host_is_refused(host: str) -> None:
    environ = {"VAULT_ADDR": f"http://{host}", "VAULT_TOKEN": "s.x", "VAULT_TRANSIT_KEY": "asherah-master"}
    with pytest.raises(ConfigurationError, match="the system key would travel in clear text"):
        VaultTransitKMS.from_env(environ)
    with pytest.raises(ConfigurationError, match="the system key would travel in clear text"):
        VaultTransitKMS.from_env({**environ, "VAULT_ADDR": f"https://vault.example.com:8200,http://{host}"})


# Faults that stay


def test_a_blob_of_another_namespace(openbao: OpenBao) -> None:
    accesses: list[VaultTransitKMS] = []
    for name in ("team-b", "team-c"):
        openbao.root.adapter.post(f"/v1/sys/namespaces/{name}")
        root = openbao.client(openbao.root_token, name)
        root.sys.enable_secrets_engine("transit")
        root.adapter.post("/v1/transit/keys/master")
        access = Access(openbao, "transit", "master", openbao.root_token)
        accesses.append(access.kms(namespace=name))
    blob = accesses[0].encrypt_key(KEY)
    with pytest.raises(KmsCiphertextError, match="in another namespace"):
        accesses[1].decrypt_key(blob)


def test_a_token_of_a_namespace_that_is_not_named(openbao: OpenBao) -> None:
    openbao.root.adapter.post("/v1/sys/namespaces/team-d")
    root = openbao.client(openbao.root_token, "team-d")
    made = root.adapter.post("/v1/auth/token/create", json={"policies": ["default"]})
    access = Access(openbao, "transit", "master", made["auth"]["client_token"])
    error = access.failure(KmsPermissionError, lambda: access.kms().encrypt_key(KEY))
    assert "namespace" in str(error)


def test_associated_data_with_a_key_that_takes_none(openbao: OpenBao) -> None:
    access = Access.made_on(openbao, type="rsa-2048")
    bound = access.kms(bind_context=True, service="records", product="clinic")
    error = access.failure(ConfigurationError, lambda: bound.encrypt_key(KEY))
    assert "VAULT_TRANSIT_KEY" in str(error)


def test_batch_tokens_work_and_end_with_a_clear_text(access: Access) -> None:
    token = access.server.transit_token(access.mount, access.key, type="batch", ttl="2s")
    kms, key = access.kms(token=token), os.urandom(32)
    assert kms.decrypt_key(kms.encrypt_key(key)) == key
    wait_until(lambda: _refused(kms))
    error = access.failure(KmsAuthError, lambda: kms.encrypt_key(key), tokens=(token,))
    assert "VAULT_AUTH_METHOD=token cannot renew it" in str(error)


def _refused(kms: VaultTransitKMS) -> bool:
    try:
        kms.encrypt_key(KEY)
    except KmsAuthError:
        return True
    return False
