# SPDX-License-Identifier: Apache-2.0
"""Key records as DynamoDB holds them: maps, not texts."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, cast

from sa_asherah.core.ids import MAX_CREATED
from sa_asherah.core.ports import KeyRow
from sa_asherah.core.strict_json import base64_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Attribute", "Item", "item_of", "key_of", "record_of", "row_of", "text_of"]

Attribute = dict[str, Any]
"""A value with its type: `{"S": "text"}`, `{"N": "7"}`, `{"M": {...}}`."""

Item = dict[str, Any]
"""Attributes by name."""


def key_of(key_id: str, created: int) -> Item:
    """Name a place in the table.

    Args:
        key_id: Key id.
        created: Date in seconds.

    Returns:
        The item's key.
    """
    return {"Id": {"S": key_id}, "Created": {"N": str(created)}}


def item_of(row: KeyRow) -> Item:
    """Make an item of a row.

    Args:
        row: The row, its text a JSON object.

    Returns:
        The item.
    """
    return key_of(row.id, row.created) | {"KeyRecord": record_of(row.text)}


def row_of(item: Mapping[str, Any]) -> KeyRow | None:
    """Make a row of an item.

    Args:
        item: The item.

    Returns:
        The row; `None` where the date is no whole second that we could have written: then another program did.
    """
    created = str(item["Created"]["N"])
    if not re.fullmatch("[0-9]{1,12}", created) or int(created) > MAX_CREATED:
        return None
    return KeyRow(str(item["Id"]["S"]), int(created), text_of(item.get("KeyRecord")))


def record_of(text: str) -> Attribute:
    """Make the attribute `KeyRecord` of a record's text.

    Args:
        text: The record, JSON.

    Returns:
        A map.
    """
    return _attribute(json.loads(text))


def text_of(record: Attribute | None) -> str:
    """Write the attribute `KeyRecord` as a text: equal maps give equal texts.

    Args:
        record: The attribute; `None` where the item lacks it.

    Returns:
        JSON. What is no map gives JSON that is no key record.
    """
    value = _value(record) if record is not None else None
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _attribute(value: object) -> Attribute:
    match value:
        case None:
            return {"NULL": True}
        case bool():
            return {"BOOL": value}
        case int() | float():
            return {"N": repr(value)}
        case str():
            return {"S": value}
        case dict():
            members = cast("dict[str, object]", value)
            return {"M": {name: _attribute(member) for name, member in members.items()}}
        case _:
            return {"L": [_attribute(member) for member in cast("list[object]", value)]}


def _value(attribute: Attribute) -> object:
    kind, value = next(iter(attribute.items()))
    read = _READERS.get(kind)
    return value if read is None else read(value)


def _number(text: str) -> object:
    return int(text) if re.fullmatch("-?[0-9]+", text) else float(text)


_READERS: dict[str, Callable[[Any], object]] = {
    "N": _number,
    "M": lambda members: {name: _value(member) for name, member in members.items()},
    "L": lambda members: [_value(member) for member in members],
    "NULL": lambda _: None,
    # Not in key records, but somebody's additions have a stable text, too.
    "B": base64_text,
    "BS": lambda members: sorted(map(base64_text, members)),
    "SS": sorted,
    "NS": sorted,
}
