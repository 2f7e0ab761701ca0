# SPDX-License-Identifier: Apache-2.0
"""`sa-asherah demo`."""

from __future__ import annotations

import io
from contextlib import redirect_stdout

import click

from sa_asherah import demo as program
from sa_asherah.cli.command import Command, json_option
from sa_asherah.cli.output import print_json

__all__ = ["demo"]


@click.command(cls=Command)
@json_option
@click.pass_context
def demo(ctx: click.Context, as_json: bool) -> None:  # noqa: FBT001
    """Show a small encrypted patient registry from both sides; needs no settings and leaves nothing behind."""
    if not as_json:
        ctx.exit(program.main())
    shown = io.StringIO()
    with redirect_stdout(shown):
        status = program.main()
    print_json({"passed": status == 0, "lines": shown.getvalue().splitlines()})
    ctx.exit(status)
