# SPDX-License-Identifier: Apache-2.0
"""`Encrypted(..., format="asherah")` as a declaration: what it may be, what it says of itself, what DDL it makes."""

from __future__ import annotations

import pickle
from typing import Any, Literal

import pytest
from sqlalchemy import JSON, Column, Integer, MetaData, Select, String, Table, select
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.schema import CreateTable

from sa_asherah import ConfigurationError, Encrypted
from sa_asherah.core.key import Key, Secret
from sa_asherah.core.key_record import KeyRecord
from sa_asherah.core.row_record import Request


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"bind_row": "id"}, "binds a value to its owner only"),
        ({"pad": 16}, "has no padding"),
        ({"storage": "blob"}, "'text' or 'json'"),
        ({"format": "Asherah"}, "'cell' or 'asherah'"),
        ({"format": None}, "'cell' or 'asherah'"),
        ({"format": "cell", "storage": "json"}, "'binary' or 'text'"),
    ],
    ids=["bind_row", "pad", "storage", "format", "no format", "json cells"],
)
def test_what_a_record_has_no_place_for_is_refused_where_it_is_declared(arguments: Any, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        Encrypted(String(), **({"owner": "owner", "format": "asherah"} | arguments))


FORMS: list[dict[str, Any]] = [
    {"format": "asherah"},
    {"format": "asherah", "storage": "json"},
    {"format": "cell", "storage": "text"},
    {"format": "cell"},
]


def test_the_type_says_what_it_is_and_no_two_are_taken_for_each_other() -> None:
    types = [Encrypted(String(), "owner", **form) for form in FORMS]
    for type_, form in zip(types, FORMS, strict=True):
        for again in (eval(repr(type_)), type_.copy(), pickle.loads(pickle.dumps(type_))):  # noqa: S301, S307
            assert (again.format, again.storage, repr(again)) == (type_.format, type_.storage, repr(type_))
        assert ("format='asherah'" in repr(type_)) == (form["format"] == "asherah")
    # The cache key of a statement is that of its columns' types: a shared one would read one format as another.
    selects: list[Select[Any]] = [select(Column("a", type_)) for type_ in types]
    assert len({repr(statement._generate_cache_key()) for statement in selects}) == len(types)
    assert len({type_.form for type_ in types}) == len(types)
    assert Encrypted(String(), format="asherah").form == Encrypted(String(), format="asherah", storage="text").form


def test_the_column_is_text_or_json() -> None:
    storages: tuple[Literal["text", "json"], ...] = "text", "json"
    columns: list[Column[Any]] = [
        Column(name, Encrypted(JSON(), "o", "{}", name, "asherah", storage=name)) for name in storages
    ]
    table = Table("t", MetaData(), Column("o", Integer), *columns)
    dialects: list[Any] = [sqlite.dialect, postgresql.dialect, mysql.dialect]  # their constructors are not typed
    found = {
        dialect.name: [
            line.split()[1].strip(",")
            for line in str(CreateTable(table).compile(dialect=dialect)).splitlines()
            if line.startswith(("\ttext", "\tjson", "\t`text`", "\t`json`"))
        ]
        for dialect in (make() for make in dialects)
    }
    assert found == {"sqlite": ["TEXT", "JSON"], "postgresql": ["TEXT", "JSONB"], "mysql": ["LONGTEXT", "JSON"]}


def test_a_request_shows_nothing_and_goes_nowhere() -> None:
    request = Request(Key(KeyRecord("_IK_1_s_p", 1, ""), "", Secret(bytes(32)), "1"), b"canary")
    assert repr(request) == str(request) == "<Request>"
    with pytest.raises(TypeError):
        pickle.dumps(request)
