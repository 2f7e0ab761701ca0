# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import os
import pickle
import traceback
import warnings

import pytest

from sa_asherah.core import aead
from sa_asherah.errors import ConfigurationError, KmsCiphertextError, StaticKeyWarning, UsageError
from sa_asherah.kms import StaticKMS, static

MASTER = bytes(range(32))


@pytest.fixture(autouse=True)
def _warned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static, "_warned", True)


def test_round_trip() -> None:
    kms, key = StaticKMS(MASTER, {}), os.urandom(32)
    blob = kms.encrypt_key(key)
    assert len(blob) == 60
    assert kms.decrypt_key(blob) == key
    assert kms.encrypt_key(key) != blob


def test_blob_is_what_other_implementations_write() -> None:
    key = os.urandom(32)
    assert StaticKMS(MASTER, {}).decrypt_key(aead.seal(MASTER, key)) == key
    assert aead.open_(MASTER, StaticKMS(MASTER, {}).encrypt_key(key)) == key


def test_hex_and_bytes_are_the_same_key() -> None:
    blob = StaticKMS(MASTER, {}).encrypt_key(bytes(32))
    for text in (MASTER.hex(), MASTER.hex().upper(), f" {MASTER.hex()}\n"):
        assert StaticKMS.from_hex(text, {}).decrypt_key(blob) == bytes(32)


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_wrong_size_of_key(size: int) -> None:
    with pytest.raises(ConfigurationError, match=rf"must have 32 bytes, this one has {size}"):
        StaticKMS(bytes(size), {})
    with pytest.raises(UsageError, match=f"has 32 bytes, this one has {size}"):
        StaticKMS(MASTER, {}).encrypt_key(bytes(size))


@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_there_is_no_default_key(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^KMS=static needs STATIC_MASTER_KEY_HEX; make one with: openssl"):
        StaticKMS.from_hex(text, {})


@pytest.mark.parametrize("text", ["ab" * 31, "ab" * 33, "zz" * 32, "ab " * 21 + "a", "é" * 64, "0x" + "ab" * 31])
def test_hex_that_is_no_key(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^STATIC_MASTER_KEY_HEX must be 64 hexadecimal digits") as caught:
        StaticKMS.from_hex(text, {})
    assert text not in str(caught.value)


# The same in each worker of a parallel run.
FOREIGN = aead.cipher(bytes(32)).encrypt(bytes(12), MASTER, b"") + bytes(12)


@pytest.mark.parametrize("blob", [b"", b"short", bytes(60), b"vault:v1:" + b"A" * 80, FOREIGN])
def test_foreign_blob(blob: bytes) -> None:
    with pytest.raises(KmsCiphertextError, match=r"check KMS and STATIC_MASTER_KEY_HEX$") as caught:
        StaticKMS(MASTER, {}).decrypt_key(blob)
    assert (caught.value.retryable, caught.value.operation, caught.value.status) == (False, "decrypt", None)
    assert caught.value.__context__ is None


def test_blob_that_holds_no_system_key() -> None:
    with pytest.raises(KmsCiphertextError):
        StaticKMS(MASTER, {}).decrypt_key(aead.seal(MASTER, b"short"))


def test_every_flipped_bit_is_noticed() -> None:
    kms = StaticKMS(MASTER, {})
    blob = kms.encrypt_key(bytes(32))
    for bit in range(len(blob) * 8):
        damaged = bytearray(blob)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(KmsCiphertextError):
            kms.decrypt_key(bytes(damaged))


@pytest.mark.parametrize("name", ["ASHERAH_ENV", "APP_ENV", "FLASK_ENV", "DJANGO_ENV", "ENVIRONMENT"])
@pytest.mark.parametrize("value", ["production", "prod", "Production", " PROD "])
def test_refused_in_production(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match=rf"refused where {name}=(?i:prod)"):
        StaticKMS.from_hex(MASTER.hex(), {name: value})
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match="use KMS=vault"):
        StaticKMS(MASTER)


@pytest.mark.parametrize("value", ["", "development", "test", "nonprod", "reproduction"])
def test_accepted_elsewhere(value: str) -> None:
    assert StaticKMS(MASTER, {"APP_ENV": value, "NODE_ENV": "production"}).encrypt_key(bytes(32))


def test_warns_once_per_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static, "_warned", False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            StaticKMS(MASTER, {})
            StaticKMS.from_hex(MASTER.hex(), {})
    assert [warning.category for warning in caught] == [StaticKeyWarning]
    assert "development and tests only" in str(caught[0].message)


def test_a_refused_key_does_not_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static, "_warned", False)
    with pytest.raises(ConfigurationError):
        StaticKMS(MASTER[:-1], {})
    assert not static._warned


def test_the_key_is_never_shown() -> None:
    kms = StaticKMS(MASTER, {})
    assert repr(kms) == str(kms) == "StaticKMS(<master key>)"
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be pickled"):
            attempt(kms)
    with pytest.raises(KmsCiphertextError) as caught:
        kms.decrypt_key(b"other")
    shown = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    assert MASTER.hex() not in shown
    assert repr(MASTER) not in shown


def test_closing_does_no_harm() -> None:
    kms = StaticKMS(MASTER, {})
    kms.close()
    kms.close()
    assert kms.decrypt_key(kms.encrypt_key(MASTER)) == MASTER
