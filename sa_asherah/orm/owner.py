# SPDX-License-Identifier: Apache-2.0
"""Owner text: one canonical form per kind of owner column, the same from a Python value and from SQL text.

What counts is what the database stores. A `TypeDecorator` over an owner column is asked for that, on behalf of every
supported database: where the answers differ, a row could not be read again after it was written or copied.
"""

from __future__ import annotations

import enum
import re
import uuid
from typing import TYPE_CHECKING, Any, Final, Literal

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.dialects.mysql.mariadb import MariaDBDialect

from sa_asherah.errors import ConfigurationError, OwnerRequiredError

if TYPE_CHECKING:
    from sqlalchemy.engine import Dialect
    from sqlalchemy.types import TypeEngine

__all__ = ["OwnerKind", "canonical", "canonical_text", "owner_kind", "owner_text"]

OwnerKind = Literal["int", "str", "uuid", "enum"]

_DIALECTS: Final[tuple[Dialect, ...]] = (sqlite.dialect(), postgresql.dialect(), mysql.dialect(), MariaDBDialect())  # type: ignore[no-untyped-call]
_PADDED: Final = (sa.CHAR, sa.NCHAR, mysql.SET)
"""Texts that a database does not give back as they were."""

_INTEGER = re.compile(r"0|-?[1-9][0-9]*", re.ASCII)


def owner_kind(column: sa.Column[Any]) -> OwnerKind:
    """Choose the canonical form by the owner column's type, never by the look of a value.

    Args:
        column: The owner column.

    Returns:
        The kind.

    Raises:
        ConfigurationError: The type has no canonical text.
    """
    if column.type._has_bind_expression or any(map(_hides_value, type(column.type).__mro__)):
        raise ConfigurationError(
            f"owner column {column} has type {type(column.type).__name__}, whose bind_processor() or bind_expression() "
            "changes values unseen: use a TypeDecorator with process_bind_param() only"
        )
    kinds: set[OwnerKind] = {_kind(column, _storage(column.type, dialect)) for dialect in _DIALECTS}
    if len(kinds) > 1:
        raise ConfigurationError(
            f"owner column {column} is of kind {' or '.join(map(repr, sorted(kinds)))}, depending on the database: "
            "one owner would have several names; use one type on every database, for UUIDs sqlalchemy.Uuid"
        )
    return kinds.pop()


def owner_text(column: sa.Column[Any], kind: OwnerKind, value: Any) -> str:
    """Give the canonical text of an owner value as the database will store it.

    Args:
        column: The owner column.
        kind: What `owner_kind` said of it.
        value: The Python value as the application sets it.

    Returns:
        The owner text, not empty.

    Raises:
        OwnerRequiredError: The value is missing, is not of the kind, or would be stored as another one.
    """
    type_ = column.type
    if not type_._variant_mapping and not isinstance(type_, sa.TypeDecorator):
        return _stored_text(kind, type_, value)
    texts = {_stored_text(kind, *_bound(type_, value, dialect)) for dialect in _DIALECTS}
    if len(texts) > 1:
        raise OwnerRequiredError(
            f"{type(type_).__name__}.process_bind_param gives one owner several forms, depending on the database or "
            "on the moment: let it give the same value each time"
        )
    return texts.pop()


def _hides_value(class_: type[Any]) -> bool:
    return not class_.__module__.startswith("sqlalchemy.") and "bind_processor" in vars(class_)


def _storage(type_: TypeEngine[Any], dialect: Dialect) -> TypeEngine[Any]:
    """Look through decorators and variants at what a database stores."""
    type_ = type_.dialect_impl(dialect)
    while isinstance(type_, sa.TypeDecorator):
        type_ = type_.impl_instance
    return type_


def _bound(type_: TypeEngine[Any], value: Any, dialect: Dialect) -> tuple[TypeEngine[Any], Any]:
    """Give the storage type and the value that it gets, as SQLAlchemy computes it."""
    type_ = type_.dialect_impl(dialect)
    while isinstance(type_, sa.TypeDecorator):
        if type(type_).process_bind_param is not sa.TypeDecorator.process_bind_param:
            value = type_.process_bind_param(value, dialect)
        type_ = type_.impl_instance
    return type_, value


