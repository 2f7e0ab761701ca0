# SPDX-License-Identifier: Apache-2.0
"""What an examination found."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from sa_asherah.doctor.kinds import KINDS, Level

__all__ = ["Finding", "Findings", "Place"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where something was found.

    Attributes:
        table: The table, with its schema; empty where it is about the key service.
        column: The column, `None` where it is about the row or the table.
        primary_key: The parts of the row's primary key; of a key its id and date. Empty where it is about more.
    """

    table: str
    column: str | None = None
    primary_key: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Write it for people."""
        column = "" if self.column is None else f".{self.column}"
        key = f" [{', '.join(self.primary_key)}]" if self.primary_key else ""
        return f"{self.table}{column}{key}"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be. It holds no value, no key and no ciphertext.

    Attributes:
        level: `error`, `warning` or `note`.
        code: A short name that stays the same; `docs/reference/findings-of-doctor.md` lists them.
        place: Where.
        text: What is the case and what to do.
    """

    level: Level
    code: str
    place: Place
    text: str


@dataclass(slots=True)
class Findings:
    """What an examination found, and what it looked at.

    Of each code in one column at most `limit` findings are kept; `counts` knows of all.

    Attributes:
        limit: How many of one code are kept for each column.
        found: The findings.
        counts: How many there are of each code, those not kept included.
        tables: How many tables with encrypted columns there are.
        rows: How many rows were read.
        values: How many encrypted values were looked at.
        opened: How many of them were opened.
        keys: How many keys of the settings' names there are.
        foreign: How many rows of the key table belong to others and were left alone.
        not_checked: What could not be checked, and why.
    """

    limit: int = 20
    found: list[Finding] = field(default_factory=list[Finding])
    counts: Counter[str] = field(default_factory=Counter[str])
    tables: int = 0
    rows: int = 0
    values: int = 0
    opened: int = 0
    keys: int = 0
    foreign: int = 0
    not_checked: list[str] = field(default_factory=list[str])
    _kept: Counter[tuple[str, str, str | None]] = field(default_factory=Counter[tuple[str, str, "str | None"]])

    @property
    def is_healthy(self) -> bool:
        """Whether nothing is worse than a note."""
        return all(KINDS[code].level == "note" for code in self.counts)

    @property
    def has_errors(self) -> bool:
        """Whether there is an error."""
        return any(KINDS[code].level == "error" for code in self.counts)

    @property
    def is_empty(self) -> bool:
        """Whether there was nothing to look at: no encrypted column, or neither a value nor a key."""
        return not self.tables or not (self.values or self.keys or self.counts)

    def add(self, code: str, place: Place, detail: str = "") -> None:
        """Note a finding.

        Args:
            code: Its code.
            place: Where.
            detail: What is particular about it; free of values, keys and ciphertext.
        """
        self.counts[code] += 1
        drawer = code, place.table, place.column
        self._kept[drawer] += 1
        if self._kept[drawer] <= self.limit:
            kind = KINDS[code]
            case = f"{kind.case} ({detail})" if detail else kind.case
            self.found.append(Finding(kind.level, code, place, f"{case}. {kind.advice}"))

    def to_json(self) -> dict[str, Any]:
        """Give all of it as what JSON can hold.

        Returns:
            An object.
        """
        return {
            "healthy": self.is_healthy,
            "tables": self.tables,
            "rows": self.rows,
            "values": self.values,
            "opened": self.opened,
            "keys": self.keys,
            "foreign": self.foreign,
            "not_checked": self.not_checked,
            "counts": dict(self.counts),
            "findings": [
                {
                    "level": finding.level,
                    "code": finding.code,
                    "table": finding.place.table,
                    "column": finding.place.column,
                    "primary_key": list(finding.place.primary_key),
                    "text": finding.text,
                }
                for finding in self.found
            ],
        }
