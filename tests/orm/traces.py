# SPDX-License-Identifier: Apache-2.0
"""Where plaintext could stay behind: SQLAlchemy's caches of compiled statements."""

from __future__ import annotations

import gc
import types
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, Engine, MetaData, Table
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import Mapper
from sqlalchemy.pool import Pool

from tests.orm.models import CANARY, Base

if TYPE_CHECKING:
    from collections.abc import Iterator

_ELSEWHERE = (
    types.ModuleType, types.FunctionType, types.CodeType, types.FrameType, type,
    Engine, Dialect, Pool, Mapper, Table, Column, MetaData,
)  # fmt: skip


def assert_no_traces(engine: Engine) -> None:
    """Make sure that no cache of compiled statements holds a plaintext, however deep."""
    caches: list[Any] = [engine._compiled_cache, *(mapper._compiled_cache for mapper in Base.registry.mappers)]
    for cache in caches:
        for text in _texts(list(cache.items())):
            assert CANARY not in text, f"plaintext stayed in a statement cache: {text!r}"


def _texts(root: object) -> Iterator[str]:
    """Give every text that can be reached from an object."""
    seen: set[int] = set()
    waiting: list[object] = [root]
    while waiting:
        found = waiting.pop()
        if id(found) in seen or isinstance(found, _ELSEWHERE):
            continue
        seen.add(id(found))
        if isinstance(found, str):
            yield found
        elif isinstance(found, bytes | bytearray):
            yield found.decode("latin-1")
        waiting.extend(gc.get_referents(found))
