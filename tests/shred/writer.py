# SPDX-License-Identifier: Apache-2.0
"""A process that writes for the same owners again and again, with a new key every second; ends when stdin does."""

from __future__ import annotations

import json
import os
import sys
import threading
from datetime import timedelta

from sqlalchemy.exc import OperationalError

from sa_asherah import AsherahError, OwnerErasedError
from sa_asherah.kms.vault import VaultTransitKMS
from tests.integration.records import Process


def main() -> None:
    """Write until stdin ends; print how many writes succeeded, how many were refused, and which other errors came."""
    url, seed, owners = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    ended = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    process = Process(
        url,
        VaultTransitKMS.from_env(os.environ),
        check_interval=timedelta(seconds=1),
        max_stale=timedelta(0),
        expire_after=timedelta(seconds=2),
        precision=timedelta(0),
        rotation_spread=timedelta(0),
        early_rotation=0,
    )
    told = {"written": 0, "refused": 0}
    others: set[str] = set()
    print("ready", flush=True)  # noqa: T201 # the parent waits for it
    number = seed
    while not ended.is_set():
        number += 1
        try:
            process.write(owners[number % len(owners)])
            told["written"] += 1
        except OwnerErasedError:
            told["refused"] += 1
        except (AsherahError, OperationalError) as error:
            others.add(type(error).__name__)
    print(json.dumps({**told, "others": sorted(others)}), flush=True)  # noqa: T201 # the outcome
    process.close()


if __name__ == "__main__":
    main()
