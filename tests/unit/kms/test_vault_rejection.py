# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
import logging
import os
import stat
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sa_asherah.errors import KmsAuthError, KmsUnavailableError
from sa_asherah.kms.vault.clock import Clock
from sa_asherah.kms.vault.rejection import HostRejections, Rejections, fingerprint, run_folder
from tests.unit.kms.fakes import Time

SECRET = "a1b2c3d4-secret-id"
NAME = fingerprint("https://vault", "e5f6-role-id", SECRET)


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return run_folder()


def attempt(host: HostRejections, status: int | None, time: Time | None = None, name: str = NAME) -> None:
    """Log in; be rejected with this status, None for success."""
    with host.watch(name, (time.now if time else Clock().now()) + 10):
        if status is not None:
            raise KmsAuthError(f"rejected {SECRET}", operation="login", status=status or None)


def rejected(host: HostRejections, time: Time, status: int = 400) -> None:
    with pytest.raises(KmsAuthError, match=r"^rejected"):
        attempt(host, status, time)


def is_kept_back(host: HostRejections, time: Time) -> bool:
    said: list[KmsAuthError] = []
    try:
        attempt(host, None, time)
    except KmsAuthError as error:
        said.append(error)
    assert [str(one)[:78] for one in said] == [
        "Vault approle auth failed: this role id and secret id were rejected on this ho"
    ] * len(said)
    assert [(one.operation, one.status) for one in said] == [("login", None)] * len(said)
    return bool(said)


# The file


def test_the_file_tells_no_secret_and_is_for_one_user(time: Time, folder: Path) -> None:
    rejected(HostRejections(time.clock), time)
    (path,) = folder.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert path.name == f"vault-{NAME}"
    assert path.read_text() == f"{int(time.wall) + 60} 1\n"


def test_a_fingerprint_depends_on_every_part_and_on_where_it_ends() -> None:
    parts = [("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), ("", "abc"), ("c", "ab")]
    assert len({fingerprint(*part) for part in parts}) == len(parts)
    assert fingerprint("ab", "c") == fingerprint("ab", "c")


def test_the_next_process_reads_it(time: Time, folder: Path) -> None:
    assert folder.is_dir()
    for pause in (60, 120, 240, 960, 960):
        rejected(HostRejections(time.clock), time)
        time.pass_(pause - 1)
        assert is_kept_back(HostRejections(time.clock), time)
        time.pass_(2)
    assert not is_kept_back(HostRejections(time.clock), time)
    assert list(folder.iterdir()) == [], "nothing is left behind"
    rejected(HostRejections(time.clock), time)
    time.pass_(61)
    assert not is_kept_back(HostRejections(time.clock), time), "a success starts the count anew"


def test_other_credentials_are_not_kept_back(time: Time, folder: Path) -> None:
    assert folder.is_dir()
    rejected(HostRejections(time.clock), time)
    attempt(HostRejections(time.clock), None, time, name=fingerprint("https://vault", "e5f6-role-id", "another"))


def test_what_the_server_did_not_see_is_not_remembered(time: Time, folder: Path) -> None:
    assert folder.is_dir()
    rejected(HostRejections(time.clock), time, status=0)
    assert not is_kept_back(HostRejections(time.clock), time)


@pytest.mark.parametrize("step", [-1e6, 1e6])
def test_a_wall_clock_that_is_set_locks_nobody_out(time: Time, folder: Path, step: float) -> None:
    assert folder.is_dir()
    rejected(HostRejections(time.clock), time)
    time.wall += step
    assert not is_kept_back(HostRejections(time.clock), time)


@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 60, b"soon 1\n", b"99999999999999999999 1\n", b"1700000060 -1\n", b"1700000060 1"]
)
def test_a_damaged_file_locks_nobody_out(time: Time, folder: Path, content: bytes) -> None:
    (folder / f"vault-{NAME}").write_bytes(content)
    assert not is_kept_back(HostRejections(time.clock), time)


# Many processes


def test_of_many_with_a_bad_credential_one_is_rejected(folder: Path) -> None:
    assert _attempts_of_many(folder, lambda _number: 400) == 1


def test_of_many_with_a_credential_for_one_two_ask(folder: Path) -> None:
    for _ in range(20):
        assert _attempts_of_many(folder, lambda number: 400 if number > 1 else None) == 2
        for path in folder.iterdir():
            path.unlink()


def test_of_many_with_a_good_credential_all_log_in_one_by_one(folder: Path) -> None:
    assert _attempts_of_many(folder, lambda _number: None) == 16
    assert list(folder.iterdir()) == []


