# SPDX-License-Identifier: Apache-2.0
"""Wrapping and unwrapping with a real Transit engine."""

from __future__ import annotations

import base64
import functools
import json
import logging
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from sa_asherah.config import Settings
from sa_asherah.errors import ConfigurationError, KmsCiphertextError, KmsError, KmsPermissionError
from sa_asherah.kms.vault import VaultTransitKMS
from tests.integration.conftest import Access, AuditedAccess
from tests.servers.canned import CannedServer
from tests.servers.openbao import OpenBao

if TYPE_CHECKING:
    from pathlib import Path


def test_least_policy_suffices(access: Access) -> None:
    kms, key = access.kms(), os.urandom(32)
    blob = kms.encrypt_key(key)
    assert re.fullmatch(rb"vault:v1:[A-Za-z0-9+/]{80}", blob)
    assert kms.decrypt_key(blob) == key
    assert kms.encrypt_key(key) != blob


def test_what_is_wrapped_is_the_key_itself(access: Access) -> None:
    key = os.urandom(32)
    plaintext = access.ask("decrypt", ciphertext=access.kms().encrypt_key(key).decode())["plaintext"]
    assert base64.b64decode(plaintext) == key


def test_rotation_of_the_transit_key_keeps_old_blobs_readable(access: Access) -> None:
    kms, key = access.kms(), os.urandom(32)
    old = kms.encrypt_key(key)
    access.configure(f"keys/{access.key}/rotate")
    new = kms.encrypt_key(key)
    assert (old[:9], new[:9]) == (b"vault:v1:", b"vault:v2:")
    assert kms.decrypt_key(old) == kms.decrypt_key(new) == key


def test_chacha20_key(openbao: OpenBao) -> None:
    kms, key = Access.made_on(openbao, type="chacha20-poly1305").kms(), os.urandom(32)
    assert kms.decrypt_key(kms.encrypt_key(key)) == key


def test_nested_mount(openbao: OpenBao) -> None:
    openbao.root.sys.enable_secrets_engine("transit", path="team/kms/transit")
    openbao.root.adapter.post("/v1/team/kms/transit/keys/master")
    access = Access(openbao, "/team/kms/transit/", "master", openbao.transit_token("team/kms/transit", "master"))
    assert access.kms().encrypt_key(bytes(32)).startswith(b"vault:v1:")


def test_namespace(openbao: OpenBao) -> None:
    openbao.root.adapter.post("/v1/sys/namespaces/team-a")
    root = openbao.client(openbao.root_token, "team-a")
    root.sys.enable_secrets_engine("transit")
    root.adapter.post("/v1/transit/keys/master")
    kms = Access(openbao, "transit", "master", openbao.root_token).kms(namespace="team-a")
    assert kms.decrypt_key(kms.encrypt_key(bytes(32))) == bytes(32)


def test_many_keys_open_in_few_calls(audited: AuditedAccess) -> None:
    kms = audited.kms()
    keys = [os.urandom(32) for _ in range(5)]
    blobs = [kms.encrypt_key(key) for key in keys]
    assert kms.decrypt_keys(blobs * 81) == keys * 81
    assert len(audited.calls("decrypt")) == 3, "405 keys in chunks of 200"
    assert kms.decrypt_keys([]) == []
    assert kms.decrypt_keys(blobs[:1]) == keys[:1]


def test_one_bad_blob_spoils_no_other(access: Access) -> None:
    kms, key = access.kms(), os.urandom(32)
    access.configure(f"keys/{access.key}/rotate")
    good = kms.encrypt_key(key)
    damaged = good[:40] + (b"A" if good[40:41] != b"A" else b"B") + good[41:]
    old = base64.b64encode(b"short").decode()
    short = access.ask("encrypt", plaintext=old)["ciphertext"].encode()
    found = kms.decrypt_keys([b"\xff", good, damaged, b"AQICAHh", short, good.replace(b":v2:", b":v9:"), good])
    assert [key] * 2 == [found[1], found[6]]
    texts = [str(error) for error in found if isinstance(error, KmsCiphertextError)]
    assert [
        next(part for part in ("UTF-8", "another KMS", "authentication failed", "5 bytes", "too new") if part in text)
        for text in texts
    ] == ["UTF-8", "authentication failed", "another KMS", "5 bytes", "too new"]
    assert not [text for text in texts if damaged.decode() in text or short.decode() in text]
    assert [error.retryable for error in found if isinstance(error, KmsError)] == [False] * 4 + [True]


