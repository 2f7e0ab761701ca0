# SPDX-License-Identifier: Apache-2.0
"""Owner text: one canonical form per kind of owner column, the same from a Python value and from SQL text."""

from __future__ import annotations

import enum
import re
import uuid
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa

from sa_asherah.errors import ConfigurationError, OwnerRequiredError

if TYPE_CHECKING:
    from sqlalchemy.types import TypeEngine

__all__ = ["OwnerKind", "canonical", "canonical_text", "owner_kind"]

OwnerKind = Literal["int", "str", "uuid", "enum"]

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
    type_: TypeEngine[Any] = column.type
    if isinstance(type_, sa.Integer):
        return "int"
    if isinstance(type_, sa.Uuid):
        return "uuid"
    if isinstance(type_, sa.Enum):
        if type_.enum_class is not None and type_.values_callable is not None:
            raise ConfigurationError(
                f"owner column {column} is an Enum with values_callable: its stored text is not the member's name; "
                "use a plain Enum, or an Integer, String or Uuid column as owner"
            )
        return "enum"
    if isinstance(type_, sa.String) and not isinstance(type_, sa.CHAR):
        return "str"
    raise ConfigurationError(
        f"owner column {column} has type {type(type_).__name__}, which has no canonical text; "
        "an owner column is an Integer, String (not CHAR), Uuid or Enum column"
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
    return text
