# SPDX-License-Identifier: Apache-2.0
"""`python -m sa_asherah`: the command line."""

from __future__ import annotations

from sa_asherah.cli import main

if __name__ == "__main__":
    main()
