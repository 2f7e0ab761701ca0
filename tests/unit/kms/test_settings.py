# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pickle
import subprocess
import sys
from datetime import timedelta

import pytest

from sa_asherah.config import Settings
from sa_asherah.errors import ConfigurationError
from sa_asherah.kms import StaticKMS, static

HEX = "0f" * 32
ENVIRON = {"SERVICE_NAME": "records", "PRODUCT_ID": "clinic", "KMS": "static", "STATIC_MASTER_KEY_HEX": HEX}


def read(**changes: str) -> Settings:
    return Settings.from_env({**ENVIRON, **changes})


def test_defaults() -> None:
    found = read(EXPIRE_AFTER_SECS="", REGION_SUFFIX=" ", ASHERAH_PEERS="")
    assert (found.service, found.product, found.kms) == ("records", "clinic", "static")
    assert (found.expire_after, found.check_interval, found.precision) == (
        timedelta(days=90),
        timedelta(minutes=60),
        timedelta(minutes=1),
    )
    assert (found.region_suffix, found.peers) == (None, False)


def test_everything_set() -> None:
    found = read(
        EXPIRE_AFTER_SECS=" 86400 ",
        REVOKE_CHECK_INTERVAL_SECS="0",
        CREATE_DATE_PRECISION_SECS="1",
        REGION_SUFFIX="eu-1",
        ASHERAH_PEERS="TRUE",
        SERVICE_NAME=" records\n",
    )
    assert (found.expire_after, found.check_interval, found.precision) == (
        timedelta(days=1),
        timedelta(0),
        timedelta(seconds=1),
    )
    assert (found.region_suffix, found.peers, found.service) == ("eu-1", True, "records")


@pytest.mark.parametrize("name", ["SERVICE_NAME", "PRODUCT_ID", "KMS"])
def test_required(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{name} is required: "):
        read(**{name: " "})
    with pytest.raises(ConfigurationError, match=f"^{name} is required: "):
        Settings.from_env({key: value for key, value in ENVIRON.items() if key != name})


@pytest.mark.parametrize("name", ["AWS", "Static", "none", "vault transit"])
def test_unknown_kms(name: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(KMS=name)
    assert str(caught.value) == f"KMS must be one of static, aws, secrets-manager, vault, vault-transit; got '{name}'"


@pytest.mark.parametrize(
    ("name", "least"),
    [("EXPIRE_AFTER_SECS", 1), ("REVOKE_CHECK_INTERVAL_SECS", 0), ("CREATE_DATE_PRECISION_SECS", 1)],
)
def test_seconds(name: str, least: int) -> None:
    for value in (str(least), "9" * 10):
        assert read(**{name: value}).kms == "static"
    for value in (str(least - 1), "1.5", "+1", "1_000", "1e3", "60s", "٣", "9" * 11, "9" * 5000):
        with pytest.raises(
            ConfigurationError, match=f"^{name} must be a whole number of seconds, {least} or more; got"
        ):
            read(**{name: value})


@pytest.mark.parametrize("value", ["yes", "on", "2", "01", "t"])
def test_flag_that_is_no_flag(value: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(ASHERAH_PEERS=value)
    assert str(caught.value) == f"ASHERAH_PEERS must be true or false; got '{value}'"


def test_secrets_are_not_shown() -> None:
    found = read(VAULT_TOKEN="hunter2", BAO_TOKEN="hunter2", APP_ENV="test")
    assert HEX not in repr(found)
    assert "hunter2" not in repr(found)
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(found)


def test_later_changes_of_the_environment_do_not_matter() -> None:
    environ = {**ENVIRON, "VAULT_ADDR": "https://vault", "PATH": "/bin"}
    found = Settings.from_env(environ)
    environ["VAULT_ADDR"] = "https://other"
    assert dict(found.environ) == {"VAULT_ADDR": "https://vault"}


def test_open_static_kms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static, "_warned", True)
    kms = read().open_kms()
    assert isinstance(kms, StaticKMS)
    assert kms.decrypt_key(kms.encrypt_key(bytes(32))) == bytes(32)
    with pytest.raises(ConfigurationError, match="STATIC_MASTER_KEY_HEX"):
        read(STATIC_MASTER_KEY_HEX="").open_kms()
    with pytest.raises(ConfigurationError, match="DJANGO_ENV=production"):
        read(DJANGO_ENV="production").open_kms()


@pytest.mark.parametrize("name", ["vault", "vault-transit"])
def test_open_vault_kms(name: str) -> None:
    options = {"VAULT_ADDR": "https://vault.example.com", "BAO_TOKEN": "s.hunter2", "VAULT_TRANSIT_KEY": "master"}
    kms = read(KMS=name, **options).open_kms()
    assert repr(kms) == (
        "VaultTransitKMS(addr='https://vault.example.com', namespace=None, mount='transit', key='master')"
    )
    with pytest.raises(ConfigurationError, match="VAULT_ADDR is required"):
        read(KMS=name, BAO_TOKEN="s.hunter2").open_kms()


def test_vault_is_imported_when_it_is_chosen() -> None:
    run(
        "import sa_asherah.kms, sa_asherah.config\n"
        "loaded = {name.split('.')[0] for name in sys.modules} | set(sys.modules)\n"
        "assert not loaded & {'hvac', 'requests', 'urllib3', 'sa_asherah.kms.vault'}"
    )


@pytest.mark.parametrize(
    ("package", "extra", "settings", "opens"),
    [
        ("hvac", "vault", {"KMS": "vault"}, "kms"),
        ("boto3", "aws", {"KMS": "aws"}, "kms"),
        ("boto3", "aws", {"KMS": "secrets-manager"}, "kms"),
        ("boto3", "aws", {"Metastore": "dynamodb"}, "metastore"),
    ],
    ids=["vault", "aws", "secrets-manager", "dynamodb"],
)
def test_missing_extra_is_named(package: str, extra: str, settings: dict[str, str], opens: str) -> None:
    run(
        f"sys.modules[{package!r}] = None\n"
        "from sa_asherah.config import Settings\n"
        "from sa_asherah.errors import ConfigurationError\n"
        "try:\n"
        f"    Settings.from_env({ ({**ENVIRON, **settings})!r}).open_{opens}()\n"
        "except ConfigurationError as error:\n"
        f"    assert \"pip install 'sa_asherah[{extra}]'\" in str(error), error\n"
        "else:\n"
        "    raise AssertionError"
    )


def run(script: str) -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", f"import sys\n{script}"], check=True)
