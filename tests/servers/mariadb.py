# SPDX-License-Identifier: Apache-2.0
"""A MariaDB server of the tests' own: `mariadbd` as installed, else from Debian's packages, unpacked without root."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pymysql

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

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "mariadb"
SETTINGS = (
    "--innodb-flush-method=nosync",  # nosync only matters when the machine crashes; the flush setting stays at 1
    "--innodb-buffer-pool-size=64M",
    "--innodb-log-file-size=16M",
    "--skip-name-resolve",
    "--skip-log-bin",
    "--max-connections=200",
    "--character-set-server=utf8mb4",
)


@dataclass(frozen=True)
class Installation:
    """Where the server's files are."""

    root: Path

    @property
    def program(self) -> Path:
        """The server's program."""
        return self.root / "usr/sbin/mariadbd"

    @property
    def share(self) -> Path:
        """The folder with the SQL of the system tables, messages and character sets."""
        for name in ("mysql", "mariadb"):
            if (self.root / "usr/share" / name / "mysql_system_tables.sql").exists():
                return self.root / "usr/share" / name
        raise ServerUnavailableError(f"MariaDB: {self.program} has no mysql_system_tables.sql beside it")

    def command(self) -> list[str | Path]:
        """Return the beginning of every command line of the server."""
        messages, charsets = f"--lc-messages-dir={self.share}", f"--character-sets-dir={self.share / 'charsets'}"
        return [self.program, "--no-defaults", f"--basedir={self.root / 'usr'}", messages, charsets, *SETTINGS]

    def environment(self) -> dict[str, str]:
        """Return the environment of the server; libraries that came with it are found first."""
        environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC"}
        if self.root != Path("/"):
            environment["LD_LIBRARY_PATH"] = ":".join(map(str, sorted(self.root.glob("usr/lib/*-linux-gnu"))))
        return environment


class MariaDB:
    """A server with its system tables and no database; starts on entering the context, ends with it.

    Raises:
        ServerUnavailableError: MariaDB is not installed and its packages could not be fetched.
    """

    host = "127.0.0.1"
    user = "root"

    def __init__(self) -> None:
        self.port = free_port()
        self.password = secrets.token_hex(16)
        self._resources = contextlib.ExitStack()
        self._daemon: Daemon | None = None

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as resources:
            self._folder = resources.enter_context(private_directory())
            self._installation = _find() or Installation(reachable(_fetched(), self._folder))
            self._initialise()
            self.start()
            resources.callback(self.stop)
            self._resources = resources.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._resources.close()

    def start(self) -> None:
        """Start the server on its data, for the first time or after `stop`."""
        files = [f"--datadir={self._folder / 'data'}", f"--socket={self._folder / 'socket'}"]
        files += [f"--pid-file={self._folder / 'pid'}", self._temporary]
        self._daemon = Daemon(
            [*self._installation.command(), *files, f"--bind-address={self.host}", f"--port={self.port}"],
            ready=self._answers,
            log=self._folder / "log",
            env=self._installation.environment(),
        )

    def stop(self) -> None:
        """End the server and all sessions on it; the data stay."""
        if self._daemon:
            self._daemon.stop()

    def url(self, database: str) -> str:
        """Return the URL of a database of this server, for SQLAlchemy."""
        return f"mariadb+pymysql://{self.user}:{self.password}@{self.host}:{self.port}/{database}?charset=utf8mb4"

    def create(self, database: str) -> None:
        """Create an empty database."""
        self._execute(f"CREATE DATABASE `{database}` CHARACTER SET utf8mb4")

    def drop(self, database: str) -> None:
        """Drop a database; sessions that still use it are ended, so that none of their locks is waited for."""
        with self._connection() as connection, connection.cursor() as cursor:
            cursor.execute("SELECT id FROM information_schema.processlist WHERE db = %s", (database,))
            for (number,) in cursor.fetchall():
                with contextlib.suppress(pymysql.err.MySQLError):  # it may have ended by itself
                    cursor.execute(f"KILL CONNECTION {number}")
            cursor.execute(f"DROP DATABASE IF EXISTS `{database}`")

    @property
    def _temporary(self) -> str:
        """A folder of its own: a server that starts deletes every temporary table that it finds, another's too."""
        return f"--tmpdir={self._folder / 'tmp'}"

    def _initialise(self) -> None:
        share = self._installation.share
        statements = ["CREATE DATABASE mysql;", "USE mysql;", "SET @auth_root_socket=NULL;"]
        statements += [
            (share / name).read_text() for name in ("mysql_system_tables.sql", "mysql_system_tables_data.sql")
        ]
        statements += [
            "DELETE FROM global_priv WHERE User <> 'mariadb.sys' AND NOT (User = 'root' AND Host = 'localhost');",
            "UPDATE global_priv SET Host = '127.0.0.1', Priv = JSON_SET(Priv, '$.plugin', 'mysql_native_password',",
            f" '$.authentication_string', PASSWORD('{self.password}')) WHERE User = 'root';",
        ]
        for name in ("data", "tmp"):
            (self._folder / name).mkdir()
            hand_over(self._folder / name)
        done = subprocess.run(
            [*self._installation.command(), "--bootstrap", f"--datadir={self._folder / 'data'}", self._temporary],
            input="\n".join(statements), env=self._installation.environment(), cwd="/", capture_output=True, text=True,
            check=False, **account(),
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"mariadbd --bootstrap failed:\n{done.stdout}{done.stderr}")

    def _answers(self) -> bool:
        try:
            self._execute("SELECT 1")
        except pymysql.err.OperationalError:
            return False
        return True

    def _execute(self, statement: str) -> None:
        with self._connection() as connection, connection.cursor() as cursor:
            cursor.execute(statement)

    def _connection(self) -> pymysql.Connection[pymysql.cursors.Cursor]:
        return pymysql.connect(host=self.host, port=self.port, user=self.user, password=self.password, autocommit=True)


