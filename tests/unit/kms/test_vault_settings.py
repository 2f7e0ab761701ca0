# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import base64
import os
import pickle
from typing import TYPE_CHECKING

import pytest

from sa_asherah.errors import ConfigurationError
from sa_asherah.kms.vault import VaultTransitKMS
from sa_asherah.kms.vault.address import named_node
from sa_asherah.kms.vault.settings import VaultOptions, VaultSettings, read_options

if TYPE_CHECKING:
    from pathlib import Path

TOKEN = "s.0123456789abcdefghijklmn"
ENVIRON = {"VAULT_ADDR": "https://vault.example.com:8200", "VAULT_TRANSIT_KEY": "asherah-master", "VAULT_TOKEN": TOKEN}


def settings(**options: object) -> VaultSettings:
    own: dict[str, object] = {"addr": "https://vault.example.com:8200", "key": "asherah-master", "token": TOKEN}
    return VaultSettings.of(VaultOptions(**{**own, **options}))  # type: ignore[typeddict-item] # also what the types forbid


def from_env(**changes: str) -> VaultSettings:
    return VaultSettings.of(read_options({**ENVIRON, **changes}, {}))


def test_defaults() -> None:
    found = from_env()
    assert (found.mount, found.namespace, found.verify, found.timeouts) == ("transit", None, True, (2, 5))
    assert found == settings()


@pytest.mark.parametrize(
    ("missing", "text"),
    [
        ("VAULT_ADDR", "Vault Transit KMS: VAULT_ADDR is required, e.g. https://vault.example.com:8200"),
        ("VAULT_TRANSIT_KEY", "VAULT_TRANSIT_KEY is required, e.g. asherah-master"),
        ("VAULT_TOKEN", "VAULT_AUTH_METHOD=token needs VAULT_TOKEN (or VAULT_TOKEN_FILE)"),
    ],
)
def test_required(missing: str, text: str) -> None:
    for value in ("", "  "):
        with pytest.raises(ConfigurationError) as caught:
            from_env(**{missing: value})
        assert str(caught.value) == text
    with pytest.raises(ConfigurationError) as caught:
        VaultTransitKMS.from_env({name: value for name, value in ENVIRON.items() if name != missing})
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("addr", "canonical"),
    [
        ("https://vault.example.com:8200/", "https://vault.example.com:8200"),
        (" HTTPS://vault:8200 ", "https://vault:8200"),
        ("https://gateway/secrets/vault/", "https://gateway/secrets/vault"),
        ("http://127.0.0.1:8200", "http://127.0.0.1:8200"),
        ("http://127.9.9.9", "http://127.9.9.9"),
        ("http://localhost:8200", "http://localhost:8200"),
        ("http://[::1]:8200", "http://[::1]:8200"),
    ],
)
def test_address(addr: str, canonical: str) -> None:
    assert settings(addr=addr).addr == canonical


