# SPDX-License-Identifier: Apache-2.0
"""What `docs/reference/outages.md` says, tried cell by cell."""

from __future__ import annotations

import dataclasses
import logging
from itertools import product
from typing import TYPE_CHECKING

import pytest

from sa_asherah.errors import KmsAuthError, KmsError, KmsKeyNotFoundError, KmsPermissionError
from tests.hierarchy.outages import COLUMNS, DOWN, PAGE, SCENES, Cell, Row, Stage, rows
from tests.unit.core.fakes import DAY

if TYPE_CHECKING:
    from tests.hierarchy.servers import RealStage

ROWS = list(rows(PAGE.read_text(encoding="utf-8")))
CELLS = [cell for row in ROWS for cell in row.cells]
OF_THE_KEY_SERVICE = [cell for cell in CELLS if cell.down == "key service"]
MIDWAY = "In the middle of a rotation"
ONE_HOUR = 3_600


def run(cell: Cell, stage: Stage | RealStage) -> None:
    """Play a cell."""
    SCENES[cell.when](stage)
    stage.begin(cell.down, midway=cell.when == MIDWAY)
    if not cell.error:
        works(cell, stage)
        if cell.when != "Between two looks":
            stage.world.clock.now += 7 * DAY
            works(cell, stage)
    elif cell.hours:
        works(cell, stage)
        since = stage.expires if cell.error == "KeyExpiredError" else stage.looked
        stage.world.clock.now = since + cell.hours * ONE_HOUR - 1
        works(cell, stage)
        assert cell.column != COLUMNS[0] or stage.seconds_left() == 1
        stage.world.clock.now += 11
        refused(cell, stage)
        assert cell.column != COLUMNS[0] or stage.seconds_left() == 0
    else:
        refused(cell, stage)
    stage.end()
    stage.act(cell.column)


def works(cell: Cell, stage: Stage | RealStage) -> None:
    assert stage.act(cell.column) is cell.new


def refused(cell: Cell, stage: Stage | RealStage) -> None:
    with pytest.raises(cell.raises) as caught:
        stage.act(cell.column)
    assert type(caught.value) is cell.raises


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: f"{cell.when}-{cell.down}-{cell.column}")
def test_a_process_does_what_its_cell_says(cell: Cell) -> None:
    run(cell, Stage())


@pytest.mark.parametrize("cell", OF_THE_KEY_SERVICE, ids=lambda cell: f"{cell.when}-{cell.column}")
def test_so_it_does_on_sqlite_where_each_statement_looks(cell: Cell) -> None:
    run(cell, Stage(enlisted=True))


@pytest.mark.parametrize("failure", [KmsAuthError, KmsPermissionError, KmsKeyNotFoundError])
def test_a_key_service_that_refuses_counts_as_down(failure: type[KmsError]) -> None:
    for cell in OF_THE_KEY_SERVICE:
        stage = Stage()
        stage.service.failure = failure
        error = failure.__name__ if cell.error == "KmsUnavailableError" else cell.error
        run(dataclasses.replace(cell, error=error), stage)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.when}-{row.down}")
def test_the_log_says_what_the_row_says_and_no_more(row: Row, caplog: pytest.LogCaptureFixture) -> None:
    for cell in row.cells:
        run(cell, Stage())
    told = [one for one in caplog.records if one.name == "sa_asherah.hierarchy" and one.levelno >= logging.WARNING]
    logged = [one.getMessage() for one in told]
    assert [text for text in logged if not any(part in text for part in row.logged)] == []
    assert [part for part in row.logged if not any(part in text for text in logged)] == []


def test_the_page_has_every_section_row_and_column() -> None:
    assert [(row.when, row.down) for row in ROWS] == list(product(SCENES, DOWN))
    assert {cell.column for cell in CELLS} == set(COLUMNS)
    assert len(CELLS) == len({(cell.when, cell.down, cell.column) for cell in CELLS}) == 102
