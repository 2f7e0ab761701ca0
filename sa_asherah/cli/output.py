# SPDX-License-Identifier: Apache-2.0
"""Prints what commands found: for people, or as one JSON object."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sa_asherah.cli.command import Status

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sa_asherah.core.rewrap import Problem, Report

__all__ = [
    "date_text",
    "print_bars",
    "print_json",
    "print_line",
    "print_problems",
    "print_report",
    "print_table",
    "status_of",
]


def print_json(members: Mapping[str, object]) -> None:
    """Print a JSON object.

    Args:
        members: Its members.
    """
    click.echo(json.dumps(members, indent=2))


def print_line(text: str, style: str = "") -> None:
    """Print a line of text, in a style where the terminal has it.

    Args:
        text: The text.
        style: Name of a style of rich.
    """
    Console().print(Text(text, style), soft_wrap=True)


def print_table(names: Sequence[str], rows: Iterable[Sequence[str]], styles: Mapping[str, str] | None = None) -> None:
    """Print a table.

    Args:
        names: The headings.
        rows: The cells of each row.
        styles: Style of a row by the text of its first cell.
    """
    table = Table(*names, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*map(Text, row), style=(styles or {}).get(row[0]))
    Console().print(table)


def print_bars(bars: Sequence[tuple[str, int, int]], names: tuple[str, str]) -> None:
    """Print a plot of bars, each of two parts.

    Args:
        bars: Name and parts of each.
        names: What the parts are.
    """
    console = Console()
    # Where the terminal knows no blocks, and where there are no colours, the parts still differ.
    full, light = ("█", "░") if "utf" in (console.encoding or "").lower() else ("#", "-")
    largest = max((one + other for _, one, other in bars), default=0)
    widest = max(len(name) for name, _, _ in bars)
    space = max(10, min(60, console.width - widest - 24))
    for name, one, other in bars:
        first, second = (round(space * part / largest) if largest else 0 for part in (one, other))
        # What there is must be seen, however little it is.
        line = Text(f"{name:>{widest}} ")
        line.append(full * max(first, one > 0), "green")
        line.append(light * max(second, other > 0), "dim")
        line.append(f" {one} + {other}")
        console.print(line, soft_wrap=True)
    console.print(Text(f"{'':>{widest}} {full} {names[0]}  {light} {names[1]}", "dim"), soft_wrap=True)


def date_text(seconds: float | None) -> str | None:
    """Write a date for people.

    Args:
        seconds: Seconds since 1970-01-01 UTC.

    Returns:
        ISO 8601 with `Z`, to the second; `None` for none.
    """
    if seconds is None:
        return None
    return datetime.fromtimestamp(int(seconds), UTC).replace(tzinfo=None).isoformat() + "Z"


def status_of(report: Report) -> Status:
    """Decide how a pass over the system keys ends.

    Args:
        report: What it found and did.

    Returns:
        The exit status.
    """
    if report.failed or report.late:
        return Status.FAILED
    return Status.DONE if report.found else Status.NOTHING_FOUND


def print_report(report: Report, *, as_json: bool) -> None:
    """Print what a pass over the system keys found and did.

    Args:
        report: The report.
        as_json: Whether as JSON.
    """
    if as_json:
        print_json({**dataclasses.asdict(report), "complete": report.is_complete})
        return
    moved = "to wrap anew" if report.dry_run else "wrapped anew"
    print_line(
        f"{report.found} system keys: {report.moved} {moved}, {report.already} already as wanted, {report.skipped} "
        f"retired and skipped, {len(report.failed)} failed"
    )
    print_problems("failed", report.failed)
    print_problems("appeared", report.late)
    if not report.found:
        print_line("Nothing found: check SERVICE_NAME, PRODUCT_ID, REGION_SUFFIX and the database.", "bold red")
    elif report.is_complete:
        print_line("Dry run: nothing was written." if report.dry_run else "Done: each opens to the same key.", "green")


def print_problems(what: str, problems: Iterable[Problem]) -> None:
    """Print what is wrong with keys, a line each.

    Args:
        what: What happened to them.
        problems: The keys and the reasons.
    """
    for problem in problems:
        place = f"{problem.id} created {problem.created} ({date_text(problem.created)})"
        print_line(f"{what}: {place}: {' '.join(problem.reason.split())}", "red")
