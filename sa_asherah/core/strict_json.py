# SPDX-License-Identifier: Apache-2.0
"""Reads JSON that someone else may have written or altered: one text has one meaning, or it is refused.

`json.loads` alone takes duplicate members (the last one wins), NaN, `true` where an integer is meant and lone
surrogates, and nesting as deep as the caller's stack allows; `b64decode` skips foreign characters.
"""

from __future__ import annotations

import binascii
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, NoReturn, cast

from sa_asherah.core.encoding import has_utf8
from sa_asherah.core.ids import MAX_CREATED

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "MAX_NESTING",
    "StrictJsonError",
    "base64_bytes",
    "base64_text",
    "created_member",
    "load_object",
    "load_value",
    "object_member",
    "text_member",
]


MAX_NESTING = 100
"""How many levels deep arrays and objects may be; MySQL's bound."""

# What is parsed may take a hundred times the memory of its text. No record of ours or a peer's has near as many parts.
_MAX_PARTS = 1_000


class StrictJsonError(ValueError):
    """The text is not acceptable; says why without quoting it."""


def load_object(text: str, max_length: int) -> Mapping[str, object]:
    """Read a JSON object.

    Args:
        text: The JSON text.
        max_length: Longest text accepted, in characters.

    Returns:
        Its members.

    Raises:
        StrictJsonError: It is no JSON object, too long, too deep, has too many parts, a member twice, a number that is
            not finite or a lone surrogate.
    """
    if len(text) > max_length:
        raise StrictJsonError(f"it is longer than {max_length} characters")
    if sum(map(text.count, "[{,")) > _MAX_PARTS:
        raise StrictJsonError(f"it has more than {_MAX_PARTS} parts")
    value = load_value(text)
    if not isinstance(value, dict):
        raise StrictJsonError("it is not a well-formed JSON object")
    return cast("dict[str, object]", value)


def load_value(text: str) -> object:
    """Read any JSON text.

    Args:
        text: The JSON text.

    Returns:
        Its value.

    Raises:
        StrictJsonError: It is no JSON, too deep, has a member twice, a number that is not finite or a lone surrogate.
    """
    try:
        value: object = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite
        )
        if "\\" in text or not text.isascii():
            json.dumps(value, ensure_ascii=False).encode()
    except StrictJsonError:
        raise
    except (ValueError, RecursionError):
        pass
    else:
        if sum(map(text.count, "[{")) > MAX_NESTING and _is_deep(value):
            raise StrictJsonError(f"it is nested more than {MAX_NESTING} levels deep")
        return value
    # Not raised in the handler: a JSONDecodeError and a UnicodeEncodeError carry the text.
    raise StrictJsonError("it is not well-formed JSON")


def _is_deep(value: object) -> bool:
    level = [value]
    for _ in range(MAX_NESTING):
        level = [child for each in level for child in _nested(each)]
    return bool(level)


def _nested(value: object) -> list[object]:
    """List the objects and arrays right inside an object or array."""
    children: Iterable[object] = ()
    if isinstance(value, dict):
        children = cast("dict[str, object]", value).values()
    elif isinstance(value, list):
        children = cast("list[object]", value)
    return [child for child in children if isinstance(child, dict | list)]


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise StrictJsonError("it has a member twice")
    return members


def _finite(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else _refuse_constant(digits)


def _refuse_constant(_name: str) -> NoReturn:
    raise StrictJsonError("it has a number that is not finite")


def object_member(members: Mapping[str, object], name: str) -> Mapping[str, object]:
    """Read a member that is an object.

    Args:
        members: The enclosing object.
        name: The member.

    Returns:
        The members of the member.

    Raises:
        StrictJsonError: It is missing or something else.
    """
    value = members.get(name)
    if not isinstance(value, Mapping):
        raise StrictJsonError(f"its member {name} is missing or is not an object")
    return cast("Mapping[str, object]", value)


def created_member(members: Mapping[str, object]) -> int:
    """Read the member `Created`, seconds since 1970-01-01 UTC.

    Args:
        members: The enclosing object.

    Returns:
        The seconds.

    Raises:
        StrictJsonError: It is missing, not an integer or not within the years 1970 to 9999.
    """
    value = members.get("Created")
    if type(value) is not int or not 0 <= value <= MAX_CREATED:
        raise StrictJsonError(
            "its member Created is missing or is not an integer of seconds within the years 1970 to 9999"
        )
    return value


def text_member(members: Mapping[str, object], name: str) -> str:
    """Read a member that is a text.

    Args:
        members: The enclosing object.
        name: The member.

    Returns:
        The text, not empty and free of lone surrogates.

    Raises:
        StrictJsonError: It is missing or something else.
    """
    value = members.get(name)
    if type(value) is not str or not value or not has_utf8(value):
        raise StrictJsonError(f"its member {name} is missing or is not a text")
    return value


def base64_bytes(members: Mapping[str, object], name: str) -> bytes:
    """Read a member that holds bytes in canonical standard base64.

    Args:
        members: The enclosing object.
        name: The member.

    Returns:
        The bytes.

    Raises:
        StrictJsonError: It is missing or is not the one base64 text of its bytes.
    """
    text = text_member(members, name)
    try:
        raw = binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        raw = b""
    if base64_text(raw) != text:
        raise StrictJsonError(f"its member {name} is not canonical standard base64")
    return raw


def base64_text(raw: bytes) -> str:
    """Write bytes as standard base64.

    Args:
        raw: The bytes.

    Returns:
        The base64 text, padded, without line breaks.
    """
    return binascii.b2a_base64(raw, newline=False).decode("ascii")
