# SPDX-License-Identifier: Apache-2.0
"""Settings of AWS KMS, of Secrets Manager and of the key table in DynamoDB: each wrong one is named."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest

from sa_asherah import Asherah, StaticKeyWarning
from sa_asherah.config import Settings
from sa_asherah.errors import ConfigurationError
from sa_asherah.kms import Succession
from sa_asherah.kms.aws import AwsKMS
from sa_asherah.kms.secrets_manager import SecretsManagerKMS
from sa_asherah.kms.static import StaticKMS
from sa_asherah.metastore.dynamodb import DynamoDBMetastore

NAMES = {"SERVICE_NAME": "my-service", "PRODUCT_ID": "my-product"}
STATIC = {**NAMES, "KMS": "static", "STATIC_MASTER_KEY_HEX": "0f" * 32}
WEST = "arn:aws:kms:us-west-2:111122223333:key/1234"
EAST = "arn:aws:kms:us-east-1:111122223333:key/5678"
MAP = json.dumps({"us-west-2": WEST, "us-east-1": EAST})


def kms_of(**environ: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StaticKeyWarning)
        return Settings.from_env({**NAMES, **environ}).open_kms()


def test_aws_kms_of_one_region_and_of_several() -> None:
    one = kms_of(KMS="aws", KMS_KEY_ID="alias/asherah", AWS_REGION="us-west-2")
    assert repr(one) == "AwsKMS({'us-west-2': 'alias/asherah'})"
    assert repr(kms_of(KMS="aws", REGION_MAP=json.dumps({"us-west-2": WEST}))) == f"AwsKMS({{'us-west-2': '{WEST}'}})"
    for preferred, keys in (("us-west-2", [WEST, EAST]), ("us-east-1", [EAST, WEST])):
        several = kms_of(KMS="aws", REGION_MAP=MAP, PREFERRED_REGION=preferred)
        assert isinstance(several, AwsKMS)
        assert repr(several).index(keys[0]) < repr(several).index(keys[1])


@pytest.mark.parametrize(
    ("environ", "text"),
    [
        ({}, "KMS=aws needs REGION_MAP, or KMS_KEY_ID and AWS_REGION"),
        ({"KMS_KEY_ID": "alias/a"}, "AWS_REGION is required"),
        ({"KMS_KEY_ID": "alias/a", "AWS_REGION": "us-west-2/../x"}, "AWS_REGION is no AWS region"),
        ({"KMS_KEY_ID": EAST, "AWS_REGION": "us-west-2"}, "is no key of AWS KMS in us-west-2"),
        ({"KMS_KEY_ID": "alias/a", "REGION_MAP": MAP}, "are both set"),
        ({"KMS_KEY_ID": "a", "AWS_REGION": "us-west-2", "PREFERRED_REGION": "eu-west-1"}, "PREFERRED_REGION is 'eu-w"),
        ({"REGION_MAP": MAP}, "PREFERRED_REGION is required .* us-east-1, us-west-2"),
        ({"REGION_MAP": MAP, "PREFERRED_REGION": "eu-west-1"}, "must be one of us-east-1, us-west-2"),
        ({"REGION_MAP": "{}"}, "REGION_MAP names no region"),
        ({"REGION_MAP": "[]"}, "REGION_MAP must be a JSON object like"),
        ({"REGION_MAP": '{"us-west-2": 7}'}, "REGION_MAP must be a JSON object like .*us-west-2"),
        ({"REGION_MAP": '{"us-west-2": " "}'}, "is no key of AWS KMS in us-west-2"),
        ({"REGION_MAP": '{"us-west-2": "a", "us-west-2": "b"}'}, "a member twice"),
        ({"REGION_MAP": '{"US": "a"}'}, "a region in REGION_MAP is no AWS region"),
        ({"REGION_MAP": json.dumps({"us-east-1": WEST})}, "is no key of AWS KMS in us-east-1"),
    ],
)
def test_wrong_settings_of_aws_kms(environ: dict[str, str], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        kms_of(KMS="aws", **environ)


def test_secrets_manager() -> None:
    kms = kms_of(KMS="secrets-manager", SECRETS_MANAGER_SECRET_ID="asherah/master", AWS_DEFAULT_REGION="eu-west-1")
    assert repr(kms) == "SecretsManagerKMS('asherah/master', 'eu-west-1')"
    assert repr(kms_of(KMS="secrets-manager", SECRETS_MANAGER_SECRET_ID="a", AWS_REGION="eu-west-1", APP_ENV="prod"))
    with pytest.raises(ConfigurationError, match="SECRETS_MANAGER_SECRET_ID"):
        kms_of(KMS="secrets-manager", AWS_REGION="eu-west-1")
    with pytest.raises(ConfigurationError, match="AWS_REGION"):
        kms_of(KMS="secrets-manager", SECRETS_MANAGER_SECRET_ID="a")


def test_a_previous_service() -> None:
    old = {"SECRETS_MANAGER_SECRET_ID": "a", "AWS_REGION": "us-west-2"}
    found = kms_of(KMS="aws", KMS_PREVIOUS="secrets-manager", KMS_KEY_ID="alias/a", **old)
    assert isinstance(found, Succession)
    assert isinstance(found.current, AwsKMS)
    assert isinstance(found.previous, SecretsManagerKMS)
    found = kms_of(KMS="aws", KMS_PREVIOUS="static", KMS_KEY_ID="alias/a", STATIC_MASTER_KEY_HEX="0f" * 32, **old)
    assert isinstance(found.previous, StaticKMS)
    with pytest.raises(ConfigurationError, match="KMS_PREVIOUS must be one of static, aws, secrets-manager, vault"):
        kms_of(KMS="aws", KMS_PREVIOUS="AWS", KMS_KEY_ID="alias/a", **old)
    for name, same in (("aws", "aws"), ("vault", "vault-transit"), ("vault-transit", "vault")):
        with pytest.raises(ConfigurationError, match="KMS_PREVIOUS names the same service as KMS"):
            kms_of(KMS=name, KMS_PREVIOUS=same)


def test_without_a_metastore_the_key_table_is_in_the_database() -> None:
    for environ in ({}, {"Metastore": "rdbms"}, {"METASTORE": "RDBMS", "DDB_TABLE": "Keys"}, {"Metastore": " "}):
        found = Settings.from_env({**STATIC, **environ})
        assert (found.metastore, found.open_metastore(), found.peers) == ("rdbms", None, False)


@pytest.mark.parametrize("names", [("Metastore",), ("METASTORE",), ("Metastore", "METASTORE")], ids="+".join)
def test_a_key_table_in_dynamodb(names: tuple[str, ...]) -> None:
    environ = {**STATIC, **dict.fromkeys(names, "dynamodb"), "AWS_REGION": "us-west-2"}
    found = Settings.from_env(environ)
    assert repr(found.open_metastore()) == "DynamoDBMetastore('us-west-2', 'EncryptionKey')"
    assert found.peers
    assert not Settings.from_env({**environ, "ASHERAH_PEERS": "0"}).peers
    assert isinstance(Settings.from_env({**environ, "DDB_TABLE": "My.Keys"}).open_metastore(), DynamoDBMetastore)


@pytest.mark.parametrize(
    ("environ", "text"),
    [
        ({"Metastore": "mongodb"}, "Metastore must be one of rdbms, dynamodb; got 'mongodb'"),
        ({"Metastore": "rdbms", "METASTORE": "dynamodb"}, "Metastore and METASTORE are both set and differ"),
        ({"DDB_TABLE": "EncryptionKey"}, "DDB_TABLE is set and Metastore is not"),
        ({"Metastore": "dynamodb"}, "AWS_REGION is required"),
        ({"Metastore": "dynamodb", "AWS_REGION": "us west"}, "AWS_REGION is no AWS region"),
        ({"Metastore": "dynamodb", "AWS_REGION": "us-west-2", "DDB_TABLE": "a b"}, "DDB_TABLE must have 3 to 255"),
        ({"Metastore": "dynamodb", "DDB_REGION_SUFFIX": "1"}, "DDB_REGION_SUFFIX needs AWS_REGION"),
        ({"Metastore": "dynamodb", "DDB_REGION_SUFFIX": "yes"}, "DDB_REGION_SUFFIX must be true or false"),
        ({"DDB_REGION_SUFFIX": "1", "ENABLE_REGION_SUFFIX": "0"}, "contradict each other"),
        (
            {"Metastore": "dynamodb", "DDB_REGION_SUFFIX": "1", "AWS_REGION": "us-west-2", "REGION_SUFFIX": "eu"},
            "REGION_SUFFIX is 'eu'; remove one",
        ),
        ({"ASHERAH_CREATE_SYSTEM_KEYS": "never"}, "ASHERAH_CREATE_SYSTEM_KEYS must be true or false"),
    ],
)
def test_wrong_settings_of_the_key_table(environ: dict[str, str], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        Settings.from_env({**STATIC, **environ}).open_metastore()


@pytest.mark.parametrize("name", ["DDB_REGION_SUFFIX", "ENABLE_REGION_SUFFIX"])
def test_the_region_as_suffix_of_key_ids(name: str) -> None:
    environ = {**STATIC, "Metastore": "dynamodb", "AWS_REGION": "us-west-2"}
    assert Settings.from_env({**environ, name: "1"}).region_suffix == "us-west-2"
    assert Settings.from_env({**environ, name: "0"}).region_suffix is None
    assert Settings.from_env({**environ, name: "0", "REGION_SUFFIX": "eu"}).region_suffix == "eu"
    assert Settings.from_env({**environ, name: "1", "REGION_SUFFIX": "us-west-2"}).region_suffix == "us-west-2"
    assert Settings.from_env({**environ, name: "1", "Metastore": "rdbms"}).region_suffix is None


@pytest.mark.filterwarnings("ignore::sa_asherah.StaticKeyWarning")
def test_everything_reaches_asherah() -> None:
    environ = {**STATIC, "Metastore": "dynamodb", "AWS_REGION": "us-west-2", "DDB_REGION_SUFFIX": "1"}
    made = Asherah.from_env({**environ, "ASHERAH_CREATE_SYSTEM_KEYS": "0"})
    assert made._ids.system_key_id() == "_SK_my-service_my-product_us-west-2"
    assert made._ids.peers
    assert isinstance(made._metastore, DynamoDBMetastore)
    assert not made._policy.create_system_keys
    assert Asherah.from_env(environ)._policy.create_system_keys
