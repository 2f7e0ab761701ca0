# SPDX-License-Identifier: Apache-2.0
"""What is left of destroyed keys: tombstones, and records that hold random bytes in the place of a key."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from sa_asherah.core.ids import tombstone_of
from sa_asherah.core.ports import KeyRow
from sa_asherah.core.strict_json import StrictJsonError, base64_text, load_object
from sa_asherah.errors import OwnerErasedError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

__all__ = ["changed", "erased", "owner_erased", "refuse_erased", "tombstone"]

_SIZE = 60
"""As many bytes as a wrapped key has."""


def changed(text: str, **members: object) -> str:
    """Change members of a record and leave the others as they are.

    Args:
        text: The record, JSON.
        **members: The new members; `None` removes one.

    Returns:
        The new record.
    """
    merged = {**load_object(text, len(text)), **members}
    kept = {name: value for name, value in merged.items() if value is not None}
    return json.dumps(kept, ensure_ascii=False, separators=(",", ":"))


def erased(row: KeyRow) -> str:
    """Write what takes the place of a record whose key is destroyed: the place stays taken for ever.

    Args:
        row: The row.

    Returns:
        The new record.
    """
    members = {"Revoked": True, "Created": row.created, "Key": base64_text(os.urandom(_SIZE))}
    try:
        return changed(row.text, **members)
    except StrictJsonError:
        return json.dumps(members, separators=(",", ":"))


def tombstone(key_id: str, **members: object) -> KeyRow:
    """Make the tombstone of a key id.

    It is not authenticated: who forges one stops writes, which who writes to the key table can do anyway.

    Args:
        key_id: Id of an intermediate key.
        **members: What else to say.

    Returns:
        The row.
    """
    place = tombstone_of(key_id)
    return KeyRow(*place, changed(erased(KeyRow(*place, "{}")), **members))


def refuse_erased(rows: Mapping[tuple[str, int], KeyRow], key_ids: Collection[str]) -> None:
    """Refuse owners that were erased. Any date of a tombstone counts: a later one may have been put before it.

    Args:
        rows: Rows of the key table, the tombstones of these ids among them, if there are any.
        key_ids: Ids of intermediate keys.

    Raises:
        OwnerErasedError: There is a tombstone.
    """
    found = {place[0] for place in rows}
    for key_id in key_ids:
        if tombstone_of(key_id)[0] in found:
            raise owner_erased(key_id)


def owner_erased(key_id: str) -> OwnerErasedError:
    """Make the error that says that an owner was erased.

    Args:
        key_id: Id of the owner's intermediate keys.

    Returns:
        The error.
    """
    return OwnerErasedError(
        f"the owner of the key {key_id!r} was erased: its keys are destroyed, what they encrypted cannot be "
        "read by anybody, and nothing more is encrypted for it. If nobody erased it, find out who writes to "
        f"the key table, and delete the row {tombstone_of(key_id)[0]!r}"
    )
