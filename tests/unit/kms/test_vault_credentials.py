# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from sa_asherah.errors import ConfigurationError, KmsAuthError
from sa_asherah.kms.vault.credentials import CredentialOptions, Credentials, read_credentials, read_secret
from tests.servers.certificates import Authority, Pair

TOKEN = "hvs.0123456789abcdefghijklmn"
SECRET = "a1b2c3d4-secret-id"
ROLE = {"auth_method": "approle", "role_id": "e5f6-role-id"}


def credentials(**options: object) -> Credentials:
    return Credentials(**options)  # type: ignore[arg-type] # also what the types forbid


def from_env(environ: dict[str, str], **explicit: object) -> Credentials:
    return Credentials(**read_credentials(environ, explicit))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Authority(tmp_path_factory.mktemp("authority")).client("asherah")


def test_defaults() -> None:
    found = {method: credentials(auth_method=method, **more) for method, more in COMPLETE.items()}
    assert {method: one.auth_mount for method, one in found.items()} == {name: name for name in COMPLETE}
    assert found["kubernetes"].k8s_token_path == "/var/run/secrets/kubernetes.io/serviceaccount/token"
    assert credentials(token=TOKEN).auth_method == "token"


COMPLETE: dict[str, dict[str, object]] = {
    "token": {"token": TOKEN},
    "kubernetes": {"auth_role": "asherah-role"},
    "approle": {"role_id": "e5f6-role-id"},
}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "VAULT_AUTH_METHOD=token needs VAULT_TOKEN (or VAULT_TOKEN_FILE)"),
        ({"token": " \n"}, "VAULT_AUTH_METHOD=token needs VAULT_TOKEN (or VAULT_TOKEN_FILE)"),
        ({"auth_method": "ldap"}, "VAULT_AUTH_METHOD must be token, kubernetes, approle or cert; got 'ldap'"),
        ({"auth_method": "kubernetes"}, "VAULT_AUTH_METHOD=kubernetes needs VAULT_AUTH_ROLE"),
        ({"auth_method": "approle", "secret_id": SECRET}, "VAULT_AUTH_METHOD=approle needs VAULT_APPROLE_ROLE_ID"),
        (
            {**ROLE, "secret_id": SECRET, "secret_id_file": "/nowhere"},
            "set only one of VAULT_APPROLE_SECRET_ID and VAULT_APPROLE_SECRET_ID_FILE",
        ),
        (
            {**ROLE, "secret_id_wrapped": True},
            (
                "VAULT_APPROLE_SECRET_ID_WRAPPED needs the wrapping token in VAULT_APPROLE_SECRET_ID "
                "(or VAULT_APPROLE_SECRET_ID_FILE)"
            ),
        ),
        ({"auth_method": "cert"}, "VAULT_AUTH_METHOD=cert needs VAULT_CLIENT_CERT and VAULT_CLIENT_KEY"),
        (
            {"auth_method": "cert", "client_cert": "/cert.pem"},
            "VAULT_AUTH_METHOD=cert needs VAULT_CLIENT_CERT and VAULT_CLIENT_KEY",
        ),
        (
            {"token": TOKEN, "client_key": "/key.pem"},
            "set both VAULT_CLIENT_CERT and VAULT_CLIENT_KEY, or none of them",
        ),
        ({"token": TOKEN, "token_file": "/nowhere"}, "set only one of VAULT_TOKEN and VAULT_TOKEN_FILE"),
        ({"token_file": "/nowhere"}, "cannot read VAULT_TOKEN_FILE '/nowhere': No such file or directory"),
        (
            {**ROLE, "secret_id_file": "/nowhere"},
            "cannot read VAULT_APPROLE_SECRET_ID_FILE '/nowhere': No such file or directory",
        ),
        ({"token": TOKEN, "auth_mount": "auth/team"}, "write VAULT_AUTH_MOUNT without 'auth/': 'team'"),
        (
            {"token": TOKEN, "auth_mount": "my team"},
            "VAULT_AUTH_MOUNT 'my team' is not a valid mount path, e.g. kubernetes",
        ),
        (
            {"token": TOKEN, "auth_mount": "../sys"},
            "VAULT_AUTH_MOUNT '../sys' is not a valid mount path, e.g. kubernetes",
        ),
    ],
)
def test_what_is_missing_or_contradictory(options: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        credentials(**options)
    assert str(caught.value) == text


@pytest.mark.parametrize("name", ["VAULT_TOKEN", "VAULT_APPROLE_SECRET_ID"])
@pytest.mark.parametrize("middle", ["\n", "\r\nX-Injected: 1", " ", "\x00", "é", "\x7f"])
def test_a_secret_that_would_break_a_header(name: str, middle: str) -> None:
    secret = f"{TOKEN}{middle}{TOKEN}"
    with pytest.raises(ConfigurationError, match="contains control characters") as caught:
        credentials(**({"token": secret} if name == "VAULT_TOKEN" else {**ROLE, "secret_id": secret}))
    assert str(caught.value).startswith(name)
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize("mount", ["kubernetes", "/team/ar/", "clusters/eu-1", "corp.pki"])
def test_mounts(mount: str) -> None:
    assert credentials(token=TOKEN, auth_mount=mount).auth_mount == mount.strip("/")


def test_no_secret_shows_and_none_can_be_pickled() -> None:
    for one in (credentials(token=TOKEN), credentials(**ROLE, secret_id=SECRET)):
        assert not [text for text in (TOKEN, SECRET, ROLE["role_id"]) if text in repr(one)]
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(one)


# Which one counts


def test_the_environments_token_wins_over_its_method() -> None:
    environ = {"VAULT_AUTH_METHOD": "kubernetes", "VAULT_AUTH_ROLE": "role"}
    assert from_env({**environ, "VAULT_TOKEN": TOKEN}).auth_method == "token"
    assert from_env({**environ, "BAO_TOKEN": TOKEN}).token == TOKEN
    assert from_env({**environ, "VAULT_TOKEN": " "}).auth_method == "kubernetes"


def test_the_environments_token_file_wins_over_its_method(tmp_path: Path) -> None:
    path = written(tmp_path, TOKEN)
    environ = {"VAULT_AUTH_METHOD": "cert", "VAULT_TOKEN_FILE": path}
    assert from_env(environ).token_file == path


def test_an_explicit_method_wins_over_the_environments_token() -> None:
    found = from_env({"VAULT_TOKEN": TOKEN}, auth_method="kubernetes", auth_role="role")
    assert (found.auth_method, found.token) == ("kubernetes", "")


def test_an_explicit_token_wins_over_the_environments_method_and_file() -> None:
    found = from_env({"VAULT_AUTH_METHOD": "ldap", "VAULT_TOKEN_FILE": "/nowhere"}, token=TOKEN)
    assert (found.auth_method, found.token, found.token_file) == ("token", TOKEN, None)


def test_an_explicit_secret_id_wins_over_the_environments_file() -> None:
    environ = {"VAULT_AUTH_METHOD": "approle", "VAULT_APPROLE_SECRET_ID_FILE": "/nowhere"}
    found = from_env(environ, role_id="role", secret_id=SECRET)
    assert (found.secret_id, found.secret_id_file) == (SECRET, None)


def test_every_option_comes_from_the_environment(tmp_path: Path) -> None:
    environ = {
        "VAULT_AUTH_METHOD": "approle",
        "VAULT_AUTH_MOUNT": "team/ar",
        "VAULT_AUTH_ROLE": "role",
        "VAULT_K8S_TOKEN_PATH": "/token",
        "VAULT_APPROLE_ROLE_ID": "id",
        "VAULT_APPROLE_SECRET_ID_FILE": written(tmp_path, SECRET),
        "VAULT_APPROLE_SECRET_ID_WRAPPED": "true",
    }
    expected = CredentialOptions(
        auth_method="approle", auth_mount="team/ar", auth_role="role", k8s_token_path="/token", role_id="id",
        secret_id_file=environ["VAULT_APPROLE_SECRET_ID_FILE"], secret_id_wrapped=True,
    )  # fmt: skip
    assert read_credentials(environ, {}) == expected
    assert read_credentials({name.replace("VAULT", "BAO"): value for name, value in environ.items()}, {}) == expected
    with pytest.raises(ConfigurationError, match="VAULT_AUTH_ROLE and BAO_AUTH_ROLE are both set and differ"):
        read_credentials({**environ, "BAO_AUTH_ROLE": "other"}, {})
    with pytest.raises(ConfigurationError, match="VAULT_APPROLE_SECRET_ID_WRAPPED must be true or false"):
        read_credentials({**environ, "VAULT_APPROLE_SECRET_ID_WRAPPED": "perhaps"}, {})


def test_options_of_others_do_not_matter() -> None:
    assert read_credentials({}, {"addr": "https://vault", "token": TOKEN, "timeout": 5.0, "namespace": None}) == {
        "auth_method": "token",
        "token": TOKEN,
    }


# What can be used twice


def test_what_can_be_used_twice(tmp_path: Path, pair: Pair) -> None:
    path = written(tmp_path, SECRET)
    assert credentials(auth_method="kubernetes", auth_role="role").is_reusable
    assert credentials(auth_method="cert", client_cert=pair.cert, client_key=pair.key).is_reusable
    assert credentials(**ROLE).is_reusable
    assert credentials(**ROLE, secret_id_file=path).is_reusable
    assert not credentials(**ROLE, secret_id=SECRET).is_reusable
    assert not credentials(**ROLE, secret_id_file=path, secret_id_wrapped=True).is_reusable
    assert not credentials(token=TOKEN).is_reusable


# Certificates


def test_a_pair(pair: Pair, tmp_path: Path) -> None:
    found = credentials(auth_method="cert", client_cert=pair.cert, client_key=pair.key)
    assert found.client_pair == (str(pair.cert), str(pair.key))
    both = tmp_path / "both.pem"
    both.write_bytes(pair.cert.read_bytes() + pair.key.read_bytes())
    assert credentials(token=TOKEN, client_cert=both, client_key=both).client_pair == (str(both), str(both))
    assert credentials(token=TOKEN).client_pair is None


def test_files_that_are_no_pair(pair: Pair, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    for name, encryption in (
        ("other", serialization.NoEncryption()),
        ("secret", serialization.BestAvailableEncryption(b"password")),
    ):
        (tmp_path / name).write_bytes(key.private_bytes(pem, pkcs8, encryption))
    for name, text in (
        ("other", "VAULT_CLIENT_KEY does not belong to VAULT_CLIENT_CERT"),
        ("secret", "the key without a password"),
        ("nowhere", "cannot read VAULT_CLIENT_KEY '.*nowhere': No such file or directory"),
        (".", "cannot read VAULT_CLIENT_KEY '.*': Is a directory"),
    ):
        with pytest.raises(ConfigurationError, match=text):
            credentials(auth_method="cert", client_cert=pair.cert, client_key=tmp_path / name)
    with pytest.raises(ConfigurationError, match="must be PEM files of a certificate and of its key"):
        credentials(auth_method="cert", client_cert=pair.key, client_key=pair.key)


def test_certificates_need_tls(pair: Pair) -> None:
    found = credentials(auth_method="cert", client_cert=pair.cert, client_key=pair.key)
    found.check_transport(is_encrypted=True)
    with pytest.raises(ConfigurationError, match="cert needs an https:// address in VAULT_ADDR"):
        found.check_transport(is_encrypted=False)
    credentials(token=TOKEN).check_transport(is_encrypted=False)


# Files


def test_white_space_around_a_secret_is_not_part_of_it(tmp_path: Path) -> None:
    assert read_secret(written(tmp_path, f"\n {TOKEN}\r\n"), "the file") == TOKEN


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "the file is empty"),
        (b" \n", "the file is empty"),
        (b"two\nlines", "the file must hold one secret"),
        (b"\xff\xfe\x00", "the file must hold one secret"),
    ],
)
def test_a_file_without_a_secret(tmp_path: Path, content: bytes, text: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(KmsAuthError, match=text) as caught:
        read_secret(str(tmp_path / "file"), "the file")
    assert (caught.value.operation, caught.value.status, caught.value.__cause__) == ("login", None, None)
    with pytest.raises(ConfigurationError, match="VAULT_TOKEN_FILE"):
        credentials(token_file=tmp_path / "file")


def written(folder: Path, text: str) -> str:
    path = folder / "secret"
    path.write_text(text)
    return os.fspath(path)
