# SPDX-License-Identifier: Apache-2.0
"""`sa-asherah doctor`."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click
from sqlalchemy import MetaData

from sa_asherah.cli.command import Command, Status, database_option, json_option
from sa_asherah.cli.deployment import Deployment, pass_deployment
from sa_asherah.cli.output import print_json, print_line, print_table
from sa_asherah.cli.plans import tables_of
from sa_asherah.config import Settings
from sa_asherah.doctor import KINDS, examine
from sa_asherah.errors import StaticKeyWarning

if TYPE_CHECKING:
    from collections.abc import Generator

    from sqlalchemy import Engine

    from sa_asherah.asherah import Asherah
    from sa_asherah.doctor import Findings

__all__ = ["doctor"]

_STYLES = {"error": "bold red", "warning": "yellow"}


@click.command(cls=Command)
@click.option(
    "--models",
    metavar="MODULE:NAME",
    required=True,
    help="A declarative base, MetaData, model or table: what the application encrypts.",
)
@click.option("--online", is_flag=True, help="Let the key service open the system keys, and examine it, too.")
@click.option("--batch", type=click.IntRange(min=1), default=500, show_default=True, help="Rows in a query.")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Findings of one code to show for each column; all are counted.",
)
@database_option
@json_option
@click.pass_context
@pass_deployment
def doctor(  # noqa: PLR0917 # click hands over the options
    deployment: Deployment,
    ctx: click.Context,
    models: str,
    online: bool,  # noqa: FBT001
    batch: int,
    limit: int,
    database: str | None,
    as_json: bool,  # noqa: FBT001
) -> None:
    """Examine keys and encrypted values: is everything there, whole, and where it belongs?

    Reads only, while the application runs, or a restored copy of its database. Without --online no key service is
    needed, and what could not be checked is named. Ends with status 1 if there is an error; warnings and notes do not
    count.
    """
    tables = tables_of(models)
    metadata = tables if isinstance(tables, MetaData) else tables.metadata
    with _subject(deployment, database) as (engine, subject), warnings.catch_warnings():
        warnings.simplefilter("ignore", StaticKeyWarning)  # whoever runs the command named it
        findings = examine(engine, subject, metadata, online=online, batch=batch, limit=limit)
    if as_json:
        print_json(findings.to_json())
    else:
        _print(findings)
    ctx.exit(_status(findings))


@contextmanager
def _subject(deployment: Deployment, database: str | None) -> Generator[tuple[Engine, Asherah | Settings]]:
    """Open the database of the data, which holds the key table, too, unless that is in DynamoDB."""
    if deployment.has_external_table:
        with deployment.attached(database) as (asherah, engine):
            yield engine, asherah
    else:
        with deployment.key_table(database) as keys:
            yield keys.engine, Settings.from_env(deployment.environ)


def _status(findings: Findings) -> Status:
    if findings.has_errors:
        return Status.FAILED
    return Status.NOTHING_FOUND if findings.is_empty else Status.DONE


def _print(findings: Findings) -> None:
    if findings.found:
        rows = [(each.level, each.code, str(each.place), each.text) for each in findings.found]
        print_table(("", "code", "place", "finding"), rows, _STYLES)
    if findings.counts.total() > len(findings.found):
        for code, count in findings.counts.items():
            print_line(f"{code}: {count} in all", _STYLES.get(KINDS[code].level, ""))
    for reason in findings.not_checked:
        print_line(f"Not checked: {reason}.", "yellow")
    print_line(
        f"{findings.tables} tables, {findings.rows} rows, {findings.values} encrypted values ({findings.opened} "
        f"opened), {findings.keys} keys; {findings.foreign} rows of the key table belong to others."
    )
    if findings.is_empty:
        print_line("Nothing found: check --models, --database, SERVICE_NAME and PRODUCT_ID.", "bold red")
    elif findings.is_healthy:
        print_line("Nothing is wrong with what was checked.", "green")
