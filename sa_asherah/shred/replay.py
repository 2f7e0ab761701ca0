# SPDX-License-Identifier: Apache-2.0
"""Repeats erasures in a database that was restored from a backup, which brought the keys back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sa_asherah.errors import KeyNotFoundError, UsageError
from sa_asherah.shred.owner import OwnerShred

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Engine

    from sa_asherah.asherah import Asherah
    from sa_asherah.core.system_keys import SystemKeys
    from sa_asherah.shred.receipt import Receipt

__all__ = ["Replayed", "replay"]


@dataclass(frozen=True, slots=True)
class Replayed:
    """An erasure that was repeated.

    Attributes:
        partition: The owner.
        keys: How many keys were overwritten.
    """

    partition: str
    keys: int


def replay(
    engine: Engine, asherah: Asherah, receipts: Iterable[Receipt], *, unverified: bool = False, dry_run: bool = False
) -> list[Replayed]:
    """Repeat erasures after a restore, before anybody writes again: nothing is waited for.

    All receipts are checked before the first owner is touched.

    Args:
        engine: The engine of the restored database.
        asherah: The keys.
        receipts: The receipts.
        unverified: Whether to take receipts whose system key is gone, after `shred --epoch`.
        dry_run: Whether to check only.

    Returns:
        What was done for each receipt.

    Raises:
        UsageError: A receipt is another deployment's, was altered, or cannot be checked.
        MetastoreError: The key table cannot be read or written.
    """
    receipts = list(receipts)
    with asherah.system_keys(engine) as system_keys:
        for receipt in receipts:
            ids = system_keys.ids
            if (receipt.service, receipt.product) != (ids.service, ids.product):
                raise UsageError("a receipt is of another service or product; check SERVICE_NAME and PRODUCT_ID")
            if not unverified and not _holds(receipt, system_keys):
                raise UsageError(
                    f"the receipt finished {receipt.finished} does not hold: it was altered, or its system key created "
                    f"{receipt.system_key} is not in the key table. Import newer keys first; after an epoch give "
                    "--unverified, if you know where the receipts come from"
                )
    return [_repeat(engine, asherah, receipt, dry_run=dry_run) for receipt in receipts]


def _holds(receipt: Receipt, system_keys: SystemKeys) -> bool:
    try:
        return receipt.holds(system_keys.key(receipt.system_key))
    except KeyNotFoundError:
        return False


def _repeat(engine: Engine, asherah: Asherah, receipt: Receipt, *, dry_run: bool) -> Replayed:
    with OwnerShred(engine, asherah, receipt.partition) as shredding:
        if dry_run:
            return Replayed(receipt.partition, len(shredding.keys()))
        shredding.begin()
        return Replayed(receipt.partition, len(shredding.sweep()))
