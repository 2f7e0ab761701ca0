# SPDX-License-Identifier: Apache-2.0
"""How far an epoch has come, as it lies in the key table. It is not authenticated: nobody relies on a word of it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sa_asherah.core.ids import TOMBSTONE_DATE
from sa_asherah.core.strict_json import StrictJsonError, load_object
from sa_asherah.errors import MetastoreError

if TYPE_CHECKING:
    from sa_asherah.core.ports import KeyRow

__all__ = ["ALTERED", "CANCELLED", "State", "state_of", "text_of"]

CANCELLED, _LAST = 0, 8
"""What comes before the first step, and the last one after which an epoch is still under way."""
_LATEST = 253_402_300_799
"""The end of the year 9999, in seconds."""
ALTERED = (
    "the state of the epoch was altered: find out who writes to the key table, delete its row (_EP_...), begin again"
)


@dataclass(frozen=True, slots=True)
class State:
    """How far an epoch has come; it lies in the key table, so that any process may go on.

    Attributes:
        key: The Transit key, with its mount.
        step: The last step that is complete; 9 for all, 0 while it is being cancelled.
        version: The version of the Transit key that begins the new epoch.
        old: Dates of the system keys that are given up.
        new: Date of the new one; 0 until there is one.
        until: When the next step may begin, in seconds.
        opens: The oldest version that Vault opened before.
        final: Whether step 9 has begun, so that there is no way back.
    """

    key: str
    step: int = 1
    version: int = 0
    old: tuple[int, ...] = ()
    new: int = 0
    until: int = 0
    opens: int = 0
    final: bool = False


def text_of(state: State) -> str:
    """Write a state.

    Args:
        state: The state.

    Returns:
        The record, JSON.
    """
    return json.dumps({"Created": TOMBSTONE_DATE, "Epoch": dataclasses.asdict(state)}, separators=(",", ":"))


def state_of(row: KeyRow) -> State:
    """Read a state.

    Args:
        row: Its row of the key table.

    Returns:
        The state.

    Raises:
        MetastoreError: It is none that was ever written.
    """
    state: State | None = None
    try:
        found: Any = load_object(row.text, len(row.text))["Epoch"]
        members: dict[str, Any] = {**found, "old": tuple(found["old"])}
        read = State(**members)
        numbers = (read.step, read.version, read.new, read.until, read.opens, *read.old)
        is_typed = all(type(number) is int and 0 <= number <= _LATEST for number in numbers)
        if is_typed and type(read.final) is bool and read.step <= _LAST and read.new not in read.old:
            state = read
    except (StrictJsonError, KeyError, TypeError):
        pass
    if state is None:
        raise MetastoreError(ALTERED)
    return state
