# SPDX-License-Identifier: Apache-2.0
"""The attack that the commitment stops: one AES-GCM ciphertext with a tag that is valid under two keys."""

from __future__ import annotations

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

_REDUCTION = 0xE1 << 120
_BITS = 128


def _multiply(x: int, y: int) -> int:
    product = 0
    for bit in range(_BITS):
        if x >> (_BITS - 1 - bit) & 1:
            product ^= y
        y = y >> 1 ^ (_REDUCTION if y & 1 else 0)
    return product


def _invert(x: int) -> int:
    """Raise to the power of 2^128 - 2."""
    inverse = 1 << (_BITS - 1)
    for _ in range(_BITS - 1):
        x = _multiply(x, x)
        inverse = _multiply(inverse, x)
    return inverse


def _block(key: bytes, block: bytes) -> int:
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305 # the attack needs the bare cipher
    return int.from_bytes(encryptor.update(block), "big")


def _ghash(h: int, aad: bytes, ciphertext: bytes) -> int:
    state = 0
    lengths = (8 * len(aad)).to_bytes(8, "big") + (8 * len(ciphertext)).to_bytes(8, "big")
    for part in (aad, ciphertext, lengths):
        for start in range(0, len(part), 16):
            block = part[start : start + 16].ljust(16, b"\x00")
            state = _multiply(state ^ int.from_bytes(block, "big"), h)
    return state


def two_key_ciphertext(first: tuple[bytes, bytes], second: tuple[bytes, bytes], nonce: bytes) -> bytes:
    """Solve for the one ciphertext block that gives both (key, aad) pairs the same tag."""
    (h1, mask1), (h2, mask2) = (
        (
            _block(key, bytes(16)),
            _block(key, nonce + b"\x00\x00\x00\x01") ^ _ghash(_block(key, bytes(16)), aad, bytes(16)),
        )
        for key, aad in (first, second)
    )
    square1, square2 = _multiply(h1, h1), _multiply(h2, h2)
    ciphertext = _multiply(mask1 ^ mask2, _invert(square1 ^ square2))
    tag = mask1 ^ _multiply(ciphertext, square1)
    return ciphertext.to_bytes(16, "big") + tag.to_bytes(16, "big")