def test_server_that_does_not_know_partial_failures() -> None:
    results = [{"plaintext": base64.b64encode(bytes(32)).decode()}, {"error": "cipher: message authentication failed"}]
    for status in (200, 400, 500):
        with CannedServer(status=status, body=json.dumps({"data": {"batch_results": results}})) as server:
            kms = VaultTransitKMS(addr=server.addr, key="k", token="s.x")
            found = kms.decrypt_keys([b"vault:v1:AAAA", b"vault:v1:AAAB"])
            assert found[0] == bytes(32)
            assert "authentication failed" in str(found[1])


@pytest.mark.parametrize("results", [None, [], [{}], [{"plaintext": "?"}, 7], "no"])
def test_batch_of_something_else(results: object) -> None:
    with CannedServer(body=json.dumps({"data": {"batch_results": results}})) as server:
        kms = VaultTransitKMS(addr=server.addr, key="k", token="s.x")
        found = kms.decrypt_keys([b"vault:v1:AAAA", b"vault:v1:AAAB"])
    assert ["answer is not from Vault" in str(error) for error in found] == [True, True]


def test_policy_that_forbids_batches(access: Access) -> None:
    path = f"{access.mount}/%s/{access.key}"
    token = access.server.token(
        f'path "{path % "encrypt"}" {{ capabilities = ["update"] }}\n'
        f'path "{path % "decrypt"}" {{ capabilities = ["update"], denied_parameters = {{ "batch_input" = [] }} }}'
    )
    kms, keys = access.kms(token=token), [os.urandom(32) for _ in range(3)]
    blobs = [kms.encrypt_key(key) for key in keys]
    for _ in range(2):
        assert kms.decrypt_keys(blobs) == keys
    assert not kms._takes_batches


def test_token_that_may_not_decrypt_says_so_for_each_blob(access: Access) -> None:
    blob = access.kms().encrypt_key(bytes(32))
    token = access.server.token(f'path "{access.mount}/encrypt/{access.key}" {{ capabilities = ["update"] }}')
    found = access.kms(token=token).decrypt_keys([blob] * 3)
    assert [type(error) for error in found] == [KmsPermissionError] * 3


@pytest.mark.parametrize("may_rewrap", [True, False])
def test_rewrap_brings_a_blob_to_the_newest_version(audited: AuditedAccess, *, may_rewrap: bool) -> None:
    names = ["encrypt", "decrypt", *(["rewrap"] if may_rewrap else [])]
    lines = [f'path "{audited.mount}/{name}/{audited.key}" {{ capabilities = ["update"] }}' for name in names]
    kms, key = audited.kms(token=audited.server.token("\n".join(lines))), os.urandom(32)
    blob = kms.encrypt_key(key)
    audited.configure(f"keys/{audited.key}/rotate")
    for _ in range(2):
        new = kms.rewrap_key(blob)
        assert new.startswith(b"vault:v2:")
        assert kms.decrypt_key(new) == kms.decrypt_key(blob) == key
    assert len(audited.calls("encrypt")) == (1 if may_rewrap else 3)
    assert len(audited.calls("rewrap")) == (2 if may_rewrap else 1), "refused once, it is not asked again"


