# SPDX-License-Identifier: Apache-2.0
"""Reads JSON that someone else may have written or altered: one text has one meaning, or it is refused.

`json.loads` alone takes duplicate members (the last one wins), NaN, `true` where an integer is meant and lone
surrogates, and `b64decode` skips foreign characters.
"""

from __future__ import annotations

import binascii
import json
from collections.abc import Mapping
from typing import NoReturn, cast

from sa_asherah.core.encoding import has_utf8
from sa_asherah.core.ids import MAX_CREATED

__all__ = [
    "StrictJsonError",
    "base64_bytes",
    "base64_text",
    "created_member",
    "load_object",
    "object_member",
    "text_member",
]


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
        StrictJsonError: It is no JSON object, too long, too deep, has a member twice, a NaN or a lone surrogate.
    """
    if len(text) > max_length:
        raise StrictJsonError(f"it is longer than {max_length} characters")
    value: object = None
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
        if "\\" in text or not text.isascii():
            json.dumps(value, ensure_ascii=False).encode()
    except StrictJsonError:
        raise
    except (ValueError, RecursionError):
        # Not raised again from here: a JSONDecodeError and a UnicodeEncodeError carry the text.
        value = None
    if not isinstance(value, dict):
        raise StrictJsonError("it is not a well-formed JSON object")
    return cast("dict[str, object]", value)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise StrictJsonError("it has a member twice")
    return members


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
