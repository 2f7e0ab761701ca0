# SPDX-License-Identifier: Apache-2.0
"""Values to plaintext bytes and back: the type codes of cell format v1 (design, section 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from sa_asherah.errors import ConfigurationError, MalformedCellError, UnsupportedValueError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.types import TypeEngine

__all__ = ["Codec", "codec_for"]

_TEXT_CODE = 1


@dataclass(frozen=True, slots=True)
class Codec:
    """How the values of one inner type become plaintext bytes.

    Attributes:
        encode: Value to plaintext, the type byte first. Raises `UnsupportedValueError`.
        decode: Plaintext to value. Raises `MalformedCellError` for a type byte of another codec.
    """

    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]


def _encode_text(value: Any) -> bytes:
    if not isinstance(value, str):
        raise _unfit(value, "str")
    try:
        return b"\x01" + value.encode()
    except UnicodeEncodeError:
        raise UnsupportedValueError("the text holds lone surrogates, which UTF-8 cannot store") from None


def _decode_text(plaintext: bytes) -> str:
    if not plaintext or plaintext[0] != _TEXT_CODE:
        raise _foreign(plaintext)
    try:
        return plaintext[1:].decode()
    except UnicodeDecodeError:
        raise MalformedCellError("the opened text is not UTF-8: it was not written by this column") from None


def _encode_bytes(value: Any) -> bytes:
    if not isinstance(value, bytes | bytearray | memoryview):
        raise _unfit(value, "bytes")
    return b"\x02" + bytes(value)


def _decode_bytes(plaintext: bytes) -> bytes:
    if plaintext[:1] != b"\x02":
        raise _foreign(plaintext)
    return plaintext[1:]


def _encode_boolean(value: Any) -> bytes:
    if value is True:
        return b"\x03\x01"
    if value is False:
        return b"\x03\x00"
    raise _unfit(value, "bool")


def _decode_boolean(plaintext: bytes) -> bool:
    if plaintext == b"\x03\x01":
        return True
    if plaintext == b"\x03\x00":
        return False
    raise _foreign(plaintext)


def _encode_integer(value: Any) -> bytes:
    if type(value) is not int:
        raise _unfit(value, "int")
    try:
        return b"\x04" + value.to_bytes(8, "big", signed=True)
    except OverflowError:
        return b"\x05" + value.to_bytes(_width(value), "big", signed=True)


def _width(value: int) -> int:
    """Bytes of the shortest two's complement of an integer."""
    return (value if value >= 0 else ~value).bit_length() // 8 + 1


def _decode_integer(plaintext: bytes) -> int:
    digits = plaintext[1:]
    value = int.from_bytes(digits, "big", signed=True)
    if plaintext[:1] == b"\x04" and len(digits) == 8:  # noqa: PLR2004
        return value
    if plaintext[:1] == b"\x05" and len(digits) > 8 and len(digits) == _width(value):  # noqa: PLR2004
        return value
    raise _foreign(plaintext)


def _unfit(value: Any, wanted: str) -> UnsupportedValueError:
    return UnsupportedValueError(f"a {type(value).__name__} does not fit an encrypted column that holds {wanted}")


def _foreign(plaintext: bytes) -> MalformedCellError:
    return MalformedCellError(
        f"the opened value has type code {plaintext[0] if plaintext else 'none'}, which this column's inner type "
        "does not write: the inner type was changed without re-encrypting the column"
    )


_TEXT = Codec(_encode_text, _decode_text)
_BYTES = Codec(_encode_bytes, _decode_bytes)
_BOOLEAN = Codec(_encode_boolean, _decode_boolean)
_INTEGER = Codec(_encode_integer, _decode_integer)


def codec_for(inner: TypeEngine[Any]) -> Codec:
    """Find the codec of an inner type.

    Args:
        inner: The type that the application declared inside `Encrypted`.

    Returns:
        Its codec.

    Raises:
        ConfigurationError: The inner type cannot be encrypted.
    """
    if isinstance(inner, sa.String) and not isinstance(inner, sa.Enum):
        return _TEXT
    if isinstance(inner, sa.LargeBinary):
        return _BYTES
    if isinstance(inner, sa.Boolean):
        return _BOOLEAN
    if isinstance(inner, sa.Integer):
        return _INTEGER
    raise ConfigurationError(
        f"Encrypted({type(inner).__name__}) is not supported: the inner type is String, Text, Unicode, LargeBinary, "
        "Integer, BigInteger, SmallInteger or Boolean"
    )
