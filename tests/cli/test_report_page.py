# SPDX-License-Identifier: Apache-2.0
"""The report as a page: nothing is fetched, nothing is run, and the plots show the numbers of the report."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import pytest

from sa_asherah.reencrypt.page import render
from sa_asherah.reencrypt.report import Point, Quarantined, Report

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
ATTACK = "<script>alert(1)</script>\"' onload=x"
VOID = {"meta", "line", "rect", "path"}


def points() -> list[Point]:
    first = [
        Point(n / 2, {"found": 10 * n, "already": n, "converted": 9 * n}, {"old": n, "new": 9 * n}) for n in range(9)
    ]
    second = [Point(5 + n / 2, {"found": 10 * n, "already": 10 * n}, {"new": 10 * n}) for n in range(9)]
    return first + second


def report(**changed: Any) -> Report:
    given: dict[str, Any] = {
        "kind": "run",
        "found": 80,
        "already": 8,
        "converted": 72,
        "left": 0,
        "keys_before": {"plaintext": 72, "old": 8},
        "keys_after": {"new": 80},
        "started": NOW,
        "ended": NOW + timedelta(seconds=90),
        "rows_per_second": 17.8,
        "passes": 2,
        "timeline": points(),
    }
    return Report("patients: ssn", ["patients"], ["ssn"], **{**given, **changed})


class Page(HTMLParser):
    """Holds a page to its own tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID or tag == "path":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_nothing_is_fetched_or_run_whatever_the_report_holds() -> None:
    attack = report(
        timeline=[Point(point.seconds, point.counts, {ATTACK: 1}) for point in points()],
        keys_after={ATTACK: 1},
        quarantined=[Quarantined(ATTACK, ATTACK, ATTACK, ATTACK)],
        quarantined_rows=1,
    )
    attack.name = ATTACK
    attack.tables = attack.columns = [ATTACK]
    page = Page(render([attack]))
    assert {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "a", "form"} == set()
    names = {name for _, attributes in page.tags for name in attributes}
    assert not [name for name in names if name.startswith("on") or name in {"src", "href"}]
    assert "default-src 'none'" in str(page.tags)
    assert "url(" not in render([attack])
    assert "@import" not in render([attack])
    assert ATTACK in " ".join(page.texts)


def test_it_is_for_light_and_dark_and_paper() -> None:
    page = render([report()])
    for rule in ("color-scheme: light dark", "prefers-color-scheme: dark", "@media print", "print-color-adjust: exact"):
        assert rule in page


def test_the_areas_stand_on_each_other_and_end_where_the_counts_do() -> None:
    page = render([report()])
    svg = page.split('aria-label="Rows by state over time"')[1].split("</svg>")[0]
    areas = [
        [tuple(map(float, pair.split(","))) for pair in path.strip("MZ").split(" L")]
        for path in re.findall(r'<path d="([^"]*)"', svg)
    ]
    assert len(areas) == 2
    count = len(points())
    lower, upper = areas
    assert upper[count:][::-1] == lower[:count]
    labels = re.findall(r'y="([\d.]+)" text-anchor="end">([\d,]+)<', svg)
    scale = {int(number.replace(",", "")): float(y) - 4 for y, number in labels}
    # 80 of the axis's 80: the second pass found all of them as wanted.
    assert upper[count - 1][1] == pytest.approx(scale[max(scale)], abs=0.2)
    assert max(scale) == 80
    assert "pass 2" in svg


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({}, "Complete: every row was looked at"),
        ({"kind": "verify"}, "Complete: of the rows looked at none"),
        ({"left": 3}, "3 rows are left"),
        ({"left": None, "ended": None}, "it was not looked to the end, it has not ended"),
        ({"quarantined_rows": 1234}, "1,234 rows cannot be read"),
    ],
)
def test_the_verdict_is_the_reports(changed: dict[str, Any], text: str) -> None:
    page = render([report(**changed)])
    assert text in page
    assert ("Not complete" in page) == (not text.startswith("Complete"))


def test_a_dry_run_is_neither_done_nor_a_failure_unless_a_value_cannot_be_read() -> None:
    page = render([report(kind="dry run", left=72, converted=0)])
    assert "72 rows would be changed" in page
    assert "omplete" not in page
    assert "Not complete" in render([report(kind="dry run", left=72, quarantined_rows=1)])


def test_many_keys_share_a_colour_and_few_points_are_no_plot() -> None:
    keys = {f"key {n}": 10 - n % 10 for n in range(30)}
    page = render([report(timeline=[Point(1.0, {"found": 1}, keys), Point(2.0, {"found": 2}, keys)], keys_after=keys)])
    assert "24 other keys" in page
    assert all(name in page for name in keys)
    assert "<figure" not in render([report(timeline=points()[:1])])
    assert "nothing to do" in render([])
