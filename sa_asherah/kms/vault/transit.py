# SPDX-License-Identifier: Apache-2.0
"""The Transit engine as key management service."""

from __future__ import annotations

import base64
import binascii
import logging
import os
import re
import time
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn, Self, Unpack

from sa_asherah.core.aead import KEY_SIZE
from sa_asherah.core.ports import KeyManagementService
from sa_asherah.errors import KmsAuthError, KmsCiphertextError, KmsError, KmsPermissionError, UsageError
from sa_asherah.kms.vault.caller import Caller
from sa_asherah.kms.vault.refusal import (
    foreign_ciphertext,
    items,
    members,
    not_from_vault,
    patience,
    refusal,
    words,
)
from sa_asherah.kms.vault.settings import VaultOptions, VaultSettings, read_options
from sa_asherah.kms.vault.token import Tokens

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sa_asherah.kms.vault.connection import Answer

__all__ = ["VaultTransitKMS"]

logger = logging.getLogger(__name__)

_OK, _BAD, _FORBIDDEN = 200, 400, 403
_FORM = re.compile("vault:v[0-9]+:")
_CHUNK = 200  # OpenBao's listener takes 249 items of two texts


class VaultTransitKMS(KeyManagementService):
    """Wraps system keys with a key of Vault's Transit engine, which never leaves Vault.

    The token needs `update` on `<mount>/encrypt/<key>` and `<mount>/decrypt/<key>`, nothing more. Do not grant
    `create`: a mistyped key name would then silently make a new key. Construction opens no connection.

    Safe to share between threads, and to keep over a fork: the child opens connections of its own.

    Args:
        **options: `addr`, `key` and what the method of authentication needs are required; `VaultSettings` and
            `Credentials` describe them all. The environment is not read: `from_env` does that.

    Raises:
        ConfigurationError: An option is missing, malformed or unsafe.
    """

    batch_size = _CHUNK

    def __init__(self, **options: Unpack[VaultOptions]) -> None:
        self._settings = settings = VaultSettings.of(options)
        self._caller = Caller(settings)
        self._tokens = Tokens(
            settings.credentials,
            self._caller,
            scope=f"{settings.addr}|{settings.namespace or ''}",
            startup_jitter=settings.startup_jitter,
        )
        self._context = {"associated_data": settings.context} if settings.context else {}
        self._takes_batches = self._takes_rewrap = True
        if settings.skip_verify:
            logger.warning("VAULT_SKIP_VERIFY is on: whoever answers at %s can read the system keys", settings.addr)

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

    @property
    def settings(self) -> VaultSettings:
        """How Vault is reached."""
        return self._settings

    @property
    def advice(self) -> str:
        """Why no other token cured the last 403, and what to do."""
        return self._tokens.describe()

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
        return _ciphertext(self._asked("encrypt", {"plaintext": base64.b64encode(key).decode()}), "encrypt")

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
        ciphertext = _checked(blob)
        if isinstance(ciphertext, KmsError):
            raise ciphertext
        key = _key(_data(self._asked("decrypt", {"ciphertext": ciphertext})))
        if isinstance(key, KmsError):
            raise key
        return key

    def decrypt_keys(self, blobs: Sequence[bytes]) -> list[bytes | KmsError]:
        """Unwrap several system keys, up to 200 in one call.

        Args:
            blobs: What `encrypt_key` returned, in any order.

        Returns:
            For each blob its key, or the error that says why it does not open.

        Raises:
            ConfigurationError: Certificate, mount, namespace or type of the Transit key do not fit.
        """
        texts = [_checked(blob) for blob in blobs]
        found: list[bytes | KmsError] = [text if isinstance(text, KmsError) else b"" for text in texts]
        places = [place for place, text in enumerate(texts) if isinstance(text, str)]
        for start in range(0, len(places), _CHUNK):
            chunk = places[start : start + _CHUNK]
            for place, key in zip(chunk, self._opened([blobs[place] for place in chunk]), strict=True):
                found[place] = key
        return found

    def recognises(self, blob: bytes) -> bool:
        """Tell by its form whether a Transit engine may have wrapped a blob; asks nobody.

        Args:
            blob: A wrapped system key.

        Returns:
            Whether it begins like `vault:v1:`.
        """
        return re.match(_FORM.pattern.encode(), blob) is not None

    def rewrap_key(self, blob: bytes) -> bytes:
        """Wrap a system key with the newest version of the Transit key.

        By `rewrap` where the token may, so that Vault does not show the key; else by unwrapping and wrapping it. With
        `bind_context` always so, since `rewrap` cannot do it.

        Args:
            blob: What `encrypt_key` returned.

        Returns:
            The same system key, wrapped anew.

        Raises:
            KmsUnavailableError: Vault cannot be reached, is sealed, has no leader or limits the rate.
            KmsAuthError: The token is not accepted.
            KmsPermissionError: The token may not use the Transit key.
            KmsKeyNotFoundError: The Transit key does not exist.
            KmsCiphertextError: Vault did not make this blob, or not with this Transit key, or will not open it.
            ConfigurationError: Certificate, mount, namespace or type of the Transit key do not fit.
        """
        ciphertext = _checked(blob)
        if isinstance(ciphertext, KmsError):
            raise ciphertext
        if self._takes_rewrap and not self._context:
            try:
                return _ciphertext(self._asked("rewrap", {"ciphertext": ciphertext}), "rewrap")
            except (KmsAuthError, KmsPermissionError):
                self._takes_rewrap = False
        return self.encrypt_key(self.decrypt_key(blob))

    def health(self, node: str) -> int:
        """Ask one node how it is; needs no token.

        Args:
            node: One of the settings' nodes.

        Returns:
            The HTTP status of `sys/health`: 200 active, 429 standby, 501 not initialised, 503 sealed.

        Raises:
            KmsUnavailableError: It does not answer.
            ConfigurationError: Certificate, address or proxy settings cannot work.
        """
        return self._caller.health(node)

    def look(self, path: str, question: Mapping[str, object] | None = None) -> Answer:
        """Ask with this service's token for something that changes nothing.

        Args:
            path: The path below `/v1/`.
            question: A body, for what is asked by POST.

        Returns:
            The answer, whatever its status.

        Raises:
            KmsUnavailableError: Vault cannot be reached, is sealed, has no leader or limits the rate.
            KmsAuthError: There is no token: Vault rejects the credential.
            ConfigurationError: Certificate, address or proxy settings cannot work.
        """
        until = time.monotonic() + self._settings.deadline
        token = self._tokens.held(until)
        return self._caller.ask(path, question, operation="check", token=token.text, until=until, get=question is None)

    def close(self) -> None:
        """Revoke the token if this process logged in for it, and close the connections; a later call starts anew."""
        self._tokens.close()
        self._caller.close()

    def _opened(self, blobs: Sequence[bytes]) -> list[bytes | KmsError]:
        """Unwrap up to 200 blobs, each of them of the right form."""
        if len(blobs) < 2 or not self._takes_batches:  # noqa: PLR2004 # one is no batch
            return [self._decrypted(blob) for blob in blobs]
        batch = [{"ciphertext": blob.decode(), **self._context} for blob in blobs]
        try:
            # A server that does not know the parameter answers 400 if one item fails, and yet gives all results.
            answer = self._asked("decrypt", {"batch_input": batch, "partial_failure_response_code": _OK})
        except (KmsAuthError, KmsPermissionError):
            # A policy may forbid batches, by its `denied_parameters`: then what is refused is not the key.
            first = self._decrypted(blobs[0])
            if isinstance(first, KmsAuthError | KmsPermissionError):
                return [first] * len(blobs)
            self._takes_batches = False
            return [first, *map(self._decrypted, blobs[1:])]
        except KmsError as error:
            return [error] * len(blobs)
        results = items(answer)
        if results is None or len(results) != len(blobs):
            return [not_from_vault("decrypt", _OK)] * len(blobs)
        return [self._item(blob, result, answer) for blob, result in zip(blobs, results, strict=True)]

    def _item(self, blob: bytes, result: Mapping[str, object], answer: Answer) -> bytes | KmsError:
        if not result.get("error"):
            return _key(result)
        alone = replace(answer, status=_BAD, body={"errors": [result["error"]]})
        if patience(alone):
            return self._decrypted(blob)  # which asks again for as long as this fault takes
        error = refusal(alone, "decrypt", self._settings)
        if not isinstance(error, KmsError):
            raise error
        return error

    def _asked(self, operation: str, body: Mapping[str, object]) -> Answer:
        """Return an answer with status 200, or one to a batch."""
        if "batch_input" not in body:
            body = {**body, **self._context}
        until = time.monotonic() + self._settings.deadline
        path = f"{self._settings.mount}/{operation}/{self._settings.key}"
        held = self._tokens.held(until)
        answer = self._caller.ask(path, body, operation=operation, token=held.text, until=until)
        # A proxy's page says nothing about the token.
        is_refused = answer.status == _FORBIDDEN and words(answer.body, ()) is not None
        if is_refused and self._tokens.refused(held, until, path):
            held = self._tokens.held(until)
            answer = self._caller.ask(path, body, operation=operation, token=held.text, until=until)
        if answer.status != _OK and items(answer) is None:
            raise refusal(answer, operation, self._settings, self._tokens.describe())
        self._tokens.accepted(held, until, path)
        return answer

    def __repr__(self) -> str:
        settings = self._settings
        return (
            f"VaultTransitKMS(addr={settings.addr!r}, namespace={settings.namespace!r}, mount={settings.mount!r}, "
            f"key={settings.key!r})"
        )

    def __reduce__(self) -> NoReturn:
        raise TypeError("VaultTransitKMS holds a token and cannot be pickled; make one in each process")


