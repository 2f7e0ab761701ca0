# SPDX-License-Identifier: Apache-2.0
"""Revokes keys: they decrypt on, and encrypt no more."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Literal

from sa_asherah.core.events import Events, write_audit_log
from sa_asherah.core.key_record import parse_key_record
from sa_asherah.core.strict_json import load_object
from sa_asherah.errors import MetastoreError

if TYPE_CHECKING:
    from sa_asherah.core.ports import KeyRow, Metastore

__all__ = ["Outcome", "revoke"]

Outcome = Literal["revoked", "already", "missing"]

_TRIES = 5


def revoke(
    metastore: Metastore, place: tuple[str, int], *, dry_run: bool = False, events: Events | None = None
) -> Outcome:
    """Mark a key as revoked. A successor takes its place at the next write, dated one second later if need be.

    Processes that run notice it when they look at the key's record again, after `check_interval` at the latest.

    Args:
        metastore: The key table; what it writes must be committed at once.
        place: Id and date of the key.
        dry_run: Whether to look only.
        events: Who is told; left out, the audit log.

    Returns:
        What was done, or with `dry_run` would have been: `revoked`, `already` so, or `missing` for no such key.

    Raises:
        KeyRecordError: The row is no key record.
        MetastoreError: The key table cannot be read or written.
    """
    for _ in range(_TRIES):
        row = metastore.run(lambda rows: rows.exact((place,))).get(place)
        if row is None:
            return "missing"
        if parse_key_record(row).revoked:
            return "already"
        if dry_run:
            return "revoked"
        if _marked(metastore, row):
            (events or Events(write_audit_log)).emit("key_revoked", id=place[0], created=place[1])
            return "revoked"
    raise MetastoreError("others change this record all the time; let them end and start again")


def _marked(metastore: Metastore, row: KeyRow) -> bool:
    members = {**load_object(row.text, len(row.text)), "Revoked": True}
    text = json.dumps(members, ensure_ascii=False, separators=(",", ":"))
    return metastore.run(lambda rows: rows.replace(row, text), writing=True)
