# SPDX-License-Identifier: Apache-2.0
"""Rejected credentials are remembered: five rejected logins lock an AppRole for everybody who uses it.

Twice: in the process, for every method, and in a file that all processes of the host read, for AppRole.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import stat
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sa_asherah.errors import KmsAuthError, KmsUnavailableError

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from sa_asherah.kms.vault.clock import Clock

__all__ = ["HostRejections", "Rejections", "fingerprint", "run_folder"]

logger = logging.getLogger(__name__)

# Doubled, and the fourth is longer than the 15 minutes after which the server forgets rejected logins: whoever keeps
# to these pauses is never rejected five times within what the server counts together.
_PAUSES = (60.0, 120.0, 240.0, 960.0)
_LOOK_AGAIN = 0.02


def fingerprint(*parts: str) -> str:
    """Name a credential without telling it.

    Args:
        *parts: Where it is used, and the credential.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(4, "big") + encoded)
    return digest.hexdigest()


def run_folder() -> Path:
    """Return this user's folder for what lives as long as the host runs.

    Returns:
        A folder that only this user can enter.

    Raises:
        OSError: There is none, or somebody else made it.
    """
    if sys.platform == "win32":
        raise OSError("this system has no locks of the needed kind")
    user = os.getuid()
    folder = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()) / f"sa_asherah-{user}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != user or stat.S_IMODE(found.st_mode) & 0o077:
        raise PermissionError(f"{folder} must be a folder that only its owner, this user, can enter")
    return folder


@dataclass(frozen=True, slots=True)
class _Rejection:
    """One rejected login.

    Attributes:
        credential: The credential's fingerprint.
        text: What was said about it.
        status: The HTTP status.
        at: When it was, on the clock that is never set.
        count: How many there have been without a success between them.
    """

    credential: str
    text: str
    status: int | None
    at: float
    count: int

    def ends(self, credential: str) -> float:
        # Another credential need not wait longer than the first pause: somebody has put it right.
        return self.at + (_pause(self.count) if credential == self.credential else _PAUSES[0])


class Rejections:
    """What this process remembers. One thread at a time logs in, so it needs no lock.

    Args:
        clock: Tells the time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last: _Rejection | None = None

    @contextlib.contextmanager
    def watch(self, credential: str) -> Generator[None]:
        """Let a login through, unless it was rejected a moment ago, and remember how it ends.

        Args:
            credential: The credential's fingerprint.

        Yields:
            Nothing.

        Raises:
            KmsAuthError: The login was rejected, now or before; then it says the same again.
        """
        last = self._last
        if last and self._clock.now() < last.ends(credential):
            raise KmsAuthError(last.text, operation="login", status=last.status)
        try:
            yield
        except KmsAuthError as error:
            if error.status is not None:  # the server has seen and counted it
                count = last.count + 1 if last else 1
                self._last = _Rejection(credential, str(error), error.status, self._clock.now(), count)
            raise
        self._last = None


class HostRejections:
    """What all processes of this user on this host remember, in one small file per credential.

    A login holds the file's lock: of many processes with the same bad or spent credential one is rejected, and the
    others read about it.

    Args:
        clock: Tells the time.
        folder: Gives the folder of the files.
    """

    def __init__(self, clock: Clock, folder: Callable[[], Path] = run_folder) -> None:
        self._clock = clock
        self._folder = folder
        self._is_told = False

    @contextlib.contextmanager
    def watch(self, credential: str, until: float) -> Generator[None]:
        """Let a login through, unless a process of this host was rejected a moment ago, and tell how it ends.

        Where the file cannot be used the login is let through: that is logged once.

        Args:
            credential: The credential's fingerprint.
            until: When to give up waiting for another process's login.

        Yields:
            Nothing.

        Raises:
            KmsAuthError: The login was rejected, now or before.
            KmsUnavailableError: Another process has been logging in all the time.
        """
        file = self._locked(credential, until)
        if file is None:
            yield
            return
        try:
            rejections = self._read(file)
            try:
                yield
            except KmsAuthError as error:
                if error.status is not None:
                    self._write(file, rejections + 1)
                raise
            self._attempt(lambda: self._path(credential).unlink())
        finally:
            self._release(file)

    def _path(self, credential: str) -> Path:
        return self._folder() / f"vault-{credential}"

    def _locked(self, credential: str, until: float) -> int | None:
        """Open the file and lock it; None if it cannot be used."""
        while (file := self._opened(credential)) is not None:
            try:
                self._lock(file, until)
            except KmsUnavailableError:
                os.close(file)
                raise
            if os.fstat(file).st_nlink:
                return file
            self._release(file)  # whoever had the lock has logged in and removed the file
        return None

    def _opened(self, credential: str) -> int | None:
        opened: list[int] = []
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
        self._attempt(lambda: opened.append(os.open(self._path(credential), flags, 0o600)))
        return opened[0] if opened else None

    def _lock(self, file: int, until: float) -> None:
        while not _is_locked(file):
            if self._clock.now() >= until:
                raise KmsUnavailableError(
                    "Vault approle auth failed: another process of this host has been logging in with the same "
                    "credential all the time; is Vault slow or out of reach?",
                    retryable=True,
                    operation="login",
                )
            self._clock.pause(_LOOK_AGAIN)

    def _release(self, file: int) -> None:
        # Unlocked by hand: a child that was forked meanwhile has the file open, too.
        self._attempt(lambda: _unlock(file))
        os.close(file)

    def _read(self, file: int) -> int:
        """Return how many rejections there were; raise while the last one's pause is not over."""
        content = re.fullmatch(rb"([0-9]{1,12}) ([0-9]{1,4})\n", os.pread(file, 64, 0))
        if content is None:
            return 0
        count = int(content[2])
        rest = int(content[1]) - self._clock.wall()
        # A rest longer than any pause: the host's clock was set back.
        if 0 < rest <= _pause(count) + 1:
            raise KmsAuthError(
                "Vault approle auth failed: this role id and secret id were rejected on this host a moment ago; the "
                f"next attempt is made in {rest:.0f} s, since five rejected logins lock the role for all who use it. "
                "The secret id is wrong, spent or expired: set a new one. A single-use secret id is for one process",
                operation="login",
            )
        return count

    def _write(self, file: int, count: int) -> None:
        content = b"%d %d\n" % (self._clock.wall() + _pause(count), min(count, 9999))
        self._attempt(lambda: os.ftruncate(file, 0))
        self._attempt(lambda: os.pwrite(file, content, 0))

    def _attempt(self, step: Callable[[], object]) -> None:
        try:
            step()
        except OSError as error:
            if not self._is_told:
                self._is_told = True
                logger.warning("rejected logins cannot be remembered for other processes of this host: %s", error)


def _pause(count: int) -> float:
    return _PAUSES[min(max(count, 1), len(_PAUSES)) - 1]


def _is_locked(file: int) -> bool:
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unlock(file: int) -> None:
    if sys.platform != "win32":
        fcntl.flock(file, fcntl.LOCK_UN)