def _checked(blob: bytes) -> str | KmsCiphertextError:
    """Return the blob as text, or why Vault need not be asked about it."""
    try:
        text = blob.decode()
    except UnicodeDecodeError:
        return foreign_ciphertext("blob is not valid UTF-8")
    return text if _FORM.match(text) else foreign_ciphertext()


def _data(answer: Answer) -> Mapping[str, object]:
    return members(members(answer.body).get("data"))


def _ciphertext(answer: Answer, operation: str) -> bytes:
    text = _data(answer).get("ciphertext")
    if not isinstance(text, str) or not re.fullmatch(_FORM.pattern + "[A-Za-z0-9+/]+={0,2}", text):
        raise not_from_vault(operation, _OK)
    return text.encode()


def _key(result: Mapping[str, object]) -> bytes | KmsError:
    """Return the system key, or what is wrong with it."""
    text = result.get("plaintext")
    try:
        key = base64.b64decode(text, validate=True) if isinstance(text, str) else None
    except (binascii.Error, ValueError):
        key = None
    if key is None:
        return not_from_vault("decrypt", _OK)
    if len(key) != KEY_SIZE:
        return KmsCiphertextError(
            f"Vault Transit decrypt: the blob holds {len(key)} bytes instead of a system key of {KEY_SIZE}; "
            "something else was encrypted with this Transit key",
            operation="decrypt",
            status=_OK,
        )
    return key
