# SPDX-License-Identifier: Apache-2.0
"""AES-256-GCM, and older modes to read what others wrote; the only module that imports `cryptography`."""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC, ECB

__all__ = [
    "BLOCK_SIZE",
    "KEY_SIZE",
    "NONCE_SIZE",
    "TAG_SIZE",
    "InvalidTag",
    "cipher",
    "decrypt_cbc",
    "decrypt_cfb",
    "open_",
    "seal",
]

KEY_SIZE = 32
NONCE_SIZE = 12
TAG_SIZE = 16
BLOCK_SIZE = 16
"""Of AES."""


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


def decrypt_cbc(key: bytes, iv: bytes, data: bytes) -> bytes:
    """Decrypt AES-CBC, which authenticates nothing: only to read what others wrote.

    Args:
        key: 16, 24 or 32 bytes.
        iv: 16 bytes.
        data: Whole blocks.

    Returns:
        The padded plaintext.

    Raises:
        ValueError: A length is wrong.
    """
    decryptor = Cipher(AES(key), CBC(iv)).decryptor()
    return decryptor.update(data) + decryptor.finalize()


def decrypt_cfb(key: bytes, data: bytes) -> bytes:
    """Decrypt AES-CFB with full blocks and an IV of zeros, as OpenPGP does: only to read what others wrote.

    Args:
        key: 16, 24 or 32 bytes.
        data: Any number of bytes.

    Returns:
        The plaintext.

    Raises:
        ValueError: The key's length is wrong.
    """
    blocks = -(-len(data) // BLOCK_SIZE)
    # Each block is masked by the encrypted block before it: all masks are had at once.
    masked = bytes(BLOCK_SIZE) + data[: BLOCK_SIZE * (blocks - 1)]
    encryptor = Cipher(AES(key), ECB()).encryptor()  # noqa: S305 -- it is the block cipher inside CFB
    mask = encryptor.update(masked[: BLOCK_SIZE * blocks]) + encryptor.finalize()
    numbers = (int.from_bytes(part[: len(data)], "big") for part in (data, mask))
    return (next(numbers) ^ next(numbers)).to_bytes(len(data), "big")
