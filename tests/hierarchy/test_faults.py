# SPDX-License-Identifier: Apache-2.0
"""One call fails, whichever: nothing is lost, no key is made twice, and the next try ends as if nothing had been."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import pytest

from sa_asherah.errors import (
    AsherahError,
    KeyExpiredError,
    KmsPermissionError,
    KmsUnavailableError,
    MetastoreError,
    MetastoreUnavailableError,
)
from tests.hierarchy.scene import DATES, IK_ID, KEY_OF, OWNER, Fault, Scene, State, named
from tests.unit.core.fakes import SYSTEM_ID

if TYPE_CHECKING:
    from collections.abc import Iterator

KNOWN = ("valid", "expired", "revoked", "empty")
MODES = {"look is due": {"enlisted": False, "due": True}, "enlisted": {"enlisted": True, "due": False}}
OF_THE_TABLE = (MetastoreUnavailableError("gone"), MetastoreError("refused"))
OF_THE_SERVICE = (
    KmsUnavailableError("gone", retryable=True, operation="x"),
    KmsPermissionError("refused", operation="x"),
)


def states(cache_ik: str) -> Iterator[State]:
    """Give all states with this key in memory; the owner's keys hang on the system key in memory, or on the table's."""
    for table_ik, cache_sk, table_sk in product(KNOWN, repeat=3):
        parent = next((one for one in (cache_sk, table_sk) if one != "empty"), "valid")
        yield State(cache_ik, table_ik, cache_sk, table_sk, KEY_OF[parent])


def faults(calls: list[str]) -> Iterator[Fault]:
    """Give all faults that can befall these calls."""
    for number, text in enumerate(calls):
        if text in {"encrypt", "decrypt"}:
            yield from (Fault(number, error) for error in OF_THE_SERVICE)
        elif text.startswith("insert"):
            yield from (Fault(number, error, late) for error in OF_THE_TABLE for late in (False, True))
        else:
            yield Fault(number, OF_THE_TABLE[0])


def encrypt(scene: Scene) -> str | AsherahError:
    try:
        return scene.name(scene.process.encryption_keys([OWNER])[OWNER])
    except AsherahError as error:
        return error


def decrypt(scene: Scene, created: int) -> str | AsherahError:
    try:
        return scene.name(scene.process.decryption_key(OWNER, created))
    except AsherahError as error:
        return error


def places(scene: Scene) -> set[str]:
    return set(map(named, scene.table.texts))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cache_ik", KNOWN)
def test_whatever_call_fails_the_next_encryption_ends_as_if_none_had(cache_ik: str, mode: str) -> None:
    for state in states(cache_ik):
        whole = Scene(state, **MODES[mode])
        outcome = encrypt(whole)
        assert isinstance(outcome, str)
        for fault in faults(whole.log):
            scene = Scene(state, **MODES[mode])
            scene.log.fault = fault
            check_first_try(encrypt(scene), state, fault, mode)
            scene.log.fault = None
            scene.world.clock.now += 11
            assert encrypt(scene) == outcome, (state, fault)
            assert places(scene) == places(whole), (state, fault)
            if fault.late:
                check_it_can_be_read(scene, outcome)


def check_first_try(outcome: str | AsherahError, state: State, fault: Fault, mode: str) -> None:
    """Nothing but a key in memory that is not known to be revoked encrypts although a call failed."""
    if isinstance(outcome, AsherahError):
        assert outcome is fault.error or type(outcome) is KeyExpiredError, (state, fault)
        return
    assert mode != "enlisted"
    assert isinstance(fault.error, MetastoreUnavailableError)
    known_ik, known_sk = state.cache_ik, state.cache_sk
    if fault.number:  # the first call reads the newest of both levels
        known_ik = state.table_ik if state.table_ik in {"valid", "revoked"} else known_ik
        known_sk = state.table_sk if state.table_sk in {"valid", "revoked"} else known_sk
    assert (outcome, known_ik, state.parent) == ("IK:young", "valid", "young"), (state, fault)
    assert known_sk != "revoked", (state, fault)


def check_it_can_be_read(scene: Scene, outcome: str) -> None:
    """A process that has just started reads it."""
    created = {named(place): place[1] for place in scene.table.texts}[outcome]
    there = scene.process.encryption_keys([OWNER])[OWNER]
    assert scene.world.process().decryption_key(OWNER, created).secret == there.secret
    assert (IK_ID, created) in scene.table.texts


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cache_ik", KNOWN)
def test_whatever_call_fails_the_next_decryption_ends_as_if_none_had(cache_ik: str, mode: str) -> None:
    for state, key in product(states(cache_ik), ("old", "young")):
        whole = Scene(state, **MODES[mode])
        outcome = decrypt(whole, DATES[key])
        for fault in faults(whole.log):
            scene = Scene(state, **MODES[mode])
            scene.log.fault = fault
            first = decrypt(scene, DATES[key])
            if KEY_OF.get(cache_ik) == key and isinstance(fault.error, MetastoreUnavailableError):
                assert first == f"IK:{key}", (state, fault)
            else:
                assert first is fault.error, (state, fault)
            scene.log.fault = None
            again = decrypt(scene, DATES[key])  # at once: a failure says nothing about the key
            assert again == outcome or type(again) is type(outcome), (state, fault)


def test_a_system_key_that_was_stored_before_the_fault_is_not_made_again() -> None:
    scene = Scene(State("empty", "empty", "empty", "empty", "young"))
    scene.log.fault = Fault(4, MetastoreUnavailableError("gone"))  # after the system key, before the owner's
    assert encrypt(scene) is scene.log.fault.error
    assert [place[0] for place in scene.table.texts] == [SYSTEM_ID]
    scene.log.fault = None
    assert encrypt(scene) == "IK:new+0"
    assert scene.log.count("encrypt") == 1
