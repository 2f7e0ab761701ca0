# SPDX-License-Identifier: Apache-2.0
"""AWS KMS in one region and in several: form, order, outages, and what each refusal is called."""

from __future__ import annotations

import base64
import json
import logging
import os
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
    UsageError,
)
from sa_asherah.kms.aws import AwsKMS
from tests.servers.moto import REGIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers.moto import Aws

WEST, EAST, EUROPE = REGIONS
KEY = b"a system key, of 32 bytes exactly"[:32]


@pytest.fixture
def arns(aws: Aws) -> dict[str, str]:
    return {region: aws.new_key(region) for region in (EAST, WEST)}


@pytest.fixture
def single(arns: dict[str, str]) -> Iterator[AwsKMS]:
    kms = AwsKMS({WEST: arns[WEST]})
    yield kms
    kms.close()


@pytest.fixture
def multi(aws: Aws, arns: dict[str, str]) -> Iterator[AwsKMS]:
    kms = AwsKMS(arns, WEST)
    yield kms
    aws.calls.clear()
    kms.close()


def test_the_form_is_the_other_implementations(multi: AwsKMS, single: AwsKMS, arns: dict[str, str]) -> None:
    for kms, regions in ((multi, [WEST, EAST]), (single, [WEST])):
        record: dict[str, Any] = json.loads(kms.encrypt_key(KEY))
        assert list(record) == ["encryptedKey", "kmsKeks"]
        assert len(base64.b64decode(record["encryptedKey"])) == 60
        assert [(kek["region"], kek["arn"]) for kek in record["kmsKeks"]] == [(name, arns[name]) for name in regions]
        assert {tuple(kek) for kek in record["kmsKeks"]} == {("region", "arn", "encryptedKek")}


def test_every_region_alone_opens_and_the_preferred_one_is_asked(aws: Aws, multi: AwsKMS, arns: dict[str, str]) -> None:
    blob = multi.encrypt_key(KEY)
    assert aws.calls == [(WEST, "GenerateDataKey"), (EAST, "Encrypt")]
    aws.calls.clear()
    assert multi.decrypt_key(blob) == KEY
    assert aws.calls == [(WEST, "Decrypt")]
    for region, arn in arns.items():
        assert AwsKMS({region: arn}).decrypt_key(blob) == KEY
    assert AwsKMS({**arns, EUROPE: aws.new_key(EUROPE)}, EUROPE).decrypt_key(blob) == KEY


def test_a_region_that_is_down_is_passed_over(aws: Aws, multi: AwsKMS, caplog: pytest.LogCaptureFixture) -> None:
    blob = multi.encrypt_key(KEY)
    aws.down = {WEST}
    assert multi.decrypt_key(blob) == KEY
    assert "cannot be reached" not in caplog.text
    lonely = multi.encrypt_key(KEY)
    assert [kek["region"] for kek in json.loads(lonely)["kmsKeks"]] == [EAST]
    assert f"not wrapped in {WEST}, which cannot be reached; only {EAST} can open it" in caplog.text
    aws.down = {EAST}
    assert [kek["region"] for kek in json.loads(multi.encrypt_key(KEY))["kmsKeks"]] == [WEST]
    with pytest.raises(KmsUnavailableError):
        multi.decrypt_key(lonely)


def test_all_regions_down_is_an_outage_that_names_each(aws: Aws, multi: AwsKMS) -> None:
    blob = multi.encrypt_key(KEY)
    aws.down = {WEST, EAST}
    for call, argument in ((multi.decrypt_key, blob), (multi.encrypt_key, KEY)):
        with pytest.raises(KmsUnavailableError) as caught:
            call(argument)
        assert caught.value.retryable
        assert all(f"in {region} failed: " in str(caught.value) for region in (WEST, EAST))


def test_an_outage_beside_a_refusal_stays_an_outage(aws: Aws, multi: AwsKMS) -> None:
    blob = multi.encrypt_key(KEY)
    aws.refusals[WEST, "Decrypt"] = ("AccessDeniedException", 400)
    aws.down = {EAST}
    with pytest.raises(KmsUnavailableError, match=r"AccessDeniedException.*; AWS KMS decrypt in us-east-1 failed"):
        multi.decrypt_key(blob)


