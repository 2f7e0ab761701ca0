# SPDX-License-Identifier: Apache-2.0
"""Data row records: the JSON in which every Asherah implementation exchanges encrypted data.

`{"Key":{"Created":…,"Key":"…","ParentKeyMeta":{"KeyId":"…","Created":…}},"Data":"…"}`. All up to the quote that opens
`Data` is the head: equal heads mean equal data row keys. Nothing else of a record is bound to the place it is in.
"""

from __future__ import annotations

import json
import os
import struct
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from sa_asherah.core import aead
from sa_asherah.core.cell import CELL_COST, SALT_BUDGET
from sa_asherah.core.strict_json import (
    StrictJsonError,
    base64_bytes,
    base64_text,
    created_member,
    load_object,
    object_member,
    text_member,
)
from sa_asherah.errors import DecryptionError, MalformedCellError, UnsupportedValueError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sa_asherah.core.key import Key

__all__ = [
    "MAX_LENGTH",
    "TAIL",
    "DataRowRecord",
    "Decrypt",
    "Request",
    "dump_data_row_record",
    "head",
    "is_marked",
    "open_data",
    "open_text",
    "opener",
    "parse_data_row_record",
    "seal",
    "spaced_head",
]

MAX_LENGTH = 64 * 1024 * 1024
"""Longest data row record that is read, in characters, unless the caller says otherwise."""
TAIL = '"}'
"""What follows the data in the form that is written here, and in that of a JSONB column."""

_MAX_PLAINTEXT = MAX_LENGTH // 4 * 3 - 4096
_MIN_DATA = aead.TAG_SIZE + aead.NONCE_SIZE

Decrypt = Callable[[bytes, bytes, None], bytes]
"""Takes nonce, ciphertext with tag, and no context; raises `aead.InvalidTag`."""
_Encrypt = Callable[[bytes, bytes, None], bytes]


@dataclass(frozen=True, slots=True)
class DataRowRecord:
    """Encrypted data with its own wrapped key.

    Attributes:
        created: When the data row key was made, in seconds; of no use for decryption.
        key: The data row key, wrapped by the intermediate key.
        parent: Id and date of the intermediate key.
        data: The encrypted data.
    """

    created: int
    key: bytes = field(repr=False)
    parent: tuple[str, int]
    data: bytes = field(repr=False)


def parse_data_row_record(source: str | Mapping[str, object], max_length: int = MAX_LENGTH) -> DataRowRecord:
    """Read a data row record strictly; members that are not known are ignored.

    Args:
        source: JSON text, or what a JSON column gave: an object whose members are checked in the same way.
        max_length: Longest text accepted, in characters; of an object, its `Data`.

    Returns:
        The record, nothing of it authenticated yet.

    Raises:
        MalformedCellError: It is not a data row record.
    """
    try:
        members = load_object(source, max_length) if isinstance(source, str) else source
        return _record(members, max_length)
    except StrictJsonError as error:
        raise MalformedCellError(
            f"the value is not a data row record: {error}. It is damaged or was written in another format; restore it "
            "from a backup"
        ) from None


def _record(members: Mapping[str, object], max_length: int) -> DataRowRecord:
    key = object_member(members, "Key")
    parent = object_member(key, "ParentKeyMeta")
    if len(text_member(members, "Data")) > max_length:
        raise StrictJsonError(f"its member Data is longer than {max_length} characters")
    return DataRowRecord(
        created=created_member(key),
        key=base64_bytes(key, "Key"),
        parent=(text_member(parent, "KeyId"), created_member(parent)),
        data=base64_bytes(members, "Data"),
    )


def is_marked(stored: bytes) -> bool:
    """Tell whether a stored text is a data row record, or a damaged one, and nothing else.

    Args:
        stored: The text in UTF-8.

    Returns:
        Whether it holds the name that no other text has, or is a record anyway.
    """
    if b'"ParentKeyMeta"' in stored:
        return True
    try:
        parse_data_row_record(stored.decode(errors="surrogateescape"))
    except MalformedCellError:
        return False
    return True


def head(record: DataRowRecord) -> str:
    """Write all of a record that comes before its data, in compact form as the reference implementation does.

    Args:
        record: The record.

    Returns:
        JSON up to the quote that opens `Data`; base64 and `TAIL` complete it.
    """
    key_id, created = json.dumps(record.parent[0], ensure_ascii=False), record.parent[1]
    return (
        f'{{"Key":{{"Created":{record.created},"Key":"{base64_text(record.key)}",'
        f'"ParentKeyMeta":{{"KeyId":{key_id},"Created":{created}}}}},"Data":"'
    )


