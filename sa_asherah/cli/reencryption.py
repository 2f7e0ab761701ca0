# SPDX-License-Identifier: Apache-2.0
"""`sa-asherah reencrypt` and `sa-asherah verify`."""

from __future__ import annotations

import dataclasses
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sa_asherah.cli.command import Command, Status, confirm, database_option, dry_run_option, json_option, yes_option
from sa_asherah.cli.deployment import Deployment, pass_deployment
from sa_asherah.cli.output import print_json, print_line, print_table
from sa_asherah.cli.plans import plan_options, plans_of
from sa_asherah.cli.progress import shown
from sa_asherah.errors import UsageError
from sa_asherah.orm.types import Encrypted
from sa_asherah.reencrypt.job import Job
from sa_asherah.reencrypt.page import render

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from sa_asherah.reencrypt.plan import Plan
    from sa_asherah.reencrypt.report import Estimate, Report

__all__ = ["reencrypt", "verify"]

_SHOWN = 20

html_option = click.option("--html", metavar="FILE", help="Write the report as a page with plots, too.")


@click.command(cls=Command)
@plan_options
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Threads of this process.")
@click.option("--batch", type=click.IntRange(min=1), default=500, show_default=True, help="Rows in a transaction.")
@click.option(
    "--rows-per-second", type=click.FloatRange(min=0, min_open=True), help="At most so many, in this process."
)
@click.option("--estimate", is_flag=True, help="Only look at a sample, and say how long it would take.")
@html_option
@database_option
@yes_option
@dry_run_option
@json_option
@click.pass_context
@pass_deployment
def reencrypt(  # noqa: PLR0913, PLR0917 # click hands over the options
    deployment: Deployment,
    ctx: click.Context,
    /,
    workers: int,
    batch: int,
    rows_per_second: float | None,
    estimate: bool,  # noqa: FBT001
    html: str | None,
    database: str | None,
    yes: bool,  # noqa: FBT001
    dry_run: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
    **options: Any,
) -> None:
    r"""Encrypt live data, or bring it to other types and newer keys, while the application runs.

    \b
    sa-asherah reencrypt --models app.models:Base
    sa-asherah reencrypt --table notes --column text \
      --from 'Text()' --type 'Encrypted(String(), owner="tenant", storage="text")'

    Interrupted or killed, start it again: it goes on where it stopped. Start it on several hosts at once, and they
    share the work through the database. The status is 0 only if every row was looked at, none is left and all can be
    read; rows that cannot be read are listed in the table asherah_quarantine, and the rest goes on.
    """
    if estimate and (dry_run or html):
        raise UsageError("--estimate looks at a sample only: leave out --dry-run and --html")
    settings = {"workers": workers, "batch": batch, "rows_per_second": rows_per_second}
    with _jobs(deployment, database, options, settings, as_json=as_json) as jobs:
        if estimate:
            _print_estimates([job.estimate() for _, job in jobs], as_json=as_json)
            return
        if not dry_run:
            plain = [
                f"{plan.table.name}.{change.goal}"
                for plan, _ in jobs
                for change in plan.changes
                if not isinstance(change.target, Encrypted)
            ]
            if plain:
                confirm(f"{', '.join(plain)} will be stored in plaintext.", yes=yes, as_json=as_json)
        reports = [job.dry_run() if dry_run else job.run() for _, job in jobs]
    _finish(ctx, reports, html, as_json=as_json)


@click.command(cls=Command)
@plan_options
@click.option(
    "--sample",
    type=click.FloatRange(min=0, max=1, min_open=True),
    default=1.0,
    show_default=True,
    help="The share of the rows to read, chosen at random.",
)
@click.option("--batch", type=click.IntRange(min=1), default=500, show_default=True, help="Rows in a query.")
@html_option
@database_option
@json_option
@click.pass_context
@pass_deployment
def verify(  # noqa: PLR0917 # click hands over the options
    deployment: Deployment,
    ctx: click.Context,
    /,
    sample: float,
    batch: int,
    html: str | None,
    database: str | None,
    as_json: bool,  # noqa: FBT001
    **options: Any,
) -> None:
    """Read rows back and open every value as the type wanted; write nothing.

    Says which values are not as wanted and which cannot be read, and counts values by key. Takes the options of
    sa-asherah reencrypt.
    """
    with _jobs(deployment, database, options, {"batch": batch}, as_json=as_json) as jobs:
        reports = [job.verify(sample) for _, job in jobs]
    _finish(ctx, reports, html, as_json=as_json)


