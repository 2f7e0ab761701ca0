# SPDX-License-Identifier: Apache-2.0
"""Dates, times and intervals: codes 8 to 11."""

from __future__ import annotations

import struct
from datetime import date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any, Final

from sa_asherah.errors import UnsupportedValueError
from sa_asherah.orm.codec.form import Codec, foreign, not_canonical, unfit

if TYPE_CHECKING:
    import sqlalchemy as sa

__all__ = ["DATE", "INTERVAL", "datetime_codec", "time_codec"]

_SPAN: Final = struct.Struct(">cqqq")


def _encode_date(value: Any) -> bytes:
    if not isinstance(value, date) or isinstance(value, datetime):
        raise unfit(value, "date: of a datetime give .date()")
    return b"\x08" + date.isoformat(value).encode("ascii")


def _decode_date(plaintext: bytes) -> date:
    if plaintext[:1] != b"\x08":
        raise foreign(plaintext)
    try:
        text = plaintext[1:].decode("ascii")
        value = date.fromisoformat(text)
        if value.isoformat() == text:
            return value
    except ValueError:
        pass
    raise not_canonical("a date")


def time_codec(inner: sa.Time) -> Codec:
    """Make the codec of a `Time`.

    Args:
        inner: The type; its `timezone` says whether values have an offset.
    """
    return _clock_codec(b"\x09", time, timezone=inner.timezone)


def datetime_codec(inner: sa.DateTime) -> Codec:
    """Make the codec of a `DateTime`.

    Args:
        inner: The type; its `timezone` says whether values have an offset.
    """
    return _clock_codec(b"\x0a", datetime, timezone=inner.timezone)


def _clock_codec(code: bytes, kind: Any, *, timezone: bool) -> Codec:
    name: str = kind.__name__

    def encode(value: Any) -> bytes:
        if not isinstance(value, kind):
            raise unfit(value, name)
        _check_offset(value, name, timezone=timezone)
        text: str = kind.isoformat(value)
        # A subclass may hold more, nanoseconds say.
        if type(value) is kind or kind.fromisoformat(text).replace(tzinfo=None) == value.replace(tzinfo=None):
            return code + text.encode("ascii")
        raise unfit(value, f"{name}: its value would change")

    def decode(plaintext: bytes) -> Any:
        if plaintext[:1] != code:
            raise foreign(plaintext)
        try:
            text = plaintext[1:].decode("ascii")
            value = kind.fromisoformat(text)
            if value.isoformat() == text and (value.tzinfo is not None) is timezone:
                return value
        except ValueError:
            pass
        raise not_canonical(f"a {name} {'with' if timezone else 'without'} an offset")

    return Codec(encode, decode)


def _check_offset(value: Any, name: str, *, timezone: bool) -> None:
    offset = value.utcoffset()
    if timezone and offset is None:
        raise UnsupportedValueError(
            f"a {name} without an offset means no certain moment: give it a tzinfo with one, or use timezone=False"
        )
    if not timezone and value.tzinfo is not None:
        raise UnsupportedValueError(
            f"a {name} with a tzinfo would lose it in this column: use timezone=True, or take the tzinfo off"
        )
    if offset is not None and offset.microseconds:
        raise unfit(value, f"{name}: its offset has a fraction of a second, which Python does not read back")


def _encode_interval(value: Any) -> bytes:
    if not isinstance(value, timedelta):
        raise unfit(value, "timedelta")
    return _SPAN.pack(b"\x0b", value.days, value.seconds, value.microseconds)


def _decode_interval(plaintext: bytes) -> timedelta:
    if plaintext[:1] != b"\x0b" or len(plaintext) != _SPAN.size:
        raise foreign(plaintext)
    _, days, seconds, microseconds = _SPAN.unpack(plaintext)
    try:
        value = timedelta(days, seconds, microseconds)
        if (value.days, value.seconds, value.microseconds) == (days, seconds, microseconds):
            return value
    except OverflowError:
        pass
    raise not_canonical("an interval")


DATE = Codec(_encode_date, _decode_date)
INTERVAL = Codec(_encode_interval, _decode_interval)
