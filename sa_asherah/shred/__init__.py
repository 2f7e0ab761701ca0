# SPDX-License-Identifier: Apache-2.0
"""Erases owners by destroying their keys: what they encrypted cannot be read any more, wherever it is stored."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from sa_asherah.shred.loss import Loss
from sa_asherah.shred.owner import OwnerShred, Pending
from sa_asherah.shred.receipt import Receipt
from sa_asherah.shred.replay import Replayed, replay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sqlalchemy import Engine, MetaData

    from sa_asherah.asherah import Asherah

__all__ = ["Loss", "OwnerShred", "Pending", "Receipt", "Replayed", "replay", "shred"]


def shred(
    engine: Engine,
    asherah: Asherah,
    partition: str,
    metadata: Iterable[MetaData] | MetaData = (),
    *,
    wait: Callable[[float], None] = time.sleep,
) -> Receipt:
    """Erase an owner, and wait until no running process has one of its keys. It cannot be undone.

    The wait is `check_interval` and a tenth, and `max_stale`: two hours with the defaults. A call that was interrupted
    is made again; or make its steps apart, with `OwnerShred`.

    Args:
        engine: The engine of the database that holds data and keys.
        asherah: The keys.
        partition: The owner: its id as text, in the columns' template if they have one (`user-7`).
        metadata: The tables, for the receipt to tell what became unreadable.
        wait: Waits so many seconds.

    Returns:
        The receipt. Keep it outside of the database: after a restore, `replay` repeats what it says.

    Raises:
        ConfigurationError: Other Asherah implementations share the key table, or it is in memory.
        OwnerRequiredError: The partition is unusable.
        MetastoreError: The key table cannot be read or written.
        KmsError: The receipt cannot be authenticated; the owner is erased, and `OwnerShred.finish` may be called again.
    """
    with OwnerShred(engine, asherah, partition, metadata) as shredding:
        found = shredding.losses()
        while (left := shredding.begin().until - shredding.now()) > 0:
            wait(left)
        return shredding.finish(found)
