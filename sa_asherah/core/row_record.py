# SPDX-License-Identifier: Apache-2.0
"""Data row records: the JSON in which every Asherah implementation exchanges encrypted data."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sa_asherah.core.strict_json import (
    StrictJsonError,
    base64_bytes,
    base64_text,
    created_member,
    load_object,
    object_member,
    text_member,
)
from sa_asherah.errors import MalformedCellError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["MAX_LENGTH", "DataRowRecord", "dump_data_row_record", "parse_data_row_record"]

MAX_LENGTH = 64 * 1024 * 1024
"""Longest data row record that is read, in characters, unless the caller says otherwise."""


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


def dump_data_row_record(record: DataRowRecord) -> str:
    """Write a record as the reference implementation does.

    Args:
        record: The record.

    Returns:
        Compact JSON.
    """
    parent = {"KeyId": record.parent[0], "Created": record.parent[1]}
    key = {"Created": record.created, "Key": base64_text(record.key), "ParentKeyMeta": parent}
    return json.dumps({"Key": key, "Data": base64_text(record.data)}, ensure_ascii=False, separators=(",", ":"))
