# SPDX-License-Identifier: Apache-2.0
"""Fernet and MultiFernet tokens, as `cryptography.fernet` writes them."""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import TYPE_CHECKING, Any, Literal, cast

from sqlalchemy.types import String, TypeEngine

from sa_asherah.core import aead
from sa_asherah.errors import ConfigurationError
from sa_asherah.reencrypt.foreign.written import Foreign, KeyMaterial

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["FernetTokens", "is_token", "open_token"]

_VERSION = b"\x80"
_IV = slice(9, 25)
_MAC_SIZE = 32
_SHORTEST = 25 + aead.BLOCK_SIZE + _MAC_SIZE
_KEY_SIZE = 32


class FernetTokens(Foreign):
    """Reads a column of Fernet tokens. Their age is not looked at."""

    cache_ok = False

    def __init__(
        self,
        keys: KeyMaterial | Sequence[KeyMaterial],
        inner: TypeEngine[Any] | type[TypeEngine[Any]] = String,
        storage: Literal["text", "binary"] = "text",
    ) -> None:
        """Keep what is needed for reading.

        Args:
            keys: The key of `Fernet`, or those of `MultiFernet`: base64 of 32 bytes each, or functions that give them.
            inner: The type of the plaintext; text is UTF-8.
            storage: Whether the column is a text or a binary one.

        Raises:
            ConfigurationError: An argument is unusable.
        """
        several = cast("tuple[KeyMaterial, ...]", tuple(keys) if isinstance(keys, list | tuple) else (keys,))  # pyright: ignore[reportUnknownArgumentType]
        super().__init__(several, inner, storage)
        for key in several:
            if not callable(key):
                _key(key.encode() if isinstance(key, str) else key)

    def _has_form(self, stored: bytes) -> bool:
        return is_token(stored)

    def _decrypt(self, stored: bytes) -> bytes | None:
        return open_token(map(_key, self._secret.get()), stored)


def is_token(stored: bytes) -> bool:
    """Tell whether bytes have the form of a token.

    Args:
        stored: What is stored.
    """
    return _parse(stored) is not None


def open_token(keys: Iterable[bytes], stored: bytes) -> bytes | None:
    """Open a token.

    Args:
        keys: Keys of 32 bytes, tried in order.
        stored: What is stored.

    Returns:
        The plaintext, `None` if none of the keys opens it.
    """
    token = _parse(stored)
    if token is None:
        return None
    signed, mac = token[:-_MAC_SIZE], token[-_MAC_SIZE:]
    for key in keys:
        if hmac.compare_digest(hmac.digest(key[:16], signed, "sha256"), mac):
            padded = aead.decrypt_cbc(key[16:], signed[_IV], signed[_IV.stop :])
            return padded[: -padded[-1]]  # authentic, so it is padded
    return None


def _parse(stored: bytes) -> bytes | None:
    try:
        token = urlsafe_b64decode(stored)
    except ValueError:
        return None
    has_form = len(token) >= _SHORTEST and (len(token) - _SHORTEST) % aead.BLOCK_SIZE == 0
    return token if has_form and token[:1] == _VERSION and urlsafe_b64encode(token) == stored else None


def _key(text: bytes) -> bytes:
    try:
        key = urlsafe_b64decode(text)
    except ValueError:
        key = b""
    if len(key) != _KEY_SIZE:
        raise ConfigurationError("a Fernet key is the base64 text of 32 bytes, as Fernet.generate_key() gives it")
    return key
