# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pickle
import subprocess
import sys
from datetime import timedelta

import pytest

from sa_asherah import Asherah
from sa_asherah.config import Settings
from sa_asherah.core.policy import CryptoPolicy
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


POLICY: dict[str, tuple[str, str, object]] = {
    "EXPIRE_AFTER_SECS": ("86400", "expire_after", timedelta(days=1)),
    "REVOKE_CHECK_INTERVAL_SECS": ("60", "check_interval", timedelta(minutes=1)),
    "CREATE_DATE_PRECISION_SECS": ("1", "precision", timedelta(seconds=1)),
    "ASHERAH_MAX_STALE_SECS": ("0", "max_stale", timedelta(0)),
    "ASHERAH_ROTATION_GRACE_SECS": ("7", "rotation_grace", timedelta(seconds=7)),
    "ASHERAH_ROTATION_SPREAD_SECS": ("0", "rotation_spread", timedelta(0)),
    "INTERMEDIATE_KEY_CACHE_MAX_SIZE": ("5", "cache_size", 5),
    "CACHE_SYSTEM_KEYS": ("false", "cache_system_keys", False),
    "CACHE_INTERMEDIATE_KEYS": ("0", "cache_intermediate_keys", False),
    "SHARED_INTERMEDIATE_KEY_CACHE": ("0", "shared_intermediate_keys", False),
    "SESSION_CACHE": ("1", "session_cache", True),
    "SESSION_CACHE_MAX_SIZE": ("5", "session_cache_size", 5),
    "SESSION_CACHE_DURATION_SECS": ("5", "session_cache_duration", timedelta(seconds=5)),
    "REGION_SUFFIX": ("eu-1", "region_suffix", "eu-1"),
    "RECOVERY_REGION_SUFFIXES": ("us-1, ,us-2,us-1", "read_suffixes", ("us-1", "", "us-2")),
    "ASHERAH_PEERS": ("1", "peers", True),
    "ASHERAH_CREATE_SYSTEM_KEYS": ("0", "create_system_keys", False),
}


@pytest.mark.parametrize("name", POLICY)
def test_each_variable_sets_its_argument_and_no_other(name: str) -> None:
    text, attribute, value = POLICY[name]
    plain, found = vars(read()), vars(read(**{name: text}))
    assert found[attribute] == value != plain[attribute]
    also = {"session_cache"} if name in {"SESSION_CACHE_MAX_SIZE", "SESSION_CACHE_DURATION_SECS"} else set()
    assert {each for each in plain if plain[each] != found[each]} == {attribute} | also


@pytest.mark.parametrize("name", POLICY)
def test_it_reaches_the_policy_or_the_key_ids(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static, "_warned", True)
    text, attribute, value = POLICY[name]
    with Asherah.from_env({**ENVIRON, name: text}) as asherah:
        places: dict[str, tuple[str, object]] = {
            "region_suffix": ("suffix", asherah._ids),
            "peers": ("peers", asherah._ids),
        }
        places["read_suffixes"] = ("_read_suffixes", asherah)
        where, owner = places.get(attribute, (attribute, asherah._policy))
        expected = value.total_seconds() if isinstance(value, timedelta) else value
        assert getattr(owner, where) == expected


def test_the_defaults_of_the_settings_are_those_of_the_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static, "_warned", True)
    with Asherah.from_env(ENVIRON) as one, Asherah("records", "clinic", StaticKMS(bytes(32), {})) as other:
        assert (one._policy, one._ids, one._read_suffixes) == (other._policy, other._ids, other._read_suffixes)
        assert one._policy == CryptoPolicy()