@pytest.mark.parametrize(
    "addr",
    [
        "127.0.0.1:8200", "vault.example.com", "//vault:8200", "ftp://vault", "unix:///run/vault.sock", "https://",
        "https://vault:8200/v1", "https://vault:8200/v1/", "https://vault/v1/transit", "https://gateway/vault/v1",
        "https://vault:port", "https://vault:99999", "https://[::1", "https://a..b", f"https://{'a' * 64}.com",
    ],
)  # fmt: skip
def test_address_of_the_wrong_form(addr: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        settings(addr=addr)
    assert str(caught.value) == (
        f"VAULT_ADDR must start with https:// (or http:// for development) and carry no /v1 path; got {addr!r}"
    )


@pytest.mark.parametrize(
    "addr",
    [
        "https://user:hunter2@vault", "https://vault?token=hunter2", "https://vault#hunter2",
        "https://vault hunter2", "https://vault\nhunter2", "https://vault\\hunter2", "https://hunter2.bücher.example",
    ],
)  # fmt: skip
def test_address_that_may_hold_a_secret_is_not_quoted(addr: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^VAULT_ADDR must be a plain address") as caught:
        settings(addr=addr)
    assert "hunter2" not in str(caught.value)


def test_several_nodes() -> None:
    found = settings(addr=" https://a:8200/ , HTTPS://b:8200,https://a:8200,https://[::1]/vault ")
    assert found.nodes == ("https://a:8200", "https://b:8200", "https://[::1]/vault")
    assert found.addr == "https://a:8200,https://b:8200,https://[::1]/vault"
    assert settings().nodes == ("https://vault.example.com:8200",)
    with pytest.raises(ConfigurationError, match=r"must be all https:// or all http://$"):
        settings(addr="https://a:8200,http://127.0.0.1:8200")


@pytest.mark.parametrize(
    ("addr", "bad"), [("https://a,", ""), ("https://a,,https://b", ""), ("https://a,b:8200", "b:8200")]
)
def test_each_node_is_checked(addr: str, bad: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        settings(addr=addr)
    assert str(caught.value).endswith(f"and carry no /v1 path; got {bad!r}")
    with pytest.raises(ConfigurationError, match=r"^VAULT_ADDR uses http:// for a remote host"):
        settings(addr="http://127.0.0.1:8200,http://10.0.0.7:8200")
    with pytest.raises(ConfigurationError, match=r"^VAULT_ADDR must be a plain address") as caught:
        settings(addr="https://a,https://user:hun,ter2@vault")
    assert "hun" not in str(caught.value)


@pytest.mark.parametrize(
    ("location", "node"),
    [
        ("https://a:8200/v1/transit/encrypt/k", "https://a:8200"),
        ("HTTPS://A:8200", "https://a:8200"),
        ("https://b:443/v1/x?y#z", "https://b"),
        ("https://b", "https://b"),
        ("https://a:8201/v1", None),
        ("https://a/v1", None),
        ("http://a:8200/v1", None),
        ("https://c:8200/v1", None),
        ("https://a:8200.evil.example/v1", None),
        ("https://a:8200@evil.example/v1", None),
        ("https://evil@a:8200/v1", None),
        ("//a:8200/v1", None),
        ("/v1/x", None),
        ("https://[", None),
        ("https://a:99999/", None),
        ("", None),
    ],
)
def test_a_redirect_names_a_node_only_by_scheme_host_and_port(location: str, node: str | None) -> None:
    assert named_node(location, ("https://a:8200", "https://b")) == node


@pytest.mark.parametrize("host", ["vault", "10.0.0.7:8200", "127.0.0.1.example.com", "localhost.example.com", "[::2]"])
def test_plain_http_is_for_this_machine(host: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        settings(addr=f"http://{host}")
    assert str(caught.value) == (
        "VAULT_ADDR uses http:// for a remote host; the system key would travel in clear text. "
        "Use https or set VAULT_ALLOW_HTTP=1"
    )
    assert from_env(VAULT_ADDR=f"http://{host}", VAULT_ALLOW_HTTP="1").addr == f"http://{host}"


@pytest.mark.parametrize("key", ["a", "asherah-master", "a.b_c-d", "7", "_x"])
def test_key_name(key: str) -> None:
    assert settings(key=f" {key} ").key == key


@pytest.mark.parametrize("key", ["a/b", "a b", "a?", "..", ".a", "-a", "a.", "a-", "ä", "a%2fb", "a\n\nb"])
def test_key_name_that_vault_does_not_route(key: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        settings(key=key)
    assert str(caught.value) == f"VAULT_TRANSIT_KEY {key!r} is not a valid Transit key name"


def test_mount() -> None:
    assert settings(mount="/team/kms/transit/").mount == "team/kms/transit"
    for mount in ("", "a//b", "a/../b", "a b", "a?b"):
        with pytest.raises(ConfigurationError, match=r"^VAULT_TRANSIT_MOUNT "):
            settings(mount=mount)


@pytest.mark.parametrize("token", ["s.abc\ndef", "s.abc def", "s.äbc", "s.abc\x7f", "s.abc\r\nX-Other: 1"])
def test_token_that_is_no_header(token: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^VAULT_TOKEN contains control characters") as caught:
        settings(token=token)
    assert token not in str(caught.value)
    assert caught.value.__context__ is None


def test_namespace() -> None:
    assert settings(namespace=" team-a/ ").namespace == "team-a/"
    assert settings(namespace=" ").namespace is None
    with pytest.raises(ConfigurationError, match=r"^VAULT_NAMESPACE contains control characters"):
        settings(namespace="a\nb")


def test_authorities(tmp_path: Path) -> None:
    absent, text, folder = tmp_path / "absent.pem", tmp_path / "text.pem", tmp_path / "folder"
    text.write_text("not a certificate")
    folder.mkdir()
    with pytest.raises(ConfigurationError) as caught:
        settings(ca_cert=absent)
    assert str(caught.value) == f"VAULT_CACERT '{absent}' does not exist"
    for path in (text, folder):
        with pytest.raises(ConfigurationError, match="must be a PEM file of certificates, or a directory"):
            settings(ca_cert=path)
    (folder / "0a1b2c3d.0").touch()
    assert from_env(VAULT_CAPATH=str(folder)).verify == str(folder)
    assert from_env(VAULT_CAPATH=str(absent), BAO_CACERT=str(folder)).verify == str(folder)


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() == 0, reason="root may read everything")
def test_authorities_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.touch(0o000)
    with pytest.raises(ConfigurationError, match=r"cannot read VAULT_CACERT '.*': Permission denied"):
        settings(ca_cert=path)


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "5s", "1_0", "1e3", "five"])
def test_timeout_that_is_no_time(value: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^VAULT_CLIENT_TIMEOUT must be a positive number of seconds$"):
        from_env(VAULT_CLIENT_TIMEOUT=value)


def test_timeout() -> None:
    assert from_env(VAULT_CLIENT_TIMEOUT="1.5").timeouts == (1.5, 1.5)
    assert from_env(BAO_CLIENT_TIMEOUT="30").timeouts == (2, 30)


def test_flags() -> None:
    assert from_env(BAO_SKIP_VERIFY="true").verify is False
    assert from_env(VAULT_SKIP_VERIFY="0").verify is True
    for value in ("yes", "2", "t"):
        with pytest.raises(ConfigurationError) as caught:
            from_env(VAULT_SKIP_VERIFY=value)
        assert str(caught.value) == f"VAULT_SKIP_VERIFY must be true or false; got '{value}'"
    with pytest.raises(ConfigurationError, match=r"^BAO_SKIP_VERIFY must be"):
        from_env(BAO_SKIP_VERIFY="yes")


def test_methods() -> None:
    assert from_env(VAULT_AUTH_METHOD="token").credentials.token == TOKEN
    for method in ("approle", "kubernetes", "cert", "Token"):
        assert from_env(VAULT_AUTH_METHOD=method).credentials.auth_method == "token", "VAULT_TOKEN wins"
    with pytest.raises(ConfigurationError) as caught:
        from_env(VAULT_AUTH_METHOD="Token", VAULT_TOKEN="")
    assert str(caught.value) == "VAULT_AUTH_METHOD must be token, kubernetes, approle or cert; got 'Token'"
    found = VaultSettings.of(read_options(ENVIRON, VaultOptions(auth_method="kubernetes", auth_role="r")))
    assert (found.credentials.auth_method, found.credentials.token) == ("kubernetes", "")


def test_certificates_of_a_client_need_tls() -> None:
    with pytest.raises(ConfigurationError, match="needs VAULT_CLIENT_CERT and VAULT_CLIENT_KEY"):
        settings(auth_method="cert")


@pytest.mark.parametrize("name", ["deadline", "timeout"])
def test_times_that_are_none(name: str) -> None:
    for value in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ConfigurationError, match=r"must be a positive number of seconds$"):
            settings(**{name: value})


def test_deadline_and_jitter() -> None:
    assert (settings().deadline, settings().startup_jitter) == (20, 0)
    found = from_env(VAULT_RETRY_DEADLINE="30", VAULT_STARTUP_JITTER="0")
    assert (found.deadline, found.startup_jitter) == (30, 0)
    assert from_env(VAULT_STARTUP_JITTER="5").startup_jitter == 5
    for name in ("VAULT_RETRY_DEADLINE", "VAULT_STARTUP_JITTER"):
        with pytest.raises(ConfigurationError, match=f"^{name} must be a positive number of seconds"):
            from_env(**{name: "soon"})


def test_context_is_canonical_json_of_service_and_product() -> None:
    assert from_env(SERVICE_NAME="records", PRODUCT_ID="clinic").context is None
    found = from_env(SERVICE_NAME="Übung", PRODUCT_ID="clinic", VAULT_TRANSIT_AAD="1").context
    assert base64.b64decode(found or "").decode() == '{"product":"clinic","service":"Übung"}'
    assert (
        settings(bind_context=True, service="a", product="b").context
        == settings(bind_context=True, product="b", service="a").context
    )
    for names in ({}, {"SERVICE_NAME": "records"}, {"PRODUCT_ID": "clinic"}):
        with pytest.raises(ConfigurationError, match=r"^VAULT_TRANSIT_AAD=1 needs .*service and product"):
            from_env(VAULT_TRANSIT_AAD="true", **names)


@pytest.mark.parametrize("name", ["ADDR", "TOKEN", "NAMESPACE", "CACERT", "CAPATH", "SKIP_VERIFY", "CLIENT_TIMEOUT"])
def test_contradiction_between_the_two_tools(name: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        from_env(**{f"VAULT_{name}": "hunter2", f"BAO_{name}": "hunter3"})
    assert str(caught.value) == f"VAULT_{name} and BAO_{name} are both set and differ; remove one of them"


def test_agreement_between_the_two_tools() -> None:
    assert from_env(BAO_ADDR=ENVIRON["VAULT_ADDR"], BAO_TOKEN=f"{TOKEN} ") == settings()


def test_explicit_wins() -> None:
    environ = {**ENVIRON, "BAO_ADDR": "https://other", "VAULT_SKIP_VERIFY": "perhaps", "VAULT_TRANSIT_KEY": "other"}
    explicit = VaultOptions(addr="https://mine", skip_verify=False, key="mine", namespace=None)
    found = VaultSettings.of(read_options(environ, explicit))
    assert (found.addr, found.key, found.skip_verify) == ("https://mine", "mine", False)
    kms = VaultTransitKMS.from_env({**ENVIRON, "BAO_ADDR": "https://other"}, addr="https://mine")
    assert "https://mine" in repr(kms)


def test_construction_reads_no_environment_and_opens_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAULT_NAMESPACE", "elsewhere")
    kms = VaultTransitKMS(addr="https://vault.invalid", key="k", token=TOKEN)
    assert kms._settings.namespace is None
    assert kms._caller._connection._opened == {}
    kms.close()


def test_the_token_is_never_shown() -> None:
    found = settings()
    assert TOKEN not in repr(found)
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(found)
