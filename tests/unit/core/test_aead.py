# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sa_asherah.core import aead

KEY = bytes(range(32))


def test_a_blob_is_ciphertext_tag_nonce() -> None:
    blob = aead.seal(KEY, b"data")
    assert len(blob) == 4 + 16 + 12
    assert AESGCM(KEY).decrypt(blob[-12:], blob[:-12], b"") == b"data"
    assert aead.open_(bytearray(KEY), blob) == b"data"


def test_empty_data_makes_a_real_record() -> None:
    assert aead.open_(KEY, aead.seal(KEY, b"")) == b""
    assert len(aead.seal(KEY, b"")) == 28


def test_every_damage_and_every_length_raises_the_same_error() -> None:
    blob = aead.seal(KEY, b"data")
    for bit in range(8 * len(blob)):
        damaged = bytearray(blob)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(aead.InvalidTag):
            aead.open_(KEY, bytes(damaged))
    for size in range(len(blob)):
        with pytest.raises(aead.InvalidTag):
            aead.open_(KEY, blob[:size])
    with pytest.raises(aead.InvalidTag):
        aead.open_(bytes(32), blob)


def test_nonces_differ() -> None:
    assert len({aead.seal(KEY, b"")[-12:] for _ in range(1000)}) == 1000


@pytest.mark.parametrize("size", [0, 16, 24, 31, 33, 64])
def test_only_256_bit_keys(size: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        aead.cipher(bytes(size))


def test_wiping_the_key_does_not_change_a_cipher_made_before() -> None:
    key = bytearray(KEY)
    cipher = aead.cipher(key)
    key[:] = bytes(32)
    assert AESGCM(KEY).decrypt(bytes(12), cipher.encrypt(bytes(12), b"data", b""), b"") == b"data"
