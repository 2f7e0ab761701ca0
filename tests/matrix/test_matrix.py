# SPDX-License-Identifier: Apache-2.0
"""What `docs/reference/statements.md` says, tried row by row on every driver."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import pytest

from tests.matrix import table
from tests.matrix.registration import ASYNCHRONOUS, CASES, Case
from tests.orm.app import App

for _module in pkgutil.iter_modules([str(Path(__file__).parent)], "tests.matrix."):
    if _module.name.rpartition(".")[2].startswith(("reading", "mapping", "writing")):
        pytest.register_assert_rewrite(_module.name)
        importlib.import_module(_module.name)

ROWS = table.rows()
SPELLED = {"sqlite": "SQLite", "postgresql": "PostgreSQL", "mariadb": "MariaDB"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        cells = [(driver, case) for case in CASES for driver in case.drivers()]
        ids = [f"{driver}-{case.name}" for driver, case in cells]
        metafunc.parametrize(("app", "case"), cells, indirect=["app"], ids=ids)


@pytest.mark.matrix
def test_a_case_does_what_its_row_says(app: App, case: Case) -> None:
    raises = ROWS[case.row].raises
    if raises is None:
        app.run(lambda: case.body(app))
        return
    with pytest.raises(raises) as caught:
        app.run(lambda: case.body(app))
    assert type(caught.value) is raises


def test_every_row_has_a_case() -> None:
    assert set(ROWS) - {case.row for case in CASES} == set()


def test_every_case_has_a_row_and_a_name_of_its_own() -> None:
    assert {case.row for case in CASES} - set(ROWS) == set()
    assert len({case.name for case in CASES}) == len(CASES)


def test_a_row_names_the_databases_and_drivers_that_cannot() -> None:
    for case in CASES:
        says = ROWS[case.row].says
        for name in case.not_on:
            spelled = "asyncio" if name not in ASYNCHRONOUS | set(SPELLED) else SPELLED.get(name, name)
            assert spelled in says, f"{case.row}: not on {name}, which the row does not say"
