# SPDX-License-Identifier: Apache-2.0
"""The key table from beginning to end: every row once, in one statement or in pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import event

from sa_asherah.metastore.stored import pages, stored_rows
from tests.metastore.backends import SyncBackend, engine_of, row

if TYPE_CHECKING:
    from collections.abc import Iterator


START = 1_800_000_000
ROWS = [row(key_id, START + n) for key_id in ("_IK_7_s_p", "_IK_70_s_p", "_IK_Ä_s_p", "_SK_s_p") for n in range(5)]


@pytest.fixture
def backend(database_url: str) -> Iterator[SyncBackend]:
    with engine_of(database_url) as engine:
        made = SyncBackend(engine)
        made.run(lambda rows: rows.insert(ROWS))
        yield made


@pytest.mark.parametrize("size", [1, 2, 3, 5, 20, 21, 500])
def test_pages_of_any_size_have_every_row_once(backend: SyncBackend, size: int) -> None:
    found = [[(one.id, one.created) for one in page] for page in pages(backend.engine, size=size)]
    assert max(map(len, found)) <= size
    assert sorted(place for page in found for place in page) == sorted((one.id, one.created) for one in ROWS)
    with backend.engine.connect() as connection:
        assert [place for page in found for place in page] == [(one.id, one.created) for one in stored_rows(connection)]


def test_pages_have_what_begins_with_a_prefix_and_nothing_like_it(backend: SyncBackend) -> None:
    backend.run(lambda rows: rows.insert([row("XSKX", START), row("_sk_s_p", START)]))
    found = [one.id for page in pages(backend.engine, "_SK_", 2) for one in page]
    assert found == ["_SK_s_p"] * 5


def test_between_two_pages_the_table_can_be_written_and_what_comes_behind_is_not_missed(backend: SyncBackend) -> None:
    seen: list[str] = []
    ended: list[object] = []
    event.listen(backend.engine, "checkin", lambda *_: ended.append(None))
    for page in pages(backend.engine, size=4):
        if not seen:
            backend.run(lambda rows: rows.insert([row("_ZZ_last", START)]))
        seen += [one.id for one in page]
    assert seen.count("_ZZ_last") == 1
    assert len(ended) >= 6


def test_rows_of_other_programs_are_left_out(backend: SyncBackend) -> None:
    foreign = "infinity" if backend.engine.dialect.name == "postgresql" else "no date"
    if backend.engine.dialect.name != "mariadb":  # whose dates are all dates
        insert = "INSERT INTO encryption_key (id, created, key_record) VALUES ('_IK_0_s_p', '?', '{}')"
        backend.sql(insert.replace("?", foreign))
    assert sum(len(page) for page in pages(backend.engine, size=3)) == len(ROWS)
