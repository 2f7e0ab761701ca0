# SPDX-License-Identifier: Apache-2.0
"""Every text of Vault's that is known, also those that the server of the tests does not say to what we send."""

from __future__ import annotations

import math

import pytest

from sa_asherah.errors import AsherahError, ConfigurationError, KmsCiphertextError, KmsError, KmsUnavailableError
from sa_asherah.kms.vault.connection import Answer
from sa_asherah.kms.vault.refusal import patience, refusal
from sa_asherah.kms.vault.settings import VaultSettings

SETTINGS = VaultSettings.of({"addr": "http://127.0.0.1:8200", "key": "master", "token": "token"})
MOUNT = "no Transit engine at 'transit/' (VAULT_TRANSIT_MOUNT)"
FOREIGN = "not a Vault Transit ciphertext (encrypted by another KMS?)"
TEXTS: list[tuple[str, type[AsherahError], str, float]] = [
    ("1 error occurred:\n\t* unsupported operation\n\n", ConfigurationError, MOUNT, 0),
    ("invalid ciphertext: no prefix", KmsCiphertextError, FOREIGN, 0),
    ("missing ciphertext to decrypt", KmsCiphertextError, FOREIGN, 0),
    ("cipher: message authentication failed", KmsCiphertextError, "deleted and created again", 0),
    ("min decryption version should not be less then min available version", KmsCiphertextError, "was trimmed", 0),
    ("invalid ciphertext: version is too new", KmsCiphertextError, "try again", 2.0),
    ("failed to decode: illegal base64 data at input byte 0", KmsUnavailableError, "illegal base64", 0),
    ("Vault is sealed", KmsUnavailableError, "unseal it", math.inf),
    ("local node not active but active cluster node not found", KmsUnavailableError, "no leader", math.inf),
]


@pytest.mark.parametrize("status", [400, 500])
@pytest.mark.parametrize(("text", "kind", "cure", "seconds"), TEXTS, ids=[row[0][:24].strip() for row in TEXTS])
def test_a_text_means_the_same_whatever_the_status(
    text: str, kind: type[AsherahError], cure: str, seconds: float, status: int
) -> None:
    answer = Answer(status, {"errors": [text]})
    error = refusal(answer, "decrypt", SETTINGS)
    assert type(error) is kind
    assert str(error).startswith("Vault Transit decrypt failed: ")
    assert cure in str(error)
    assert patience(answer) == seconds
    assert not isinstance(error, KmsError) or (error.retryable, error.status) == (seconds > 0, status)
