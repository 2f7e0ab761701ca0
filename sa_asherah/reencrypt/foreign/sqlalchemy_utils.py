# SPDX-License-Identifier: Apache-2.0
"""What `StringEncryptedType` and `EncryptedType` of SQLAlchemy-Utils write, by its three engines."""

from __future__ import annotations

import hashlib
from typing import Any, Final, Literal

from sqlalchemy.types import String, TypeEngine

from sa_asherah.core import aead
from sa_asherah.errors import ConfigurationError
from sa_asherah.reencrypt.foreign.fernet import is_token, open_token
from sa_asherah.reencrypt.foreign.written import Foreign, KeyMaterial, standard_base64

__all__ = ["SQLAlchemyUtilsAES", "SQLAlchemyUtilsFernet", "SQLAlchemyUtilsGCM"]

_PADDINGS: Final = ("naive", "pkcs5", "oneandzeroes", "zeroes")


class _Utils(Foreign):
    """What the three have in common: the key is hashed."""

    def __init__(
        self,
        key: KeyMaterial,
        inner: TypeEngine[Any] | type[TypeEngine[Any]] = String,
        storage: Literal["text", "binary"] = "text",
    ) -> None:
        """Keep what is needed for reading.

        Args:
            key: The `key` of the other type: a text, bytes, or a function that gives it.
            inner: Its `type_in`.
            storage: `"text"` for `StringEncryptedType`, `"binary"` for `EncryptedType`.

        Raises:
            ConfigurationError: An argument is unusable.
        """
        super().__init__((key,), inner, storage)

    def _key(self) -> bytes:
        return hashlib.sha256(self._secret.get()[0]).digest()


class SQLAlchemyUtilsAES(_Utils):
    """Reads values of `AesEngine`.

    They are not authenticated: a damaged value, or one of another key, may be read as another text. Before such a
    column is encrypted anew, nothing can tell.
    """

    cache_ok = False

    def __init__(
        self,
        key: KeyMaterial,
        inner: TypeEngine[Any] | type[TypeEngine[Any]] = String,
        padding: Literal["naive", "pkcs5", "oneandzeroes", "zeroes"] = "naive",
        storage: Literal["text", "binary"] = "text",
    ) -> None:
        """Keep what is needed for reading.

        Args:
            key: The `key` of the other type: a text, bytes, or a function that gives it.
            inner: Its `type_in`.
            padding: Its `padding`; `naive` unless it was given one.
            storage: `"text"` for `StringEncryptedType`, `"binary"` for `EncryptedType`.

        Raises:
            ConfigurationError: An argument is unusable.
        """
        if padding not in _PADDINGS:
            raise ConfigurationError(f"padding= is one of {', '.join(_PADDINGS)}, as SQLAlchemy-Utils names them")
        self.padding = padding
        super().__init__(key, inner, storage)

    def __repr__(self) -> str:
        """Name everything but the key."""
        return f"{type(self).__name__}(..., {self.inner!r}, {self.padding!r}, {self.storage!r})"

    def _has_form(self, stored: bytes) -> bool:
        blocks = standard_base64(stored) or b""
        return blocks != b"" and len(blocks) % aead.BLOCK_SIZE == 0

    def _decrypt(self, stored: bytes) -> bytes | None:
        key = self._key()
        return _unpad(aead.decrypt_cbc(key, key[: aead.BLOCK_SIZE], standard_base64(stored) or b""), self.padding)


class SQLAlchemyUtilsGCM(_Utils):
    """Reads values of `AesGcmEngine`."""

    cache_ok = False

    def _has_form(self, stored: bytes) -> bool:
        return len(standard_base64(stored) or b"") >= aead.NONCE_SIZE + aead.TAG_SIZE

    def _decrypt(self, stored: bytes) -> bytes | None:
        blob = standard_base64(stored) or b""
        start = aead.NONCE_SIZE + aead.TAG_SIZE
        nonce, tag, data = blob[: aead.NONCE_SIZE], blob[aead.NONCE_SIZE : start], blob[start:]
        try:
            return aead.cipher(self._key()).decrypt(nonce, data + tag, None)
        except aead.InvalidTag:
            return None


class SQLAlchemyUtilsFernet(_Utils):
    """Reads values of `FernetEngine`."""

    cache_ok = False

    def _has_form(self, stored: bytes) -> bool:
        return is_token(stored)

    def _decrypt(self, stored: bytes) -> bytes | None:
        return open_token([self._key()], stored)


def _unpad(data: bytes, padding: str) -> bytes | None:
    if padding == "naive":  # the library takes all asterisks at the end for padding, also those of the value
        found = data.rstrip(b"*")
        return found if len(found) < len(data) else None
    if padding == "oneandzeroes":
        found = data.rstrip(b"\0")
        return found[:-1] if found.endswith(b"\x80") and len(data) - len(found) < aead.BLOCK_SIZE else None
    size = data[-1]
    filler = bytes((size if padding == "pkcs5" else 0,)) * (size - 1)
    return data[:-size] if 1 <= size <= aead.BLOCK_SIZE and data[-size:-1] == filler else None
