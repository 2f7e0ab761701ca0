# SPDX-License-Identifier: Apache-2.0
"""What failures of AWS KMS and Secrets Manager are called here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sa_asherah.errors import (
    KmsAuthError,
    KmsCiphertextError,
    KmsError,
    KmsKeyNotFoundError,
    KmsPermissionError,
    KmsUnavailableError,
)

if TYPE_CHECKING:
    from sa_asherah.boto import Failure, Kind

__all__ = ["kms_error"]

_CLASSES: dict[Kind, type[KmsError]] = {
    "unavailable": KmsUnavailableError,
    "credentials": KmsAuthError,
    "rights": KmsPermissionError,
    "missing": KmsKeyNotFoundError,
    "ciphertext": KmsCiphertextError,
}
_CREDENTIALS = (
    "AWS does not accept the credentials, or there are none; check where boto3 finds them (environment, profile, role "
    "of the instance or pod) and the clock of this machine"
)
_UNAVAILABLE = "try again; if it lasts, check the network, AWS_ENDPOINT_URL and the state of the region"


def kms_error(failure: Failure, call: str, operation: str, advice: dict[Kind, str]) -> KmsError:
    """Make an error of ours of a failed call.

    Args:
        failure: Why the call failed.
        call: What was asked, of whom.
        operation: `encrypt` or `decrypt`.
        advice: What to do, by kind of failure.

    Returns:
        The error to raise, with the failure's cause.
    """
    texts = {"unavailable": _UNAVAILABLE, "credentials": _CREDENTIALS, **advice}
    text = texts.get(failure.kind, "AWS's own log (CloudTrail) says more")
    error = _CLASSES.get(failure.kind, KmsError)(
        f"{call} failed: {failure.code}; {text}",
        retryable=failure.kind == "unavailable",
        operation=operation,
        status=failure.status,
    )
    error.__cause__ = failure.__cause__
    return error
