# SPDX-License-Identifier: Apache-2.0
"""JSON documents, arrays and user types around another type: codes 14 and 15, and no code of their own."""

from __future__ import annotations

import json
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa
from sqlalchemy.engine.default import DefaultDialect

from sa_asherah.core.strict_json import MAX_NESTING
from sa_asherah.errors import UnsupportedValueError
from sa_asherah.orm.codec.form import Codec, foreign, not_canonical, unfit
from sa_asherah.orm.codec.scalars import utf8

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["JSON", "array_codec", "decorator_codec"]

_LEAVES: Final = {str, int, float, bool, type(None)}
_WRITER: Final = json.JSONEncoder(ensure_ascii=False, check_circular=False, allow_nan=False, separators=(",", ":"))
_READER: Final = json.JSONDecoder()

_MAX_DIMENSIONS: Final = 6  # PostgreSQL's bound
_NULL: Final = b"\xff\xff\xff\xff"

_NEUTRAL: Final = DefaultDialect()


def _encode_json(value: Any) -> bytes:
    text = None
    try:
        document = None if value is sa.JSON.NULL else value
        _check_document(document, MAX_NESTING)
        text = _WRITER.encode(document)
    except (TypeError, ValueError):
        pass
    if text is None:
        raise UnsupportedValueError(
            "the document is not JSON: it holds NaN, infinity, an integer of thousands of digits or an object that is "
            "neither dict, list, str, number, bool nor None; convert it first"
        )
    return utf8(b"\x0e", text)


def _check_document(value: Any, room: int) -> None:
    """Be sure that what the encoder writes can be read, and says the same."""
    if value is sa.JSON.NULL:
        raise UnsupportedValueError("JSON.NULL stands for a whole document: inside one use None")
    if isinstance(value, dict):
        # The encoder makes text of other keys, and two may become one.
        if not all(type(key) is str for key in value) and len(_rewritten(dict.fromkeys(value))) != len(value):
            raise UnsupportedValueError("two keys of a JSON object are the same text: use keys of type str")
        children: Any = value.values()
    elif isinstance(value, list | tuple):
        children = value
    else:
        return
    if not room:
        raise UnsupportedValueError(f"a JSON document may be nested {MAX_NESTING} levels deep, not more")
    for child in children:
        if type(child) not in _LEAVES:
            _check_document(child, room - 1)


def _rewritten(document: Any) -> Any:
    return _READER.decode(_WRITER.encode(document))


def _decode_json(plaintext: bytes) -> Any:
    if plaintext[:1] != b"\x0e":
        raise foreign(plaintext)
    try:
        text = plaintext[1:].decode()
        value = _READER.decode(text)
        # Duplicate keys, NaN, spaces and other ways to write the same: none of them comes out as it went in.
        if _WRITER.encode(value) == text:
            return value
    except (ValueError, RecursionError):
        pass
    raise not_canonical("a JSON document")


JSON = Codec(_encode_json, _decode_json)


def array_codec(inner: sa.ARRAY[Any], item: Codec) -> Codec:
    """Make the codec of an `ARRAY`: each element as its length, 4 bytes, and its own plaintext.

    Args:
        inner: The type. Without `dimensions`, lists inside lists are dimensions.
        item: Codec of the elements.
    """
    array = _Array(item, inner.dimensions, tuple if inner.as_tuple else list)
    return Codec(array.encode, array.decode)


class _Array:
    """The codec of the arrays of one column; `level` counts the dimensions above."""

    def __init__(self, item: Codec, dimensions: int | None, collection: type[list[Any] | tuple[Any, ...]]) -> None:
        self._item = item
        self._dimensions = dimensions
        self._collection = collection

    def encode(self, value: Any, level: int = 1) -> bytes:
        if not isinstance(value, list | tuple):
            raise unfit(value, "list" if self._dimensions is None else f"lists of {self._dimensions} dimensions")
        return b"\x0f" + b"".join(chain.from_iterable(self._parts(value, level)))

    def _parts(self, value: Any, level: int) -> Iterator[tuple[bytes, ...]]:
        for element in value:
            if element is None:
                yield (_NULL,)
                continue
            nested = self._is_nested(level, is_array=isinstance(element, list | tuple))
            encoded = self.encode(element, level + 1) if nested else self._item.encode(element)
            yield len(encoded).to_bytes(4, "big"), encoded

    def _is_nested(self, level: int, *, is_array: bool) -> bool:
        if self._dimensions is not None:
            return level < self._dimensions
        if is_array and level == _MAX_DIMENSIONS:
            raise UnsupportedValueError(
                f"an array has at most {_MAX_DIMENSIONS} dimensions: give ARRAY its dimensions= if elements are lists"
            )
        return is_array

    def decode(self, plaintext: bytes, level: int = 1) -> Any:
        if plaintext[:1] != b"\x0f":
            raise foreign(plaintext)
        return self._collection(self._elements(plaintext, level))

    def _elements(self, plaintext: bytes, level: int) -> Iterator[Any]:
        start, size = 1, len(plaintext)
        while start < size:
            head = plaintext[start : start + 4]
            start += 4
            if head == _NULL:
                yield None
                continue
            end = start + int.from_bytes(head, "big")
            element = plaintext[start:end]
            if len(head) < len(_NULL) or end > size:
                raise not_canonical("an array")
            start = end
            is_array = element[:1] == b"\x0f"
            if self._dimensions is None and is_array and level == _MAX_DIMENSIONS:
                raise not_canonical(f"an array of at most {_MAX_DIMENSIONS} dimensions")
            nested = self._is_nested(level, is_array=is_array)
            yield self.decode(element, level + 1) if nested else self._item.decode(element)


def decorator_codec(inner: sa.types.TypeDecorator[Any], wrapped: Codec) -> Codec:
    """Make the codec of a user's `TypeDecorator`: its own conversions around the codec of what it wraps.

    They get one neutral dialect always, so that the ciphertext means the same on every database; its
    `load_dialect_impl` is not asked, and `None` never comes to it.

    Args:
        inner: The type.
        wrapped: Codec of its `impl`.
    """

    def encode(value: Any) -> bytes:
        bound = inner.process_bind_param(value, _NEUTRAL)
        if bound is None:
            raise UnsupportedValueError(
                f"{type(inner).__name__}.process_bind_param made None of a value: what is NULL is decided before; "
                "assign None instead"
            )
        return wrapped.encode(bound)

    def decode(plaintext: bytes) -> Any:
        return inner.process_result_value(wrapped.decode(plaintext), _NEUTRAL)

    binds, results = inner._has_bind_processor, inner._has_result_processor
    return Codec(encode if binds else wrapped.encode, decode if results else wrapped.decode)
