# SPDX-License-Identifier: Apache-2.0
"""Values as plaintext that other programs understand: no type code, text wherever there is a common one.

Used by `format="asherah"`. Each form is made from the one of the cell format, so that both take the same values. One
text of a value is written. Read is every text that means a value in JSON (numbers) or RFC 3339 (dates), since programs
in other languages write others of them.
"""

from __future__ import annotations

import math
import re
import struct
import uuid
from decimal import Context, Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, Final, NoReturn

import sqlalchemy as sa
from sqlalchemy.sql.sqltypes import _AbstractInterval, _Binary

from sa_asherah.core.strict_json import StrictJsonError, load_value
from sa_asherah.errors import ConfigurationError, UnsupportedValueError
from sa_asherah.orm.codec.choice import codec_for
from sa_asherah.orm.codec.composite import decorator_codec
from sa_asherah.orm.codec.form import Codec, not_canonical
from sa_asherah.orm.codec.numeric import encode_decimal

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.types import TypeEngine

__all__ = ["plain_codec_for"]

_INTEGER: Final = re.compile(rb"0|-?[1-9][0-9]*")
_NUMBER: Final = re.compile(rb"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_FRACTION: Final = re.compile(rb"\.([0-9]+)")
_EXACT: Final = Context(traps=[InvalidOperation])
_DOUBLE: Final = struct.Struct(">d")
_NO_NUMBERS: Final = {b"NaN": math.nan, b"Infinity": math.inf, b"-Infinity": -math.inf}
_BOOLEANS: Final = {b"\x03\x00": b"false", b"\x03\x01": b"true"}
_TYPED_BOOLEANS: Final = {plain: typed for typed, plain in _BOOLEANS.items()}


def plain_codec_for(inner: TypeEngine[Any]) -> Codec:
    """Find the codec of an inner type for `format="asherah"`.

    Args:
        inner: The type that the application declared inside `Encrypted`.

    Returns:
        Its codec.

    Raises:
        ConfigurationError: The inner type cannot be encrypted, or has no form that other programs know.
    """
    typed = codec_for(inner)
    for kind, make in _CODECS:
        if isinstance(inner, kind):
            return make(inner, typed)
    return decorator_codec(inner, plain_codec_for(inner.impl_instance))  # type: ignore[arg-type, attr-defined]


def _bare(code: bytes) -> Callable[[Any, Codec], Codec]:
    """Leave out the type code, and nothing else."""

    def make(_: Any, typed: Codec) -> Codec:
        encode, decode = typed.encode, typed.decode
        return Codec(lambda value: encode(value)[1:], lambda plaintext: decode(code + plaintext))

    return make


def _without_code(typed: bytes) -> bytes:
    return typed[1:]


def _converted(to_plain: Callable[[bytes], bytes], to_typed: Callable[[bytes], bytes]) -> Callable[[Any, Codec], Codec]:
    """Convert the form of the cell format."""

    def make(_: Any, typed: Codec) -> Codec:
        encode, decode = typed.encode, typed.decode
        return Codec(lambda value: to_plain(encode(value)), lambda plaintext: decode(to_typed(plaintext)))

    return make


def _typed_boolean(plaintext: bytes) -> bytes:
    typed = _TYPED_BOOLEANS.get(plaintext)
    if typed is None:
        raise not_canonical("true or false")
    return typed


def _plain_integer(typed: bytes) -> bytes:
    try:
        return b"%d" % int.from_bytes(typed[1:], "big", signed=True)
    except ValueError:
        pass
    raise UnsupportedValueError("the integer has thousands of digits: format='asherah' writes what int() reads back")


def _typed_integer(plaintext: bytes) -> bytes:
    try:
        number = int(plaintext) if _INTEGER.fullmatch(plaintext) else None
    except ValueError:  # thousands of digits
        number = None
    if number is None:
        raise not_canonical("an integer")
    width = max(8, (number if number >= 0 else ~number).bit_length() // 8 + 1)
    return (b"\x04" if width == 8 else b"\x05") + number.to_bytes(width, "big", signed=True)  # noqa: PLR2004


def _typed_decimal(plaintext: bytes) -> bytes:
    if not _NUMBER.fullmatch(plaintext):
        return b"\x06" + plaintext
    try:
        return encode_decimal(Decimal(plaintext.decode("ascii"), _EXACT))
    except InvalidOperation:  # an exponent that no decimal has
        pass
    raise not_canonical("a decimal")


def _plain_float(typed: bytes) -> bytes:
    number: float = _DOUBLE.unpack(typed[1:])[0]
    if math.isfinite(number):
        return repr(number).encode("ascii")
    return next(text for text, special in _NO_NUMBERS.items() if repr(special) == repr(number))


def _typed_float(plaintext: bytes) -> bytes:
    number = _NO_NUMBERS.get(plaintext)
    if number is None and _NUMBER.fullmatch(plaintext):
        number = float(plaintext)
        number = number if math.isfinite(number) else None
    if number is None:
        raise not_canonical("a floating point number")
    return b"\x07" + _DOUBLE.pack(number)


def _typed_clock(code: bytes) -> Callable[[bytes], bytes]:
    """Write `Z` as an offset, and the fraction of a second with six digits or none."""

    def digits(found: re.Match[bytes]) -> bytes:
        fraction = found[1].rstrip(b"0")
        return b"." + fraction.ljust(6, b"0") if fraction else b""

    def typed(plaintext: bytes) -> bytes:
        if plaintext.endswith(b"Z"):
            plaintext = plaintext[:-1] + b"+00:00"
        return code + _FRACTION.sub(digits, plaintext)

    return typed


def _plain_uuid(typed: bytes) -> bytes:
    return str(uuid.UUID(bytes=typed[1:])).encode("ascii")


def _typed_uuid(plaintext: bytes) -> bytes:
    try:
        key = uuid.UUID(plaintext.decode("ascii"))
    except ValueError:
        key = None
    if key is None or str(key).encode("ascii") != plaintext.lower():
        raise not_canonical("a UUID with dashes")
    return b"\x0c" + key.bytes


def _json(_: Any, typed: Codec) -> Codec:
    """JSON has no canonical form among programs: any well-formed text is read, one form is written."""

    def decode(plaintext: bytes) -> Any:
        try:
            return load_value(plaintext.decode())
        except (StrictJsonError, UnicodeDecodeError):
            pass
        raise not_canonical("a JSON document")

    encode = typed.encode
    return Codec(lambda value: encode(value)[1:], decode)


def _refuse(inner: Any, _: Codec) -> NoReturn:
    raise ConfigurationError(
        f"Encrypted({type(inner).__name__}, format='asherah') is not supported: a data row record does not say what it "
        "holds, and other programs have no common text for this type. Use JSON for an ARRAY, Integer or String for an "
        "Interval, or a TypeDecorator over one of these, on which all programs agree"
    )


# The first that fits: some types are subclasses of others.
_CODECS: Final[tuple[tuple[type[Any], Callable[[Any, Codec], Codec]], ...]] = (
    (sa.Enum, _bare(b"\x0d")),
    (sa.String, _bare(b"\x01")),
    (sa.Float, _converted(_plain_float, _typed_float)),
    (sa.Numeric, _converted(_without_code, _typed_decimal)),
    (sa.Integer, _converted(_plain_integer, _typed_integer)),
    (_Binary, _bare(b"\x02")),
    (sa.Boolean, _converted(_BOOLEANS.__getitem__, _typed_boolean)),
    (sa.DateTime, _converted(_without_code, _typed_clock(b"\x0a"))),
    (sa.Date, _bare(b"\x08")),
    (sa.Time, _converted(_without_code, _typed_clock(b"\x09"))),
    (sa.Uuid, _converted(_plain_uuid, _typed_uuid)),
    (sa.JSON, _json),
    (_AbstractInterval, _refuse),
    (sa.ARRAY, _refuse),
)
