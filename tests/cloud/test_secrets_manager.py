# SPDX-License-Identifier: Apache-2.0
"""A static master key in AWS Secrets Manager."""

from __future__ import annotations

import logging
import pickle
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from sa_asherah.errors import (
    ConfigurationError,
    KmsAuthError,
    KmsCiphertextError,
    KmsError,
    KmsKeyNotFoundError,
    KmsPermissionError,
    KmsUnavailableError,
)
from sa_asherah.kms.secrets_manager import SecretsManagerKMS
from tests.cloud.conftest import MASTER_KEY
from tests.servers.moto import REGIONS

if TYPE_CHECKING:
    from sa_asherah.kms import StaticKMS
    from tests.servers.moto import Aws

REGION = REGIONS[0]
KEY = bytes(range(100, 132))


def stored(aws: Aws, request: pytest.FixtureRequest, **secret: Any) -> SecretsManagerKMS:
    name = f"asherah/{request.node.name}"
    aws.client("secretsmanager").create_secret(Name=name, **secret)
    return SecretsManagerKMS(name, REGION)


@pytest.mark.parametrize(
    "secret",
    [
        {"SecretString": MASTER_KEY.hex()},
        {"SecretString": f" {MASTER_KEY.hex().upper()}\n"},
        {"SecretBinary": MASTER_KEY},
    ],
    ids=["hex", "HEX", "binary"],
)
def test_it_and_the_static_service_open_each_others_keys(
    aws: Aws, request: pytest.FixtureRequest, static_kms: StaticKMS, secret: dict[str, Any]
) -> None:
    kms = stored(aws, request, **secret)
    assert kms.decrypt_key(static_kms.encrypt_key(KEY)) == KEY
    blob = kms.encrypt_key(KEY)
    assert static_kms.decrypt_key(blob) == KEY
    assert kms.recognises(blob)
    assert not kms.recognises(blob[1:])
    assert aws.calls == [(REGION, "GetSecretValue")]


@pytest.mark.parametrize(
    "secret",
    [
        {"SecretString": MASTER_KEY.hex()[:-2]},
        {"SecretString": MASTER_KEY.hex()[:-1] + "g"},
        {"SecretString": '{"STATIC_MASTER_KEY_HEX": "' + MASTER_KEY.hex() + '"}'},
        {"SecretBinary": MASTER_KEY + b"\n"},
    ],
    ids=["short", "no-hex", "json", "long"],
)
def test_other_forms_are_refused_and_not_quoted(
    aws: Aws, request: pytest.FixtureRequest, secret: dict[str, Any]
) -> None:
    kms = stored(aws, request, **secret)
    with pytest.raises(
        ConfigurationError, match="must be a text of 64 hexadecimal digits or 32 binary bytes"
    ) as caught:
        kms.encrypt_key(KEY)
    text = "".join(traceback.format_exception(caught.value))
    assert MASTER_KEY.hex()[:20] not in text
    assert repr(MASTER_KEY)[2:20] not in text


def test_threads_that_start_together_fetch_it_once(aws: Aws, request: pytest.FixtureRequest) -> None:
    kms = stored(aws, request, SecretBinary=MASTER_KEY)
    with ThreadPoolExecutor(8) as pool:
        blobs = list(pool.map(kms.encrypt_key, [KEY] * 8))
    assert [kms.decrypt_key(blob) for blob in blobs] == [KEY] * 8
    assert aws.calls == [(REGION, "GetSecretValue")]
    kms.close()
    assert kms.decrypt_key(blobs[0]) == KEY
    assert aws.calls == [(REGION, "GetSecretValue")] * 2


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("ThrottlingException", KmsUnavailableError),
        ("InternalServiceError", KmsUnavailableError),
        ("ExpiredTokenException", KmsAuthError),
        ("AccessDeniedException", KmsPermissionError),
        ("DecryptionFailure", KmsPermissionError),
        ("ResourceNotFoundException", KmsKeyNotFoundError),
        ("InvalidRequestException", KmsKeyNotFoundError),
    ],
)
def test_each_refusal_has_its_error(
    aws: Aws, request: pytest.FixtureRequest, code: str, expected: type[KmsError]
) -> None:
    kms = stored(aws, request, SecretBinary=MASTER_KEY)
    aws.refusals[REGION, "GetSecretValue"] = (code, 400)
    with pytest.raises(KmsError, match=f"AWS Secrets Manager: reading .* in us-west-2 failed: {code}; ") as caught:
        kms.decrypt_key(bytes(60))
    assert type(caught.value) is expected
    assert "canary" not in str(caught.value)
    aws.refusals.clear()
    assert len(kms.encrypt_key(KEY)) == 60


def test_a_missing_secret_is_missing(aws: Aws) -> None:
    assert aws.calls == []
    with pytest.raises(KmsKeyNotFoundError, match="check SECRETS_MANAGER_SECRET_ID and AWS_REGION"):
        SecretsManagerKMS("asherah/none", REGION).encrypt_key(KEY)


def test_another_master_key_opens_nothing(aws: Aws, request: pytest.FixtureRequest, static_kms: StaticKMS) -> None:
    kms = stored(aws, request, SecretBinary=bytes(32))
    with pytest.raises(KmsCiphertextError, match="check KMS and SECRETS_MANAGER_SECRET_ID") as caught:
        kms.decrypt_key(static_kms.encrypt_key(KEY))
    assert caught.value.__context__ is None


def test_the_key_is_neither_shown_nor_logged(
    aws: Aws, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    kms = stored(aws, request, SecretString=MASTER_KEY.hex())
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("botocore.parsers").debug("the log is on")
        kms.encrypt_key(KEY)
    assert "the log is on" in caplog.text
    assert MASTER_KEY.hex() not in caplog.text + repr(kms)
    with pytest.raises(TypeError):
        pickle.dumps(kms)
