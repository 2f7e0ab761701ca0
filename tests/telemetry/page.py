# SPDX-License-Identifier: Apache-2.0
"""The tables of the page on events."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "events.md"


def rows(kind: str) -> list[dict[str, str]]:
    """Return the rows of the table whose first column has this heading, the first cell without its quotes."""
    found: list[dict[str, str]] = []
    heading: list[str] = []
    for line in PAGE.read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            heading = []
        elif not heading:
            heading = cells
        elif heading[0] == kind and not cells[0].startswith("--"):
            found.append(dict(zip(heading, [cells[0].strip("`"), *cells[1:]], strict=True)))
    assert found, kind
    return found


def names(cell: str) -> list[str]:
    """Return what stands in quotes in a cell."""
    return re.findall(r"`([^`]+)`", cell)
