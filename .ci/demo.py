# SPDX-License-Identifier: Apache-2.0
"""Set up the package in an environment of its own and run the demo: `python3 .ci/demo.py`."""

from __future__ import annotations

import sys

from bootstrap import BootstrapError, find_interpreters, tox

if __name__ == "__main__":
    try:
        sys.exit(tox(["run", "-qq", "-e", "demo"], find_interpreters()))
    except BootstrapError as error:
        sys.exit(f"cannot set up: {error}")
