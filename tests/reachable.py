# SPDX-License-Identifier: Apache-2.0
"""What can be reached from an object: where a test looks for secrets."""

from __future__ import annotations

import gc
import types
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_ELSEWHERE = (types.ModuleType, types.FunctionType, types.CodeType, types.FrameType, types.TracebackType, type)


def texts(root: object, *elsewhere: type) -> Iterator[str]:
    """Give every text and every run of bytes that can be reached from an object.

    Args:
        root: Where to begin.
        elsewhere: Classes whose instances belong to something else and are not entered.
    """
    seen: set[int] = set()
    waiting: list[object] = [root]
    while waiting:
        found = waiting.pop()
        if id(found) in seen or isinstance(found, (*_ELSEWHERE, *elsewhere)):
            continue
        seen.add(id(found))
        if isinstance(found, str):
            yield found
        elif isinstance(found, bytes | bytearray):
            yield found.decode("latin-1")
        waiting.extend(gc.get_referents(found))
