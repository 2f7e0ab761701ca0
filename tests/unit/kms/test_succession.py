# SPDX-License-Identifier: Apache-2.0
"""Two key services while keys move: each blob goes to the one it belongs to, new ones to the new one."""

from __future__ import annotations

import itertools
import os
import pickle

import pytest

from sa_asherah.core.ports import KeyManagementService
from sa_asherah.errors import KmsCiphertextError, KmsUnavailableError
from sa_asherah.kms.succession import Succession
from tests.rewrap.services import Versioned, static

KEY = bytes(range(32))


def pairs() -> dict[str, tuple[KeyManagementService, KeyManagementService]]:
    return {
        "static-static": (static(1), static(2)),
        "vault-static": (Versioned(), static()),
        "static-vault": (static(), Versioned()),
        "vault-vault": (Versioned(), Versioned()),
    }


@pytest.mark.parametrize("name", pairs())
def test_each_opens_and_only_the_current_one_wraps(name: str) -> None:
    current, previous = pairs()[name]
    both = Succession(current, previous)
    keys = [os.urandom(32) for _ in range(6)]
    wrapping = itertools.cycle([current, previous, both])
    blobs = [next(wrapping).encrypt_key(key) for key in keys]
    assert [both.decrypt_key(blob) for blob in blobs] == keys
    assert both.decrypt_keys(blobs) == keys
    assert both.decrypt_keys(blobs[::-1]) == keys[::-1]
    assert both.decrypt_keys([]) == []
    assert all(both.recognises(blob) for blob in blobs)
    assert current.decrypt_key(both.encrypt_key(KEY)) == KEY


@pytest.mark.parametrize("name", pairs())
def test_a_blob_of_neither_is_refused_alone_and_in_a_batch(name: str) -> None:
    both = Succession(*pairs()[name])
    good = both.encrypt_key(KEY)
    for bad in (
        static(9).encrypt_key(KEY),
        Versioned().encrypt_key(KEY),
        Versioned("other").encrypt_key(KEY),
        b"",
        b"x",
    ):
        with pytest.raises(KmsCiphertextError) as caught:
            both.decrypt_key(bad)
        assert caught.value.__cause__ is caught.value.__context__ is None
        first, refused, last = both.decrypt_keys([good, bad, good])
        assert (first, last) == (KEY, KEY)
        assert isinstance(refused, KmsCiphertextError)
        assert str(refused) == str(caught.value)


def test_where_both_refuse_the_error_says_what_each_said() -> None:
    both = Succession(static(1), static(2))
    with pytest.raises(KmsCiphertextError, match=r"neither.*KMS: static KMS.*KMS_PREVIOUS: static KMS") as caught:
        both.decrypt_key(static(3).encrypt_key(KEY))
    assert caught.value.operation == "decrypt"


def test_nobody_is_asked_about_a_blob_of_another_form() -> None:
    current, previous = Versioned("new"), Versioned("old")
    both = Succession(current, previous)
    both.decrypt_key(previous.encrypt_key(KEY))
    both.decrypt_keys([previous.encrypt_key(KEY)])
    assert current.calls == []
    previous.calls.clear()
    both.decrypt_keys([both.encrypt_key(KEY)])
    both.decrypt_key(both.encrypt_key(KEY))
    assert previous.calls == []


def test_a_service_that_is_down_is_no_reason_to_ask_the_other() -> None:
    current, previous = Versioned(), Versioned()
    both = Succession(current, previous)
    blob = current.encrypt_key(KEY)
    previous.calls.clear()
    current.is_down = True
    with pytest.raises(KmsUnavailableError):
        both.decrypt_key(blob)
    (error,) = both.decrypt_keys([blob])
    assert isinstance(error, KmsUnavailableError)
    assert previous.calls == []


class Batching(Versioned):
    """Counts the calls for several keys."""

    batch_size = 200

    def decrypt_keys(self, blobs: object) -> object:  # type: ignore[override]
        self.calls.append("batch")
        return super().decrypt_keys(blobs)  # type: ignore[arg-type]


def test_one_call_for_each_service() -> None:
    current, previous = Batching("new"), Batching("old")
    both = Succession(current, previous)
    blobs = [service.encrypt_key(KEY) for service in (current, previous) * 10]
    assert both.decrypt_keys(blobs) == [KEY] * 20
    assert [service.calls.count("batch") for service in (current, previous)] == [1, 1]
    assert (both.batch_size, Succession(static(), static(2)).batch_size) == (200, 1)


def test_closing_closes_both_even_if_one_fails() -> None:
    class Failing(Versioned):
        def close(self) -> None:
            super().close()
            raise OSError

    current, previous = Failing(), Versioned()
    with pytest.raises(OSError):  # noqa: PT011 # as raised above
        Succession(current, previous).close()
    assert current.is_closed
    assert previous.is_closed


def test_it_is_not_pickled_and_shows_no_key() -> None:
    both = Succession(static(1), static(2))
    with pytest.raises(TypeError, match="key services"):
        pickle.dumps(both)
    assert repr(both) == "Succession(StaticKMS(<master key>), StaticKMS(<master key>))"