def spaced_head(record: DataRowRecord) -> str:
    """Write the same as PostgreSQL (JSONB) and MySQL (JSON) give it back: shorter names first, with spaces.

    Args:
        record: The record.

    Returns:
        JSON up to the quote that opens `Data`.
    """
    key_id, created = json.dumps(record.parent[0], ensure_ascii=False), record.parent[1]
    return (
        f'{{"Key": {{"Key": "{base64_text(record.key)}", "Created": {record.created}, '
        f'"ParentKeyMeta": {{"KeyId": {key_id}, "Created": {created}}}}}, "Data": "'
    )


def dump_data_row_record(record: DataRowRecord) -> str:
    """Write a record as the reference implementation does.

    Args:
        record: The record.

    Returns:
        Compact JSON.
    """
    return head(record) + base64_text(record.data) + TAIL


class Request(NamedTuple):
    """One value to seal.

    Attributes:
        key: The intermediate key.
        plaintext: The value; may be empty.
    """

    key: Key
    plaintext: bytes

    def __repr__(self) -> str:
        """Show nothing: a request holds a plaintext."""
        return "<Request>"

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied.

        Raises:
            TypeError: Always.
        """
        raise TypeError("a Request holds a key and a plaintext and cannot be pickled")


def seal(requests: Sequence[Request], now: int) -> list[str]:
    """Encrypt all values of one statement.

    Values under the same intermediate key share a data row key, up to 2^20 values or 2^36 bytes; it is wrapped once.

    Args:
        requests: The values. Plain tuples of the same shape are cheaper to make and do as well.
        now: The time in seconds, which dates the data row keys.

    Returns:
        The records as JSON, in the same order.

    Raises:
        UnsupportedValueError: A value is too long to be read again.
    """
    nonces = struct.iter_unpack("12s", os.urandom(aead.NONCE_SIZE * len(requests)))
    groups: dict[int, tuple[str, _Encrypt]] = {}
    records: list[str] = []
    budget = SALT_BUDGET
    for (key, plaintext), (nonce,) in zip(requests, nonces, strict=True):
        if len(plaintext) > _MAX_PLAINTEXT:
            raise UnsupportedValueError(
                f"a value is longer than the {_MAX_PLAINTEXT} bytes that a data row record holds; store it in parts"
            )
        budget -= len(plaintext) + CELL_COST
        if budget < 0:
            groups.clear()
            budget = SALT_BUDGET - len(plaintext) - CELL_COST
        group = groups.get(id(key))
        if group is None:
            groups[id(key)] = group = _start_group(key, now)
        start, encrypt = group
        data = b2a_base64(encrypt(nonce, plaintext, None) + nonce, newline=False)
        records.append(f"{start}{data.decode('ascii')}{TAIL}")
    return records


def _start_group(key: Key, now: int) -> tuple[str, _Encrypt]:
    """Make a data row key: the head and the cipher of the records that share it."""
    row_key = bytearray(os.urandom(aead.KEY_SIZE))
    try:
        record = DataRowRecord(now, key.wrap(bytes(row_key)), (key.id, key.created), b"")
        return head(record), aead.cipher(row_key).encrypt
    finally:
        row_key[:] = bytes(len(row_key))


def opener(secret: bytes | bytearray, wrapped: bytes) -> Decrypt | None:
    """Unwrap the data row key of all records with the same head.

    Args:
        secret: The intermediate key.
        wrapped: `DataRowRecord.key`.

    Returns:
        The decryption function for `open_data` and `open_text`; `None` if this key does not open it.
    """
    try:
        row_key = bytearray(aead.open_(secret, wrapped))
    except aead.InvalidTag:
        return None
    try:
        return aead.cipher(row_key).decrypt if len(row_key) == aead.KEY_SIZE else None
    finally:
        row_key[:] = bytes(len(row_key))


def open_text(decrypt: Decrypt, text: bytes) -> bytes:
    """Open the data of a record as they stand in it.

    Args:
        decrypt: From `opener`.
        text: `Data`, in base64.

    Returns:
        The value.

    Raises:
        MalformedCellError: It is empty or not the one base64 text of its bytes.
        DecryptionError: It was altered.
    """
    try:
        data = a2b_base64(text)
    except ValueError:
        data = b""
    if not data or b2a_base64(data, newline=False) != text:
        raise MalformedCellError(
            "the value is not a data row record: its member Data is not canonical standard base64. It is damaged or "
            "was written in another format; restore it from a backup"
        )
    return open_data(decrypt, data)


def open_data(decrypt: Decrypt, data: bytes) -> bytes:
    """Open the data of a record.

    Args:
        decrypt: From `opener`.
        data: `DataRowRecord.data`.

    Returns:
        The value.

    Raises:
        DecryptionError: It was altered.
    """
    if len(data) >= _MIN_DATA:
        try:
            return decrypt(data[-aead.NONCE_SIZE :], data[: -aead.NONCE_SIZE], None)
        except aead.InvalidTag:
            pass
    raise DecryptionError("the data of a data row record do not open: they were altered; restore them from a backup")