@contextmanager
def _jobs(
    deployment: Deployment,
    database: str | None,
    options: dict[str, Any],
    settings: dict[str, Any],
    *,
    as_json: bool,
) -> Generator[list[tuple[Plan, Job]]]:
    with deployment.attached(database) as (asherah, engine):
        plans = plans_of(engine, deployment.environ, options)
        with shown(as_json=as_json) as progress:
            yield [(plan, Job(engine, asherah, plan, progress=progress, **settings)) for plan in plans]


def _finish(ctx: click.Context, reports: Sequence[Report], html: str | None, *, as_json: bool) -> None:
    if html is not None:
        _write(html, render(reports))
    if as_json:
        complete = all(report.is_complete for report in reports)
        print_json({"reports": [report.to_dict() for report in reports], "complete": complete})
    else:
        for report in reports:
            _print(report)
        if html is not None:
            print_line(f"The report with plots: {html}")
    ctx.exit(_status(reports))


def _status(reports: Sequence[Report]) -> Status:
    # What a dry run would change is no failure; what it could not read is.
    if any(report.quarantined_rows or not (report.is_complete or report.kind == "dry run") for report in reports):
        return Status.FAILED
    return Status.DONE if any(report.found for report in reports) else Status.NOTHING_FOUND


def _print(report: Report) -> None:
    left = "unknown" if report.left is None else str(report.left)
    if report.kind == "run":
        done = f"{report.converted} changed in {report.passes} passes, {left} left"
    else:
        done = f"{left} {'to be changed' if report.kind == 'dry run' else 'not as wanted'}"
    print_line(
        f"{report.name}: {report.found} rows, {report.already} as wanted before, {done}, {report.quarantined_rows} not "
        f"readable, {report.rows_per_second:,.0f} rows/s"
    )
    _print_keys(report)
    for each in report.quarantined[:_SHOWN]:
        print_line(f"not readable: {each.table} {each.primary_key} {each.column}: {each.reason}", "red")
    if len(report.quarantined) > _SHOWN:
        print_line("… and more: see --json, or after a run the table asherah_quarantine", "red")
    print_line(*_verdict(report))


def _print_keys(report: Report) -> None:
    names = sorted({*report.keys_before, *report.keys_after})
    if report.kind == "run":
        rows = [(name, str(report.keys_before.get(name, 0)), str(report.keys_after.get(name, 0))) for name in names]
        print_table(("values by key", "before", "after"), rows)
    else:
        print_table(("values by key", ""), [(name, str(report.keys_after.get(name, 0))) for name in names])


def _verdict(report: Report) -> tuple[str, str]:
    if report.kind == "dry run":
        return "Dry run: nothing was written.", "yellow" if report.quarantined_rows else "green"
    if not report.is_complete:
        return "Not complete: " + _advice(report), "bold red"
    if not report.found:
        return "Nothing found: no row has a value.", "yellow"
    return "All that was read is as wanted." if report.kind == "verify" else "Complete.", "green"


def _advice(report: Report) -> str:
    if report.left is None:
        return "it was not looked to the end; start it again, it goes on where it stopped."
    if report.quarantined_rows:
        return "correct or delete the rows that cannot be read, and start it again."
    if report.kind == "verify":
        return "some values are not as wanted; start sa-asherah reencrypt."
    return "writers keep adding old values; deploy code that writes the new form everywhere, and start it again."


def _print_estimates(estimates: Sequence[Estimate], *, as_json: bool) -> None:
    if as_json:
        print_json({"estimates": [dataclasses.asdict(each) for each in estimates]})
        return
    for each in estimates:
        print_line(
            f"{each.name}: {each.rows} rows, about {each.to_convert} to be changed; a sample of {each.sampled} went at "
            f"{each.rows_per_second:,.0f} rows/s, so one worker takes {timedelta(seconds=round(each.seconds))} and the "
            "time to write"
        )
        if each.unreadable:
            print_line(f"{each.unreadable} rows of the sample cannot be read: see --dry-run", "red")


def _write(file: str, page: str) -> None:
    reason = ""
    try:
        Path(file).write_text(page, encoding="utf-8")
    except OSError as error:
        reason = error.strerror or type(error).__name__
    else:
        return
    raise UsageError(f"{file} cannot be written: {reason}")
