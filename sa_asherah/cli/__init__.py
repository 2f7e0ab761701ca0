# SPDX-License-Identifier: Apache-2.0
"""The command line `sa-asherah`, one module for each group of commands; needs the extra `cli`.

Flask and Django mount the same commands: `sa_asherah.cli.root.cli` is a click group without state of its own. What it
works on is the `sa_asherah.cli.deployment.Deployment` in click's context, made from the environment if there is none.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec

__all__ = ["main"]


def main() -> None:
    """Run the command line with the arguments of the process, and exit."""
    missing = [name for name in ("click", "rich") if find_spec(name) is None]
    if missing:
        sys.stderr.write(f"sa-asherah needs {' and '.join(missing)}: pip install 'sa_asherah[cli]'\n")
        sys.exit(2)
    from sa_asherah.cli.root import cli  # noqa: PLC0415 # click and rich are an extra

    cli(prog_name="sa-asherah")
