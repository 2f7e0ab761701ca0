# SPDX-License-Identifier: Apache-2.0
"""No answer, an answer of something else, or an answer that only a fault in a cluster gives."""

from __future__ import annotations

import json
import re
import shutil
import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sa_asherah.errors import (
    AsherahError,
    ConfigurationError,
    KmsAuthError,
    KmsCiphertextError,
    KmsPermissionError,
    KmsUnavailableError,
)
from sa_asherah.kms.vault import VaultTransitKMS
from sa_asherah.kms.vault.caller import Caller
from sa_asherah.kms.vault.clock import Clock
from sa_asherah.kms.vault.connection import Answer
from tests.integration.conftest import Access
from tests.servers.canned import CannedServer, self_signed
from tests.servers.openbao import OpenBao

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = bytes(range(32))
KEY_BASE64 = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="


class Hasty(Access):
    """Gives up soon, for tests of what is said then."""

    def kms(self, **options: Any) -> VaultTransitKMS:
        return super().kms(**{"deadline": 0.25, **options})


@pytest.fixture
def access(access: Access) -> Access:
    """A new Transit key, and a service that gives up soon."""
    return Hasty(access.server, access.mount, access.key, access.token)


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
    kms, started = access.kms(addr=f"http://127.0.0.1:{deaf_port}", timeout=0.3, deadline=0.4), time.monotonic()
    error = access.failure(KmsUnavailableError, lambda: kms.encrypt_key(KEY), KEY_BASE64)
    assert time.monotonic() - started < 2
    assert ": timed out after 0.3 s (" in str(error)
    assert type(error.__cause__) is TimeoutError
    assert error.retryable


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_read_timeout(access: Access, tmp_path: Path, scheme: str) -> None:
    pem, context = self_signed(tmp_path, "127.0.0.1")
    with CannedServer(behaviour="hang", tls=context if scheme == "https" else None) as server:
        kms, started = access.kms(addr=server.addr, ca_cert=pem, timeout=0.5, deadline=0.6), time.monotonic()
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
def test_redirect_elsewhere_gets_neither_token_nor_key(access: Access, status: int) -> None:
    with (
        CannedServer(body=_encrypted()) as elsewhere,
        CannedServer(status=status, location=f"{elsewhere.addr}/v1/x?{access.token}") as server,
    ):
        error = access.failure(KmsUnavailableError, lambda: access.kms(addr=server.addr).encrypt_key(KEY), KEY_BASE64)
        assert elsewhere.received == []
        assert server.received
    assert f"redirected (HTTP {status}) to '{elsewhere.host}'; redirects are not followed to an address that" in str(
        error
    )
    assert (error.retryable, error.status) == (True, status)


@pytest.mark.parametrize("status", [307, 308])
def test_redirect_to_another_of_our_nodes_is_followed_at_once(access: Access, status: int) -> None:
    with CannedServer(body=_encrypted()) as leader, CannedServer(status=status) as standby:
        standby.location = f"{leader.addr}/somewhere/else"
        kms = access.kms(addr=f"{standby.addr},{leader.addr}")
        for _ in range(3):
            assert kms.encrypt_key(KEY) == b"vault:v1:AAAA"
        path = f"/v1/{access.mount}/encrypt/{access.key}"
        assert (standby.asked, [asked for asked in leader.asked if "encrypt" in asked]) == ([path], [path] * 3)
        assert leader.received[0]["X-Vault-Token"] == access.token


@pytest.mark.parametrize("status", [301, 302, 303])
def test_redirect_that_turns_a_request_into_a_get_is_never_followed(access: Access, status: int) -> None:
    with (
        CannedServer(status=500, body='{"errors": ["internal error"]}') as leader,
        CannedServer(status=status) as standby,
    ):
        standby.location = leader.addr
        kms = access.kms(addr=f"{standby.addr},{leader.addr}")
        access.failure(KmsUnavailableError, lambda: kms.encrypt_key(KEY), KEY_BASE64)
        assert leader.sent
        assert all(leader.sent), "a GET has no body"


def test_nodes_that_redirect_to_each_other_are_not_asked_without_end(access: Access) -> None:
    with CannedServer(status=307) as one, CannedServer(status=307) as other:
        one.location, other.location = other.addr, one.addr
        kms = access.kms(addr=f"{one.addr},{other.addr}")
        access.failure(KmsUnavailableError, lambda: kms.encrypt_key(KEY), KEY_BASE64)
        assert len(one.asked) + len(other.asked) < 40


