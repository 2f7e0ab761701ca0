# SPDX-License-Identifier: Apache-2.0
"""One worker: takes a range, and page by page reads, opens and seals outside of transactions, then swaps and notes."""

from __future__ import annotations

import hashlib
import logging
from typing import TYPE_CHECKING

from sqlalchemy import insert

from sa_asherah.reencrypt.lease import Counts, LeaseLostError
from sa_asherah.reencrypt.tables import asherah_quarantine

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable
    from threading import Event

    from sqlalchemy import Connection

    from sa_asherah.reencrypt.converter import Converter, Treated
    from sa_asherah.reencrypt.lease import Lease, Leases
    from sa_asherah.reencrypt.throttle import Throttle

__all__ = ["Worker"]

_logger = logging.getLogger("sa_asherah.reencrypt")


class Worker:
    """Works on the ranges of one job, beside any number of others, here and elsewhere."""

    def __init__(
        self,
        job: str,
        converter: Converter,
        leases: Leases,
        *,
        batch: int,
        throttle: Throttle,
        told: Callable[[Counts, Counter[str]], None],
        stop: Event,
    ) -> None:
        """Prepare.

        Args:
            job: The job's name.
            converter: The table.
            leases: The ranges.
            batch: Rows in a transaction.
            throttle: Holds the work back.
            told: Called after each batch.
            stop: Ends the work after the batch in hand.
        """
        self._job = job
        self._converter = converter
        self._leases = leases
        self._batch = batch
        self._throttle = throttle
        self._told = told
        self._stop = stop

    def work(self, number: int, *, sealing: bool) -> bool:
        """Take a range and finish it.

        Args:
            number: The pass.
            sealing: Whether to change rows, or only to count.

        Returns:
            Whether there was a range to take.
        """
        lease = self._leases.take(number)
        if lease is None:
            return False
        try:
            while self._do_page(lease, sealing=sealing):
                if self._stop.is_set():
                    self._leases.release(lease)
                    break
        except LeaseLostError:
            _logger.warning(
                "a range of %s was taken over by another worker: this one was not heard of for at least %.0f s",
                self._job,
                self._leases.seconds,
            )
        except BaseException:
            self._leases.release(lease)
            raise
        return True

    def _do_page(self, lease: Lease, *, sealing: bool) -> bool:
        self._throttle.admit(self._batch, lambda: self._leases.renew(lease), self._leases.seconds / 3)
        rows = self._converter.read((lease.position, lease.high), self._batch)
        treated = self._converter.treat(rows, sealing=sealing)
        is_last = len(rows) < self._batch
        position = self._converter.position(rows[-1]) if rows else lease.position
        keys = (treated.before, treated.after)
        counts = self._leases.commit(
            lease, position, lambda connection: self._write(connection, lease, treated), keys, is_last=is_last
        )
        self._told(counts, treated.after)
        return not is_last

    def _write(self, connection: Connection, lease: Lease, treated: Treated) -> Counts:
        converted, partial = (self._converter.swap(connection, each) for each in (treated.swaps, treated.partial_swaps))
        if treated.quarantined:
            connection.execute(
                insert(asherah_quarantine),
                [
                    {
                        "job": self._job,
                        "number": lease.number,
                        "digest": hashlib.sha256(f"{each.table} {each.primary_key}".encode()).hexdigest(),
                        "column_name": each.column,
                        "table_name": each.table,
                        "primary_key": each.primary_key,
                        "reason": each.reason,
                    }
                    for each in treated.quarantined
                ],
            )
        counts = Counts()
        counts.add(treated.counts)
        counts.converted = converted
        counts.skipped = len(treated.swaps) - converted + len(treated.partial_swaps) - partial
        return counts
