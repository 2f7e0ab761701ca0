# SPDX-License-Identifier: Apache-2.0
"""The configuration of other implementations by its JSON names: every name is taken over, or refused with advice."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest

from sa_asherah import Asherah
from sa_asherah.config import Settings
from sa_asherah.errors import ConfigurationError
from sa_asherah.kms import static

HEX = "0f" * 32
CONFIG: dict[str, Any] = {"ServiceName": "records", "ProductID": "clinic", "KMS": "static", "StaticMasterKeyHex": HEX}

# All names of the reference implementations; None: refused, whatever the value.
NAMES: dict[str, Any] = {
    "ServiceName": "records",
    "ProductID": "clinic",
    "ExpireAfter": 86_400,
    "CheckInterval": 60,
    "Metastore": "rdbms",
    "ConnectionString": None,
    "SQLMetastoreDBType": None,
    "ReplicaReadConsistency": None,
    "DynamoDBEndpoint": None,
    "DynamoDBRegion": "eu-west-1",
    "DynamoDBSigningRegion": None,
    "DynamoDBTableName": "Keys",
    "SessionCacheMaxSize": 10,
    "SessionCacheDuration": 20,
    "KMS": "static",
    "RegionMap": {"eu-west-1": "arn:aws:kms:eu-west-1:123456789012:key/a"},
    "PreferredRegion": "eu-west-1",
    "AwsProfileName": None,
    "EnableRegionSuffix": True,
    "RecoveryRegionSuffixes": ["us-west-2"],
    "SelfHealRecoveredKeys": None,
    "ConfigDriftForceRun": None,
    "ConfigDriftForceUpdate": None,
    "EnableSessionCaching": True,
    "Verbose": None,
    "DisableZeroCopy": None,
    "NullDataCheck": None,
    "EnableCanaries": None,
    "PoolMaxOpen": None,
    "PoolMaxIdle": None,
    "PoolMaxLifetime": None,
    "PoolMaxIdleTime": None,
    "StaticMasterKeyHex": HEX,
    "KmsKeyId": "alias/master",
    "SecretsManagerSecretId": "master",
    "VaultAddr": "https://vault.example.com",
    "VaultToken": "s.hunter2",
    "VaultAuthMethod": "approle",
    "VaultAuthRole": "records",
    "VaultAuthMount": "mount",
    "VaultApproleRoleId": "role",
    "VaultApproleSecretId": "secret",
    "VaultClientCert": "/cert.pem",
    "VaultClientKey": "/key.pem",
    "VaultK8sTokenPath": "/token",
    "VaultTransitKey": "master",
    "VaultTransitMount": "transit",
}
TAKEN = [name for name, value in NAMES.items() if value is not None]
REFUSED = [name for name, value in NAMES.items() if value is None]


def read(environ: dict[str, str] | None = None, /, **changes: Any) -> Settings:
    return Settings.from_mapping({**CONFIG, **changes}, environ or {})


def refusal(environ: dict[str, str] | None = None, /, **changes: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        read(environ, **changes)
    assert caught.value.__context__ is None
    assert HEX not in str(caught.value)
    return str(caught.value)


def test_a_configuration_is_taken_over() -> None:
    found = read(
        ExpireAfter=86_400,
        CheckInterval=0,
        SessionCacheMaxSize=10,
        SessionCacheDuration=20,
        EnableSessionCaching=True,
        RecoveryRegionSuffixes=["us-west-2", ""],
    )
    assert (found.service, found.product, found.kms, found.static_master_key_hex) == (
        "records",
        "clinic",
        "static",
        HEX,
    )
    assert (found.expire_after, found.check_interval) == (timedelta(days=1), timedelta(0))
    assert (found.session_cache, found.session_cache_size) == (True, 10)
    assert found.session_cache_duration == timedelta(seconds=20)
    assert found.read_suffixes == ("us-west-2", "")


@pytest.mark.parametrize("name", TAKEN)
def test_every_name_with_a_meaning_is_taken(name: str) -> None:
    table = {"Metastore": "dynamodb"} if name == "DynamoDBTableName" else {}
    plain, found = read(**table), read(**table, **{name: NAMES[name]})
    assert name in CONFIG or name in {"Metastore", "EnableRegionSuffix"} or settings_of(plain) != settings_of(found)


def settings_of(settings: Settings) -> tuple[object, ...]:
    return settings, dict(settings.environ), settings.static_master_key_hex


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("value", ["hunter2", 5, True])
def test_every_name_without_a_meaning_here_is_refused_with_advice(name: str, value: object) -> None:
    text = refusal(**{name: value})
    assert re.match(f"{name} is not supported: .{{30,}}", text)
    assert "remove it" in text
    assert "hunter2" not in text


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("value", [None, False, ""])
def test_what_is_off_or_empty_does_no_harm(name: str, value: object) -> None:
    assert read(**{name: value}) == read()


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_empty_counts_as_missing(name: str) -> None:
    empty = type(NAMES[name])() if not isinstance(NAMES[name], int) else None
    if name in CONFIG and name != "StaticMasterKeyHex":
        assert re.search(rf"\b{name}\b.* is required", refusal(**{name: empty}))
    else:
        assert read(**{name: empty}).service == "records"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("ExpireAfterSecs", "did you mean ExpireAfter?"),
        ("serviceName", "did you mean ServiceName?"),
        ("SERVICE_NAME", "known are "),
        ("Colour", "known are CheckInterval, "),
    ],
)
def test_an_unknown_name_is_refused(name: str, hint: str) -> None:
    for value in ("x", None, False, ""):
        assert refusal(**{name: value}).startswith(f"the setting {name!r} is not known; {hint}")


@pytest.mark.parametrize("name", TAKEN)
def test_a_value_of_another_type_is_refused_without_showing_it(name: str) -> None:
    wrong: list[object] = [12345, 1.5, b"hunter2", ["hunter2", 1], object()]
    wrong += [True] if not isinstance(NAMES[name], bool) else ["true", 1]
    if isinstance(NAMES[name], int):
        wrong = [each for each in wrong if type(each) is not type(NAMES[name])] + ["12345"]
    for value in wrong:
        text = refusal(**{name: value})
        assert text.startswith(f"{name} must be ")
        assert "hunter2" not in text
        assert "12345" not in text


@pytest.mark.parametrize(
    ("name", "value", "variable"),
    [
        ("ExpireAfter", 0, "EXPIRE_AFTER_SECS"),
        ("ExpireAfter", -1, "EXPIRE_AFTER_SECS"),
        ("CheckInterval", -1, "REVOKE_CHECK_INTERVAL_SECS"),
        ("SessionCacheMaxSize", 0, "SESSION_CACHE_MAX_SIZE"),
        ("SessionCacheDuration", 0, "SESSION_CACHE_DURATION_SECS"),
    ],
)
def test_a_value_out_of_range_is_named_as_the_configuration_names_it(name: str, value: int, variable: str) -> None:
    assert refusal(**{name: value}).startswith(f"{name} ({variable}) must be a whole number")


@pytest.mark.parametrize("name", ["RegionMap", "RecoveryRegionSuffixes"])
@pytest.mark.parametrize("value", [{"a": 1}, {1: "a"}, [1], ["a,b"], "a", [None]])
def test_maps_and_lists_hold_texts(name: str, value: object) -> None:
    assert refusal(**{name: value}).startswith(f"{name} must be an ")


@pytest.mark.parametrize("suffixes", [[""], ["", "eu-1"], ["eu-1", ""], ["eu-1", "eu-1", "eu-2"]])
def test_suffixes_keep_their_order_and_the_empty_one_counts(suffixes: list[str]) -> None:
    assert read(RecoveryRegionSuffixes=suffixes).read_suffixes == tuple(dict.fromkeys(suffixes))


def test_the_environment_supplies_what_is_left_out_and_may_say_the_same() -> None:
    environ = {"ASHERAH_PEERS": "1", "EXPIRE_AFTER_SECS": "86400", "PRODUCT_ID": "clinic"}
    found = read(environ, ExpireAfter=86_400)
    assert (found.peers, found.expire_after) == (True, timedelta(days=1))
    assert environ == {"ASHERAH_PEERS": "1", "EXPIRE_AFTER_SECS": "86400", "PRODUCT_ID": "clinic"}


@pytest.mark.parametrize(
    ("name", "variable"),
    [
        ("ServiceName", "SERVICE_NAME"),
        ("ProductID", "PRODUCT_ID"),
        ("StaticMasterKeyHex", "STATIC_MASTER_KEY_HEX"),
        ("ExpireAfter", "EXPIRE_AFTER_SECS"),
        ("RegionMap", "REGION_MAP"),
        ("RecoveryRegionSuffixes", "RECOVERY_REGION_SUFFIXES"),
        ("EnableSessionCaching", "SESSION_CACHE"),
        ("VaultToken", "VAULT_TOKEN"),
    ],
)
def test_a_contradiction_of_the_environment_is_refused_and_no_value_shown(name: str, variable: str) -> None:
    text = refusal({variable: "hunter2"}, **{name: NAMES[name]})
    assert text == f"{name} and the environment variable {variable} differ; remove one of them"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"EnableSessionCaching": False, "SessionCacheMaxSize": 5}, "EnableSessionCaching (SESSION_CACHE) is off and "),
        ({"Metastore": "memory"}, "Metastore=memory is not offered: the key table is in the database of the engine"),
        ({"Metastore": "sqlite"}, "Metastore=sqlite is not offered"),
        ({"Metastore": "test-debug-sqlite"}, "Metastore=test-debug-sqlite is not offered"),
        ({"Metastore": "redis"}, "Metastore must be one of rdbms, dynamodb; got 'redis'"),
        ({"KMS": "test-debug-static"}, "KMS must be one of static, "),
        ({"DynamoDBTableName": "Keys"}, "DynamoDBTableName (DDB_TABLE) is set and Metastore is not"),
        ({"Metastore": "dynamodb", "EnableRegionSuffix": True}, "DDB_REGION_SUFFIX needs DynamoDBRegion (AWS_REGION)"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes: dict[str, Any], text: str) -> None:
    assert refusal(**changes).startswith(text)


def test_a_table_of_dynamodb_with_its_region_as_suffix() -> None:
    found = read(Metastore="dynamodb", DynamoDBTableName="Keys", DynamoDBRegion="eu-west-1", EnableRegionSuffix=True)
    assert (found.metastore, found.ddb_table, found.region_suffix, found.peers) == (
        "dynamodb",
        "Keys",
        "eu-west-1",
        True,
    )
    assert read(Metastore="dynamodb", DynamoDBRegion="eu-west-1", EnableRegionSuffix=False).region_suffix is None


def test_an_asherah_comes_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static, "_warned", True)
    config = {**CONFIG, "ExpireAfter": 7_200, "CheckInterval": 5, "SessionCacheMaxSize": 3}
    with Asherah.from_mapping(config, {"SHARED_INTERMEDIATE_KEY_CACHE": "0", "REGION_SUFFIX": "eu-1"}) as asherah:
        policy = asherah._policy
        assert (policy.expire_after, policy.check_interval, policy.session_cache_size) == (7_200, 5, 3)
        assert (policy.session_cache, policy.shared_intermediate_keys) == (True, False)
        assert repr(asherah) == "<Asherah of '_SK_records_clinic_eu-1'>"
