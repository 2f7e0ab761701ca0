# SPDX-License-Identifier: Apache-2.0
"""An application whose keys lie in a real database and under a real Vault, and the command line beside it."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, field
from typing import Any

from click.testing import CliRunner
from sqlalchemy import create_engine, text

from sa_asherah.cli.deployment import Deployment
from sa_asherah.cli.root import cli
from sa_asherah.config import Settings
from sa_asherah.core.ports import KeyManagementService
from sa_asherah.errors import StaticKeyWarning
from tests.integration.records import Process

START = 1_800_000_000
DAY = 86_400
STATIC_KEY = "5a" * 32
BASE = {
    "SERVICE_NAME": "records",
    "PRODUCT_ID": "clinic",
    "KMS": "static",
    "STATIC_MASTER_KEY_HEX": STATIC_KEY,
}


@dataclass
class Outcome:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """What `--json` printed."""
        found: dict[str, Any] = json.loads(self.out)
        return found


def run(environ: dict[str, str], *arguments: str) -> Outcome:
    """Run a command within this process."""
    result = CliRunner().invoke(cli, arguments, obj=Deployment(environ), prog_name="sa-asherah", catch_exceptions=False)
    return Outcome(result.exit_code, result.stdout, result.stderr)


@dataclass
class Site:
    """One service with its database."""

    url: str
    environ: dict[str, str]
    notes: list[str] = field(default_factory=list[str])
    now: float = START

    def run(self, *arguments: str, **environ: str) -> Outcome:
        """Run a command."""
        return run({**self.environ, **environ}, *arguments)

    def kms(self, name: str, previous: str = "") -> KeyManagementService:
        """Open a key service as the application does."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", StaticKeyWarning)
            return Settings.from_env({**self.environ, "KMS": name, "KMS_PREVIOUS": previous}).open_kms()

    def start(self, name: str, previous: str = "", **options: Any) -> Process:
        """Start a process of the application."""
        return Process(self.url, self.kms(name, previous), clock=lambda: self.now, **options)

    def live(self, name: str, system_keys: int = 3) -> None:
        """Write notes until there are so many system keys."""
        process = self.start(name)
        process.create_tables()
        for _ in range(system_keys):
            self.notes += [process.write("tenant"), process.write()]
            self.now += 91 * DAY
        process.close()

    def reads_all(self, name: str, previous: str = "") -> bool:
        """Tell whether a process that just started reads every note."""
        process = self.start(name, previous)
        try:
            return process.read() == self.notes
        finally:
            process.close()

    def rows(self, prefix: str = "_") -> dict[tuple[str, str], dict[str, Any]]:
        """Return key records by place."""
        engine = create_engine(self.url)
        with engine.connect() as connection:
            found = connection.execute(text("SELECT id, created, key_record FROM encryption_key")).all()
        engine.dispose()
        return {
            (row[0], str(row[1])): json.loads(row[2]) if isinstance(row[2], str) else row[2]
            for row in found
            if row[0].startswith(prefix)
        }
