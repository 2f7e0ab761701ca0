# SPDX-License-Identifier: Apache-2.0
"""The reference's table of 81 states, and ours beyond it: each call to the key table and to the key service.

A state says what is in memory and in the key table for the intermediate key and for the system key. The reference
knows `valid`, `retired` (here `expired`) and `empty`; added are `revoked`, keys from the future within (`near`) and
beyond (`far`) 300 s, and a system key that another service wrapped (`foreign`). What has to happen is told in
`rules.py`, and there is listed where this package differs from the reference.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import pytest

from sa_asherah.errors import AsherahError
from tests.hierarchy.rules import Told, by_the_reference, decrypting, encrypting, summary
from tests.hierarchy.scene import DATES, KEY_OF, OWNER, Scene, State

if TYPE_CHECKING:
    from collections.abc import Iterator

CACHED = ("empty", "valid", "expired", "revoked", "near", "far")
SYSTEM_ROWS = (*CACHED, "foreign")
READ = ("empty", "valid", "expired", "revoked", "far")  # on decrypting, `near` is a date like any other
OF_THE_REFERENCE = ("valid", "expired", "empty")
MODES = {
    "looked lately": {"enlisted": False, "due": False},
    "look is due": {"enlisted": False, "due": True},
    "enlisted": {"enlisted": True, "due": False},
}


def with_system_keys(
    cache_ik: str, table_ik: str, cached: tuple[str, ...] = CACHED, rows: tuple[str, ...] = SYSTEM_ROWS
) -> Iterator[State]:
    """Add all states of the system keys; the intermediate keys hang on the one in memory or on the table's."""
    for cache_sk, table_sk in product(cached, rows):
        for parent in sorted({KEY_OF[one] for one in (cache_sk, table_sk) if one != "empty"} or {"young"}):
            yield State(cache_ik, table_ik, cache_sk, table_sk, parent)


def states_of_the_reference() -> list[State]:
    """Give the 81 states; there the system key in memory wraps the intermediate keys, else the table's."""
    found: list[State] = []
    for cache_ik, table_ik, cache_sk, table_sk in product(OF_THE_REFERENCE, repeat=4):
        parent = next((one for one in (cache_sk, table_sk) if one != "empty"), "valid")
        found.append(State(cache_ik, table_ik, cache_sk, table_sk, KEY_OF[parent]))
    return found


def encrypt(state: State, mode: str) -> Told:
    scene = Scene(state, **MODES[mode])
    try:
        key = scene.process.encryption_keys([OWNER])[OWNER]
    except AsherahError as error:
        return Told(scene.log, error=type(error).__name__)
    return Told(scene.log, scene.name(key))


def decrypt(state: State, date: str, mode: str) -> Told:
    scene = Scene(state, **MODES[mode])
    try:
        key = scene.process.decryption_key(OWNER, DATES[date])
    except AsherahError as error:
        return Told(scene.log, error=type(error).__name__)
    return Told(scene.log, scene.name(key))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("table_ik", CACHED)
@pytest.mark.parametrize("cache_ik", CACHED)
def test_encrypting_does_what_the_rules_say_call_by_call(cache_ik: str, table_ik: str, mode: str) -> None:
    for state in with_system_keys(cache_ik, table_ik):
        assert encrypt(state, mode) == encrypting(state, looked_lately=mode == "looked lately"), state


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("table_ik", READ)
@pytest.mark.parametrize("cache_ik", READ)
def test_decrypting_does_what_the_rules_say_call_by_call(cache_ik: str, table_ik: str, mode: str) -> None:
    looked_lately = mode != "look is due"
    for state in with_system_keys(cache_ik, table_ik, READ, (*READ, "foreign")):
        for date in ("old", "young", "far"):
            told = decrypting(state, date, looked_lately=looked_lately)
            assert decrypt(state, date, mode) == told, (date, state)


@pytest.mark.parametrize("mode", MODES)
def test_the_81_states_end_as_in_the_reference_but_for_what_is_listed(mode: str) -> None:
    states = states_of_the_reference()
    differ = {state for state in states if summary(state, encrypt(state, mode)) != by_the_reference(state)}
    system_key_is_lost = {one for one in states if one.cache_ik != "valid" and lost(one.cache_sk, one.table_sk)}
    if mode == "looked lately":
        listed = {one for one in states if one.cache_ik == "valid" and one.parent == "old"}
    else:
        at_hand = {one for one in states if one.table_ik == one.table_sk == "valid" and one.parent != "old"}
        listed = {one for one in states if one.cache_ik == "valid"} - at_hand
    assert differ == listed | system_key_is_lost
    assert (len(states), len(differ)) == (81, 24 if mode == "looked lately" else 37)


def lost(cached: str, row: str) -> bool:
    return cached == "valid" != row


def test_the_81_states_decrypt_as_in_the_reference() -> None:
    for state in states_of_the_reference():
        for row in OF_THE_REFERENCE[:2]:
            told = decrypt(state, KEY_OF[row], "looked lately")
            in_memory = state.cache_ik == row
            assert any(call.startswith("read IK") for call in told.calls) is not in_memory
            if not in_memory and state.table_ik in {row, "valid"}:
                assert any(call.startswith("read SK") for call in told.calls) is (state.cache_sk == "empty")


