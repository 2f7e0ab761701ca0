# SPDX-License-Identifier: Apache-2.0
"""Start and end one server process, without root."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

START_SECONDS = 60.0
STOP_SECONDS = 30.0


class ServerUnavailableError(Exception):
    """The server's program cannot be had on this machine; the text says why."""


class Account(TypedDict):
    """The account of a subprocess, as keyword arguments of `subprocess.Popen`; None means the caller's own."""

    user: int | None
    group: int | None
    extra_groups: list[int] | None


def account() -> Account:
    """Return whom to run a database server as: nobody instead of root, else the caller."""
    if os.getuid() != 0:
        return {"user": None, "group": None, "extra_groups": None}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


@contextlib.contextmanager
def private_directory() -> Generator[Path]:
    """Yield a new folder that belongs to `account()`, and remove it afterwards."""
    with tempfile.TemporaryDirectory(prefix="sa_asherah-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        hand_over(folder)
        yield folder


def hand_over(path: Path) -> None:
    """Make `path` belong to `account()`."""
    who = account()
    if who["user"] is not None and who["group"] is not None:
        os.chown(path, who["user"], who["group"])


def reachable(program: Path, folder: Path) -> Path:
    """Return the file or tree, or a copy of it in `folder` where root keeps it behind a folder closed to nobody."""
    if os.getuid() != 0 or all(parent.stat().st_mode & 0o001 for parent in program.parents):
        return program
    copy = folder / program.name
    if program.is_dir():
        shutil.copytree(program, copy, symlinks=True)
    else:
        shutil.copy(program, copy)
    return copy


def free_port() -> int:
    """Return a port of the loopback address that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Daemon:
    """A server process that we started; `stop` ends it and nothing else.

    Args:
        command: Program and arguments.
        ready: Says whether the server answers; called until it does.
        log: File for what the server prints.
        env: The whole environment of the process.
        stop_signal: What ends it politely.

    Raises:
        RuntimeError: The server ended or did not answer within a minute; the text ends with its last lines.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        ready: Callable[[], bool],
        log: Path,
        env: Mapping[str, str],
        stop_signal: int = signal.SIGTERM,
    ) -> None:
        self._stop_signal = stop_signal
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env, cwd="/",
                start_new_session=True, **account(),
            )  # fmt: skip
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                lines = log.read_text(errors="replace").splitlines()[-20:]
                raise RuntimeError("\n".join([f"{command[0]} did not start:", *lines]))
            time.sleep(0.02)

    def stop(self) -> None:
        """End the process: politely, after half a minute by force."""
        if self._process.poll() is not None:
            return
        self._process.send_signal(self._stop_signal)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.wait()
