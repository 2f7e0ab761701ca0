# SPDX-License-Identifier: Apache-2.0
"""What `Encrypted(...)` accepts where it is declared, and what a table with it must be like."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    Computed,
    DateTime,
    ForeignKey,
    Identity,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.engine import Dialect

from sa_asherah import ConfigurationError, Encrypted
from sa_asherah.core.cell import PADDED, ROW_BOUND
from sa_asherah.orm.plan import plan_of


def table(*columns: Column[Any], **options: Any) -> Table:
    """Make a table with an owner, the columns and a column bound to the key `id`."""
    type_ = Encrypted(String(), owner="owner", bind_row=options.pop("bind_row", "id"))
    return Table("rows", MetaData(), Column("owner", Integer, **options), *columns, Column("value", type_))


@pytest.mark.parametrize(
    "arguments",
    [
        {"storage": "json"}, {"storage": ""}, {"storage": None}, {"pad": 1}, {"pad": -16}, {"pad": 65537},
        {"pad": True}, {"pad": 16.0}, {"bind_row": ""}, {"owner": ""}, {"label": ""}, {"partition": "{}{}"},
        {"partition": "tenant"},
    ],
)  # fmt: skip
def test_unusable_arguments_are_refused_where_they_are_written(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Encrypted(String(), **arguments)


def test_the_repr_makes_the_same_type_again() -> None:
    types = [
        Encrypted(String()),
        Encrypted(
            String(length=7), owner="o", partition="tenant-{}", label="a.b", storage="text", bind_row="id", pad=8
        ),
        Encrypted(LargeBinary(), bind_row="id"),
    ]
    for type_ in types:
        again = eval(repr(type_))  # noqa: S307 -- Alembic writes it into a file and runs it
        assert vars(again).keys() == vars(type_).keys()
        assert repr(again) == repr(type_)
        assert again.flags == type_.flags


def test_every_argument_enters_the_cache_key() -> None:
    different = [
        {}, {"owner": "o"}, {"partition": "t-{}"}, {"label": "a"}, {"storage": "text"}, {"bind_row": "id"}, {"pad": 8},
    ]  # fmt: skip
    keys = {Encrypted(String(), **arguments)._static_cache_key for arguments in different}  # type: ignore[arg-type]
    assert len(keys) == len(different)


def test_flags_are_what_the_type_declares() -> None:
    assert Encrypted(String()).flags == 0
    assert Encrypted(String(), bind_row="id").flags == ROW_BOUND
    assert Encrypted(String(), pad=16).flags == PADDED
    assert Encrypted(String(), bind_row="id", pad=16).flags == ROW_BOUND | PADDED


def test_the_stored_type_is_wide_enough() -> None:
    dialects: list[Dialect] = [sqlite.dialect(), postgresql.dialect(), mysql.dialect()]  # type: ignore[no-untyped-call]
    types = {"binary": Encrypted(String()), "text": Encrypted(String(), storage="text")}
    found = {(dialect.name, name): type_.compile(dialect) for dialect in dialects for name, type_ in types.items()}
    assert found == {
        ("sqlite", "binary"): "BLOB",
        ("sqlite", "text"): "TEXT",
        ("postgresql", "binary"): "BYTEA",
        ("postgresql", "text"): "TEXT",
        ("mysql", "binary"): "LONGBLOB",
        ("mysql", "text"): "LONGTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
    }


@pytest.mark.parametrize(
    "keys",
    [
        [Column("id", Uuid, primary_key=True, default=uuid.uuid4)],
        [Column("id", String(40), primary_key=True)],
        [Column("id", Integer, primary_key=True, autoincrement=False)],
        [Column("id", Integer, primary_key=True, default=lambda: 7)],
    ],
)
def test_a_key_known_in_time_may_be_bound(keys: list[Column[Any]]) -> None:
    plan = plan_of(table(*(column._copy() for column in keys)))
    assert plan is not None
    assert plan.groups[0].row is not None
    assert plan.keys == {"id", "owner", "value"}


def test_the_owner_may_be_the_rest_of_the_key() -> None:
    plan = plan_of(table(Column("id", Integer, primary_key=True, autoincrement=False), primary_key=True))
    assert plan is not None


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ([Column("id", Integer, primary_key=True)], "numbered by the server"),
        ([Column("id", Integer, Identity(), primary_key=True)], "by the server"),
        ([Column("id", String(9), primary_key=True, server_default=text("x"))], "filled by the server"),
        ([Column("id", String(9), Computed("owner"), primary_key=True)], "filled by the server"),
        ([Column("id", String(9), unique=True), Column("number", Integer, primary_key=True)], "primary key column"),
        ([Column("other", String(9), primary_key=True)], "primary key column"),
        ([Column(name, String(9), primary_key=True) for name in ("id", "more")], "may only be the owner"),
        ([Column("id", DateTime, primary_key=True)], "canonical text"),
        ([Column("id", Text, ForeignKey("x.id", onupdate="CASCADE"), primary_key=True)], "ON UPDATE CASCADE"),
    ],
)
def test_a_key_that_is_not_known_in_time_is_refused(keys: list[Column[Any]], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        plan_of(table(*(column._copy() for column in keys)))
