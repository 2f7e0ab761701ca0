# SPDX-License-Identifier: Apache-2.0
"""Set up and pass every check of the project: `python3 .ci/test.py`, or some: `python3 .ci/test.py lint py311-sa21`.

Needs Python 3.11 or later and a package index. A Python version that is not on this machine is named and its
environments are left out; where SA_ASHERAH_ALL_PYTHONS=1 that is a failure.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from pathlib import Path

from bootstrap import BootstrapError, find_interpreters, tox

ENVIRONMENTS = ("lint", "types", "docs", "demo", "py311-sa20", "py311-sa21", "py313-sa21")


def main(wanted: list[str]) -> int:
    """Run the wanted environments one after the other and return the exit code."""
    interpreters = find_interpreters()
    for version, path in interpreters.items():
        print(f"Python {version}: {path}", flush=True)
    missing = {name: version for name in wanted if (version := _version(name)) and version not in interpreters}
    present = [name for name in wanted if name not in missing]
    _tell(missing)
    passed = _run(present, interpreters) if present else set()
    print()
    for name in present:
        print(f"{name}: {'passed' if name in passed else 'FAILED'}")
    _tell(missing)
    required = wanted if os.environ.get("SA_ASHERAH_ALL_PYTHONS") == "1" else present
    failed = len(required) - len(passed)
    print(f"environments: {len(passed)} passed, {failed} failed, {len(wanted) - len(required)} skipped")
    return 1 if failed or not passed else 0


def _run(environments: list[str], interpreters: dict[str, Path]) -> set[str]:
    """Run the environments and return those that passed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        tox(["run", "--colored", "no", "--result-json", str(report), "-e", ",".join(environments)], interpreters)
        if not report.exists():  # tox itself could not be set up, and has said why
            return set()
        entries = json.loads(report.read_text(encoding="utf-8"))["testenvs"]
    return {name for name in environments if entries.get(name, {}).get("result", {}).get("success") is True}


def _version(environment: str) -> str | None:
    """Return the Python version that an environment's name asks for."""
    match = re.match(r"py3(\d+)", environment)
    return f"3.{match[1]}" if match else None


def _tell(missing: dict[str, str]) -> None:
    for name, version in missing.items():
        print(f"MISSING: Python {version}, so {name} does not run", flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:] or list(ENVIRONMENTS)))
    except BootstrapError as error:
        sys.exit(f"cannot set up: {error}")