def test_rewrap_of_a_damaged_blob_is_an_error_of_the_blob(access: Access) -> None:
    root = access.kms(token=access.server.root_token)
    with pytest.raises(
        KmsCiphertextError, match=r"^Vault Transit rewrap failed: cipher: message authentication failed"
    ):
        root.rewrap_key(root.encrypt_key(bytes(32)).replace(b"vault:v1:", b"vault:v1:AAAA"))
    with pytest.raises(KmsCiphertextError, match="another KMS"):
        root.rewrap_key(b"AQICAHh")


def test_bound_context(access: Access) -> None:
    root, key = access.server.root_token, os.urandom(32)
    bound = access.kms(token=root, bind_context=True, service="records", product="clinic")
    blobs = [bound.encrypt_key(key) for _ in range(2)]
    assert bound.decrypt_keys(blobs) == [key, key]
    assert bound.decrypt_key(bound.rewrap_key(blobs[0])) == key
    context = base64.b64encode(b'{"product":"clinic","service":"records"}').decode()
    answer = access.ask("decrypt", ciphertext=blobs[0].decode(), associated_data=context)
    assert base64.b64decode(answer["plaintext"]) == key
    others = (
        access.kms(service="records", product="clinic"),
        access.kms(bind_context=True, service="records", product="other"),
        access.kms(bind_context=True, service="clinic", product="records"),
    )
    for kms in others:
        error = access.failure(KmsCiphertextError, functools.partial(kms.decrypt_key, blobs[0]))
        assert "VAULT_TRANSIT_AAD" in str(error)
        assert not [found for found in kms.decrypt_keys(blobs) if isinstance(found, bytes)]
    plain = access.kms().encrypt_key(key)
    access.failure(KmsCiphertextError, lambda: bound.decrypt_key(plain))


def test_context_with_a_key_that_cannot_bind(openbao: OpenBao) -> None:
    access = Access.made_on(openbao, type="rsa-2048")
    assert access.kms().encrypt_key(bytes(32))
    kms = access.kms(bind_context=True, service="a", product="b")
    assert "aes256-gcm96" in str(access.failure(ConfigurationError, lambda: kms.encrypt_key(bytes(32))))


def test_recognises_by_form_alone(access: Access, closed_port: int) -> None:
    kms = access.kms(addr=f"http://127.0.0.1:{closed_port}")
    for blob in (access.kms().encrypt_key(bytes(32)), b"vault:v0:x", b"vault:v12:"):
        assert kms.recognises(blob)
    for blob in (b"", b"vault:", b"vault:vx:", b"VAULT:v1:AAAA", b"xvault:v1:", os.urandom(60), b'{"keks":[]}'):
        assert not kms.recognises(blob)


def test_tls(tls_server: OpenBao) -> None:
    kms, key = Access.made_on(tls_server).kms(), os.urandom(32)
    assert kms.decrypt_key(kms.encrypt_key(key)) == key


def test_directory_of_authorities(tls_server: OpenBao, tmp_path: Path) -> None:
    assert tls_server.ca_cert
    (tmp_path / "ca.pem").write_bytes(tls_server.ca_cert.read_bytes())
    subprocess.run(["openssl", "rehash", tmp_path], check=True)  # noqa: S607 # the system's own
    assert Access.made_on(tls_server).kms(ca_cert=tmp_path).encrypt_key(bytes(32))


