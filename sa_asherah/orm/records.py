# SPDX-License-Identifier: Apache-2.0
"""Opening data row records as rows are fetched, for `format="asherah"`.

What the database gives is `owner text, 0x00, record`. Up to the quote that opens its data it is the same for all values
that one statement wrote for one owner: a value whose beginning is known costs one look-up, and no JSON is read. Only
beginnings that are exactly what this package or a JSON column writes are remembered, so a shortcut never reads a record
in another way than the strict parser would.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from sa_asherah.core import row_record
from sa_asherah.errors import AsherahError, DecryptionError, NotAttachedError
from sa_asherah.orm.scope import current_scope, require_in_scope
from sa_asherah.orm.unreadable import Unreadable, is_marked

if TYPE_CHECKING:
    from collections.abc import Callable

    from sa_asherah.orm.attachment import Attachment
    from sa_asherah.orm.reading import Packed

__all__ = ["NOT_ATTACHED", "open_record", "record_processor"]

NOT_ATTACHED = "no Asherah is attached to this engine: call asherah.attach(engine) first"
"""Why nothing can be read."""
_TAIL = row_record.TAIL.encode()

Opened = dict[bytes, tuple[str, row_record.Decrypt]]
"""Partition and decryption under the data row key, by owner, zero byte and head."""


def record_processor(packed: Packed, dialect: Any) -> Callable[[Any], Any]:
    """Make the function that opens one record.

    Args:
        packed: What the statement tells of the column.
        dialect: The engine's dialect, which leads to its `Asherah`.

    Returns:
        The result processor.
    """
    return _alone(packed, dialect) if packed.kind is None else _with_owner(packed, dialect)


def _with_owner(packed: Packed, dialect: Any) -> Callable[[Any], Any]:  # noqa: C901 -- a call less for each value
    """Make the function for records that come with their owner: this is the hot path of every query."""
    decode = packed.column_type.decode
    family = packed.column_type.partition, packed.kind, "asherah"
    attachment: Attachment | None = None
    opened: Opened = {}

    def process(value: Any) -> Any:
        nonlocal attachment, opened
        if value is None:
            return None
        if type(value) is not bytes:
            value = bytes(value)
        try:
            current: Attachment = dialect._sa_asherah
        except AttributeError:
            raise NotAttachedError(NOT_ATTACHED) from None
        if current is not attachment:
            attachment, opened = current, current.row_keys(family)
        end = value.rfind(b'"', 0, -2) + 1
        try:
            known = opened.get(value[:end])
            if known is None or value[-2:] != _TAIL or len(value) > row_record.MAX_LENGTH:
                partition, plaintext = _open(packed, current, opened, value)
            else:
                partition, decrypt = known
                allowed = current_scope.get()
                if allowed is not None and partition not in allowed:
                    require_in_scope(partition)
                plaintext = row_record.open_text(decrypt, value[end:-2])
            if current.audit is not None:
                current.audit.count(partition, packed.label)
            return decode(plaintext)
        except AsherahError as error:
            if not is_marked(error, current.owner):
                raise
            return Unreadable(packed.label, type(error))

    return process


def _alone(packed: Packed, dialect: Any) -> Callable[[Any], Any]:
    """Make the function for records whose owner is not in reach: the scope names it."""
    decode = packed.column_type.decode

    def process(value: Any) -> Any:
        if value is None:
            return None
        try:
            attachment: Attachment = dialect._sa_asherah
        except AttributeError:
            raise NotAttachedError(NOT_ATTACHED) from None
        partition = packed.sole_partition()
        try:
            plaintext = open_record(packed, attachment, partition, value)
            if attachment.audit is not None:
                attachment.audit.count(partition, packed.label)
            return decode(plaintext)
        except AsherahError as error:
            if not is_marked(error, attachment.owner):
                raise
            return Unreadable(packed.label, type(error))

    return process


def open_record(packed: Packed, attachment: Attachment, partition: str, stored: Any) -> bytes:
    """Open a record whose partition is known.

    Args:
        packed: What is known of the column.
        attachment: The engine's Asherah.
        partition: The partition, which the caller found to be in scope.
        stored: The text, as such or in UTF-8, or what a JSON column gave.

    Returns:
        The plaintext.

    Raises:
        AsherahError: It is no record, or does not open.
    """
    record = _parse(stored if isinstance(stored, str | Mapping) else bytes(stored))
    return row_record.open_data(_row_key(packed, attachment, partition, record), record.data)


def _open(packed: Packed, attachment: Attachment, opened: Opened, value: bytes) -> tuple[str, bytes]:
    """Open a record step by step; the partition is checked before a key is fetched."""
    owner, _, stored = value.partition(b"\0")
    partition = packed.partition_of(owner)
    require_in_scope(partition)
    record = _parse(stored)
    own = b"%b\0%b" % (owner, row_record.head(record).encode())
    known = opened.get(own)
    if known is None:
        known = partition, _row_key(packed, attachment, partition, record)
        packed.remember(opened, own, known)
    spaced = b"%b\0%b" % (owner, row_record.spaced_head(record).encode())
    if value.startswith(spaced):
        packed.remember(opened, spaced, known)
    return partition, row_record.open_data(known[1], record.data)


def _parse(stored: bytes | str | Mapping[str, object]) -> row_record.DataRowRecord:
    if isinstance(stored, bytes):
        # What is not UTF-8 becomes what the strict parser refuses.
        stored = stored.decode(errors="surrogateescape")
    return row_record.parse_data_row_record(stored)


def _row_key(
    packed: Packed, attachment: Attachment, partition: str, record: row_record.DataRowRecord
) -> row_record.Decrypt:
    key_id, created = record.parent
    if key_id not in attachment.hierarchy.readable_ids(partition):
        _refuse(packed, "its key is another owner's, or another region's that read_suffixes does not name")
    found = attachment.unlock(partition, created, lambda key: row_record.opener(key.secret, record.key), key_id)
    return found or _refuse(packed, "its owner's key does not open it")


def _refuse(packed: Packed, reason: str) -> NoReturn:
    raise DecryptionError(
        f"a value of {packed.label} was not encrypted for the owner of its row ({reason}): it was moved here from "
        "another owner, or it is damaged"
    )
