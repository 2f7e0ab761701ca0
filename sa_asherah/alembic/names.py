# SPDX-License-Identifier: Apache-2.0
"""Names of what migrations create, and their quotes."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from sqlalchemy import TextClause, text

if TYPE_CHECKING:
    from sqlalchemy.engine import Dialect

__all__ = ["limited", "quoted", "verbatim"]

_LONGEST = 63
"""PostgreSQL cuts what is longer; MySQL refuses above 64."""


def limited(name: str) -> str:
    """Make a name that every database takes as it is.

    Args:
        name: Any name.

    Returns:
        The name, its end replaced by a hash of it if it is too long.
    """
    if len(name.encode()) <= _LONGEST:
        return name
    kept = name.encode()[: _LONGEST - 9].decode(errors="ignore")
    return f"{kept}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def quoted(dialect: Dialect, *names: str | None) -> str:
    """Quote names for a statement.

    Args:
        dialect: The database's dialect.
        *names: Schema, table, column; what is `None` is left out.

    Returns:
        The quoted names, joined by dots.
    """
    quote = dialect.identifier_preparer.quote_identifier
    return ".".join(quote(name) for name in names if name is not None)


def verbatim(statement: str) -> TextClause:
    """Take a text for SQL in which no colon begins a parameter.

    Args:
        statement: The text.

    Returns:
        A clause.
    """
    return text(statement.replace(":", "\\:"))
