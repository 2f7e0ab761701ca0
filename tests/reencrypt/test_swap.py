# SPDX-License-Identifier: Apache-2.0
"""Compare-and-swap: it replaces what was read, and nothing that differs from it by a byte or by its owner."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Column, Engine, Integer, MetaData, Table
from sqlalchemy.dialects import mysql

from sa_asherah import Encrypted
from sa_asherah.reencrypt import swap
from sa_asherah.reencrypt.pages import Pages
from sa_asherah.reencrypt.swap import LONGEST, Stored, Swap, Swapper
from tests.reencrypt.scene import LONG_TEXT, engine_of

CELL = b"\xa5\x01\x01\x00" + bytes(range(100, 244))
TEXTS = [
    None,
    "",
    "abc",
    "ABC",
    "abc ",
    " abc",
    "äbc",
    "a\u0308bc",
    "1",
    "1.0",
    "é" * 5000,
    "é" * 4999 + "è",
    "x" * 8192,
    "x" * 8193,
]
CASES: dict[str, tuple[Any, list[Any], bool]] = {
    "text": (LONG_TEXT, TEXTS, False),
    "varchar": (sa.String(100), [text for text in TEXTS if text is None or len(text) < 100], False),
    "char": (sa.CHAR(4), [None, "ab", "AB", "abc", "b"], False),
    "integer": (sa.Integer(), [None, 0, 1, -1, 10], False),
    "double": (sa.Double(), [None, 0.1, 0.1 + 2e-17, 0.30000000000000004, 0.3, 1e300, -0.5], False),
    "decimal": (sa.Numeric(20, 10, asdecimal=False), [None, 1.5, 1.25], False),
    "json": (
        sa.JSON(none_as_null=True),
        [None, {"a": 1}, {"a": "1"}, {"a": 1, "b": []}, [1, 2], [2, 1], {"a": "é" * 9000}],
        False,
    ),
    "cells": (
        Encrypted(sa.Text(), owner="owner"),
        [None, CELL, CELL[:-1], CELL[:71] + b"\0" + CELL[72:], b"\xa6" + CELL[1:], CELL + b"\0"],
        True,
    ),
    "cells as text": (
        Encrypted(sa.Text(), owner="owner", storage="text"),
        [None, "sa1:" + "A" * 130, "sa1:" + "a" * 130, "sa1:" + "A" * 95 + "B" + "A" * 34, "sa1:" + "A" * 131],
        True,
    ),
}


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = engine_of(database_url)
    yield engine
    engine.dispose()


def storage(type_: Any, engine: Engine) -> Any:
    """Return what the column is in the database."""
    return type_.load_dialect_impl(engine.dialect) if isinstance(type_, Encrypted) else type_


@pytest.fixture
def _few_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let MySQL and MariaDB change some of few rows by one statement, and the others one by one."""
    monkeypatch.setattr(swap, "_TOGETHER", 3)


@pytest.mark.usefixtures("_few_together")
@pytest.mark.parametrize("case", CASES)
def test_only_what_was_read_is_replaced(engine: Engine, case: str) -> None:
    """Every value is read, every other one is put in its place, and the swap of what was read must find nothing."""
    type_, values, is_cell = CASES[case]
    table = Table(
        "swapped",
        MetaData(),
        Column("id", Integer, primary_key=True, autoincrement=False),
        Column("value", storage(type_, engine)),
        Column("mark", sa.String(20)),
    )
    pairs = [(one, other) for one in range(len(values)) for other in range(len(values))]
    table.create(engine)
    pages = Pages(table, engine.dialect)
    stored = Stored(pages.source.c.value, type_, engine.dialect)
    swapper = Swapper(pages, {"value": stored})
    with engine.begin() as connection:
        connection.execute(table.insert(), [{"id": n, "value": values[n]} for n in range(len(values))])
        read = connection.execute(sa.select(*stored.selected).order_by(pages.keys[0])).all()
        connection.execute(table.delete())
        rows = [{"id": n, "value": values[other]} for n, (_, other) in enumerate(pairs)]
        connection.execute(table.insert(), rows)
        swaps = [
            Swap((n,), {"value": stored.old(read[one], is_cell=is_cell)}, {"mark": f"for {n}"})
            for n, (one, _) in enumerate(pairs)
            if values[one] is not None
        ]
        swapped = swapper.execute(connection, swaps)
        marked = sa.select(table.c.id, table.c.mark).where(table.c.mark.is_not(None))
        marks = {row.id: row.mark for row in connection.execute(marked)}
    same = {n for n, (one, other) in enumerate(pairs) if one == other or read[one] == read[other]}
    same -= {n for n, (one, _) in enumerate(pairs) if values[one] is None}
    assert marks == {n: f"for {n}" for n in same}
    assert swapped == len(same)


