# SPDX-License-Identifier: Apache-2.0
"""A process that writes for an owner of long and ever new ones, and notes what was committed; ends with its stdin."""

from __future__ import annotations

import json
import os
import sys
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy.exc import OperationalError

from sa_asherah import AsherahError
from sa_asherah.kms.vault import VaultTransitKMS
from tests.integration.records import Process

CLOCKED: dict[str, Any] = {"check_interval": timedelta(seconds=1), "max_stale": timedelta(0)}
"""How soon processes look at the key table again, so that an epoch need not wait for long."""


def main() -> None:
    """Write until stdin ends; a line of the file for every note, and at the end one with what failed."""
    url, name, pause = sys.argv[1], sys.argv[2], float(sys.argv[4])
    ended = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    process = Process(url, VaultTransitKMS.from_env(os.environ), **CLOCKED)
    errors: set[str] = set()
    number = 0
    with Path(sys.argv[3]).open("w", encoding="utf-8") as file:
        while not ended.wait(pause):
            number += 1
            owner = "bob" if number % 3 == 0 else f"{name}-{number}"
            try:
                note = process.write(owner)
            except (AsherahError, OperationalError) as error:
                errors.add(f"{type(error).__name__}: {error}")
                continue
            print(json.dumps([owner, note]), file=file, flush=True)
        print(json.dumps(sorted(errors)), file=file, flush=True)
    process.close()


if __name__ == "__main__":
    main()