def test_explicit_authority_wins_over_the_environment(
    tls_server: OpenBao, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "missing.pem"))
    assert Access.made_on(tls_server).kms().encrypt_key(bytes(32))


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_skip_verify_works_and_is_logged(
    tls_server: OpenBao, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert tls_server.ca_cert
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere")
    access = Access.made_on(tls_server)
    kms = access.kms(ca_cert=None, skip_verify=True)
    assert kms.encrypt_key(bytes(32))
    assert [record.levelno for record in caplog.records if record.name.startswith("sa_asherah")] == [logging.WARNING]
    assert "VAULT_SKIP_VERIFY" in caplog.text


def test_from_the_environment(access: Access) -> None:
    environ = {
        "SERVICE_NAME": "records",
        "PRODUCT_ID": "clinic",
        "KMS": "vault",
        "VAULT_ADDR": f" {access.server.addr}/ ",
        "BAO_TOKEN": f"{access.token}\n",
        "VAULT_TRANSIT_KEY": access.key,
        "VAULT_TRANSIT_MOUNT": access.mount,
        "VAULT_NAMESPACE": "",
    }
    settings = Settings.from_env(environ)
    assert access.token not in repr(settings)
    kms = settings.open_kms()
    assert isinstance(kms, VaultTransitKMS)
    assert kms.decrypt_key(kms.encrypt_key(bytes(32))) == bytes(32)


def test_hvac_reads_nothing_from_the_environment(access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    script = (
        "import sys; from sa_asherah.kms.vault import VaultTransitKMS\n"
        "addr, key, token, mount = sys.argv[1:]\n"
        "kms = VaultTransitKMS(addr=addr, key=key, token=token, mount=mount)\n"
        "assert kms.decrypt_key(kms.encrypt_key(bytes(32))) == bytes(32)"
    )
    for name in ("VAULT_TOKEN", "VAULT_NAMESPACE", "VAULT_CACERT", "VAULT_CLIENT_CERT", "VAULT_CLIENT_KEY"):
        monkeypatch.setenv(name, "/wrong")
    monkeypatch.setenv("VAULT_ADDR", "http://127.0.0.1:1")
    arguments = [access.server.addr, access.key, access.token, access.mount]
    subprocess.run([sys.executable, "-W", "error", "-c", script, *arguments], check=True)


def test_plain_http_never_goes_through_a_proxy(
    access: Access, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{closed_port}")
    monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{closed_port}")
    assert access.kms().encrypt_key(bytes(32))


def test_closing_twice_and_using_again(access: Access) -> None:
    kms = access.kms()
    kms.close()
    blob = kms.encrypt_key(bytes(32))
    kms.close()
    kms.close()
    assert kms.decrypt_key(blob) == bytes(32)


def test_repr_and_pickle_hold_no_token(access: Access) -> None:
    kms = access.kms()
    assert repr(kms) == (
        f"VaultTransitKMS(addr='{access.server.addr}', namespace=None, mount='{access.mount}', key='{access.key}')"
    )
    for holder in (kms, kms._settings):
        assert access.token not in repr(holder)
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(holder)


def test_threads_share_one_service(access: Access) -> None:
    kms = access.kms()

    def round_trip(number: int) -> bool:
        key = number.to_bytes(32, "big")
        return kms.decrypt_key(kms.encrypt_key(key)) == key

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(round_trip, range(400)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("server", ["openbao", "tls_server"])
def test_fork_keeps_the_service_usable_on_both_sides(server: str, request: pytest.FixtureRequest) -> None:
    kms = Access.made_on(request.getfixturevalue(server)).kms()
    kms.encrypt_key(bytes(32))  # opens the connection that the children inherit
    children = [_fork(kms, calls=25) for _ in range(4)]
    assert _round_trips(kms, calls=50)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0, 0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_fork_while_other_threads_are_calling(openbao: OpenBao) -> None:
    # Without the fixture `access`, which logs: the lock inside the log's file may be held at the fork.
    kms, done = Access.made_on(openbao).kms(), threading.Event()

    def call() -> bool:
        while not done.is_set():
            if not _round_trips(kms, calls=1):
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(call) for _ in range(4)]
        try:
            for _ in range(20):
                assert os.waitpid(_fork(kms, calls=2), 0)[1] == 0
        finally:
            done.set()
        assert all(thread.result() for thread in running)


def _round_trips(kms: VaultTransitKMS, calls: int) -> bool:
    keys = [os.urandom(32) for _ in range(calls)]
    return all(kms.decrypt_key(kms.encrypt_key(key)) == key for key in keys)


def _fork(kms: VaultTransitKMS, calls: int) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        signal.alarm(20)  # ends a child that hangs
        try:
            code = 0 if _round_trips(kms, calls) else 2
        finally:
            os._exit(code)
    return child
