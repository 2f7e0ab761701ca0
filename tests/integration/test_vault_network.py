# SPDX-License-Identifier: Apache-2.0
"""No answer, an answer of something else, or an answer that only a fault in a cluster gives."""

from __future__ import annotations

import json
import re
import shutil
import socket
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sa_asherah.errors import (
    AsherahError,
    ConfigurationError,
    KmsAuthError,
    KmsCiphertextError,
    KmsPermissionError,
    KmsUnavailableError,
)
from tests.integration.conftest import Access
from tests.servers.canned import CannedServer, self_signed
from tests.servers.openbao import OpenBao

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = bytes(range(32))
KEY_BASE64 = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="


def test_refused(access: Access, closed_port: int) -> None:
    kms = access.kms(addr=f"http://127.0.0.1:{closed_port}")
    error = access.failure(KmsUnavailableError, lambda: kms.encrypt_key(KEY), KEY_BASE64)
    assert str(error) == (
        f"Vault Transit encrypt request failed: connection refused (VAULT_ADDR=http://127.0.0.1:{closed_port})"
    )
    assert (error.retryable, error.operation, error.status) == (True, "encrypt", None)
    assert type(error.__cause__) is ConnectionRefusedError


def test_unknown_host(access: Access) -> None:
    kms = access.kms(addr="https://vault.invalid:8200")
    error = access.failure(KmsUnavailableError, lambda: kms.encrypt_key(KEY), KEY_BASE64)
    assert "request failed: cannot resolve host 'vault.invalid' (" in str(error)
    assert type(error.__cause__) is socket.gaierror
    assert error.retryable


def test_network_that_does_not_lead_there(access: Access) -> None:
    kms = access.kms(addr="https://255.255.255.255:8200")  # broadcasts are not for TCP
    error = access.failure(KmsUnavailableError, lambda: kms.encrypt_key(KEY), KEY_BASE64)
    assert re.search(r"request failed: [a-z ]+ \(VAULT_ADDR=", str(error))
    assert isinstance(error.__cause__, OSError)
    assert error.retryable