def test_a_refusal_is_no_outage_when_a_key_is_made(aws: Aws, multi: AwsKMS) -> None:
    aws.refusals[EAST, "Encrypt"] = ("AccessDeniedException", 400)
    with pytest.raises(KmsPermissionError, match="allow kms:Encrypt"):
        multi.encrypt_key(KEY)
    aws.refusals[WEST, "GenerateDataKey"] = ("DisabledException", 400)
    with pytest.raises(KmsKeyNotFoundError, match="the key does not exist, is disabled"):
        multi.encrypt_key(KEY)


REFUSALS = [
    ("ThrottlingException", 400, KmsUnavailableError),
    ("KMSInternalException", 500, KmsUnavailableError),
    ("KeyUnavailableException", 500, KmsUnavailableError),
    ("DependencyTimeoutException", 503, KmsUnavailableError),
    ("SomethingNew", 503, KmsUnavailableError),
    ("ExpiredTokenException", 400, KmsAuthError),
    ("UnrecognizedClientException", 400, KmsAuthError),
    ("InvalidSignatureException", 403, KmsAuthError),
    ("AccessDeniedException", 400, KmsPermissionError),
    ("NotFoundException", 400, KmsKeyNotFoundError),
    ("DisabledException", 400, KmsKeyNotFoundError),
    ("KMSInvalidStateException", 400, KmsKeyNotFoundError),
    ("InvalidCiphertextException", 400, KmsCiphertextError),
    ("IncorrectKeyException", 400, KmsCiphertextError),
    ("SomethingNew", 400, KmsError),
]


@pytest.mark.parametrize(
    ("code", "status", "expected"), REFUSALS, ids=lambda value: str(getattr(value, "__name__", value))
)
def test_each_refusal_has_its_error(aws: Aws, single: AwsKMS, code: str, status: int, expected: type[KmsError]) -> None:
    blob = single.encrypt_key(KEY)
    aws.refusals[WEST, "Decrypt"] = (code, status)
    with pytest.raises(KmsError) as caught:
        single.decrypt_key(blob)
    error = caught.value
    assert type(error) is expected
    assert str(error).startswith(f"AWS KMS decrypt in us-west-2 failed: {code}; ")
    assert (error.operation, error.status) == ("decrypt", status)
    assert error.retryable == (expected is KmsUnavailableError)
    # AWS's own text may quote the session token.
    assert "canary" not in "".join(traceback.format_exception(error))
    assert error.__context__ is None


def test_throttling_is_tried_again(aws: Aws, single: AwsKMS) -> None:
    blob = single.encrypt_key(KEY)
    aws.refusals[WEST, "Decrypt"] = ("ThrottlingException", 400)

    def give_way(_region: str, _operation: str) -> None:
        if aws.calls.count((WEST, "Decrypt")) == 2:
            aws.refusals.clear()

    aws.before = give_way
    assert single.decrypt_key(blob) == KEY
    assert aws.calls.count((WEST, "Decrypt")) == 2


