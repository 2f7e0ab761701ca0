# SPDX-License-Identifier: Apache-2.0
"""The reference page names every code and every planted damage, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from sa_asherah.doctor import KINDS
from tests.doctor.damages import DAMAGES

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "findings-of-doctor.md"
DATABASES = {"sqlite": "SQLite", "postgresql": "PostgreSQL", "mariadb": "MariaDB"}
WITHOUT_DAMAGE = {"value-erased", "canary-failed", "vault", "vault-error"}
"""Follows from a damage of the list, or is planted in a key service: see `test_online`."""


def rows() -> list[tuple[str, ...]]:
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    return [tuple(cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]) for line in lines]


def test_every_code_is_on_the_page_as_the_source_has_it_and_no_other() -> None:
    shown = {row for row in rows() if row[0].startswith("`")}
    assert shown == {(f"`{code}`", kind.level, kind.case, kind.advice) for code, kind in KINDS.items()}


def test_every_planted_damage_is_on_the_page_and_no_other() -> None:
    shown = [row for row in rows() if len(row) == 3 and row[0] != "damage"]
    wanted = [
        (
            each.name,
            f"`{each.code}`",
            "all" if len(each.databases) == 3 else ", ".join(DATABASES[name] for name in each.databases),
        )
        for each in DAMAGES
    ]
    assert shown == wanted
    assert len(wanted) >= 30


def test_every_code_has_a_damage() -> None:
    assert {each.code for each in DAMAGES} | WITHOUT_DAMAGE == set(KINDS)