def _attempts_of_many(folder: Path, answer: Callable[[int], int | None], count: int = 16) -> int:
    """Log in from threads that, like processes, share the file only; return how many asked the server."""
    assert folder.is_dir()
    asked: list[int] = []
    everybody = threading.Barrier(count)

    def work() -> None:
        host = HostRejections(Clock())
        everybody.wait(10)
        with contextlib.suppress(KmsAuthError), host.watch(NAME, Clock().now() + 30):
            asked.append(1)
            status = answer(len(asked))
            if status:
                raise KmsAuthError("rejected", operation="login", status=status)

    with ThreadPoolExecutor(count) as pool:
        for future in [pool.submit(work) for _ in range(count)]:
            future.result()
    return len(asked)


def test_waiting_for_another_process_ends_at_the_deadline(time: Time, folder: Path) -> None:
    assert folder.is_dir()
    first, second = HostRejections(time.clock), HostRejections(time.clock)
    with first.watch(NAME, time.now + 10), pytest.raises(KmsUnavailableError, match="another process") as caught:
        attempt(second, None, time)
    assert caught.value.retryable
    assert sum(time.pauses) == pytest.approx(10, abs=0.1)
    attempt(second, None, time)


def test_an_error_of_the_login_frees_the_lock(time: Time, folder: Path) -> None:
    assert folder.is_dir()
    host = HostRejections(time.clock)
    with pytest.raises(RuntimeError), host.watch(NAME, time.now + 10):
        raise RuntimeError
    attempt(HostRejections(time.clock), None, time)
    assert time.pauses == []


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_forked_during_a_login_does_not_keep_the_lock(time: Time, folder: Path) -> None:
    assert folder.is_dir()
    ended, end = os.pipe()
    with HostRejections(time.clock).watch(NAME, time.now + 10):
        child = os.fork()
        if child == 0:
            os.close(end)
            os.read(ended, 1)  # until the parent is done
            os._exit(0)
    attempt(HostRejections(time.clock), None, time)
    assert time.pauses == []
    os.close(end)
    os.close(ended)
    assert os.waitpid(child, 0)[1] == 0


# The folder


def test_where_the_folder_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"sa_asherah-{os.getuid()}"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert run_folder() == tmp_path / name
    other = tmp_path / "tmp"
    other.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(other))
    for empty in ("", None):
        monkeypatch.setenv("XDG_RUNTIME_DIR", "") if empty == "" else monkeypatch.delenv("XDG_RUNTIME_DIR")
        assert run_folder() == other / name
    assert stat.S_IMODE((other / name).stat().st_mode) == 0o700


@pytest.mark.parametrize("trap", ["open", "group", "file", "link", "owner", "absent"])
def test_a_folder_that_others_could_use_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, time: Time, trap: str
) -> None:
    base = tmp_path / "run"
    folder = base / f"sa_asherah-{os.getuid()}"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(base))
    if trap != "absent":
        base.mkdir()
    if trap in {"open", "group", "owner"}:
        folder.mkdir()
        folder.chmod({"open": 0o777, "group": 0o710, "owner": 0o700}[trap])
    if trap == "owner":
        monkeypatch.setattr(os, "lstat", None)
        real = folder.lstat()
        fields = [*real[:4], real.st_uid + 1, *real[5:10]]
        monkeypatch.setattr(Path, "lstat", lambda _self: os.stat_result(fields))
    if trap == "file":
        folder.touch(0o700)
    if trap == "link":
        (tmp_path / "elsewhere").mkdir(0o700)
        folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):  # noqa: PT011 # of any kind
        run_folder()
    host = HostRejections(time.clock)
    for _ in range(3):
        rejected(host, time)
        attempt(host, None, time)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "rejected logins cannot be remembered" in caplog.text
    assert SECRET not in caplog.text
    assert not list((tmp_path / "elsewhere").glob("*"))


def test_a_file_that_is_a_link_is_not_followed(
    time: Time, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "precious").write_text("precious")
    (folder / f"vault-{NAME}").symlink_to(tmp_path / "precious")
    rejected(HostRejections(time.clock), time)
    assert (tmp_path / "precious").read_text() == "precious"
    assert len(caplog.records) == 1


# The process's own memory


def test_a_remembered_error_is_raised_anew(time: Time) -> None:
    own = Rejections(time.clock)
    with pytest.raises(KmsAuthError) as first, own.watch(NAME):
        raise KmsAuthError("rejected", operation="login", status=403)
    with pytest.raises(KmsAuthError) as again, own.watch(NAME):
        pytest.fail("it was let through")
    assert again.value is not first.value
    assert (str(again.value), again.value.operation, again.value.status) == ("rejected", "login", 403)
    time.pass_(60)
    with own.watch(NAME):
        pass
    with own.watch(NAME):
        pass
