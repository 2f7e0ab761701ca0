# SPDX-License-Identifier: Apache-2.0
"""One SQLite file used by both implementations: ours in this process, the package in its own."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, create_engine

from sa_asherah import Asherah
from sa_asherah.kms import StaticKMS

PROGRAM = Path(__file__).parent / "package.py"
MASTER_KEY = bytes(range(32))
GUARD = "__asherah_internal_config_drift_guard_v1__:"


@dataclass(frozen=True)
class SharedFile:
    """A folder with the file `keys.sqlite`, and the names under which both implementations use it.

    Attributes:
        folder: The folder.
        service: Service name.
        suffix: Region suffix, empty for none.
    """

    folder: Path
    service: str = "svc"
    suffix: str = ""

    @contextlib.contextmanager
    def ours(self, *, peers: bool = True, clock: Callable[[], float] = time.time) -> Generator[tuple[Asherah, Engine]]:
        """Our implementation, attached to an engine of the file.

        Args:
            peers: Whether records without `Bind` are accepted.
            clock: The time.
        """
        engine = create_engine(URL.create("sqlite", database=str(self.folder / "keys.sqlite")))
        kms = StaticKMS(MASTER_KEY, environ={})
        with Asherah(self.service, "prod", kms, region_suffix=self.suffix, peers=peers, clock=clock) as asherah:
            asherah.attach(engine)
            asherah.create_metastore(engine)
            yield asherah, engine
        engine.dispose()

    def encrypt(self, *items: tuple[str, bytes]) -> list[str]:
        """Encrypt with the package.

        Args:
            *items: Partitions and payloads.

        Returns:
            Data row records.
        """
        requests = [("encrypt", partition, base64.b64encode(payload).decode()) for partition, payload in items]
        return [_succeeded(result) for result in self.ask(*requests)]

    def decrypt(self, *items: tuple[str, str]) -> list[bytes]:
        """Decrypt with the package.

        Args:
            *items: Partitions and data row records.

        Returns:
            Payloads.
        """
        requests = [("decrypt", partition, record) for partition, record in items]
        return [base64.b64decode(_succeeded(result)) for result in self.ask(*requests)]

    def ask(self, *requests: tuple[str, str, str]) -> list[tuple[bool, str]]:
        """Ask a fresh process of the package.

        Args:
            *requests: Operation, partition, and base64 or record.

        Returns:
            Whether it went well, and the result or the error.
        """
        environment = {
            "PATH": os.environ["PATH"],
            "Metastore": "sqlite",
            "SQLITE_PATH": "keys.sqlite",
            "SERVICE_NAME": self.service,
            "PRODUCT_ID": "prod",
            "REGION_SUFFIX": self.suffix,
            "KMS": "static",
            "STATIC_MASTER_KEY_HEX": MASTER_KEY.hex(),
        }
        done = subprocess.run(
            [sys.executable, str(PROGRAM)],
            cwd=self.folder,
            env=environment,
            input=json.dumps(requests).encode(),
            capture_output=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr.decode()
        return [(bool(good), str(text)) for good, text in json.loads(done.stdout)]

    def rows(self, start: str = "_") -> list[tuple[str, str, dict[str, Any]]]:
        """Read the key table.

        Args:
            start: Start of the ids that are wanted.

        Returns:
            Id, date and record of each row, in order.
        """
        query = "SELECT id, CAST(created AS TEXT), key_record FROM encryption_key ORDER BY id, created"
        with closing(sqlite3.connect(self.folder / "keys.sqlite")) as connection:
            rows = connection.execute(query).fetchall()
        return [(id_, created, json.loads(record)) for id_, created, record in rows if id_.startswith(start)]


def _succeeded(result: tuple[bool, str]) -> str:
    good, text = result
    assert good, text
    return text