def _stored_text(kind: OwnerKind, type_: TypeEngine[Any], value: Any) -> str:
    """Give the canonical text of a value, unless the storage type would change it (MariaDB finds 'a' in ENUM('A'))."""
    text = canonical(kind, value)
    if isinstance(type_, sa.Enum):
        if text not in type_.enums:
            raise OwnerRequiredError("the owner is none of the owner column's Enum: set one of its members")
    elif isinstance(type_, sa.Uuid) and isinstance(value, str):
        if value.replace("-", "") != text.replace("-", ""):
            raise OwnerRequiredError(
                "the owner is a UUID in capitals, which no comparison in SQL finds: use lower case"
            )
    elif isinstance(type_, sa.String) and type_.length is not None and len(text) > type_.length:
        raise OwnerRequiredError(
            f"the owner is longer than its column, String({type_.length}), and a database may cut it: make the "
            "column longer"
        )
    return text


def _kind(column: sa.Column[Any], type_: TypeEngine[Any]) -> OwnerKind:
    if isinstance(type_, sa.Integer):
        return "int"
    if isinstance(type_, sa.Uuid):
        return "uuid"
    if isinstance(type_, sa.Enum):
        if type_.enum_class is not None and type_.enums != [member.name for member in type_.enum_class]:
            raise ConfigurationError(
                f"owner column {column} is an Enum with values_callable or aliases: its stored text is not the "
                "member's name; use a plain Enum, or an Integer, String or Uuid column as owner"
            )
        return "enum"
    if isinstance(type_, sa.String) and not isinstance(type_, _PADDED):
        return "str"
    raise ConfigurationError(
        f"owner column {column} has type {type(type_).__name__}, which has no canonical text: use an Integer, "
        "String (not CHAR), Uuid or Enum column, or a TypeDecorator over one of these, as owner"
    )


def canonical(kind: OwnerKind, value: Any) -> str:
    """Give the canonical text of an owner value.

    Args:
        kind: What `owner_kind` said of the column.
        value: The Python value as the application sets it.

    Returns:
        The owner text, not empty.

    Raises:
        OwnerRequiredError: The value is missing or is not of the kind.
    """
    if value is None:
        raise OwnerRequiredError("the row has no owner: set the owner column before writing its encrypted columns")
    if kind == "int" and type(value) is int:
        return str(value)
    if kind == "uuid" and isinstance(value, uuid.UUID | str):
        return canonical_text("uuid", str(value))
    if kind == "enum" and isinstance(value, enum.Enum):
        return _checked(value.name)
    if kind in {"str", "enum"} and isinstance(value, str) and not isinstance(value, enum.Enum):
        return _checked(value)
    raise OwnerRequiredError(
        f"the owner is a {type(value).__name__}, but the owner column is of kind {kind!r}: set a value of that kind"
    )


def canonical_text(kind: OwnerKind, text: str) -> str:
    """Give the canonical text of an owner as SQL renders it.

    Args:
        kind: What `owner_kind` said of the column.
        text: The owner column cast to text by the database.

    Returns:
        The same text that `canonical` gives for the value.

    Raises:
        OwnerRequiredError: The text is empty or not of the kind.
    """
    if kind == "int":
        if _INTEGER.fullmatch(text):
            return text
    elif kind == "uuid":
        try:
            parsed = str(uuid.UUID(text))
        except ValueError:
            parsed = ""
        if text.lower() in {parsed, parsed.replace("-", "")} and parsed:
            return parsed
    else:
        return _checked(text)
    if not text:
        return _checked(text)
    raise OwnerRequiredError(f"the owner stored in this row is not a canonical {kind}: correct the owner column")


def _checked(text: str) -> str:
    if not text:
        raise OwnerRequiredError(
            "the row's owner is empty: an encrypted value must have an owner (on MySQL and MariaDB this also appears "
            "when the value is longer than max_allowed_packet)"
        )
    if "\0" in text:
        raise OwnerRequiredError("the row's owner contains a NUL byte: owners are plain text")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise OwnerRequiredError("the row's owner holds lone surrogates: owners are plain text") from None
    return text
