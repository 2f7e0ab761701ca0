# SPDX-License-Identifier: Apache-2.0
"""One key table used by both implementations: ours in this process, the package in its own."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Engine, create_engine, make_url, text

from sa_asherah import Asherah
from sa_asherah.kms import StaticKMS

PROGRAM = Path(__file__).parent / "package.py"
MASTER_KEY = bytes(range(32))
GUARD = "__asherah_internal_config_drift_guard_v1__:"

_SELECT = {
    "sqlite": "SELECT id, CAST(created AS TEXT), key_record FROM encryption_key",
    "postgresql": "SELECT id, to_char(created AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS'), CAST(key_record AS TEXT) "
    "FROM encryption_key",
    "mariadb": "SELECT id, CAST(created AS CHAR), CAST(key_record AS CHAR) FROM encryption_key",
}
_UPDATE = "UPDATE encryption_key SET created = :moment, key_record = :record WHERE id = :id AND created = :created"
_PUT = {
    "sqlite": _UPDATE,
    "postgresql": "UPDATE encryption_key SET created = CAST(:moment || '+00' AS timestamptz), "
    "key_record = CAST(:record AS jsonb) WHERE id = :id AND created = CAST(:created || '+00' AS timestamptz)",
    "mariadb": _UPDATE,
}


class KeyRow(NamedTuple):
    """A row of the key table: id, date as text, record."""

    id: str
    created: str
    record: dict[str, Any]


class PackageError(Exception):
    """The package ended with an error."""


@dataclass(frozen=True)
class SharedTable:
    """A key table, and the names under which both implementations use it.

    Attributes:
        url: The database; on SQLite the file `keys.sqlite` in the folder.
        folder: Where the package runs.
        service: Service name.
        suffix: Region suffix, empty for none.
    """

    url: str
    folder: Path
    service: str = "svc"
    suffix: str = ""

    @property
    def kind(self) -> str:
        """Name of the database family."""
        return make_url(self.url).get_backend_name()

    @contextlib.contextmanager
    def ours(
        self, *, peers: bool = True, clock: Callable[[], float] = time.time, **settings: Any
    ) -> Generator[tuple[Asherah, Engine]]:
        """Our implementation, attached to an engine of the database.

        Args:
            peers: Whether records without `Bind` are accepted.
            clock: The time.
            **settings: Other settings of `Asherah`.
        """
        kms = StaticKMS(MASTER_KEY, environ={})
        names: dict[str, Any] = {"region_suffix": self.suffix, "peers": peers, "clock": clock, **settings}
        with opened(self.url) as engine, Asherah(self.service, "prod", kms, **names) as asherah:
            asherah.attach(engine)
            asherah.create_metastore(engine)
            yield asherah, engine

    @contextlib.contextmanager
    def package(self, **environ: str) -> Generator[Package]:
        """A fresh process of the package, for several questions.

        Args:
            **environ: Further settings.
        """
        command = [sys.executable, str(PROGRAM)]
        environment = self.environ | environ
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            command, cwd=self.folder, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True, encoding="utf-8"
        )
        try:
            with process:
                yield Package(process)
                _, errors = process.communicate(timeout=60)
        except BrokenPipeError:
            raise PackageError("the package ended before it was asked") from None
        if process.returncode:
            raise PackageError(errors)

    def encrypt(self, *items: tuple[str, bytes]) -> list[str]:
        """Encrypt with a fresh process of the package.

        Args:
            *items: Partitions and payloads.

        Returns:
            Data row records.
        """
        with self.package() as package:
            return package.encrypt(*items)

    def decrypt(self, *items: tuple[str, str]) -> list[bytes]:
        """Decrypt with a fresh process of the package.

        Args:
            *items: Partitions and data row records.

        Returns:
            Payloads.
        """
        with self.package() as package:
            return package.decrypt(*items)

    def rows(self, start: str = "_") -> list[KeyRow]:
        """Read the key table.

        Args:
            start: Start of the ids that are wanted.

        Returns:
            The rows, in order of id (by code points) and date.
        """
        with opened(self.url) as engine, engine.connect() as connection:
            found = connection.execute(text(_SELECT[self.kind])).all()
        rows = [KeyRow(id_, created, json.loads(record)) for id_, created, record in found if id_.startswith(start)]
        return sorted(rows, key=lambda row: row[:2])

    def key_id(self, partition: str | None) -> str:
        """Name a key.

        Args:
            partition: The owner of an intermediate key; none for the system key.
        """
        parts = ("_SK",) if partition is None else ("_IK", partition)
        return "_".join((*parts, self.service, "prod", *filter(None, [self.suffix])))

    def keys(self, partition: str | None) -> list[dict[str, Any]]:
        """Read the keys of a partition.

        Args:
            partition: The owner; none for the system keys.

        Returns:
            The coordinates of the keys as records name them, the oldest first.
        """
        key_id = self.key_id(partition)
        return [{"KeyId": key_id, "Created": row.record["Created"]} for row in self.rows(key_id) if row.id == key_id]

    def put(self, row: KeyRow, changed: KeyRow) -> None:
        """Put another row in the place of one, as an administrator.

        Args:
            row: The row as it is.
            changed: The same id with another date or record.
        """
        record = json.dumps(changed.record, ensure_ascii=False, separators=(",", ":"))
        values = {"id": row.id, "created": row.created, "moment": changed.created, "record": record}
        with opened(self.url) as engine, engine.begin() as connection:
            assert connection.execute(text(_PUT[self.kind]), values).rowcount == 1

    def delete(self, key_id: str) -> None:
        """Delete all keys of an id.

        Args:
            key_id: The id.
        """
        with opened(self.url) as engine, engine.begin() as connection:
            connection.execute(text("DELETE FROM encryption_key WHERE id = :id"), {"id": key_id})

    def revoke_newest(self, partition: str | None) -> None:
        """Revoke a key as the tools of the other implementations do.

        Args:
            partition: The owner; none for the system key.
        """
        key_id = self.key_id(partition)
        row = [row for row in self.rows(key_id) if row.id == key_id][-1]
        self.put(row, row._replace(record=row.record | {"Revoked": True}))

    @property
    def environ(self) -> dict[str, str]:
        """The settings of the package."""
        url = make_url(self.url)
        plain = url.set(drivername=url.get_backend_name().replace("mariadb", "mysql"), query={})
        metastore = {
            "sqlite": {"Metastore": "sqlite", "SQLITE_PATH": "keys.sqlite"},
            "postgresql": {"Metastore": "rdbms", "POSTGRES_URL": plain.render_as_string(hide_password=False)},
            "mariadb": {"Metastore": "rdbms", "MYSQL_URL": plain.render_as_string(hide_password=False)},
        }[self.kind]
        return metastore | {
            "PATH": os.environ["PATH"],
            "SERVICE_NAME": self.service,
            "PRODUCT_ID": "prod",
            "REGION_SUFFIX": self.suffix,
            "KMS": "static",
            "STATIC_MASTER_KEY_HEX": MASTER_KEY.hex(),
        }


class Package:
    """A running process of the package."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, *requests: tuple[str, str, str]) -> list[tuple[bool, str]]:
        """Ask for several things.

        Args:
            *requests: Operation, partition, and base64 or record.

        Returns:
            Whether it went well, and the result or the error.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(requests) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise PackageError(self._process.stderr and self._process.stderr.read())
        return [(bool(good), str(result)) for good, result in json.loads(line)]

    def encrypt(self, *items: tuple[str, bytes]) -> list[str]:
        """Encrypt.

        Args:
            *items: Partitions and payloads.

        Returns:
            Data row records.
        """
        requests = [("encrypt", partition, base64.b64encode(payload).decode()) for partition, payload in items]
        return [_succeeded(result) for result in self.ask(*requests)]

    def decrypt(self, *items: tuple[str, str]) -> list[bytes]:
        """Decrypt.

        Args:
            *items: Partitions and data row records.

        Returns:
            Payloads.
        """
        requests = [("decrypt", partition, record) for partition, record in items]
        return [base64.b64decode(_succeeded(result)) for result in self.ask(*requests)]


@contextlib.contextmanager
def opened(url: str) -> Generator[Engine]:
    """Make an engine and dispose of it."""
    engine = create_engine(url)
    try:
        yield engine
    finally:
        engine.dispose()


def _succeeded(result: tuple[bool, str]) -> str:
    good, answer = result
    assert good, answer
    return answer
