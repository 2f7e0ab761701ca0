# SPDX-License-Identifier: Apache-2.0
"""Wraps system keys anew: the same keys with the same ids and dates, so that nothing they protect has to change."""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from sa_asherah.core.erasure import changed
from sa_asherah.core.key import Secret
from sa_asherah.core.key_record import check_bind, parse_key_record
from sa_asherah.core.ports import KeyRow
from sa_asherah.core.strict_json import base64_text
from sa_asherah.errors import AsherahError, KeyNotFoundError, KmsCiphertextError, MetastoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sa_asherah.core.events import Events
    from sa_asherah.core.ids import KeyIds
    from sa_asherah.core.key_record import KeyRecord
    from sa_asherah.core.ports import KeyManagementService, Metastore

__all__ = ["Migration", "Problem", "Renewal", "Report", "Rewrap"]

Outcome = Literal["already", "moved", "skipped"]

_TRIES = 5


@dataclass(frozen=True, slots=True)
class Problem:
    """A system key that is not as it should be after a pass.

    Attributes:
        id: Key id.
        created: Date of the key in seconds.
        reason: What is wrong and what to do; free of secrets.
    """

    id: str
    created: int
    reason: str


@dataclass(slots=True)
class Report:
    """What a pass over the system keys found and did.

    Attributes:
        dry_run: Whether nothing was written; `moved` then counts what would have been.
        found: How many system keys there are.
        already: How many were in the form wanted, and open.
        moved: How many were wrapped anew.
        skipped: How many were left alone because they are retired.
        failed: Those that could not be wrapped anew, or not be verified.
        late: Those that appeared during the pass, wrapped by the old service: processes still use it.
    """

    dry_run: bool = False
    found: int = 0
    already: int = 0
    moved: int = 0
    skipped: int = 0
    failed: list[Problem] = field(default_factory=list[Problem])
    late: list[Problem] = field(default_factory=list[Problem])

    @property
    def is_complete(self) -> bool:
        """Whether there were system keys, and all of them are as they should be."""
        return self.found > 0 and not self.failed and not self.late


class Rewrap:
    """One pass over the system keys of one service, product and suffix; other rows are not touched.

    A record is replaced only while it is exactly the one that was read, after its new form was opened to the same key.
    So a pass that was interrupted is started again, and passes may run side by side.
    """

    def __init__(
        self, ids: KeyIds, metastore: Metastore, target: KeyManagementService, *, dry_run: bool = False
    ) -> None:
        """Prepare a pass.

        Args:
            ids: The ids of the keys. With `peers`, records without `Bind` are wrapped anew, too, and get none.
            metastore: The key table; what it writes must be committed at once.
            target: The service that opens the keys afterwards.
            dry_run: Whether to do everything but write.
        """
        self._ids = ids
        self._metastore = metastore
        self._target = target
        self._report = Report(dry_run=dry_run)

    def run(self, events: Events) -> Report:
        """Make the pass. What goes wrong with one key does not stop the others.

        Args:
            events: Who is told of each key that was wrapped anew.

        Returns:
            What was found and done.

        Raises:
            MetastoreError: The key table cannot be read.
        """
        rows = self._versions()
        for row in rows:
            self._report.found += 1
            try:
                outcome = self._treat(row)
            except AsherahError as error:
                self._report.failed.append(Problem(row.id, row.created, str(error)))
            else:
                setattr(self._report, outcome, getattr(self._report, outcome) + 1)
                if outcome == "moved" and not self._report.dry_run:
                    events.emit("system_key_rewrapped", id=row.id, created=row.created)
        self._look_again({row.created for row in rows})
        return self._report

    def _versions(self) -> Sequence[KeyRow]:
        return self._metastore.run(lambda rows: rows.versions(self._ids.system_key_id()))

    def _look_again(self, seen: set[int]) -> None:
        """Judge the system keys that appeared during the pass, given the dates of the others."""

    def _treat(self, row: KeyRow) -> Outcome:
        for _ in range(_TRIES):
            record = parse_key_record(row)
            if record.retired:  # kept only until an erasure that must not find it wrapped anew
                return "skipped"
            secret, is_done = self._opened(record)
            blob = None if is_done else self._wrapped(record.wrapped, secret)
            if blob is None:
                return "already"
            renewed = KeyRow(row.id, row.created, changed(row.text, Key=base64_text(blob)))
            self._verify(renewed, secret)
            if self._report.dry_run:
                return "moved"
            if self._replace(row, renewed.text):
                self._verify_stored(row, base64_text(blob), secret)
                return "moved"
            row = self._read_again(row)
        raise MetastoreError("others change this record all the time; let them end and start again")

    def _opened(self, record: KeyRecord) -> tuple[Secret, bool]:
        """Unwrap a key, and tell whether its record is in the form wanted already."""
        return self._unwrapped(self._target, record), False

    def _wrapped(self, blob: bytes, secret: Secret) -> bytes | None:
        """Wrap a key anew; `None` if its blob is as new as can be."""
        raise NotImplementedError

    def _unwrapped(self, service: KeyManagementService, record: KeyRecord) -> Secret:
        secret = Secret(service.decrypt_key(record.wrapped))
        check_bind(record, "SK", self._ids, None, secret)
        return secret

    def _verify(self, row: KeyRow, secret: Secret) -> None:
        if not hmac.compare_digest(self._unwrapped(self._target, parse_key_record(row)), secret):
            raise KmsCiphertextError(
                "the key service returned a wrapped key that does not open to the same key; the record was left as it "
                "was. Check the key service",
                operation="decrypt",
            )

    def _verify_stored(self, row: KeyRow, key: str, secret: Secret) -> None:
        # It may have been revoked meanwhile; that is no concern of this pass.
        record = parse_key_record(self._read_again(row))
        if record.key != key or not hmac.compare_digest(self._unwrapped(self._target, record), secret):
            raise MetastoreError(
                "the record was replaced, and read back it is another one: somebody else writes to the key table, or a "
                "trigger does. Start again, and if it stays so restore this row from a backup"
            )

    def _replace(self, row: KeyRow, text: str) -> bool:
        return self._metastore.run(lambda rows: rows.replace(row, text), writing=True)

    def _read_again(self, row: KeyRow) -> KeyRow:
        place = (row.id, row.created)
        found = self._metastore.run(lambda rows: rows.exact((place,))).get(place)
        if found is None:
            raise KeyNotFoundError("the record was deleted during the pass; restore it from a backup")
        return found


