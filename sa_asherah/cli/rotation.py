# SPDX-License-Identifier: Apache-2.0
"""`sa-asherah rotate`."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from sa_asherah.cli.command import Command, database_option, dry_run_option, json_option
from sa_asherah.cli.deployment import Deployment, pass_deployment
from sa_asherah.cli.output import date_text, print_json, print_line

if TYPE_CHECKING:
    from sa_asherah.core.system_keys import Rotation

__all__ = ["rotate"]


@click.command(cls=Command)
@database_option
@click.option(
    "--ahead",
    metavar="DAYS",
    type=click.FloatRange(min=0),
    default=14,
    show_default=True,
    help="How long before the newest system key's end to make the next one.",
)
@click.option("--force", is_flag=True, help="Make one in any case.")
@dry_run_option
@json_option
@pass_deployment
def rotate(  # noqa: PLR0917 # click hands over the options
    deployment: Deployment,
    database: str | None,
    ahead: float,
    force: bool,  # noqa: FBT001
    dry_run: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
) -> None:
    """Make the next system key if the newest one ends soon.

    For a job, once a day, with a token that may encrypt. The application runs with ASHERAH_CREATE_SYSTEM_KEYS=0 and a
    token that may only decrypt, and takes the new key by itself. Its settings are read from the environment.
    """
    with deployment.system_keys(database) as system_keys:
        rotation = system_keys.rotate(ahead=timedelta(days=ahead), force=force, dry_run=dry_run)
    if as_json:
        print_json({**dataclasses.asdict(rotation), "dry_run": dry_run})
    else:
        print_line(_sentence(rotation, dry_run=dry_run))


def _sentence(rotation: Rotation, *, dry_run: bool) -> str:
    newest = f"system key {rotation.id} created {rotation.created} encrypts until {date_text(rotation.expires)}"
    if rotation.made:
        return f"Made: {newest}"
    if not rotation.due:
        return f"Nothing to do: {newest}"
    found = newest if rotation.created is not None else f"there is no system key {rotation.id}"
    return f"{'Dry run, a successor is due' if dry_run else 'Due'}: {found}"
