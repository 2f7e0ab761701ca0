# SPDX-License-Identifier: Apache-2.0
"""A report as one HTML file: plots are inline SVG, nothing is fetched, light, dark and printed it can be read."""

from __future__ import annotations

import math
from collections import Counter
from datetime import UTC, datetime
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sa_asherah.reencrypt.report import Point, Report

__all__ = ["render"]

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 760, 250, 64, 12, 12, 30
_KEYS = 6
"""So many keys have a colour of their own; the others share one."""
_QUARANTINED = 500
_STATES = {
    "already": ("as wanted", 1),
    "converted": ("changed", 2),
    "left_over": ("to be changed", 3),
    "skipped": ("changed by others meanwhile", 4),
    "quarantined": ("not readable", 5),
}
# Colours that those who see no red or no green can tell apart, from dark to light so that a grey print shows them.
_STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1c2330; --soft: #5b6573; --line: #d5dae1; --card: #f5f7fa;
  --good: #0b6b3a; --bad: #a8201a; --c1: #1f4e79; --c2: #0f8b6d; --c3: #d9a400; --c4: #7a5aa6; --c5: #c8451b;
  --c6: #5aa9e6; --c7: #9aa3ae; }
@media (prefers-color-scheme: dark) { :root { --page: #12161c; --text: #e6eaf0; --soft: #a2adbb; --line: #38424f;
  --card: #1b212a; --good: #5fd39a; --bad: #ff8a7d; --c1: #6fa8dc; --c2: #3fbf9b; --c3: #f0c94a; --c4: #b79be0;
  --c5: #f0845c; --c6: #a8d5f7; --c7: #77818d; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 56rem; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .25rem; overflow-wrap: anywhere; }
h3 { font-size: 1rem; margin: 1.75rem 0 .5rem; } p { margin: .25rem 0; } .soft { color: var(--soft); }
.verdict { font-weight: 600; } .good { color: var(--good); } .bad { color: var(--bad); }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); gap: .5rem; margin: 1rem 0; }
dl div { background: var(--card); border: 1px solid var(--line); border-radius: .4rem; padding: .5rem .75rem; }
dt { color: var(--soft); font-size: .85rem; } dd { margin: 0; font-size: 1.15rem; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; } svg { display: block; width: 100%; min-width: 34rem; height: auto; }
svg text { fill: var(--soft); font: 12px system-ui, sans-serif; } .grid { stroke: var(--line); stroke-width: 1; }
.pass { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 4 3; }
svg path { stroke: var(--page); stroke-width: 1; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; list-style: none; margin: .5rem 0 0; padding: 0; }
.legend li { overflow-wrap: anywhere; }
.mark { display: inline-block; width: .8em; height: .8em; border-radius: .15em; margin-right: .4em; }
table { border-collapse: collapse; width: 100%; min-width: 34rem; font-size: .9rem; } th { text-align: left; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .75rem .3rem 0; vertical-align: top;
  overflow-wrap: break-word; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
code { font: .85rem ui-monospace, monospace; }
@media print { :root { color-scheme: light; --page: #fff; --text: #000; --soft: #333; --line: #999; --card: #fff;
  --good: #000; --bad: #000; --c1: #1f4e79; --c2: #0f8b6d; --c3: #d9a400; --c4: #7a5aa6; --c5: #c8451b; --c6: #5aa9e6;
  --c7: #9aa3ae; }
  body { max-width: none; padding: 0; font-size: 11pt; } svg { min-width: 0; }
  .mark, svg path, svg rect { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  h3, dl, figure, tr { break-inside: avoid; } h3 { break-after: avoid; } }
"""


class _Series(NamedTuple):
    """One area of a plot.

    Attributes:
        name: What it shows.
        colour: Number of its colour.
        values: Its height at each point.
    """

    name: str
    colour: int
    values: list[int]


def render(reports: Sequence[Report]) -> str:
    """Write reports as a page.

    Args:
        reports: The reports, one for each table.

    Returns:
        A whole HTML document. It holds names, counts and primary keys, never a value.
    """
    title = "Re-encryption" if len(reports) != 1 else f"Re-encryption: {reports[0].name}"
    made = datetime.now(UTC).replace(tzinfo=None).isoformat(" ", "seconds")
    body = "".join(_section(report) for report in reports) or '<p class="verdict bad">There was nothing to do.</p>'
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f'<h1>Re-encryption</h1><p class="soft">Made {made} UTC by sa_asherah</p>{body}</body></html>\n'
    )


def _section(report: Report) -> str:
    tables, columns = ", ".join(report.tables), ", ".join(report.columns)
    return (
        f"<section><h2>{escape(report.name)}</h2>"
        f'<p class="soft">{escape(report.kind.capitalize())} of {escape(tables)}: {escape(columns)}</p>'
        f"{_verdict(report)}{_facts(report)}"
        f"{_states(report)}{_keys(report)}{_balance(report)}{_quarantine(report)}</section>"
    )


def _verdict(report: Report) -> str:
    if report.kind == "dry run" and report.left is not None and not report.quarantined_rows:
        return f'<p class="verdict">Dry run: {_number(report.left)} rows would be changed, all can be read.</p>'
    if report.is_complete:
        looked = "every row was looked at," if report.kind == "run" else "of the rows looked at"
        return f'<p class="verdict good">✓ Complete: {looked} none is left, all can be read.</p>'
    reasons = [
        (not report.columns, "no column was named"),
        (report.left is None, "it was not looked to the end"),
        (bool(report.left), f"{_number(report.left or 0)} rows are left"),
        (bool(report.quarantined_rows), f"{_number(report.quarantined_rows)} rows cannot be read"),
        (report.ended is None, "it has not ended"),
    ]
    said = ", ".join(text for holds, text in reasons if holds)
    return f'<p class="verdict bad">✗ Not complete: {escape(said)}.</p>'


def _facts(report: Report) -> str:
    ended, started = report.ended, report.started
    facts = {
        "rows with a value": _number(report.found),
        "as wanted before": _number(report.already),
        "changed": _number(report.converted),
        "left": "unknown" if report.left is None else _number(report.left),
        "rows not readable": _number(report.quarantined_rows),
        "others were faster": _number(report.skipped_by_writers),
        "passes": _number(report.passes),
        "rows each second": _number(round(report.rows_per_second)),
        "took": _span((ended - started).total_seconds()) if started and ended else "not ended",
        "began (UTC)": _date(started),
    }
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    return f"<dl>{items}</dl>"


# Plots over time


def _states(report: Report) -> str:
    points = report.timeline
    series = [
        _Series(name, colour, [point.counts.get(state, 0) for point in points])
        for state, (name, colour) in _STATES.items()
    ]
    return _plot(
        "Rows by state over time",
        "rows of each pass as this process counted them; below, the numbers at the end",
        points,
        series,
    )


def _keys(report: Report) -> str:
    points = report.timeline
    total = Counter[str]()
    for point in points:
        total |= Counter(point.keys)
    colours = _colours(total)
    series = [_Series(name, colour, [point.keys.get(name, 0) for point in points]) for name, colour in colours.items()]
    others = [name for name in total if name not in colours]
    if others:
        values = [sum(point.keys.get(name, 0) for name in others) for point in points]
        series.append(_Series(f"{len(others)} other keys", _KEYS + 1, values))
    return _plot(
        "Values by key over time",
        "values of each pass as this process left them; below, the numbers at the end",
        points,
        series,
    )


def _colours(total: Mapping[str, int]) -> dict[str, int]:
    ranked = sorted(total, key=lambda name: (-total[name], name))
    if len(ranked) > _KEYS + 1:
        ranked = ranked[:_KEYS]
    return {name: number for number, name in enumerate(ranked, 1)}


def _plot(title: str, what: str, points: Sequence[Point], series: Sequence[_Series]) -> str:
    series = [each for each in series if any(each.values)]
    if len(points) < 2 or not series:  # noqa: PLR2004 # a line has two ends
        return ""
    ceiling = _ceiling(max(sum(column) for column in zip(*(each.values for each in series), strict=True)))
    end = max(point.seconds for point in points) or 1.0
    inner = f"{_grid(ceiling, end)}{_areas(points, series, ceiling, end)}{_passes(points, end)}"
    legend = "".join(
        f'<li><span class="mark" style="background:var(--c{each.colour})"></span>{escape(each.name)}: '
        f"{_number(each.values[-1])}</li>"
        for each in series
    )
    return (
        f'<figure style="margin:0"><h3>{escape(title)}</h3><p class="soft">{escape(what)}</p><div class="wide">'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">{inner}</svg></div>'
        f'<ul class="legend">{legend}</ul></figure>'
    )


def _x(seconds: float, end: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * seconds / end


def _y(value: float, ceiling: float) -> float:
    return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * value / ceiling


def _grid(ceiling: int, end: float) -> str:
    parts: list[str] = []
    for value in sorted({0, ceiling // 4, ceiling // 2, ceiling * 3 // 4, ceiling}):
        y = _y(value, ceiling)
        parts += [
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>',
            f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_number(value)}</text>',
        ]
    for step in range(5):
        seconds = end * step / 4
        anchor = "start" if step == 0 else "end" if step == 4 else "middle"  # noqa: PLR2004 # the last of them
        text = _span(seconds, end)
        parts.append(f'<text x="{_x(seconds, end):.1f}" y="{_HEIGHT - 8}" text-anchor="{anchor}">{text}</text>')
    return "".join(parts)


def _areas(points: Sequence[Point], series: Sequence[_Series], ceiling: int, end: float) -> str:
    below = [0] * len(points)
    parts: list[str] = []
    for each in series:
        above = [low + value for low, value in zip(below, each.values, strict=True)]
        upper = [f"{_x(point.seconds, end):.1f},{_y(value, ceiling):.1f}" for point, value in _pairs(points, above)]
        lower = [f"{_x(point.seconds, end):.1f},{_y(value, ceiling):.1f}" for point, value in _pairs(points, below)]
        path = " L".join(upper + lower[::-1])
        parts.append(f'<path d="M{path}Z" fill="var(--c{each.colour})"><title>{escape(each.name)}</title></path>')
        below = above
    return "".join(parts)


def _pairs(points: Sequence[Point], values: Sequence[int]) -> list[tuple[Point, int]]:
    return list(zip(points, values, strict=True))


def _passes(points: Sequence[Point], end: float) -> str:
    """Mark where the next pass began: its counts start again."""
    parts: list[str] = []
    number = 1
    for before, after in pairwise(points):
        if after.counts.get("found", 0) < before.counts.get("found", 0):
            number += 1
            x = _x(after.seconds, end)
            parts.append(f'<line class="pass" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
            parts.append(f'<text x="{x + 5:.1f}" y="{_TOP + 10}">pass {number}</text>')
    return "".join(parts)


# Tables


def _balance(report: Report) -> str:
    names = sorted({*report.keys_before, *report.keys_after})
    if not names:
        return ""
    widest = max([*report.keys_before.values(), *report.keys_after.values()]) or 1
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code></td>"
        + "".join(_cell(counts.get(name, 0), widest) for counts in (report.keys_before, report.keys_after))
        + "</tr>"
        for name in names
    )
    return (
        '<h3>Values by key, before and after</h3><div class="wide"><table><thead><tr><th>key</th>'
        '<th class="number">before</th><th></th><th class="number">after</th><th></th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _cell(number: int, widest: int) -> str:
    width = 120 * number / widest
    bar = f'<rect width="{max(width, 1.5) if number else 0:.1f}" height="10" y="4" fill="var(--c2)"/>'
    return (
        f'<td class="number">{_number(number)}</td><td><svg viewBox="0 0 120 18" '
        f'style="width:120px;min-width:0" aria-hidden="true">{bar}</svg></td>'
    )


def _quarantine(report: Report) -> str:
    if not report.quarantined:
        return ""
    shown = report.quarantined[:_QUARANTINED]
    rows = "".join(
        f"<tr><td>{escape(each.table)}</td><td><code>{escape(each.primary_key)}</code></td>"
        f"<td>{escape(each.column)}</td><td>{escape(each.reason)}</td></tr>"
        for each in shown
    )
    rest = "" if len(shown) == len(report.quarantined) else "; the table asherah_quarantine holds them all"
    return (
        f'<h3>Values that cannot be read</h3><p class="soft">{_number(len(shown))} of '
        f'{_number(report.quarantined_rows)} rows{rest}</p><div class="wide"><table><thead><tr><th>table</th>'
        f"<th>primary key</th><th>column</th><th>reason</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )


# Numbers and dates


def _number(value: int) -> str:
    return f"{value:,}"


def _ceiling(value: int) -> int:
    """Round up to what divides well by four."""
    step: int = 10 ** max(0, math.floor(math.log10(max(1, value))))
    for factor in (1, 2, 4, 8, 10):
        if factor * step >= value and factor * step >= 4:  # noqa: PLR2004 # four lines
            return factor * step
    return 20 * step


def _span(seconds: float, scale: float | None = None) -> str:
    """Write a duration, in the unit that fits another one."""
    scale = seconds if scale is None else scale
    for unit, name in ((3_600, "h"), (60, "min")):
        if scale >= unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds:.3g} s"


def _date(moment: datetime | None) -> str:
    return "unknown" if moment is None else moment.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "minutes")
