# SPDX-License-Identifier: Apache-2.0
"""The engine behind other forms of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["root_engine"]


def root_engine(engine: Engine | AsyncEngine) -> Engine:
    """Find the engine behind an asynchronous engine or an option clone.

    Args:
        engine: Any form of an engine.

    Returns:
        The engine whose listeners hear every statement, and whose options say where keys are.
    """
    found: Any = getattr(engine, "sync_engine", engine)
    while hasattr(found, "_proxied"):
        found = found._proxied  # noqa: SLF001 -- listeners of a clone would miss the root's statements
    return found  # type: ignore[no-any-return]
