# SPDX-License-Identifier: Apache-2.0
"""Exact decimals and binary floating point: codes 6 and 7."""

from __future__ import annotations

import math
import struct
from decimal import Context, Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, Final

from sa_asherah.errors import UnsupportedValueError
from sa_asherah.orm.codec.form import Codec, foreign, not_canonical, unfit

if TYPE_CHECKING:
    import sqlalchemy as sa

__all__ = ["decimal_codec", "encode_decimal", "float_codec"]

# Of our own: the thread's context may write a small `e`, or not trap what is no number.
_EXACT: Final = Context(capitals=1, traps=[InvalidOperation])
_SPECIAL: Final = {"NaN", "Infinity", "-Infinity"}
_DOUBLE: Final = struct.Struct(">cd")
_NAN: Final = _DOUBLE.pack(b"\x07", math.nan)


def decimal_codec(inner: sa.Numeric[Any]) -> Codec:
    """Make the codec of a `Numeric`: every digit is kept, precision and scale are not enforced.

    Args:
        inner: The type; with `asdecimal=False` values are of type float, and still stored as decimals.
    """
    if inner.asdecimal:
        return Codec(encode_decimal, _decode_decimal)
    return Codec(lambda value: encode_decimal(_as_decimal(_double(value))), _decode_as_double)


def float_codec(inner: sa.Float[Any]) -> Codec:
    """Make the codec of a `Float`, 8 bytes whatever its precision.

    Args:
        inner: The type; with `asdecimal=True` values are read as `Decimal`.
    """
    if inner.asdecimal:
        return Codec(_encode_float, lambda plaintext: _as_decimal(_decode_float(plaintext)))
    return Codec(_encode_float, _decode_float)


def _as_decimal(value: float) -> Decimal:
    """Give the shortest decimal that is the same float again, which is what databases show."""
    return Decimal(str(value))


def encode_decimal(value: Any) -> bytes:
    """Write a decimal.

    Args:
        value: A `Decimal` or an integer.

    Returns:
        The plaintext.

    Raises:
        UnsupportedValueError: It is something else, or a NaN that is not the plain one.
    """
    if type(value) is not Decimal:
        if not isinstance(value, Decimal | int) or isinstance(value, bool):
            raise unfit(value, "Decimal: a float is not exact, give Decimal(str(value))")
        value = Decimal(value)
    text = _EXACT.to_sci_string(value)
    if not value.is_finite() and text not in _SPECIAL:
        raise UnsupportedValueError("a signalling, signed or numbered NaN cannot be stored: use Decimal('NaN')")
    return b"\x06" + text.encode("ascii")


def _decode_decimal(plaintext: bytes) -> Decimal:
    if plaintext[:1] != b"\x06":
        raise foreign(plaintext)
    try:
        text = plaintext[1:].decode("ascii")
        value = Decimal(text, _EXACT)
        if _EXACT.to_sci_string(value) == text and (value.is_finite() or text in _SPECIAL):
            return value
    except (ValueError, InvalidOperation):
        pass
    raise not_canonical("a decimal")


def _decode_as_double(plaintext: bytes) -> float:
    value = _decode_decimal(plaintext)
    double = float(value)
    if math.isinf(double) and value.is_finite():
        raise not_canonical("a number within the range of a float")
    return double


def _double(value: Any) -> float:
    if type(value) is float:
        return value
    if not isinstance(value, float | int | Decimal) or isinstance(value, bool):
        raise unfit(value, "float")
    try:
        double = float(value)
        # A Decimal may lose digits, as in every FLOAT column; an integer or the whole value may not.
        if double == value or (isinstance(value, Decimal) and math.isfinite(double)) or math.isnan(double):
            return double
    except (OverflowError, ValueError):
        pass
    raise UnsupportedValueError("the number has no floating point form of the same value: use Numeric or Integer")


def _encode_float(value: Any) -> bytes:
    double = value if type(value) is float else _double(value)
    return _NAN if math.isnan(double) else _DOUBLE.pack(b"\x07", double)


def _decode_float(plaintext: bytes) -> float:
    if plaintext[:1] != b"\x07" or len(plaintext) != _DOUBLE.size:
        raise foreign(plaintext)
    value: float = _DOUBLE.unpack(plaintext)[1]
    if math.isnan(value) and plaintext != _NAN:
        raise not_canonical("a floating point number")
    return value
