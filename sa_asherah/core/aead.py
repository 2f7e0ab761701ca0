# SPDX-License-Identifier: Apache-2.0
"""AES-256-GCM; the only module that imports `cryptography`."""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = ["KEY_SIZE", "NONCE_SIZE", "TAG_SIZE", "InvalidTag", "cipher", "open_", "seal"]

KEY_SIZE = 32
NONCE_SIZE = 12
TAG_SIZE = 16


def cipher(key: bytes | bytearray) -> AESGCM:
    """Make the cipher of a 32-byte key, for `encrypt(nonce, data, aad)` and `decrypt(nonce, data, aad)`.

    Args:
        key: The key. The cipher keeps a copy of its own: wiping the argument afterwards does not change it.

    Returns:
        The cipher, safe to share between threads.

    Raises:
        ValueError: The key does not have 32 bytes.
    """
    if len(key) != KEY_SIZE:
        raise ValueError(f"an AES-256 key has {KEY_SIZE} bytes, this one has {len(key)}")
    return AESGCM(bytes(key))


def seal(key: bytes | bytearray, data: bytes) -> bytes:
    """Encrypt as every Asherah implementation does: ciphertext, tag, then the random nonce; no associated data.

    Args:
        key: 32 bytes.
        data: What to encrypt; may be empty.

    Returns:
        The blob, 28 bytes longer than the data.
    """
    nonce = os.urandom(NONCE_SIZE)
    return cipher(key).encrypt(nonce, data, None) + nonce


def open_(key: bytes | bytearray, blob: bytes) -> bytes:
    """Decrypt what `seal` or another Asherah implementation wrote.

    Args:
        key: 32 bytes.
        blob: Ciphertext, tag and nonce.

    Returns:
        The data.

    Raises:
        InvalidTag: Another key, damaged, or shorter than tag and nonce.
    """
    if len(blob) < TAG_SIZE + NONCE_SIZE:
        raise InvalidTag
    return cipher(key).decrypt(blob[-NONCE_SIZE:], blob[:-NONCE_SIZE], None)