def _find() -> Installation | None:
    found = shutil.which("mariadbd", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))
    root = Path(found).resolve().parents[2] if found else None
    return Installation(root) if root and (root / "usr/sbin/mariadbd").exists() else None


def _fetched() -> Path:
    """Return the unpacked packages, fetched on first use and kept in the checkout's cache."""
    if not (CACHE / "usr/sbin/mariadbd").exists():
        unpack = shutil.which("dpkg-deb")
        if not (unpack and shutil.which("apt-get")):
            raise ServerUnavailableError("MariaDB: no mariadbd on PATH and no apt-get: install MariaDB's server")
        CACHE.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE.parent, prefix="mariadb-") as name:
            folder = Path(name)
            tree = folder / "tree"
            _download(folder)
            for package in sorted(folder.glob("archives/*.deb")):
                subprocess.run([unpack, "-x", package, tree], check=True)
            tree.chmod(0o755)
            with contextlib.suppress(OSError):  # another process was faster; its tree is as good
                tree.rename(CACHE)
    return CACHE


def _download(folder: Path) -> None:
    """Let apt fetch the server and whatever of its libraries this machine lacks, into `folder`, installing nothing."""
    (folder / "archives/partial").mkdir(parents=True)
    (folder / "lists/partial").mkdir(parents=True)
    apt = ["apt-get", "-q", "-y", "-o", "Debug::NoLocking=1", "-o", f"Dir::Cache={folder}"]
    apt += ["-o", f"Dir::Cache::archives={folder / 'archives'}", "-o", f"APT::Sandbox::User={_user_name()}"]
    private = ["-o", f"Dir::State::lists={folder / 'lists'}", "-o", "APT::Update::Post-Invoke-Success::="]
    install = ["install", "--download-only", "--no-install-recommends", "mariadb-server-core"]
    # The machine's own package lists first: they may be missing or older than the archive, so then fresh ones.
    attempts = ([*apt, *install], [*apt, *private, "update"], [*apt, *private, *install])
    printed = ""
    for command in attempts:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        printed += done.stdout + done.stderr
        if "install" in command and done.returncode == 0:
            return
    lines = [line for line in printed.splitlines() if re.match(r"[EW]:", line)]
    raise ServerUnavailableError("\n".join(["MariaDB: apt-get could not fetch mariadb-server-core:", *lines]))


def _user_name() -> str:
    return "root" if os.getuid() == 0 else ""
