# SPDX-License-Identifier: Apache-2.0
"""What keeps the project small and its parts apart: sizes, imports, and that the wheel is what is tested."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import sa_asherah

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(sa_asherah.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

MODULE_LINES = 400
MEDIAN_MODULE_LINES = 120
FUNCTION_LINES = 60
P90_FUNCTION_LINES = 30


def _functions() -> Iterator[tuple[str, int]]:
    """Yield every function's place and number of lines, its docstring and decorators not counted."""
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[0]
                documented = ast.get_docstring(node, clean=False) is not None
                docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
                place = f"{path.relative_to(PACKAGE)}:{node.lineno} {node.name}"
                yield place, (node.end_lineno or 0) - node.lineno + 1 - docstring


def _code_lines(path: Path) -> int:
    """Count a module's lines without its docstrings, which the house style makes long."""
    source = path.read_text(encoding="utf-8")
    docstrings = 0
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if ast.get_docstring(node, clean=False) is not None:
            docstrings += (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
    return len(source.splitlines()) - docstrings


def _importers(package: str) -> set[str]:
    """Return the modules of ours that import the package, at their top or anywhere else."""
    found: set[str] = set()
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Import():
                    names = [alias.name for alias in node.names]
                case ast.ImportFrom(level=0, module=str(module)):
                    names = [module]
                case _:
                    names = []
            if any(name.split(".")[0] == package for name in names):
                found.add(path.relative_to(PACKAGE).as_posix())
    return found


def test_modules_are_short() -> None:
    lines = {
        path.relative_to(PACKAGE).as_posix(): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES
    }
    assert {name: count for name, count in lines.items() if count > MODULE_LINES} == {}
    assert statistics.median(map(_code_lines, MODULES)) <= MEDIAN_MODULE_LINES


def test_functions_are_short() -> None:
    functions = sorted(_functions(), key=lambda item: item[1])
    assert [place for place, count in functions if count > FUNCTION_LINES] == []
    place, count = functions[len(functions) * 9 // 10]
    assert count <= P90_FUNCTION_LINES, f"one function in ten is at least as long as {place}"


def test_only_the_aead_module_imports_cryptography() -> None:
    assert _importers("cryptography") == {"core/aead.py"}


def test_only_the_vault_adapter_imports_hvac() -> None:
    assert {name for name in _importers("hvac") if not name.startswith("kms/vault")} == set()


def test_one_module_imports_boto3() -> None:
    assert _importers("boto3") == {"boto.py"}


def test_one_module_imports_opentelemetry() -> None:
    assert _importers("opentelemetry") == {"telemetry.py"}


@pytest.mark.parametrize(
    "package", ["alembic", "boto3", "click", "django", "flask", "hvac", "opentelemetry", "pytest", "rich"]
)
def test_importing_the_package_does_not_import(package: str) -> None:
    program = f"import sys, sa_asherah; sys.exit({package!r} in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


def test_the_package_ships_its_types() -> None:
    assert (PACKAGE / "py.typed").exists()


@pytest.mark.skipif("SA_ASHERAH_WHEEL" not in os.environ, reason="only tox builds the wheel")
def test_the_wheel_is_under_test() -> None:
    assert PACKAGE.is_relative_to(sys.prefix)


@pytest.mark.skipif("SA_ASHERAH_SQLALCHEMY" not in os.environ, reason="only tox chooses the version of SQLAlchemy")
def test_the_chosen_sqlalchemy_is_under_test() -> None:
    assert importlib.metadata.version("sqlalchemy").startswith(os.environ["SA_ASHERAH_SQLALCHEMY"])
