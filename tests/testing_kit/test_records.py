# SPDX-License-Identifier: Apache-2.0
"""The kit's assertions on columns with `format="asherah"`."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, insert, update

from sa_asherah.testing import assert_encrypted_at_rest, assert_swaps_refused
from sa_asherah.testing.stored import raw_table
from tests.orm.record_models import COLUMNS, ROWS, sheets


@pytest.fixture
def filled(engine: Engine) -> Engine:
    sheets.create(engine)
    with engine.begin() as connection:
        connection.execute(insert(sheets), ROWS)
    return engine


def test_records_are_known_from_plaintext_and_from_cells(filled: Engine) -> None:
    for column in COLUMNS:
        assert assert_encrypted_at_rest(filled, sheets.c[column]) == sum(row[column] is not None for row in ROWS)
    raw = raw_table(sheets, [sheets.c.id, sheets.c.words])
    with filled.begin() as connection:
        connection.execute(update(raw).where(raw.c.id == 1).values(words="plaintext"))
    with pytest.raises(AssertionError, match="not a data row record"):
        assert_encrypted_at_rest(filled, sheets.c.words)


def test_records_are_refused_with_other_owners_and_read_in_other_columns_of_their_own(filled: Engine) -> None:
    report = assert_swaps_refused(filled, sheets)
    assert report.refused["owner"] == sum(row[column] is not None for row in ROWS for column in COLUMNS)
    assert report.refused["column"] > 0
    assert report.accepted > 0
    words = [reason for reason in report.untried if reason.startswith("sheets.words")]
    assert words == ["sheets.words, 3 of 3 values to another table: there is no other table with encrypted columns"]
