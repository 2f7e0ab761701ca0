# SPDX-License-Identifier: Apache-2.0
"""A master key in the process itself, for development and tests."""

from __future__ import annotations

import os
import re
import warnings
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NoReturn

from sa_asherah.config import STAGE_NAMES
from sa_asherah.core import aead
from sa_asherah.core.ports import KeyManagementService
from sa_asherah.environ import read_text
from sa_asherah.errors import ConfigurationError, KmsCiphertextError, StaticKeyWarning, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["LocalKMS", "StaticKMS"]

_warned = False


class LocalKMS(KeyManagementService, ABC):
    """Wraps system keys in this process, under a master key that it holds. Safe to share between threads."""

    _name: str
    _setting: str

    @abstractmethod
    def _key(self) -> bytes:
        """Give the master key."""

    def encrypt_key(self, key: bytes) -> bytes:
        """Wrap a system key.

        Args:
            key: 32 bytes.

        Returns:
            Ciphertext, tag and nonce, as other Asherah implementations with a static key write them.

        Raises:
            UsageError: The key does not have 32 bytes.
        """
        if len(key) != aead.KEY_SIZE:
            raise UsageError(f"a system key has {aead.KEY_SIZE} bytes, this one has {len(key)}")
        return aead.seal(self._key(), key)

    def decrypt_key(self, blob: bytes) -> bytes:
        """Unwrap a system key.

        Args:
            blob: What `encrypt_key` returned.

        Returns:
            The system key.

        Raises:
            KmsCiphertextError: The blob is damaged or was wrapped by another key management service or key.
        """
        key = self._opened(blob)
        if key is None or len(key) != aead.KEY_SIZE:
            raise KmsCiphertextError(
                f"{self._name} decrypt failed: the system key's record is damaged, or was wrapped by another master "
                f"key or another key management service; check KMS and {self._setting}",
                operation="decrypt",
            )
        return key

    def _opened(self, blob: bytes) -> bytes | None:
        # A failed tag is no cause to keep: its traceback leads to the master key.
        try:
            return aead.open_(self._key(), blob)
        except aead.InvalidTag:
            return None

    def recognises(self, blob: bytes) -> bool:
        """Tell by its length whether this service may have wrapped a blob.

        Args:
            blob: A wrapped system key.

        Returns:
            Whether it may.
        """
        return len(blob) == aead.KEY_SIZE + aead.NONCE_SIZE + aead.TAG_SIZE

    def close(self) -> None:
        """Do nothing: there is no connection."""


class StaticKMS(LocalKMS):
    """Wraps system keys under a master key that the application itself holds.

    Whoever sees the application's configuration can open everything, so it warns once per process and is refused
    where the environment says `production`. Safe to share between threads; it holds no connection.

    Args:
        master_key: 32 random bytes. There is no default, and losing them loses all data.
        environ: The environment that may say `production`.

    Raises:
        ConfigurationError: The key does not have 32 bytes, or this is production.
    """

    _name = "static KMS"
    _setting = "STATIC_MASTER_KEY_HEX"

    def __init__(self, master_key: bytes, environ: Mapping[str, str] = os.environ) -> None:
        _refuse_production(environ)
        if len(master_key) != aead.KEY_SIZE:
            raise ConfigurationError(
                f"the static master key must have {aead.KEY_SIZE} bytes, this one has {len(master_key)}"
            )
        self._master_key = bytes(master_key)
        _warn_once()

    @classmethod
    def from_hex(cls, text: str, environ: Mapping[str, str] = os.environ) -> StaticKMS:
        """Take the master key from hexadecimal text, as in `STATIC_MASTER_KEY_HEX`.

        Args:
            text: 64 hexadecimal digits.
            environ: The environment that may say `production`.

        Returns:
            The service.

        Raises:
            ConfigurationError: The text is empty or not such a key, or this is production.
        """
        digits = text.strip()
        if not digits:
            raise ConfigurationError("KMS=static needs STATIC_MASTER_KEY_HEX; make one with: openssl rand -hex 32")
        if not re.fullmatch("[0-9a-fA-F]{64}", digits):
            raise ConfigurationError(
                f"STATIC_MASTER_KEY_HEX must be 64 hexadecimal digits (32 bytes); this one has {len(digits)} characters"
            )
        return cls(bytes.fromhex(digits), environ)

    def _key(self) -> bytes:
        return self._master_key

    def __repr__(self) -> str:
        return "StaticKMS(<master key>)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("StaticKMS holds a key and cannot be pickled; make one in each process")


def _refuse_production(environ: Mapping[str, str]) -> None:
    for name in STAGE_NAMES:
        value = read_text(environ, name) or ""
        if value.lower() in {"production", "prod"}:
            raise ConfigurationError(
                f"the static master key is refused where {name}={value}; use KMS=vault, or correct {name}"
            )


def _warn_once() -> None:
    global _warned  # noqa: PLW0603 # once per process, whatever the warning filters say
    if not _warned:
        _warned = True
        warnings.warn(
            "KMS=static: the master key is in this process's configuration; use it for development and tests only",
            StaticKeyWarning,
            stacklevel=3,
        )
