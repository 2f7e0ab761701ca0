# SPDX-License-Identifier: Apache-2.0
"""Tenants with notes, whose keys depend on a real key service, and clocks that can be set."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine, text

from sa_asherah.core import aead
from sa_asherah.core.key_record import parse_key_record
from sa_asherah.kms.vault import VaultTransitKMS
from sa_asherah.shred import OwnerShred
from tests.integration.records import Base, Process

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sa_asherah.core.system_keys import SystemKeys

START = 1_800_000_000
DAY = 86_400
INTERVAL = timedelta(minutes=60)
MAX_STALE = timedelta(minutes=30)
WAIT = 66 * 60 + 30 * 60
"""Seconds after which no process has an old key: a tenth more than the interval, and `max_stale`."""


@dataclass
class Scene:
    """One database and one Vault, and as many processes as one likes."""

    url: str
    environ: Mapping[str, str]
    now: float = START
    processes: list[Process] = field(default_factory=list[Process])

    def start(self, **options: Any) -> Process:
        """Start a process of the application."""
        settings: dict[str, Any] = {
            "clock": lambda: self.now,
            "check_interval": INTERVAL,
            "max_stale": MAX_STALE,
            "rotation_spread": timedelta(0),
        }
        process = Process(self.url, VaultTransitKMS.from_env(self.environ), **settings | options)
        if not self.processes:
            process.create_tables()
        self.processes.append(process)
        return process

    def shred(self, process: Process, tenant: str) -> OwnerShred:
        """Prepare the erasure of a tenant."""
        return OwnerShred(process.engine, process.asherah, tenant, Base.metadata)

    def erase(self, tenant: str) -> None:
        """Erase a tenant from beginning to end."""
        process = self.start()
        with self.shred(process, tenant) as shredding:
            shredding.begin()
            self.now += WAIT + 1
            shredding.finish()

    def dump(self) -> list[tuple[str, Any, str]]:
        """Copy the key table, as a backup does."""
        engine = create_engine(self.url)
        with engine.connect() as connection:
            found = connection.exec_driver_sql("SELECT id, created, key_record FROM encryption_key").all()
        engine.dispose()
        return [(row[0], row[1], row[2] if isinstance(row[2], str) else json.dumps(row[2])) for row in found]

    def records(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Return the records by place."""
        return {(row[0], str(row[1])): json.loads(row[2]) for row in self.dump()}

    def restore(self, dump: Sequence[tuple[str, Any, str]]) -> None:
        """Put a backup of the key table in its place."""
        engine = create_engine(self.url)
        insert = "INSERT INTO encryption_key VALUES (:id, :created, :text)"
        if engine.dialect.name == "postgresql":
            insert = insert.replace(":text", "CAST(:text AS JSONB)")
        with engine.begin() as connection:
            connection.execute(text("DELETE FROM encryption_key"))
            rows = [{"id": row[0], "created": row[1], "text": row[2]} for row in dump]
            connection.execute(text(insert), rows)
        engine.dispose()

    def close(self) -> None:
        """End all processes."""
        for process in self.processes:
            process.close()


def living_keys(system_keys: SystemKeys, tenant: str) -> list[int]:
    """Return the dates of a tenant's keys that still open with the system key that they name."""
    rows = system_keys.metastore.run(lambda rows: rows.versions(system_keys.ids.intermediate_key_id(tenant)))
    return [row.created for row in rows if _opens(system_keys, parse_key_record(row))]


def _opens(system_keys: SystemKeys, record: Any) -> bool:
    try:
        aead.open_(system_keys.key(record.parent[1]).secret, record.wrapped)
    except aead.InvalidTag:
        return False
    return True


def keys_of(process: Process) -> SystemKeys:
    """Open the key table as an operator does."""
    return process.asherah.system_keys(process.engine)


def errors_of(process: Process, tenants: Sequence[str]) -> Iterator[type[Exception] | None]:
    """Read each tenant's notes and yield the class of the error, if there is one."""
    for tenant in tenants:
        try:
            process.read(tenant)
        except Exception as error:  # noqa: BLE001 # what it is, the test says
            yield type(error)
        else:
            yield None
