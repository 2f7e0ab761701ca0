# SPDX-License-Identifier: Apache-2.0
"""`sa-asherah demo`."""

from __future__ import annotations

import click

from sa_asherah import demo as program
from sa_asherah.cli.command import Command

__all__ = ["demo"]


@click.command(cls=Command)
@click.pass_context
def demo(ctx: click.Context) -> None:
    """Show a small encrypted patient registry from both sides; needs no settings and leaves nothing behind."""
    ctx.exit(program.main())
