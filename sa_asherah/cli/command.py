# SPDX-License-Identifier: Apache-2.0
"""What all commands have in common: options, exit status, and how errors end them."""

from __future__ import annotations

import enum
import json
from typing import Any

import click

from sa_asherah.errors import AsherahError, ConfigurationError, UsageError

__all__ = ["Command", "Group", "Status", "database_option", "dry_run_option", "json_option"]

database_option = click.option(
    "--database",
    metavar="URL",
    help="SQLAlchemy URL of the database that holds the key table. Default: ASHERAH_DATABASE_URL, which unlike an "
    "argument no other user of the host sees. Not needed with Metastore=dynamodb.",
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Do everything but write.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object, errors too.")


class Status(enum.IntEnum):
    """Exit status."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOTHING_FOUND = 3


class Command(click.Command):
    """A command that ends with one line, without traceback, where the package raises an error."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command.

        Args:
            ctx: Click's context.

        Returns:
            What the command returned.

        Raises:
            click.exceptions.Exit: The package raised an error.
        """
        found: AsherahError
        try:
            return super().invoke(ctx)
        except AsherahError as error:
            found = error
        # Not from within `except`: whoever mounts the commands may log causes.
        if ctx.params.get("as_json"):
            click.echo(json.dumps({"error": str(found), "type": type(found).__name__}))
        else:
            click.echo(f"Error: {' '.join(str(found).split())}", err=True)
        raise click.exceptions.Exit(
            Status.USAGE if isinstance(found, ConfigurationError | UsageError) else Status.FAILED
        )


class Group(click.Group):
    """A group of such commands."""

    command_class = Command
    group_class = type
