# SPDX-License-Identifier: Apache-2.0
"""Which codec an inner type has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NoReturn

import sqlalchemy as sa
from sqlalchemy.dialects import mysql
from sqlalchemy.sql.cache_key import NO_CACHE
from sqlalchemy.sql.sqltypes import _AbstractInterval, _Binary
from sqlalchemy.types import TypeDecorator

from sa_asherah.errors import ConfigurationError
from sa_asherah.orm.codec.composite import JSON, array_codec, decorator_codec
from sa_asherah.orm.codec.numeric import decimal_codec, float_codec
from sa_asherah.orm.codec.scalars import BOOLEAN, BYTES, INTEGER, TEXT, enum_codec, uuid_codec
from sa_asherah.orm.codec.temporal import DATE, INTERVAL, datetime_codec, time_codec

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.types import TypeEngine

    from sa_asherah.orm.codec.form import Codec

__all__ = ["codec_for"]

_BYPASSED: Final = ("bind_processor", "result_processor", "bind_expression", "column_expression")


def codec_for(inner: TypeEngine[Any]) -> Codec:
    """Find the codec of an inner type.

    Args:
        inner: The type that the application declared inside `Encrypted`.

    Returns:
        Its codec.

    Raises:
        ConfigurationError: The inner type cannot be encrypted.
    """
    name = type(inner).__name__
    for method in _BYPASSED:
        if not getattr(type(inner), method).__module__.startswith("sqlalchemy."):
            raise ConfigurationError(
                f"Encrypted({name}) is not supported: {name} defines {method} of its own, which would not be called. "
                "Convert values in process_bind_param and process_result_value of a TypeDecorator"
            )
    if inner._static_cache_key is NO_CACHE:
        raise ConfigurationError(f"the inner type {name} needs cache_ok = True")
    for kind, make in _CODECS:
        if isinstance(inner, kind):
            return make(inner)
    raise _unsupported(inner)


def _unsupported(inner: TypeEngine[Any]) -> ConfigurationError:
    return ConfigurationError(
        f"Encrypted({type(inner).__name__}) is not supported: the inner type is String, Text, Unicode, LargeBinary, "
        "Boolean, Integer, Numeric, Float, Date, Time, DateTime, Interval, Uuid, Enum, JSON, ARRAY of these, or a "
        "TypeDecorator over one of these"
    )


def _array(inner: sa.ARRAY[Any]) -> Codec:
    wrapped: TypeEngine[Any] = inner.item_type
    while isinstance(wrapped, TypeDecorator):
        wrapped = wrapped.impl_instance
    if isinstance(wrapped, sa.ARRAY):
        raise ConfigurationError("Encrypted(ARRAY(...)) of arrays: give one ARRAY with dimensions=")
    return array_codec(inner, codec_for(inner.item_type))


def _decorator(inner: TypeDecorator[Any]) -> Codec:
    return decorator_codec(inner, codec_for(inner.impl_instance))


def _refuse_pickle(inner: TypeEngine[Any]) -> NoReturn:
    raise ConfigurationError(
        f"Encrypted({type(inner).__name__}) is refused: unpickling executes code that the stored value chooses, so "
        "that whoever can write one value under the owner's key runs programs here. Use Encrypted(JSON()), or a "
        "TypeDecorator over LargeBinary or JSON that converts your class"
    )


def _refuse(inner: TypeEngine[Any]) -> NoReturn:
    raise _unsupported(inner)


# The first that fits: some types are subclasses of others.
_CODECS: Final[tuple[tuple[type[Any], Callable[[Any], Codec]], ...]] = (
    (sa.PickleType, _refuse_pickle),
    (mysql.SET, _refuse),
    (sa.Enum, enum_codec),
    (sa.String, lambda _: TEXT),
    (sa.Float, float_codec),
    (sa.Numeric, decimal_codec),
    (sa.Integer, lambda _: INTEGER),
    (_Binary, lambda _: BYTES),
    (sa.Boolean, lambda _: BOOLEAN),
    (sa.DateTime, datetime_codec),
    (sa.Date, lambda _: DATE),
    (sa.Time, time_codec),
    (_AbstractInterval, lambda _: INTERVAL),
    (sa.Uuid, uuid_codec),
    (sa.JSON, lambda _: JSON),
    (sa.ARRAY, _array),
    (TypeDecorator, _decorator),
)
