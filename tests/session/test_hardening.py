# SPDX-License-Identifier: Apache-2.0
"""What `harden_process` promises, each seen from outside, in processes of their own: it cannot be taken back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import sa_asherah

PRELUDE = """
import ctypes, json, os, resource
from pathlib import Path
from sa_asherah import Hardening, harden_process

NOBODY, PR_SET_DUMPABLE = 65534, 4

def become_nobody():
    # Root reads everything; and a process that changes its user is not dumpable, unlike one that was started by it.
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)

def another_process_reads_this():
    me, child = os.getpid(), os.fork()
    if child == 0:
        try:
            os._exit(0 if Path(f"/proc/{me}/environ").read_bytes() else 1)
        except PermissionError:
            os._exit(2)
    return {0: True, 2: False}[os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]

def locked_memory():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmLck"))

"""

linux_only = pytest.mark.xfail(sys.platform != "linux", reason="Linux only, and says so", strict=True)


def run(program: str) -> Any:
    """Run a program and return what it prints as JSON."""
    environment = os.environ | {"PYTHONPATH": str(Path(sa_asherah.__file__).parents[1])}
    code = PRELUDE + textwrap.dedent(program)
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, env=environment, capture_output=True, text=True, timeout=240
    )
    return json.loads(done.stdout)


@linux_only
def test_another_process_of_the_same_user_no_longer_reads_the_process() -> None:
    before, hardening, after = run("""
        become_nobody()
        before = another_process_reads_this()
        done = harden_process()
        print(json.dumps([before, done.not_dumpable, another_process_reads_this()]))
    """)
    assert (before, hardening, after) == (True, True, False)


@linux_only
def test_core_files_stay_off() -> None:
    hardening, limits, refused = run("""
        become_nobody()
        done = harden_process()
        try:
            resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
            refused = False
        except ValueError:
            refused = True
        print(json.dumps([done.no_core_files, resource.getrlimit(resource.RLIMIT_CORE), refused]))
    """)
    assert (hardening, limits, refused) == (True, [0, 0], True)


@linux_only
def test_memory_is_locked_only_where_there_is_no_limit() -> None:
    said, locked, unlimited = run("""
        try:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        except ValueError:
            pass  # only root may
        done = harden_process(lock_memory=True)
        soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        print(json.dumps([done.locked, locked_memory() > 0, soft == resource.RLIM_INFINITY]))
    """)
    assert said == locked
    assert unlimited or not locked


@linux_only
def test_under_a_limit_memory_stays_unlocked_and_can_be_had() -> None:
    assert run("""
        _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, hard))
        done = harden_process(lock_memory=True)
        print(json.dumps([done.locked, locked_memory(), len(bytearray(50_000_000))]))
    """) == [False, 0, 50_000_000]


@linux_only
def test_memory_is_left_alone_unless_it_is_asked_for() -> None:
    assert run("print(json.dumps([harden_process().locked, locked_memory()]))") == [False, 0]


@linux_only
def test_a_child_by_fork_is_hardened_too() -> None:
    assert (
        run("""
        become_nobody()
        harden_process()
        child = os.fork()
        if child == 0:
            hidden = not another_process_reads_this()
            os._exit(0 if hidden and resource.getrlimit(resource.RLIMIT_CORE) == (0, 0) else 1)
        print(json.dumps(os.waitpid(child, 0)[1]))
    """)
        == 0
    )


def test_elsewhere_it_says_that_nothing_was_done() -> None:
    assert run("""
        import sys
        sys.platform = "darwin"
        done = harden_process(lock_memory=True)
        print(json.dumps([done.not_dumpable, done.no_core_files, done.locked]))
    """) == [False, False, False]
