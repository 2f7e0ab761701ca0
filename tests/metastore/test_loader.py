# SPDX-License-Identifier: Apache-2.0
"""What asynchronous drivers need, got ready before threads need it."""

from __future__ import annotations

import subprocess
import sys

import pytest

_PROGRAM = """
import sa_asherah
from sa_asherah.metastore.loader import in_greenlet
from sqlalchemy.util import concurrency

def late(*args, **options):
    raise SystemExit("the first thread that asks gets SQLAlchemy ready, while others ask, too")

shim = getattr(concurrency, "_concurrency_shim", None)
if shim is not None:
    type(shim)._initialize = late
print(in_greenlet())
"""


@pytest.mark.parametrize("prelude", ["", "import sys; sys.modules['greenlet'] = None"], ids=["greenlet", "none"])
def test_threads_that_make_their_first_keys_at_once_find_sqlalchemy_ready(prelude: str) -> None:
    """SQLAlchemy 2.1 raises RecursionError where two threads are the first to ask whether they are in a greenlet."""
    done = subprocess.run([sys.executable, "-c", prelude + _PROGRAM], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("False\n", "")