@pytest.mark.parametrize(
    ("environ", "text"),
    [
        ({"ASHERAH_PEER": "1"}, "the variable ASHERAH_PEER is not known; did you mean ASHERAH_PEERS?"),
        (
            {"ASHERAH_MAX_STALE": "1"},
            "the variable ASHERAH_MAX_STALE is not known; did you mean ASHERAH_MAX_STALE_SECS?",
        ),
        ({"ASHERAH_POOLS": "5"}, "the variable ASHERAH_POOLS is not known; remove it; known are ASHERAH_"),
        ({"SELF_HEAL_RECOVERED_KEYS": "1"}, "SELF_HEAL_RECOVERED_KEYS is not supported: "),
        ({"REPLICA_READ_CONSISTENCY": "global"}, "REPLICA_READ_CONSISTENCY is not supported: "),
        (
            {"SESSION_CACHE": "0", "SESSION_CACHE_MAX_SIZE": "5"},
            "SESSION_CACHE is off and SESSION_CACHE_MAX_SIZE is set",
        ),
        (
            {"CACHE_INTERMEDIATE_KEYS": "0", "SHARED_INTERMEDIATE_KEY_CACHE": "1"},
            "CACHE_INTERMEDIATE_KEYS is off and SHARED_INTERMEDIATE_KEY_CACHE is set",
        ),
        (
            {"CACHE_INTERMEDIATE_KEYS": "0", "SESSION_CACHE": "1"},
            "CACHE_INTERMEDIATE_KEYS is off and SESSION_CACHE is set",
        ),
        ({"Metastore": "sqlite"}, "Metastore=sqlite is not offered: "),
        ({"Metastore": "rdbms", "METASTORE": "dynamodb"}, "Metastore and METASTORE are both set and differ"),
    ],
)
def test_what_is_unknown_or_contradictory_is_refused_by_name(environ: dict[str, str], text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(**environ)
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize(
    "environ",
    [
        {"ASHERAH_PEER": " ", "SELF_HEAL_RECOVERED_KEYS": "false"},
        {"CACHE_INTERMEDIATE_KEYS": "0", "SHARED_INTERMEDIATE_KEY_CACHE": "0", "SESSION_CACHE": "0"},
        {"SESSION_CACHE": "1", "SESSION_CACHE_MAX_SIZE": "5"},
        {"ASHERAH_ENV": "test", "ASHERAH_DATABASE_URL": "sqlite://", "MY_ASHERAH_PEERS": "yes"},
        {"ASHERAH_POOL_MAX_OPEN": "5", "ASHERAH_CONFIG_DRIFT_FORCE_RUN": "1"},
    ],
)
def test_what_says_the_same_or_nothing_is_no_contradiction(environ: dict[str, str]) -> None:
    assert read(**environ).kms == "static"


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
    [
        ("EXPIRE_AFTER_SECS", 1),
        ("REVOKE_CHECK_INTERVAL_SECS", 0),
        ("CREATE_DATE_PRECISION_SECS", 1),
        ("ASHERAH_MAX_STALE_SECS", 0),
        ("ASHERAH_ROTATION_GRACE_SECS", 0),
        ("ASHERAH_ROTATION_SPREAD_SECS", 0),
        ("SESSION_CACHE_DURATION_SECS", 1),
    ],
)
def test_seconds(name: str, least: int) -> None:
    for value in (str(least), "9" * 10):
        assert read(**{name: value}).kms == "static"
    for value in (str(least - 1), "1.5", "+1", "1_000", "1e3", "60s", "٣", "9" * 11, "9" * 5000):
        with pytest.raises(
            ConfigurationError, match=f"^{name} must be a whole number of seconds, {least} or more; got"
        ):
            read(**{name: value})


@pytest.mark.parametrize("name", ["INTERMEDIATE_KEY_CACHE_MAX_SIZE", "SESSION_CACHE_MAX_SIZE"])
def test_counts(name: str) -> None:
    for value in ("0", "-1", "1.5", "+1", "1_000", "٣", "9" * 11):
        with pytest.raises(ConfigurationError, match=f"^{name} must be a whole number, 1 or more; got"):
            read(**{name: value})


FLAGS = (
    "ASHERAH_PEERS",
    "ASHERAH_CREATE_SYSTEM_KEYS",
    "CACHE_SYSTEM_KEYS",
    "CACHE_INTERMEDIATE_KEYS",
    "SHARED_INTERMEDIATE_KEY_CACHE",
    "SESSION_CACHE",
    "DDB_REGION_SUFFIX",
    "ENABLE_REGION_SUFFIX",
)


@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.parametrize("value", ["yes", "on", "2", "01", "t"])
def test_flag_that_is_no_flag(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(**{name: value})
    assert str(caught.value) == f"{name} must be true or false; got '{value}'"


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
