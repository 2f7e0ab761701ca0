# SPDX-License-Identifier: Apache-2.0
"""The rows of the tables of `docs/reference/statements.md`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sqlalchemy import exc

from sa_asherah import errors

PAGE: Final = Path(__file__).parents[2] / "docs" / "reference" / "statements.md"
_OUTCOME: Final = re.compile(r"works\b|not seen\b|`(\w+Error)`")


@dataclass(frozen=True)
class Row:
    """One way of reading, writing or mapping.

    Attributes:
        name: The first cell without backticks.
        says: The second cell.
    """

    name: str
    says: str

    @property
    def raises(self) -> type[Exception] | None:
        """The error that the second cell begins with, `None` if nothing is refused."""
        begins = _OUTCOME.match(self.says)
        assert begins, f"a second cell begins with `works`, `not seen` or an error in backticks, not: {self.says}"
        if begins[1] is None:
            return None
        error: type[Exception] = getattr(errors, begins[1], None) or getattr(exc, begins[1])
        return error


def rows() -> dict[str, Row]:
    """Read the page; names are unique on it."""
    found: dict[str, Row] = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if not line.startswith("|") or set(line) <= set("|- ") or line.endswith("| |"):
            continue
        name, says = (cell.strip() for cell in line.strip("|").replace("\\|", "¦").split("|"))
        name = name.replace("`", "")
        assert name not in found, f"two rows are called {name!r}"
        found[name] = Row(name, says)
    return found