FRESH_SYSTEM_KEY = ["encrypt", "insert SK:new+0", "read SK:new+0"]
BY_HAND = {
    "first value": (
        State("empty", "empty", "empty", "empty", "young"),
        Told(["newest IK SK XK", *FRESH_SYSTEM_KEY, "insert IK:new+0", "read IK:new+0 XK"], "IK:new+0"),
    ),
    "all is well": (State("valid", "valid", "valid", "valid", "young"), Told(["newest IK SK XK"], "IK:young")),
    "cold start": (
        State("empty", "valid", "empty", "valid", "young"),
        Told(["newest IK SK XK", "decrypt"], "IK:young"),
    ),
    "revoked in this very minute": (
        State("valid", "revoked", "valid", "valid", "young"),
        Told(["newest IK SK XK", "insert IK:new+8", "read IK:new+8 XK"], "IK:new+8"),
    ),
    "system key revoked": (
        State("valid", "valid", "valid", "revoked", "young"),
        Told(
            ["newest IK SK XK", "encrypt", "insert SK:new+8", "read SK:new+8", "insert IK:new+8", "read IK:new+8 XK"],
            "IK:new+8",
        ),
    ),
    "both lost": (
        State("valid", "empty", "valid", "empty", "young"),
        Told(
            [
                "newest IK SK XK",
                "read SK:young",
                "insert SK:young",
                "read SK:young",
                "insert IK:young",
                "read IK:young XK",
            ],
            "IK:young",
        ),
    ),
    "system key gone and unknown": (
        State("empty", "valid", "empty", "empty", "young"),
        Told(
            [
                "newest IK SK XK",
                "read SK:young",
                "encrypt",
                "insert SK:new+8",
                "read SK:new+8",
                "insert IK:new+8",
                "read IK:new+8 XK",
            ],
            "IK:new+8",
        ),
    ),
    "another service's blob": (
        State("empty", "valid", "empty", "foreign", "young"),
        Told(["newest IK SK XK", "decrypt"], error="KmsCiphertextError"),
    ),
    "a clock 200 s ahead": (
        State("empty", "near", "empty", "near", "near"),
        Told(["newest IK SK XK", "decrypt"], "IK:near"),
    ),
    "a clock an hour ahead": (
        State("empty", "far", "empty", "far", "far"),
        Told(["newest IK SK XK", "read SK:far", *FRESH_SYSTEM_KEY, "insert IK:new+0", "read IK:new+0 XK"], "IK:new+0"),
    ),
    "lost system key from a clock an hour ahead": (
        State("valid", "revoked", "far", "empty", "far"),
        Told(
            [
                "newest IK SK XK",
                "read SK:far",
                "insert SK:far",
                "read SK:far",
                *FRESH_SYSTEM_KEY,
                "insert IK:new+8",
                "read IK:new+8 XK",
            ],
            "IK:new+8",
        ),
    ),
}


@pytest.mark.parametrize("mode", ["look is due", "enlisted"])
@pytest.mark.parametrize("name", BY_HAND)
def test_states_whose_calls_are_written_down_here(name: str, mode: str) -> None:
    state, told = BY_HAND[name]
    assert encrypt(state, mode) == told == encrypting(state, looked_lately=False)


READS_BY_HAND = {
    "in memory and looked at lately": (
        State("valid", "valid", "valid", "valid", "young"),
        "looked lately",
        Told([], "IK:young"),
    ),
    "a look is due": (
        State("valid", "valid", "valid", "valid", "young"),
        "look is due",
        Told(["read IK:young SK:young"], "IK:young"),
    ),
    "nothing in memory": (
        State("empty", "expired", "empty", "expired", "old"),
        "looked lately",
        Told(["read IK:old", "read SK:old", "decrypt"], "IK:old"),
    ),
    "its system key in memory": (
        State("empty", "revoked", "revoked", "revoked", "young"),
        "looked lately",
        Told(["read IK:young"], "IK:young"),
    ),
    "lost, and still in memory": (
        State("valid", "empty", "valid", "empty", "young"),
        "look is due",
        Told(["read IK:young SK:young", "read XK"], "IK:young"),
    ),
    "lost": (
        State("empty", "empty", "valid", "valid", "young"),
        "looked lately",
        Told(["read IK:young", "read XK"], error="KeyNotFoundError"),
    ),
    "its system key lost": (
        State("empty", "valid", "empty", "empty", "young"),
        "looked lately",
        Told(["read IK:young", "read SK:young", "read XK"], error="KeyNotFoundError"),
    ),
    "another service's blob": (
        State("empty", "valid", "empty", "foreign", "young"),
        "looked lately",
        Told(["read IK:young", "read SK:young", "decrypt"], error="KmsCiphertextError"),
    ),
    "another service's blob, and still in memory": (
        State("valid", "valid", "valid", "foreign", "young"),
        "look is due",
        Told(["read IK:young SK:young", "decrypt"], "IK:young"),
    ),
}


@pytest.mark.parametrize("name", READS_BY_HAND)
def test_reads_whose_calls_are_written_down_here(name: str) -> None:
    state, mode, told = READS_BY_HAND[name]
    key = (told.key or "IK:young").removeprefix("IK:")
    assert decrypt(state, key, mode) == told == decrypting(state, key, looked_lately=mode == "looked lately")