@pytest.mark.usefixtures("_few_together")
def test_a_swap_needs_every_old_value_and_many_are_counted_together(engine: Engine) -> None:
    table = Table(
        "swapped",
        MetaData(),
        Column("id", Integer, primary_key=True, autoincrement=False),
        Column("part", sa.String(20), primary_key=True),
        Column("value", LONG_TEXT),
        Column("owner", sa.String(20)),
        Column("into", sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb")),
    )
    table.create(engine)
    pages = Pages(table, engine.dialect)
    stored = {
        name: Stored(pages.source.c[name], table.c[name].type, engine.dialect) for name in ("value", "owner", "into")
    }
    swapper = Swapper(pages, stored)
    words = st.sampled_from(["a", "A", "b", "x" * (LONGEST + 1)])
    row = st.tuples(words, words, st.sampled_from([None, b"1", b"2"]))

    @settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(st.tuples(row, row), max_size=8))
    def check(history: list[tuple[Any, Any]]) -> None:
        names = ("value", "owner", "into")

        def fill(connection: sa.Connection, which: int) -> None:
            connection.execute(table.delete())
            for n, versions in enumerate(history):
                owner = versions[which][1][:1]
                values = dict(zip(names, versions[which], strict=True)) | {"owner": owner}
                connection.execute(table.insert().values(id=n, part=f"part {n % 2}", **values))

        with engine.begin() as connection:
            fill(connection, 0)
            columns = [
                each.label(f"c{n}{m}") for n, name in enumerate(names) for m, each in enumerate(stored[name].selected)
            ]
            spans = {name: len(stored[name].selected) for name in names}
            read = connection.execute(sa.select(*pages.keys, *columns).order_by(*pages.keys)).all()
            fill(connection, 1)
            swaps: list[Swap] = []
            for found in read:
                old, start = {}, 2
                for name in names:
                    old[name] = stored[name].old(found[start : start + spans[name]], is_cell=False)
                    start += spans[name]
                swaps.append(Swap(tuple(found)[:2], old, {"into": b"new %d" % found[0]}))
            swapped = swapper.execute(connection, swaps)
            news = {tuple(row) for row in connection.execute(sa.select(table.c.id, table.c.into))}
        model = {
            n
            for n, (one, other) in enumerate(history)
            if (one[0], one[1][:1], one[2]) == (other[0], other[1][:1], other[2])
        }
        after = {(n, b"new %d" % n if n in model else other[2]) for n, (_, other) in enumerate(history)}
        assert (news, swapped) == (after, len(model))

    check()


def test_where_many_rows_have_no_count_each_is_counted(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table(
        "swapped", MetaData(), Column("id", Integer, primary_key=True, autoincrement=False), Column("value", LONG_TEXT)
    )
    table.create(engine)
    pages = Pages(table, engine.dialect)
    stored = Stored(pages.source.c.value, table.c.value.type, engine.dialect)
    secret = os.urandom(4).hex()
    monkeypatch.setattr(engine.dialect, "supports_sane_multi_rowcount", False)
    with engine.begin() as connection:
        connection.execute(table.insert(), [{"id": n, "value": secret} for n in range(5)])
        read = connection.execute(sa.select(*stored.selected).order_by(pages.keys[0])).all()
        connection.execute(table.update().where(table.c.id == 3).values(value="other"))
        swaps = [Swap((n,), {"value": stored.old(row, is_cell=False)}, {"value": "new"}) for n, row in enumerate(read)]
        assert Swapper(pages, {"value": stored}).execute(connection, swaps) == 4
        assert list(connection.execute(sa.select(table.c.value).order_by(table.c.id)).scalars()) == ["new"] * 3 + [
            "other",
            "new",
        ]
