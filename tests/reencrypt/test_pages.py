# SPDX-License-Identifier: Apache-2.0
"""Pages: every row exactly once, over any primary key, on each database; positions survive as text."""

from __future__ import annotations

import enum
import uuid
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Column, Engine, MetaData, Table
from sqlalchemy.dialects import mysql, sqlite
from sqlalchemy.exc import IntegrityError

from sa_asherah.errors import ConfigurationError, ReencryptionError
from sa_asherah.reencrypt.pages import Pages, Position, position_of, text_of


class Ward(enum.Enum):
    """Not in the order of the alphabet."""

    surgery = 1
    children = 2
    maternity = 3


PLAIN = st.text(st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=["Cs"]), max_size=6)
TRICKY = st.sampled_from(
    ["a", "A", "b", "B", "ä", "Ä", "ss", "ß", "_", "Z", "z", "-", "é", "e", "ab", "a b", "10", "9"]
)
MOMENTS = st.datetimes(datetime(1971, 1, 1), datetime(2037, 1, 1)).map(lambda moment: moment.replace(fold=0))  # noqa: DTZ001 -- naive
KEYS: dict[str, tuple[list[Any], st.SearchStrategy[tuple[Any, ...]]]] = {
    "integer": ([sa.BigInteger()], st.tuples(st.integers(-(2**63), 2**63 - 1))),
    "string": ([sa.String(20)], st.tuples(TRICKY | PLAIN.filter(lambda text: text == text.strip()))),
    "uuid": ([sa.Uuid()], st.tuples(st.uuids(version=4))),
    "datetime": (
        [sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")],
        st.tuples(MOMENTS),
    ),
    "enum": ([sa.Enum(Ward)], st.tuples(st.sampled_from(Ward))),
    "enum and integer": ([sa.Enum(Ward), sa.Integer()], st.tuples(st.sampled_from(Ward), st.integers(0, 9))),
    "date and decimal": (
        [sa.Date(), sa.Numeric(8, 2)],
        st.tuples(st.dates(date(1900, 1, 1)), st.integers(-999, 999).map(lambda cents: Decimal(cents) / 100)),
    ),
    "string and integer": ([sa.String(20), sa.Integer()], st.tuples(TRICKY, st.integers(0, 3))),
    "three": (
        [sa.Integer(), sa.String(20), sa.Uuid()],
        st.tuples(
            st.integers(0, 2),
            TRICKY,
            st.sampled_from([uuid.uuid5(uuid.NAMESPACE_OID, str(number)) for number in range(4)]),
        ),
    ),
}
EVERY = st.one_of(
    st.integers(),
    st.booleans(),
    st.text(),
    st.binary(),
    st.uuids(),
    st.decimals(allow_nan=False),
    st.datetimes(),
    st.datetimes(timezones=st.just(UTC)),
    st.dates(),
    st.times(),
    st.floats(allow_nan=False),
    st.timedeltas(timedelta(-1000), timedelta(1000)),
)


@given(st.lists(EVERY, min_size=1, max_size=3).map(tuple))
def test_a_position_survives_as_text(position: Position) -> None:
    again = position_of(text_of(position))
    assert again == position
    assert [*map(type, again)] == [*map(type, position)]


def test_positions_of_other_types_are_refused() -> None:
    for value in (None, 1j, time):
        with pytest.raises(ReencryptionError, match="cannot be noted as a position"):
            text_of((value,))


def test_tables_that_cannot_be_paged_are_refused() -> None:
    metadata = MetaData()
    with pytest.raises(ConfigurationError, match="no primary key"):
        Pages(Table("without", metadata, Column("a", sa.Integer())), sqlite.dialect())
    with pytest.raises(ConfigurationError, match="floating point"):
        Pages(Table("floating", metadata, Column("a", sa.Float(), primary_key=True)), sqlite.dialect())


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = sa.create_engine(database_url)
    yield engine
    engine.dispose()


def read(
    engine: Engine, pages: Pages, bounds: tuple[Position | None, Position | None], limit: int
) -> Iterator[Position]:
    """Read page after page as a worker does, with positions that were text meanwhile."""
    after, upto = bounds
    with engine.connect() as connection:
        while True:
            statement, parameters = pages.page([], sa.true(), (after, upto), limit)
            rows = [tuple(row) for row in connection.execute(statement, parameters)]
            yield from rows
            if len(rows) < limit:
                return
            after = position_of(text_of(rows[-1]))


@pytest.mark.parametrize("kind", KEYS)
def test_pages_and_ranges_have_every_row_once_in_the_order_of_the_server(engine: Engine, kind: str) -> None:
    types, strategy = KEYS[kind]
    columns = [Column(f"k{n}", type_, primary_key=True, autoincrement=False) for n, type_ in enumerate(types)]
    table = Table("paged", MetaData(), *columns)
    table.create(engine)
    pages = Pages(table, engine.dialect)

    @settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.sets(strategy, max_size=30), st.integers(1, 7), st.integers(1, 9))
    def check(rows: set[tuple[Any, ...]], limit: int, size: int) -> None:
        with engine.begin() as connection:
            connection.execute(table.delete())
            for row in rows:
                # Two that differ here may be the same to the server: only one of them gets in.
                with connection.begin_nested() as savepoint:
                    try:
                        connection.execute(table.insert().values(dict(zip(table.c.keys(), row, strict=True))))
                    except IntegrityError:
                        savepoint.rollback()
            truth = [tuple(row) for row in connection.execute(sa.select(*pages.positions).order_by(*pages.keys))]
        assert list(read(engine, pages, (None, None), limit)) == truth
        with engine.connect() as connection:
            cuts = [position_of(text_of(cut)) for cut in pages.cuts(connection, size)]
            assert pages.end(connection) == (truth[-1] if truth else None)
        ends = [None, *cuts, None]
        shared = [row for bounds in pairwise(ends) for row in read(engine, pages, bounds, limit)]
        assert shared == truth
        assert len(cuts) == len(truth) // size

    check()