@pytest.fixture
def deaf_port() -> Iterator[int]:
    """A port whose queue of connections is full, so that no further one is made."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        waiting = [socket.socket() for _ in range(4)]
        for client in waiting:
            client.settimeout(0)
            client.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]
        for client in waiting:
            client.close()


def test_connection_timeout(access: Access, deaf_port: int) -> None:
    kms, started = access.kms(addr=f"http://127.0.0.1:{deaf_port}", timeout=0.3), time.monotonic()
    error = access.failure(KmsUnavailableError, lambda: kms.encrypt_key(KEY), KEY_BASE64)
    assert time.monotonic() - started < 2
    assert ": timed out after 0.3 s (" in str(error)
    assert type(error.__cause__) is TimeoutError
    assert error.retryable


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_read_timeout(access: Access, tmp_path: Path, scheme: str) -> None:
    pem, context = self_signed(tmp_path, "127.0.0.1")
    with CannedServer(behaviour="hang", tls=context if scheme == "https" else None) as server:
        kms, started = access.kms(addr=server.addr, ca_cert=pem, timeout=0.5), time.monotonic()
        error = access.failure(KmsUnavailableError, lambda: kms.encrypt_key(KEY), KEY_BASE64)
        assert time.monotonic() - started < 2
    assert ": timed out after 0.5 s (" in str(error)
    assert error.retryable


def test_dropped_connection(access: Access) -> None:
    with CannedServer(behaviour="drop") as server:
        error = access.failure(KmsUnavailableError, lambda: access.kms(addr=server.addr).encrypt_key(KEY), KEY_BASE64)
    assert ": the server closed the connection" in str(error)
    assert isinstance(error.__cause__, OSError)
    assert error.retryable


def test_answer_cut_short(access: Access) -> None:
    with CannedServer(body=_encrypted(), behaviour="cut") as server:
        error = access.failure(KmsUnavailableError, lambda: access.kms(addr=server.addr).encrypt_key(KEY), KEY_BASE64)
    assert ": no usable answer (" in str(error)
    assert error.retryable


def test_server_that_went_away_between_calls(access: Access) -> None:
    with CannedServer(body=_encrypted()) as server:
        kms = access.kms(addr=server.addr)
        assert kms.encrypt_key(KEY) == b"vault:v1:AAAA"
    access.failure(KmsUnavailableError, lambda: kms.encrypt_key(KEY), KEY_BASE64)


def test_plain_http_to_a_tls_port(access: Access, tls_server: OpenBao) -> None:
    kms = access.kms(addr=tls_server.addr.replace("https", "http"))
    error = access.failure(KmsUnavailableError, lambda: kms.encrypt_key(KEY), KEY_BASE64)
    assert "https" in str(error) or "wrong port" in str(error)


def test_tls_to_a_plain_port(access: Access) -> None:
    kms = access.kms(addr=access.server.addr.replace("http", "https"))
    error = access.failure(ConfigurationError, lambda: kms.encrypt_key(KEY), KEY_BASE64)
    assert ": TLS verification failed: the server does not speak TLS on this port; check VAULT_CACERT (" in str(error)


def test_unknown_authority(access: Access, tls_server: OpenBao) -> None:
    error = access.failure(
        ConfigurationError, lambda: access.kms(addr=tls_server.addr, ca_cert=None).encrypt_key(KEY), KEY_BASE64
    )
    assert ": TLS verification failed: " in str(error)
    assert "; check VAULT_CACERT (" in str(error)
    assert isinstance(error.__cause__, ssl.SSLError)


def test_certificate_of_another_host(access: Access, tmp_path: Path) -> None:
    pem, context = self_signed(tmp_path, "vault.example.com")
    with CannedServer(tls=context, body=_encrypted()) as server:
        kms = access.kms(addr=server.addr, ca_cert=pem)
        error = access.failure(ConfigurationError, lambda: kms.encrypt_key(KEY), KEY_BASE64)
        assert server.received == []
    assert ": TLS verification failed: " in str(error)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
def test_old_tls_is_refused(access: Access, tmp_path: Path) -> None:
    pem, context = self_signed(tmp_path, "127.0.0.1")
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    with CannedServer(tls=context, body=_encrypted()) as server:
        control = ssl.create_default_context(cafile=str(pem))
        control.minimum_version = ssl.TLSVersion.TLSv1
        control.set_ciphers("DEFAULT@SECLEVEL=0")
        host, port = server.host.split(":")
        with (
            socket.create_connection((host, int(port))) as plain,
            control.wrap_socket(plain, server_hostname=host) as s,
        ):
            assert s.version() == "TLSv1.1"
        kms = access.kms(addr=server.addr, ca_cert=pem)
        error = access.failure(ConfigurationError, lambda: kms.encrypt_key(KEY), KEY_BASE64)
        assert server.received == []
    assert ": TLS verification failed: " in str(error)


def test_authorities_that_vanish_after_construction(access: Access, tls_server: OpenBao, tmp_path: Path) -> None:
    assert tls_server.ca_cert
    pem = Path(shutil.copy(tls_server.ca_cert, tmp_path))
    kms = access.kms(addr=tls_server.addr, ca_cert=pem)
    pem.unlink()
    error = access.failure(ConfigurationError, lambda: kms.encrypt_key(KEY), KEY_BASE64)
    assert f"cannot read the certificates in '{pem}'; check VAULT_CACERT" in str(error)


def test_proxy_is_down(access: Access, closed_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    password = "correct-horse"
    monkeypatch.setenv("HTTPS_PROXY", f"http://user:{password}@127.0.0.1:{closed_port}")
    kms = access.kms(addr="https://vault.example.com:8200")
    error = access.failure(KmsUnavailableError, lambda: kms.encrypt_key(KEY), password, KEY_BASE64)
    assert str(error).startswith("Vault Transit encrypt request failed: proxy 127.0.0.1 refused the connection (")
    assert error.retryable


def test_proxy_that_refuses_the_tunnel(access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    with CannedServer(status=407) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.addr)
        kms = access.kms(addr="https://vault.example.com:8200")
        error = access.failure(KmsUnavailableError, lambda: kms.encrypt_key(KEY), KEY_BASE64)
    assert "proxy 127.0.0.1 answered " in str(error)


def test_proxy_setting_that_cannot_work(access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks9://127.0.0.1:1")
    kms = access.kms(addr="https://vault.example.com:8200")
    access.failure(ConfigurationError, lambda: kms.encrypt_key(KEY), KEY_BASE64)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_is_not_followed(access: Access, status: int) -> None:
    with (
        CannedServer(body=_encrypted()) as elsewhere,
        CannedServer(status=status, location=f"{elsewhere.addr}/v1/x?{access.token}") as server,
    ):
        error = access.failure(KmsUnavailableError, lambda: access.kms(addr=server.addr).encrypt_key(KEY), KEY_BASE64)
        assert (len(server.received), elsewhere.received) == (1, [])
    assert f"redirected (HTTP {status}) to '{elsewhere.host}'; redirects are not followed" in str(error)
    assert (error.retryable, error.status) == (True, status)


@pytest.mark.parametrize("location", ["", "/ui/", "http://[", "//a b/"])
def test_redirect_to_nowhere(access: Access, location: str) -> None:
    with CannedServer(status=307, location=location) as server:
        error = access.failure(KmsUnavailableError, lambda: access.kms(addr=server.addr).encrypt_key(KEY))
    assert "to another address" in str(error)


@pytest.mark.parametrize(
    ("status", "body", "retryable"),
    [
        (200, "{}", True),
        (200, "", True),
        (200, "<html>login</html>", True),
        (200, "[]", True),
        (200, '{"data": []}', True),
        (200, '{"data": {"ciphertext": 7}}', True),
        (200, '{"data": {"ciphertext": "v1:AAAA"}}', True),
        (200, "[" * 100_000, True),
        (400, '["no"]', False),
        (400, '{"errors": "no"}', False),
        (403, "<html>blocked</html>", False),
        (404, "404 page not found", False),
        (429, "slow down", True),
        (502, "<html>Bad Gateway</html>", True),
        (504, "", True),
        (418, '{"errors": {}}', False),
    ],
)
def test_answer_of_something_else(access: Access, status: int, body: str, *, retryable: bool) -> None:
    with CannedServer(status=status, body=body, content_type="text/html") as server:
        error = access.failure(KmsUnavailableError, lambda: access.kms(addr=server.addr).encrypt_key(KEY), KEY_BASE64)
    assert str(error).startswith("Vault Transit encrypt failed: answer is not from Vault (proxy or wrong port?)")
    assert (error.retryable, error.status) == (retryable, status)


@pytest.mark.parametrize("plaintext", [None, "?", "AAE", "AAECAw==\n", "ÄÄÄÄ"])
def test_plaintext_that_is_not_base64(access: Access, plaintext: object) -> None:
    with CannedServer(body=json.dumps({"data": {"plaintext": plaintext}})) as server:
        kms = access.kms(addr=server.addr)
        error = access.failure(KmsUnavailableError, lambda: kms.decrypt_key(b"vault:v1:AAAA"))
    assert "answer is not from Vault" in str(error)


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (412, "required index state not present"),
        (429, 'request path \\"transit/encrypt/x\\": rate limit quota exceeded'),
        (472, "secondary"),
        (473, "standby"),
        (500, "local node not active but active cluster node not found"),
        (500, "internal error"),
        (503, "Vault is sealed"),
        (504, "upstream request timeout"),
    ],
)
def test_fault_that_passes(access: Access, status: int, text: str) -> None:
    # The content type is not exactly application/json: hvac would lose the text.
    body = f'{{"errors": ["{text}"]}}'
    with CannedServer(status=status, body=body, content_type="application/json; charset=utf-8") as server:
        error = access.failure(KmsUnavailableError, lambda: access.kms(addr=server.addr).encrypt_key(KEY), KEY_BASE64)
    assert str(error).startswith(f"Vault Transit encrypt failed: {text.replace(chr(92), '')}")
    assert (error.retryable, error.status) == (True, status)


def test_sealed_server_that_goes_away_before_it_says_more(access: Access) -> None:
    with CannedServer(status=503, body='{"errors": ["Vault is sealed"]}', then="drop") as server:
        error = access.failure(KmsUnavailableError, lambda: access.kms(addr=server.addr).encrypt_key(KEY), KEY_BASE64)
        assert "X-Vault-Token" not in server.received[1]
    assert str(error).startswith("Vault Transit encrypt failed: Vault is sealed")


def test_authentication_failure_with_status_500(access: Access) -> None:
    with CannedServer(status=500, body='{"errors": ["cipher: message authentication failed"]}') as server:
        kms = access.kms(addr=server.addr)
        error = access.failure(KmsCiphertextError, lambda: kms.decrypt_key(b"vault:v1:AAAA"))
    assert (error.retryable, error.status) == (False, 500)


def test_the_two_refusals_of_newer_vaults(access: Access) -> None:
    dead = '{"errors": ["2 errors occurred:\\n\\t* permission denied\\n\\t* invalid token\\n\\n"]}'
    with CannedServer(status=403, body=dead) as server:
        access.failure(KmsAuthError, lambda: access.kms(addr=server.addr).encrypt_key(KEY))
    denied = '{"errors": ["1 error occurred:\\n\\t* permission denied\\n\\n"]}'
    with CannedServer(status=403, body=denied) as server:
        access.failure(KmsPermissionError, lambda: access.kms(addr=server.addr).encrypt_key(KEY))


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, KmsUnavailableError), (403, KmsAuthError), (404, ConfigurationError), (500, KmsUnavailableError)],
)
def test_answer_that_repeats_what_it_was_sent(access: Access, status: int, kind: type[AsherahError]) -> None:
    body = f'{{"errors": ["X-Vault-Token: {access.token} with {KEY_BASE64} {"long " * 100}"]}}'
    with CannedServer(status=status, body=body) as server:
        error = access.failure(kind, lambda: access.kms(addr=server.addr).encrypt_key(KEY), KEY_BASE64)
    assert str(error).startswith("Vault Transit encrypt failed: X-Vault-Token: … with … long ")
    assert len(str(error)) < 600


def _encrypted() -> str:
    return '{"data": {"ciphertext": "vault:v1:AAAA", "key_version": 1}}'
