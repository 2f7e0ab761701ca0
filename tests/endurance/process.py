# SPDX-License-Identifier: Apache-2.0
"""Programs of the tests as processes of their own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

_ROOT = Path(__file__).parents[2]
_START = (
    "import runpy, sys; sys.path.append(sys.argv[1]); del sys.argv[:2]; "
    "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
)


def command(program: ModuleType, *arguments: object) -> list[str]:
    """Return how to run a module of the tests as a program.

    The checkout is the last place to import from: `tests` is found there, and `sa_asherah` where it is installed.
    """
    return [sys.executable, "-c", _START, str(_ROOT), program.__name__, *map(str, arguments)]
