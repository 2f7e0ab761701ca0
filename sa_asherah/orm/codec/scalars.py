# SPDX-License-Identifier: Apache-2.0
"""Text, bytes, booleans, integers, UUIDs and the names of enums: codes 1 to 5, 12 and 13."""

from __future__ import annotations

import enum
import uuid
from typing import TYPE_CHECKING, Any

from sa_asherah.errors import ConfigurationError, UnsupportedValueError
from sa_asherah.orm.codec.form import Codec, foreign, not_canonical, unfit

if TYPE_CHECKING:
    import sqlalchemy as sa

__all__ = ["BOOLEAN", "BYTES", "INTEGER", "TEXT", "enum_codec", "utf8", "uuid_codec"]

_SHORT = 8


def utf8(code: bytes, text: str) -> bytes:
    """Write text.

    Args:
        code: The type byte.
        text: The text.

    Returns:
        The plaintext.

    Raises:
        UnsupportedValueError: The text has no UTF-8 form.
    """
    try:
        return code + text.encode()
    except UnicodeEncodeError:
        pass
    raise UnsupportedValueError("the text holds lone surrogates, which UTF-8 cannot store")


def _encode_text(value: Any) -> bytes:
    if type(value) is not str:
        if not isinstance(value, str):
            raise unfit(value, "str")
        value = str.__str__(value)  # the text of a subclass, whatever its own __str__ says
    return utf8(b"\x01", value)


def _decode_text(plaintext: bytes) -> str:
    if plaintext[:1] != b"\x01":
        raise foreign(plaintext)
    try:
        return plaintext[1:].decode()
    except UnicodeDecodeError:
        pass
    raise not_canonical("text")


def _encode_bytes(value: Any) -> bytes:
    if not isinstance(value, bytes | bytearray | memoryview):
        raise unfit(value, "bytes")
    return b"\x02" + bytes(value)


def _decode_bytes(plaintext: bytes) -> bytes:
    if plaintext[:1] != b"\x02":
        raise foreign(plaintext)
    return plaintext[1:]


def _encode_boolean(value: Any) -> bytes:
    if value is True:
        return b"\x03\x01"
    if value is False:
        return b"\x03\x00"
    raise unfit(value, "bool")


def _decode_boolean(plaintext: bytes) -> bool:
    if plaintext == b"\x03\x01":
        return True
    if plaintext == b"\x03\x00":
        return False
    raise foreign(plaintext)


def _encode_integer(value: Any) -> bytes:
    if type(value) is not int and (not isinstance(value, int) or isinstance(value, bool)):
        raise unfit(value, "int")
    number = int.__int__(value)  # of a subclass, too
    try:
        return b"\x04" + number.to_bytes(_SHORT, "big", signed=True)
    except OverflowError:
        return b"\x05" + number.to_bytes(_width(number), "big", signed=True)


def _width(value: int) -> int:
    """Bytes of the shortest two's complement of an integer."""
    return (value if value >= 0 else ~value).bit_length() // 8 + 1


def _decode_integer(plaintext: bytes) -> int:
    digits = plaintext[1:]
    value = int.from_bytes(digits, "big", signed=True)
    if plaintext[:1] == b"\x04" and len(digits) == _SHORT:
        return value
    if plaintext[:1] == b"\x05" and len(digits) > _SHORT and len(digits) == _width(value):
        return value
    raise foreign(plaintext)


TEXT = Codec(_encode_text, _decode_text)
BYTES = Codec(_encode_bytes, _decode_bytes)
BOOLEAN = Codec(_encode_boolean, _decode_boolean)
INTEGER = Codec(_encode_integer, _decode_integer)


def uuid_codec(inner: sa.Uuid[Any]) -> Codec:
    """Make the codec of a `Uuid`, 16 bytes.

    Args:
        inner: The type; `as_uuid=False` means text with dashes, in lower case.
    """
    as_uuid = inner.as_uuid

    def encode(value: Any) -> bytes:
        if as_uuid:
            if not isinstance(value, uuid.UUID):
                raise unfit(value, "uuid.UUID (Uuid(as_uuid=False) holds text)")
            return b"\x0c" + value.bytes
        if not isinstance(value, str):
            raise unfit(value, "str, as Uuid(as_uuid=False) does")
        try:
            parsed = uuid.UUID(value)
            if value.lower() in {str(parsed), parsed.hex}:
                return b"\x0c" + parsed.bytes
        except ValueError:
            pass
        raise UnsupportedValueError("the text is not a UUID: 32 hexadecimal digits, with the four dashes or without")

    def decode(plaintext: bytes) -> uuid.UUID | str:
        if plaintext[:1] != b"\x0c" or len(plaintext) != 17:  # noqa: PLR2004
            raise foreign(plaintext)
        value = uuid.UUID(bytes=plaintext[1:])
        return value if as_uuid else str(value)

    return Codec(encode, decode)


def enum_codec(inner: sa.Enum) -> Codec:
    """Make the codec of an `Enum`: the text that SQLAlchemy would store, a member's name unless `values_callable`.

    Args:
        inner: The type, with a class or with a list of texts.

    Raises:
        ConfigurationError: `values_callable` gives two members the same text, or something else than text.
    """
    kind = inner.enum_class
    members: dict[str, Any] = {text: member for text, member in inner._object_lookup.items() if text is not None}
    if len(members) != len(inner.enums) or not all(isinstance(text, str) for text in members):
        raise ConfigurationError("Encrypted(Enum(...)) needs a different text for each member: correct values_callable")
    # By identity: a member of a StrEnum may be equal to the name of another one.
    texts = {id(member): text for text, member in members.items()}

    def encode(value: Any) -> bytes:
        member: Any = None
        if kind is not None and isinstance(value, kind):
            member = value
        elif isinstance(value, str) and not isinstance(value, enum.Enum):
            member = members.get(value)
        text = texts.get(id(member))
        if text is None:
            raise unfit(value, "an enum: it is not one of its members")
        return utf8(b"\x0d", text)

    def decode(plaintext: bytes) -> Any:
        if plaintext[:1] != b"\x0d":
            raise foreign(plaintext)
        text = plaintext[1:].decode(errors="replace")
        if text in members:
            return members[text]
        raise not_canonical("the name of a member of its enum (was one renamed or removed?)")

    return Codec(encode, decode)
