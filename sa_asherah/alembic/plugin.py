# SPDX-License-Identifier: Apache-2.0
"""What Alembic loads by the entry point `alembic.plugins`."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING

from alembic.util import DispatchPriority

from sa_asherah.alembic import comparison, conversion, copying, gate, metastore, rendering, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from alembic.runtime.plugins import Plugin

__all__ = ["setup"]

_OPERATIONS = (conversion, copying, gate, metastore, rendering, run)
"""The modules whose import makes `op.encrypt_column` and the others known."""


def setup(plugin: Plugin) -> None:
    """Take part in autogenerate; Alembic calls this when it is imported.

    Args:
        plugin: What Alembic knows this package by.
    """
    plugin.add_autogenerate_comparator(comparison.prepare, "schema", "sa_asherah", priority=DispatchPriority.FIRST)
    plugin.add_autogenerate_comparator(comparison.compare, "column", "sa_asherah", priority=DispatchPriority.LAST)
    plugin.add_autogenerate_comparator(comparison.complete, "schema", "sa_asherah", priority=DispatchPriority.LAST)


class _Plugin(ModuleType):
    """This module, of which Alembic before 1.20.1 wants to hear that it is several."""

    def __iter__(self) -> Iterator[ModuleType]:
        yield self


sys.modules[__name__].__class__ = _Plugin
