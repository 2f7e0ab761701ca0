# SPDX-License-Identifier: Apache-2.0
"""The Transit engine as key management service."""

from __future__ import annotations

import base64
import binascii
import logging
import os
import re
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn, Self, Unpack

from sa_asherah.core.aead import KEY_SIZE
from sa_asherah.errors import KmsCiphertextError, UsageError
from sa_asherah.kms.vault.connection import Connection
from sa_asherah.kms.vault.refusal import foreign_ciphertext, members, not_from_vault, refusal
from sa_asherah.kms.vault.settings import VaultOptions, VaultSettings, read_options

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sa_asherah.kms.vault.connection import Operation

__all__ = ["VaultTransitKMS"]

logger = logging.getLogger(__name__)

_OK = 200
_UNAVAILABLE = 503


class VaultTransitKMS:
    """Wraps system keys with a key of Vault's Transit engine, which never leaves Vault.

    The token needs `update` on `<mount>/encrypt/<key>` and `<mount>/decrypt/<key>`, nothing more. Do not grant
    `create`: a mistyped key name would then silently make a new key. Construction opens no connection.

    Safe to share between threads, and to keep over a fork: the child opens connections of its own.

    Args:
        **options: `addr`, `key` and `token` are required; `VaultSettings` describes them all. The environment is not
            read: `from_env` does that.

    Raises:
        ConfigurationError: An option is missing, malformed or unsafe.
    """

    def __init__(self, **options: Unpack[VaultOptions]) -> None:
        self._settings = VaultSettings(**options)
        self._connection = Connection(self._settings)
        if self._settings.skip_verify:
            logger.warning(
                "VAULT_SKIP_VERIFY is on: whoever answers at %s can read the system keys", self._settings.addr
            )

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ, **explicit: Unpack[VaultOptions]) -> Self:
        """Take what is not given from `VAULT_*`, else from the `BAO_*` variable that means the same.

        Args:
            environ: The environment; an empty variable counts as missing.
            **explicit: Options that win over the environment.

        Returns:
            The service.

        Raises:
            ConfigurationError: An option is missing, malformed, unsafe or contradictory.
        """
        return cls(**read_options(environ, explicit))

    def encrypt_key(self, key: bytes) -> bytes:
        """Wrap a system key.

        Args:
            key: 32 bytes.

        Returns:
            Vault's ciphertext, `vault:v1:…`.

        Raises:
            UsageError: The key does not have 32 bytes.
            KmsUnavailableError: Vault cannot be reached, is sealed, has no leader or limits the rate.
            KmsAuthError: The token is not accepted.
            KmsPermissionError: The token may not use the Transit key.
            KmsKeyNotFoundError: The Transit key does not exist.
            ConfigurationError: Certificate, mount, namespace or type of the Transit key do not fit.
        """
        if len(key) != KEY_SIZE:
            raise UsageError(f"a system key has {KEY_SIZE} bytes, this one has {len(key)}")
        ciphertext = self._ask("encrypt", base64.b64encode(key).decode()).get("ciphertext")
        if not isinstance(ciphertext, str) or not re.fullmatch("vault:v[0-9]+:[A-Za-z0-9+/]+={0,2}", ciphertext):
            raise not_from_vault("encrypt", _OK)
        return ciphertext.encode()

    def decrypt_key(self, blob: bytes) -> bytes:
        """Unwrap a system key.

        Args:
            blob: What `encrypt_key` returned.

        Returns:
            The system key.

        Raises:
            KmsUnavailableError: Vault cannot be reached, is sealed, has no leader or limits the rate.
            KmsAuthError: The token is not accepted.
            KmsPermissionError: The token may not use the Transit key.
            KmsKeyNotFoundError: The Transit key does not exist.
            KmsCiphertextError: Vault did not make this blob, or not with this Transit key, or will not open it.
            ConfigurationError: Certificate, mount, namespace or type of the Transit key do not fit.
        """
        try:
            ciphertext = blob.decode()
        except UnicodeDecodeError:
            ciphertext = None
        if ciphertext is None:  # not in the `except` block: the exception there holds the blob
            raise foreign_ciphertext("blob is not valid UTF-8")
        if not re.match("vault:v[0-9]+:", ciphertext):
            raise foreign_ciphertext()
        key = _decoded(self._ask("decrypt", ciphertext).get("plaintext"))
        if key is None:
            raise not_from_vault("decrypt", _OK)
        if len(key) != KEY_SIZE:
            raise KmsCiphertextError(
                f"Vault Transit decrypt: the blob holds {len(key)} bytes instead of a system key of {KEY_SIZE}; "
                "something else was encrypted with this Transit key",
                operation="decrypt",
                status=_OK,
            )
        return key

    def close(self) -> None:
        """Close the connections to Vault; a later call opens new ones."""
        self._connection.close()

    def _ask(self, operation: Operation, text: str) -> Mapping[str, object]:
        """Return the `data` of the answer: the only form of success."""
        answer = self._connection.ask(operation, text)
        if answer.status == _OK:
            data = members(members(answer.body).get("data"))
            if not data:
                raise not_from_vault(operation, _OK)
            return data
        if answer.status == _UNAVAILABLE and not self._connection.is_initialised():
            answer = replace(answer, body={"errors": ["Vault is not initialised"]})  # it says "sealed" then, too
        raise refusal(answer, operation, self._settings, text)

    def __repr__(self) -> str:
        settings = self._settings
        return (
            f"VaultTransitKMS(addr={settings.addr!r}, namespace={settings.namespace!r}, mount={settings.mount!r}, "
            f"key={settings.key!r})"
        )

    def __reduce__(self) -> NoReturn:
        raise TypeError("VaultTransitKMS holds a token and cannot be pickled; make one in each process")


def _decoded(text: object) -> bytes | None:
    if not isinstance(text, str):
        return None
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
