# SPDX-License-Identifier: Apache-2.0
"""What all commands have in common: options, exit status, and how errors end them."""

from __future__ import annotations

import enum
import json
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from sa_asherah.errors import AsherahError, ConfigurationError, UsageError

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

__all__ = [
    "Command",
    "Group",
    "Status",
    "confirm",
    "database_option",
    "dry_run_option",
    "json_option",
    "yes_option",
]

database_option = click.option(
    "--database",
    metavar="URL",
    help="SQLAlchemy URL of the database that holds the key table and the data. Default: ASHERAH_DATABASE_URL, which "
    "unlike an argument no other user of the host sees. With Metastore=dynamodb it holds the data only, and what works "
    "on keys alone needs none.",
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Do everything but write.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask; needed where nobody can be asked, and with --json.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object, errors too.")


class Status(enum.IntEnum):
    """Exit status."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOTHING_FOUND = 3


class Command(click.Command):
    """A command that ends with one line, without traceback, where the package raises an error."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments.

        Args:
            ctx: Click's context.
            args: The arguments.

        Returns:
            Those that are left.
        """
        with _json_errors(args):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> int:
        """Run the command.

        Args:
            ctx: Click's context.

        Returns:
            The exit status, for a program that calls it with `standalone_mode=False`.

        Raises:
            click.exceptions.Exit: The package raised an error.
        """
        found: AsherahError
        try:
            super().invoke(ctx)
        except AsherahError as error:
            found = error
        else:
            return Status.DONE
        # Not from within `except`: whoever mounts the commands may log causes.
        if ctx.params.get("as_json"):
            _print_error(str(found), type(found).__name__)
        else:
            click.echo(f"Error: {' '.join(str(found).split())}", err=True)
        raise click.exceptions.Exit(
            Status.USAGE if isinstance(found, ConfigurationError | UsageError) else Status.FAILED
        )


@contextmanager
def _json_errors(args: Sequence[str]) -> Generator[None]:
    """Print what click says of wrong arguments as JSON where they ask for it."""
    as_json, found = "--json" in args, ""
    try:
        yield
    except click.UsageError as error:
        if not as_json:
            raise
        found = error.format_message()
    if found:
        _print_error(found, UsageError.__name__)
        raise click.exceptions.Exit(Status.USAGE)


def _print_error(text: str, kind: str) -> None:
    click.echo(json.dumps({"error": text, "type": kind}))


def confirm(question: str, *, yes: bool, as_json: bool) -> None:
    """Ask before something is done that cannot be undone.

    Args:
        question: What will be done.
        yes: Whether `--yes` was given.
        as_json: Whether the output is JSON, in which no question has room.

    Raises:
        UsageError: Nobody can be asked.
        click.Abort: The answer is no.
    """
    if yes:
        return
    if as_json or not sys.stdin.isatty():
        raise UsageError(f"{question} This cannot be undone: give --yes if you mean it, or look first with --dry-run")
    click.confirm(f"{question} This cannot be undone. Go on?", abort=True, err=True)


class Group(click.Group):
    """A group of such commands."""

    command_class = Command
    group_class = type

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is named.

        Args:
            ctx: Click's context.
            args: The arguments.

        Returns:
            Its name, the command, and the arguments that are left.
        """
        with _json_errors(args):
            return super().resolve_command(ctx, args)
