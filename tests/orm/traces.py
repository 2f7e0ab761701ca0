# SPDX-License-Identifier: Apache-2.0
"""Where plaintext could stay behind: SQLAlchemy's caches of compiled statements."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, Engine, MetaData, Table
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import Mapper
from sqlalchemy.pool import Pool

from tests.orm.models import CANARY, Base
from tests.reachable import texts

_ELSEWHERE = (Engine, Dialect, Pool, Mapper, Table, Column, MetaData)


def assert_no_traces(engine: Engine) -> None:
    """Make sure that no cache of compiled statements holds a plaintext, however deep."""
    caches: list[Any] = [engine._compiled_cache, *(mapper._compiled_cache for mapper in Base.registry.mappers)]
    for cache in caches:
        for text in texts(list(cache.items()), *_ELSEWHERE):
            assert CANARY not in text, f"plaintext stayed in a statement cache: {text!r}"
