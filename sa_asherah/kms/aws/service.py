# SPDX-License-Identifier: Apache-2.0
"""System keys wrapped by keys of AWS KMS, in one region or several."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NoReturn, TypeVar

from sa_asherah.boto import Clients, Failure
from sa_asherah.core import aead
from sa_asherah.core.key import Secret
from sa_asherah.core.ports import KeyManagementService
from sa_asherah.core.strict_json import StrictJsonError
from sa_asherah.environ import read_text
from sa_asherah.errors import KmsCiphertextError, KmsError, KmsUnavailableError, UsageError
from sa_asherah.kms.aws.envelope import Envelope, RegionalKey, dump_envelope, parse_envelope
from sa_asherah.kms.aws.failure import kms_error
from sa_asherah.kms.aws.regions import ordered, read_keys

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mypy_boto3_kms import KMSClient

    from sa_asherah.boto import Kind

__all__ = ["AwsKMS"]

_logger = logging.getLogger("sa_asherah.kms")

T = TypeVar("T")


class AwsKMS(KeyManagementService):
    """Wraps system keys under keys of AWS KMS, which never leave it. Safe to share between threads and forks.

    A data key of the preferred region seals the system key; the KMS key of every region wraps the data key, so that
    each region alone opens the system key. The form is the same for one region, and the other implementations'.

    Only the configured KMS key of a region is asked to open anything, never the one that a record names.

    Args:
        keys: The KMS key of each region: ARN, id or `alias/...`.
        preferred: The region that is asked first; may be left out if there is only one.

    Raises:
        ConfigurationError: A region or key is missing, malformed or contradictory.
    """

    def __init__(self, keys: Mapping[str, str], preferred: str | None = None) -> None:
        self._keys = ordered(keys, preferred)
        self._clients: Clients[KMSClient] = Clients("kms", attempts=3 if len(keys) == 1 else 2)

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> AwsKMS:
        """Take the keys from environment variables.

        Args:
            environ: REGION_MAP (JSON, region to key) and PREFERRED_REGION, or KMS_KEY_ID and AWS_REGION. Credentials
                are not read from here but by boto3, from the process's environment.

        Returns:
            The service.

        Raises:
            ConfigurationError: A variable is missing, malformed or contradictory.
        """
        return cls(read_keys(environ), read_text(environ, "PREFERRED_REGION"))

    def encrypt_key(self, key: bytes) -> bytes:
        """Wrap a system key in every region.

        A region that cannot be reached is left out, with a warning; it cannot open this key then.

        Args:
            key: 32 bytes.

        Returns:
            The JSON that `decrypt_key` reads.

        Raises:
            UsageError: The key does not have 32 bytes.
            KmsError: No region made a data key, or one refused to wrap it.
        """
        if len(key) != aead.KEY_SIZE:
            raise UsageError(f"a system key has {aead.KEY_SIZE} bytes, this one has {len(key)}")
        data_key, wrapped, unreachable = self._new_data_key()
        keys = [wrapped]
        for region in self._keys:
            if region != wrapped.region and region not in unreachable:
                try:
                    keys.append(self._wrapped(region, data_key))
                except KmsUnavailableError:
                    unreachable.append(region)
        if unreachable:
            _logger.warning(
                "a new system key was not wrapped in %s, which cannot be reached; only %s can open it",
                ", ".join(unreachable),
                ", ".join(found.region for found in keys),
            )
        return dump_envelope(aead.seal(data_key, key), keys)

    def decrypt_key(self, blob: bytes) -> bytes:
        """Unwrap a system key in the first region that does it, the preferred one first.

        Args:
            blob: What `encrypt_key` or another implementation wrote.

        Returns:
            The system key.

        Raises:
            KmsCiphertextError: The blob is damaged or was wrapped by another service, or in other regions.
            KmsError: No region opened it.
        """
        envelope = _parsed(blob)
        errors: list[KmsError] = []
        for region in self._keys:
            if region in envelope.keys:
                try:
                    return self._opened(region, envelope)
                except KmsError as error:
                    errors.append(error)
        if not errors:
            raise _ciphertext_error(
                f"the system key was wrapped in {', '.join(map(repr, envelope.keys))} and the configured regions are "
                f"{', '.join(self._keys)}; complete REGION_MAP"
            )
        raise _summary(errors)

    def recognises(self, blob: bytes) -> bool:
        """Tell by its form whether this service may have wrapped a blob.

        Args:
            blob: A wrapped system key.

        Returns:
            Whether it may.
        """
        try:
            parse_envelope(blob)
        except StrictJsonError:
            return False
        return True

    def close(self) -> None:
        """Close connections. Calling it twice is harmless."""
        self._clients.close()

    def _new_data_key(self) -> tuple[Secret, RegionalKey, list[str]]:
        """Make a data key in the first region that answers; also tell which ones did not."""
        errors: list[KmsError] = []
        for region in self._keys:
            try:
                answer = self._ask(
                    region,
                    "GenerateDataKey",
                    lambda client, key: client.generate_data_key(KeyId=key, KeySpec="AES_256"),
                )
            except KmsUnavailableError as error:
                errors.append(error)
            else:
                wrapped = RegionalKey(region, answer["KeyId"], answer["CiphertextBlob"])
                return Secret(answer["Plaintext"]), wrapped, list(self._keys)[: len(errors)]
        raise _summary(errors)

    def _wrapped(self, region: str, data_key: Secret) -> RegionalKey:
        answer = self._ask(region, "Encrypt", lambda client, key: client.encrypt(KeyId=key, Plaintext=bytes(data_key)))
        return RegionalKey(region, answer["KeyId"], answer["CiphertextBlob"])

    def _opened(self, region: str, envelope: Envelope) -> bytes:
        wrapped = envelope.keys[region].wrapped
        answer = self._ask(region, "Decrypt", lambda client, key: client.decrypt(KeyId=key, CiphertextBlob=wrapped))
        data_key = Secret(answer["Plaintext"])
        key = _unsealed(data_key, envelope.sealed)
        if key is None:
            raise _ciphertext_error(f"the data key of {region} does not open the system key; restore the key record")
        return key

    def _ask(self, region: str, action: str, call: Callable[[KMSClient, str], T]) -> T:
        operation = "decrypt" if action == "Decrypt" else "encrypt"
        try:
            return self._clients.ask(region, lambda client: call(client, self._keys[region]))
        except Failure as failure:
            error = kms_error(failure, f"AWS KMS {operation} in {region}", operation, _advice(action))
        raise error

    def __repr__(self) -> str:
        return f"AwsKMS({self._keys!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("AwsKMS holds connections and cannot be pickled; make one in each process")


def _parsed(blob: bytes) -> Envelope:
    try:
        return parse_envelope(blob)
    except StrictJsonError as error:
        reason = str(error)
    raise _ciphertext_error(
        f"the system key's record was wrapped by another key management service, or is damaged ({reason}); check KMS "
        "and KMS_PREVIOUS"
    )


def _unsealed(data_key: Secret, sealed: bytes) -> bytes | None:
    # A failed tag is no cause to keep: its traceback leads to the data key.
    try:
        return aead.open_(data_key, sealed)
    except (aead.InvalidTag, ValueError):  # ValueError: a data key of another length
        return None


def _ciphertext_error(reason: str) -> KmsCiphertextError:
    return KmsCiphertextError(f"AWS KMS decrypt failed: {reason}", operation="decrypt")


def _advice(action: str) -> dict[Kind, str]:
    return {
        "rights": f"allow kms:{action} for the key in its key policy or the role's policy, or correct the key in "
        "KMS_KEY_ID or REGION_MAP: AWS says the same of a key that it does not show",
        "missing": "the key does not exist, is disabled or is to be deleted; check KMS_KEY_ID or REGION_MAP, or enable "
        "the key",
        "ciphertext": "the data key was wrapped with another KMS key, or the key record is damaged; check KMS_KEY_ID "
        "or REGION_MAP, or restore the record",
    }


def _summary(errors: list[KmsError]) -> KmsError:
    """Choose the error to raise: an outage, if there is one, since then a later attempt may succeed."""
    chosen = next((error for error in errors if error.retryable), errors[0])
    if len(errors) == 1:
        return chosen
    summary = type(chosen)(
        "; ".join(map(str, errors)),
        retryable=chosen.retryable,
        operation=chosen.operation,
        status=chosen.status,
    )
    summary.__cause__ = chosen.__cause__
    return summary