def test_redirect_to_plain_http_on_our_own_host_is_not_followed(access: Access, tmp_path: Path) -> None:
    pem, context = self_signed(tmp_path, "127.0.0.1")
    with CannedServer(status=307, tls=context) as server:
        server.location = server.addr.replace("https", "http")
        kms = access.kms(addr=server.addr, ca_cert=pem)
        error = access.failure(KmsUnavailableError, lambda: kms.encrypt_key(KEY), KEY_BASE64)
    assert "redirects are not followed" in str(error)


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
    with CannedServer(status=503, body='{"errors": ["Vault is sealed"]}', on={"/v1/sys/health": "drop"}) as server:
        kms = access.kms(addr=server.addr, namespace="team-a")
        error = access.failure(KmsUnavailableError, lambda: kms.encrypt_key(KEY), KEY_BASE64)
        assert server.asked[-1] == "/v1/sys/health"
        assert not {"X-Vault-Token", "X-Vault-Namespace"} & set(server.received[-1])
    assert str(error).startswith("Vault Transit encrypt failed: Vault is sealed")


@pytest.mark.parametrize("fault", ["refused", "hang", "drop", "sealed", "standby", "html"])
def test_another_node_serves_while_one_cannot(access: Access, closed_port: int, fault: str) -> None:
    faults = {
        "hang": CannedServer(behaviour="hang"),
        "drop": CannedServer(behaviour="drop"),
        "sealed": CannedServer(status=503, body='{"errors": ["Vault is sealed"]}'),
        "standby": CannedServer(status=473, body='{"errors": ["standby"]}'),
        "html": CannedServer(status=502, body="<html>"),
    }
    with faults.get(fault, CannedServer()) as broken:
        addr = f"http://127.0.0.1:{closed_port}" if fault == "refused" else broken.addr
        kms, started = access.kms(addr=f"{addr},{access.server.addr}", timeout=0.3, deadline=20), time.monotonic()
        assert kms.decrypt_key(kms.encrypt_key(KEY)) == KEY
        assert time.monotonic() - started < 2
        asked = len(broken.asked)
        assert kms.encrypt_key(KEY)
        assert len(broken.asked) == asked <= 1, "the node that answered is asked first from then on"


def test_call_goes_on_until_the_server_is_well(access: Access) -> None:
    passing = [
        (429, '{"errors": ["rate limit quota exceeded"]}'),
        (412, '{"errors": ["index"]}'),
        (502, "<html>"),
        (200, "{}"),
    ]
    with CannedServer(body=_encrypted(), first=[*passing, (472, "")]) as server:
        assert access.kms(addr=server.addr, deadline=20).encrypt_key(KEY) == b"vault:v1:AAAA"
        assert [path.split("/")[-2] for path in server.asked[:6]] == ["encrypt"] * 6


def test_new_version_of_the_key_is_awaited_for_two_seconds(access: Access) -> None:
    lag = '{"errors": ["invalid ciphertext: version is too new"]}'
    blob = b"vault:v2:AAAA"
    with CannedServer(body=json.dumps({"data": {"plaintext": KEY_BASE64}}), first=[(400, lag)] * 3) as server:
        assert access.kms(addr=server.addr, deadline=20).decrypt_key(blob) == KEY
    with CannedServer(status=400, body=lag) as server:
        kms, started = access.kms(addr=server.addr, deadline=20), time.monotonic()
        error = access.failure(KmsCiphertextError, lambda: kms.decrypt_key(blob))
        assert 0.5 < time.monotonic() - started < 3
    assert error.retryable


@pytest.mark.parametrize("status", [400, 403, 404, 405, 500])
def test_final_answer_is_not_asked_for_again(access: Access, status: int) -> None:
    body = '{"errors": ["cipher: message authentication failed"]}'
    with CannedServer(status=status, body=body) as server:
        kms = access.kms(addr=f"{server.addr},{access.server.addr}", deadline=20)
        access.failure(KmsCiphertextError, lambda: kms.decrypt_key(b"vault:v1:AAAA"))
        assert len(server.asked) == 1


def test_node_is_left_alone_for_as_long_as_it_asks(access: Access) -> None:
    body = '{"errors": ["rate limit quota exceeded"]}'
    with CannedServer(status=429, body=body, headers={"Retry-After": "60"}) as server:
        kms, started = access.kms(addr=server.addr, deadline=20), time.monotonic()
        error = access.failure(KmsUnavailableError, lambda: kms.encrypt_key(KEY), KEY_BASE64)
        assert (len(server.asked), error.status) == (1, 429)
        assert time.monotonic() - started < 2, "waiting would not help within the deadline"
        assert access.kms(addr=f"{server.addr},{access.server.addr}").encrypt_key(KEY)
    with CannedServer(body=_encrypted(), first=[(503, "")], headers={"Retry-After": "1"}) as server:
        kms, started = access.kms(addr=server.addr, deadline=20), time.monotonic()
        assert kms.encrypt_key(KEY)
        assert 1 <= time.monotonic() - started < 3