def test_without_credentials(single: AwsKMS, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    with pytest.raises(
        KmsAuthError, match="NoCredentialsError; AWS does not accept the credentials, or there are none"
    ):
        single.encrypt_key(KEY)


def test_a_refused_connection_is_an_outage_with_its_cause(single: AwsKMS, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(KmsUnavailableError) as caught:
        single.encrypt_key(KEY)
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)
    assert caught.value.__cause__.__traceback__ is None


def test_an_endpoint_that_is_none_is_a_configuration_error(single: AwsKMS, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "no address")
    with pytest.raises(ConfigurationError, match="AWS_ENDPOINT_URL"):
        single.encrypt_key(KEY)


def test_unknown_regions_are_tolerated_and_no_region_of_ours_is_said(aws: Aws, multi: AwsKMS, single: AwsKMS) -> None:
    record: dict[str, Any] = json.loads(multi.encrypt_key(KEY))
    record["kmsKeks"].append({"region": "mars-1", "arn": "arn:mars", "encryptedKek": "AAAA"})
    record["more"] = {"of": "it"}
    assert single.decrypt_key(json.dumps(record).encode()) == KEY
    aws.calls.clear()
    record["kmsKeks"] = record["kmsKeks"][-1:]
    with pytest.raises(KmsCiphertextError, match=f"wrapped in 'mars-1' and the configured regions are {WEST}, {EAST}"):
        multi.decrypt_key(json.dumps(record).encode())
    assert aws.calls == []


def test_the_key_that_a_record_names_is_never_asked(aws: Aws, single: AwsKMS) -> None:
    record: dict[str, Any] = json.loads(single.encrypt_key(KEY))
    record["kmsKeks"][0]["arn"] = aws.new_key(WEST)
    assert single.decrypt_key(json.dumps(record).encode()) == KEY
    stranger = AwsKMS({WEST: record["kmsKeks"][0]["arn"]})
    with pytest.raises(KmsError):
        single.decrypt_key(stranger.encrypt_key(KEY))


def test_a_swapped_data_key_opens_nothing(single: AwsKMS) -> None:
    one, other = json.loads(single.encrypt_key(KEY)), json.loads(single.encrypt_key(KEY))
    one["kmsKeks"] = other["kmsKeks"]
    with pytest.raises(KmsCiphertextError, match="does not open the system key") as caught:
        single.decrypt_key(json.dumps(one).encode())
    assert caught.value.__context__ is None


@pytest.mark.parametrize("blob", [b"", b"{}", b"vault:v1:AAAA", bytes(60), b"\xff{", b"[" * 100_000])
def test_other_services_records_are_refused_without_a_call(aws: Aws, single: AwsKMS, blob: bytes) -> None:
    assert not single.recognises(blob)
    with pytest.raises(KmsCiphertextError, match="check KMS and KMS_PREVIOUS"):
        single.decrypt_key(blob)
    assert aws.calls == []


def test_a_record_of_ours_is_recognised(multi: AwsKMS, single: AwsKMS) -> None:
    assert single.recognises(multi.encrypt_key(KEY))


def test_what_is_no_system_key_is_not_wrapped(aws: Aws, single: AwsKMS) -> None:
    with pytest.raises(UsageError):
        single.encrypt_key(KEY[:31])
    assert aws.calls == []


def test_rotation_of_the_master_key_keeps_records_readable(aws: Aws, arns: dict[str, str], single: AwsKMS) -> None:
    blob = single.encrypt_key(KEY)
    aws.client("kms", WEST).rotate_key_on_demand(KeyId=arns[WEST])
    assert single.decrypt_key(blob) == KEY
    assert single.decrypt_key(single.encrypt_key(KEY)) == KEY


def test_threads_share_it(multi: AwsKMS) -> None:
    keys = [os.urandom(32) for _ in range(40)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(multi.decrypt_key, pool.map(multi.encrypt_key, keys))) == keys


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forked_children_make_connections_of_their_own(multi: AwsKMS) -> None:
    blob = multi.encrypt_key(KEY)
    children = [fork(multi, blob) for _ in range(4)]
    assert [multi.decrypt_key(blob) for _ in range(20)] == [KEY] * 20
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4


def fork(kms: AwsKMS, blob: bytes) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            made = kms._clients._made
            status = int(bool(made) or any(kms.decrypt_key(blob) != KEY for _ in range(20)))
        finally:
            os._exit(status)
    return child


def test_no_key_is_logged_at_any_level(
    aws: Aws, arns: dict[str, str], single: AwsKMS, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("botocore.endpoint").debug("the log is on")
        blob = single.encrypt_key(KEY)
        assert single.decrypt_key(blob) == KEY
    assert "the log is on" in caplog.text
    wrapped = base64.b64decode(json.loads(blob)["kmsKeks"][0]["encryptedKek"])
    data_key = aws.client("kms", WEST).decrypt(KeyId=arns[WEST], CiphertextBlob=wrapped)["Plaintext"]
    for secret in (KEY, data_key, wrapped):
        assert base64.b64encode(secret).decode() not in caplog.text
        assert repr(secret) not in caplog.text
    assert "canary" not in caplog.text


def test_it_is_closed_and_used_again_and_never_pickled(single: AwsKMS) -> None:
    blob = single.encrypt_key(KEY)
    single.close()
    single.close()
    assert single.decrypt_key(blob) == KEY
    with pytest.raises(TypeError):
        pickle.dumps(single)
