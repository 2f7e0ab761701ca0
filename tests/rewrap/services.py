# SPDX-License-Identifier: Apache-2.0
"""Key services in memory: one whose blobs have a form of their own and versions, as Transit's have."""

from __future__ import annotations

import base64
import os
import warnings
from typing import TYPE_CHECKING

from sa_asherah.core import aead
from sa_asherah.core.ports import KeyManagementService
from sa_asherah.errors import KmsCiphertextError, KmsUnavailableError, StaticKeyWarning
from sa_asherah.kms import StaticKMS

if TYPE_CHECKING:
    from collections.abc import Callable


def static(byte: int = 1) -> StaticKMS:
    """Return a static service with a master key of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StaticKeyWarning)  # it comes once per process: here, or somewhere earlier
        return StaticKMS(bytes([byte]) * 32, {})


class Versioned(KeyManagementService):
    """Writes `name:v1:base64`, and keeps every version of its key."""

    def __init__(self, name: str = "transit") -> None:
        self.name = name
        self.calls: list[str] = []
        self.is_down = False
        self.is_closed = False
        self.before_decrypt: Callable[[bytes], None] = lambda _blob: None
        self._keys = [os.urandom(32)]

    def rotate(self) -> None:
        """Add a version."""
        self._keys.append(os.urandom(32))

    def encrypt_key(self, key: bytes) -> bytes:
        self._call("encrypt")
        sealed = base64.b64encode(aead.seal(self._keys[-1], key)).decode()
        return f"{self.name}:v{len(self._keys)}:{sealed}".encode()

    def decrypt_key(self, blob: bytes) -> bytes:
        self._call("decrypt")
        self.before_decrypt(blob)
        opened = self._opened(blob) if self.recognises(blob) else None
        if opened is None:
            raise KmsCiphertextError(f"{self.name} does not open it", operation="decrypt")
        return opened

    def rewrap_key(self, blob: bytes) -> bytes:
        """Wrap with the newest version."""
        return self.encrypt_key(self.decrypt_key(blob))

    def recognises(self, blob: bytes) -> bool:
        return blob.startswith(self.name.encode() + b":v")

    def close(self) -> None:
        self.is_closed = True

    def _opened(self, blob: bytes) -> bytes | None:
        _, version, sealed = blob.decode().split(":")
        try:
            return aead.open_(self._keys[int(version[1:]) - 1], base64.b64decode(sealed))
        except aead.InvalidTag:
            return None

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if self.is_down:
            raise KmsUnavailableError(f"{self.name} is down", retryable=True, operation=name)