class Lapse:
    """Time that passes only while somebody waits."""

    def __init__(self) -> None:
        self.time, self.pauses = 1000.0, list[float]()

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.time += seconds


@pytest.mark.parametrize("share", [0.5, 1.0, 1.5])
def test_pauses_double_up_to_two_seconds_until_the_deadline(access: Access, closed_port: int, share: float) -> None:
    lapse = Lapse()
    clock = Clock(
        now=lambda: lapse.time, pause=lapse.pause, between=lambda low, high: {0.5: low, 1.5: high}.get(share, 1)
    )
    caller = Caller(access.kms(addr=f"http://127.0.0.1:{closed_port}").settings, clock)
    with pytest.raises(KmsUnavailableError, match="connection refused"):
        caller.ask("x", None, operation="encrypt", token=None, until=1020.0)
    assert lapse.pauses == [pytest.approx(min(2, 0.05 * 2**n) * share) for n in range(len(lapse.pauses))]
    assert 17 < lapse.time - 1000 <= 20
    assert Clock().between(0.5, 1.5) != Clock().between(0.5, 1.5)


def once(kms: VaultTransitKMS) -> Answer:
    """Ask for something that must not be sent twice."""
    ask = kms._caller.ask
    return ask("once", {"a": "b"}, operation="login", token=None, until=time.monotonic() + 5, retry=False)


@pytest.mark.parametrize("status", [307, 400, 429, 500, 503])
def test_what_must_not_be_sent_twice_is_answered_whatever_the_status(access: Access, status: int) -> None:
    with CannedServer(status=status, body='{"errors": ["internal error"]}') as server:
        kms = access.kms(addr=f"{server.addr},{access.server.addr}")
        assert (once(kms).status, server.asked) == (status, ["/v1/once"])


def test_what_must_not_be_sent_twice_is_not(access: Access, closed_port: int) -> None:
    refused = f"http://127.0.0.1:{closed_port}"
    with CannedServer(behaviour="drop") as broken, CannedServer(status=400, body="{}") as well:
        access.failure(KmsUnavailableError, lambda: once(access.kms(addr=f"{broken.addr},{well.addr}")))
        assert (len(broken.asked), len(well.asked)) == (1, 0)
        assert once(access.kms(addr=f"{refused},{well.addr}")).status == 400, "nobody had seen it"
        with CannedServer(status=307, location=well.addr) as standby:
            assert once(access.kms(addr=f"{standby.addr},{well.addr}")).status == 400, "a standby has not acted on it"
    with CannedServer(behaviour="hang") as deaf:
        access.failure(KmsUnavailableError, lambda: once(access.kms(addr=deaf.addr, timeout=0.2)))
        assert len(deaf.asked) == 1


@dataclass
class Crowded(CannedServer):
    """Makes its callers wait for a ninth."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    ninth: threading.Event = field(default_factory=threading.Event)
    now: int = 0
    most: int = 0

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
            if self.now > 8:
                self.ninth.set()
        self.ninth.wait(0.3)
        with self.lock:
            self.now -= 1
        super()._answer(handler)


def test_at_most_eight_calls_at_a_time(access: Access) -> None:
    with Crowded(body=_encrypted()) as server:
        kms = access.kms(addr=server.addr, deadline=20)
        with ThreadPoolExecutor(16) as pool:
            assert set(pool.map(kms.encrypt_key, [KEY] * 16)) == {b"vault:v1:AAAA"}
        assert (server.most, server.ninth.is_set()) == (8, False)


def test_call_that_waits_for_its_turn_in_vain(access: Access) -> None:
    with CannedServer(behaviour="hang") as server:
        patient, hasty = access.kms(addr=server.addr, timeout=2, deadline=2), threading.Event()
        with ThreadPoolExecutor(8) as pool:
            for _ in range(8):
                pool.submit(patient.encrypt_key, KEY)
            while len(server.asked) < 8:
                assert not hasty.wait(0.01)
            until = time.monotonic() + 0.1
            with pytest.raises(KmsUnavailableError, match="no time left; other calls took it") as caught:
                patient._caller.ask("x", None, operation="encrypt", token=None, until=until)
    assert caught.value.retryable


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