class Renewal(Rewrap):
    """Brings system keys to the newest version of the master key that wraps them."""

    def __init__(
        self,
        ids: KeyIds,
        metastore: Metastore,
        service: KeyManagementService,
        renew: Callable[[bytes], bytes | None],
        *,
        dry_run: bool = False,
    ) -> None:
        """Prepare a pass.

        Args:
            ids: The ids of the keys.
            metastore: The key table; what it writes must be committed at once.
            service: The service that wraps the keys.
            renew: Wraps a wrapped key anew; `None` where that changes nothing.
            dry_run: Whether to do everything but write.
        """
        super().__init__(ids, metastore, service, dry_run=dry_run)
        self._renew = renew

    def _wrapped(self, blob: bytes, secret: Secret) -> bytes | None:
        del secret
        return self._renew(blob)


class Migration(Rewrap):
    """Moves system keys from one key management service to another."""

    def __init__(
        self,
        ids: KeyIds,
        metastore: Metastore,
        old: KeyManagementService,
        new: KeyManagementService,
        *,
        dry_run: bool = False,
    ) -> None:
        """Prepare a pass.

        Args:
            ids: The ids of the keys.
            metastore: The key table; what it writes must be committed at once.
            old: The service that wraps the keys now.
            new: The service that is to wrap them.
            dry_run: Whether to do everything but write.
        """
        super().__init__(ids, metastore, new, dry_run=dry_run)
        self._old = old

    def _look_again(self, seen: set[int]) -> None:
        for row in self._versions():
            if row.created not in seen:
                self._judge_newcomer(row)

    def _judge_newcomer(self, row: KeyRow) -> None:
        try:
            _, is_done = self._opened(parse_key_record(row))
        except AsherahError as error:
            self._report.failed.append(Problem(row.id, row.created, str(error)))
            return
        if not is_done:
            self._report.late.append(Problem(row.id, row.created, "made during the pass, under the old key service"))

    def _opened(self, record: KeyRecord) -> tuple[Secret, bool]:
        if self._target.recognises(record.wrapped):
            try:
                return self._unwrapped(self._target, record), True
            except KmsCiphertextError:
                if not self._old.recognises(record.wrapped):
                    raise
        return self._unwrapped(self._old, record), False

    def _wrapped(self, blob: bytes, secret: Secret) -> bytes | None:
        del blob
        return self._target.encrypt_key(bytes(secret))
