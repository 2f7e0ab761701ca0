# SPDX-License-Identifier: Apache-2.0
"""The key table as every database and driver must show it."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from sa_asherah.core.ports import KeyRow
from sa_asherah.errors import MetastoreError
from sa_asherah.metastore import open_metastore
from tests.metastore.backends import AsyncBackend, Backend, SyncBackend, engine_of, memory_engine, row

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

START = 1_800_000_000
"""2027-01-15 08:00:00 UTC."""

SERVERS = ["postgresql", "mariadb"]
SYNC = ["sqlite", "sqlite-memory", *SERVERS]
ASYNC = ["sqlite-async", "postgresql-async", "mariadb-async"]


def _backend(name: str, request: pytest.FixtureRequest) -> Iterator[Backend]:
    if name == "sqlite-memory":
        with memory_engine() as engine:
            yield SyncBackend(engine)
        return
    url: str = request.getfixturevalue(f"{name.removesuffix('-async')}_url")
    if name.endswith("-async"):
        yield AsyncBackend(url)
        return
    with engine_of(url) as engine:
        yield SyncBackend(engine)


@pytest.fixture(params=[*SYNC, *ASYNC])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    yield from _backend(request.param, request)


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[Backend]:
    yield from _backend(request.param, request)


@pytest.fixture
def sqlite(request: pytest.FixtureRequest) -> Iterator[Backend]:
    yield from _backend("sqlite", request)


def insert(backend: Backend, rows: Sequence[KeyRow]) -> None:
    backend.run(lambda key_rows: key_rows.insert(rows))


def newest(backend: Backend, ids: Sequence[str], not_after: int = START + 10**6) -> dict[str, int]:
    found = backend.run(lambda key_rows: key_rows.newest(ids, not_after))
    assert all(key_id == found[key_id].id for key_id in found)
    return {key_id: found[key_id].created for key_id in found}


def exact(backend: Backend, pairs: Sequence[tuple[str, int]]) -> dict[tuple[str, int], object]:
    found = backend.run(lambda key_rows: key_rows.exact(pairs))
    assert all(pair == (found[pair].id, found[pair].created) for pair in found)
    return {pair: json.loads(found[pair].text) for pair in found}


def test_rows_come_back_as_they_were(backend: Backend) -> None:
    rows = [row("_IK_7_s_p", START, Bind="YQ=="), row("_IK_8_s_p", START + 1, Key="+/+/")]
    insert(backend, rows)
    assert exact(backend, [("_IK_7_s_p", START), ("_IK_8_s_p", START + 1)]) == {
        (one.id, one.created): json.loads(one.text) for one in rows
    }


def test_the_newest_row_of_each_id_up_to_a_date(backend: Backend) -> None:
    dates = (START, START + 60, START + 3_600)
    insert(backend, [row(key_id, created) for key_id in ("_IK_7_s_p", "_IK_8_s_p") for created in dates])
    insert(backend, [row("_IK_9_s_p", START + 3_600)])
    ids = ["_IK_7_s_p", "_IK_8_s_p", "_IK_9_s_p", "_IK_10_s_p"]
    assert newest(backend, ids, START + 3_599) == {"_IK_7_s_p": START + 60, "_IK_8_s_p": START + 60}
    assert newest(backend, ids, START + 3_600) == dict.fromkeys(ids[:3], START + 3_600)
    assert newest(backend, ids, START - 1) == {}


def test_exact_finds_these_pairs_and_no_others(backend: Backend) -> None:
    ids, dates = ("_IK_7_s_p", "_IK_8_s_p"), (START, START + 60)
    insert(backend, [row(key_id, created) for key_id in ids for created in dates])
    pairs = [("_IK_7_s_p", START + 60), ("_IK_8_s_p", START), ("_IK_8_s_p", START + 1), ("_IK_9_s_p", START)]
    assert set(exact(backend, pairs)) == set(pairs[:2])
    assert exact(backend, []) == {}


def test_a_taken_place_is_left_as_it_is(backend: Backend) -> None:
    insert(backend, [row("_IK_7_s_p", START, Key="Zmlyc3Q=")])
    insert(backend, [row("_IK_8_s_p", START), row("_IK_7_s_p", START, Key="c2Vjb25k")])
    found = exact(backend, [("_IK_7_s_p", START), ("_IK_8_s_p", START)])
    assert found["_IK_7_s_p", START] == {"Created": START, "Key": "Zmlyc3Q="}
    assert len(found) == 2


def versions(backend: Backend, key_id: str) -> list[KeyRow]:
    return list(backend.run(lambda key_rows: key_rows.versions(key_id)))


def replace(backend: Backend, row: KeyRow, text: str) -> bool:
    return backend.run(lambda key_rows: key_rows.replace(row, text))


def test_all_versions_of_one_id_newest_first(backend: Backend) -> None:
    dates = (START, START + 3_600, START + 60)
    insert(backend, [row(key_id, created) for key_id in ("_SK_s_p", "_SK_s_p_eu", "_SK_S_p") for created in dates])
    found = versions(backend, "_SK_s_p")
    assert [(one.id, one.created) for one in found] == [("_SK_s_p", START + n) for n in (3_600, 60, 0)]
    assert found == [exact_row(backend, one.id, one.created) for one in found]
    assert versions(backend, "_SK_s") == []


def exact_row(backend: Backend, key_id: str, created: int) -> KeyRow:
    place = (key_id, created)
    return backend.run(lambda key_rows: key_rows.exact([place]))[place]


def test_a_record_is_replaced_where_it_is_exactly_the_one_that_was_read(backend: Backend) -> None:
    insert(backend, [row("_SK_s_p", START, Key="YQ=="), row("_SK_s_p", START + 1, Key="YQ=="), row("_IK_7_s_p", START)])
    before = versions(backend, "_SK_s_p")
    target = before[1]
    new = row("_SK_s_p", START, Key="Yg==", Note="José 患者 \\ \" '").text
    assert replace(backend, target, new)
    assert json.loads(exact_row(backend, "_SK_s_p", START).text) == json.loads(new)
    assert versions(backend, "_SK_s_p")[0] == before[0]
    assert not replace(backend, target, row("_SK_s_p", START, Key="Yw==").text), "what was read is gone"
    assert json.loads(exact_row(backend, "_SK_s_p", START).text) == json.loads(new)
    assert replace(backend, exact_row(backend, "_SK_s_p", START), target.text), "and back"


def test_a_record_that_only_looks_the_same_is_not_replaced(backend: Backend) -> None:
    insert(backend, [row("_SK_s_p", START, Key="YQ==")])
    read = exact_row(backend, "_SK_s_p", START)
    others = [
        KeyRow(read.id, read.created, read.text.replace("YQ", "yq")),
        KeyRow(read.id, read.created, read.text + " "),
        KeyRow("_SK_S_p", read.created, read.text),
        KeyRow(read.id, read.created + 1, read.text),
        KeyRow("_SK_x_p", read.created, read.text),
    ]
    assert [replace(backend, other, row("_SK_s_p", START, Key="Yg==").text) for other in others] == [False] * 5
    assert versions(backend, "_SK_s_p") == [read]


@pytest.mark.parametrize("database", ["sqlite", *SERVERS])
def test_of_several_that_replace_a_record_at_once_exactly_one_wins(
    request: pytest.FixtureRequest, database: str
) -> None:
    url: str = request.getfixturevalue(f"{database}_url")
    for backend in _backend(database, request):
        insert(backend, [row("_SK_s_p", START)])
        read = exact_row(backend, "_SK_s_p", START)
        texts = [row("_SK_s_p", START, Key=key).text for key in ("YQ==", "Yg==", "Yw==", "ZA==")]
        together = threading.Barrier(len(texts))

        def attempt(text: str, read: KeyRow = read, together: threading.Barrier = together) -> bool:
            with engine_of(url) as engine:  # as another process
                metastore = open_metastore(engine, separate=True)
                together.wait(30)
                return metastore.run(lambda key_rows: key_rows.replace(read, text), writing=True)

        with ThreadPoolExecutor(len(texts)) as pool:
            outcomes = list(pool.map(attempt, texts))
        assert sum(outcomes) == 1
        assert json.loads(exact_row(backend, "_SK_s_p", START).text) == json.loads(texts[outcomes.index(True)])


def test_ids_are_exact_in_case_accents_spaces_and_length(backend: Backend) -> None:
    ids = [
        "_IK_Bob_s_p",
        "_IK_bob_s_p",
        "_IK_bob _s_p",
        "_IK_José_s_p",
        "_IK_Jose_s_p",
        "_IK_%_s_p",
        "_IK_'\"\\:x_s_p",
        "_IK_患者🦔_s_p",
        "_IK_" + "x" * 247 + "_s_p",
    ]
    dates = {key_id: START + n for n, key_id in enumerate(ids)}
    insert(backend, [row(key_id, created) for key_id, created in dates.items()])
    assert newest(backend, ids) == dates
    assert newest(backend, ["_IK_BOB_s_p", "_IK_x_s_p"]) == {}


def test_thousands_of_ids_at_once(backend: Backend) -> None:
    ids = [f"_IK_{n}_s_p" for n in range(1_203)]
    insert(backend, [row(key_id, START) for key_id in ids])
    assert newest(backend, ids) == dict.fromkeys(ids, START)
    assert len(exact(backend, [(key_id, START) for key_id in ids])) == len(ids)


def test_dates_are_exact_to_the_second(backend: Backend) -> None:
    dates = {f"_IK_{created}_s_p": created for created in (1, 951_782_400, 2_147_483_648, 4_102_444_799)}
    insert(backend, [row(key_id, created) for key_id, created in dates.items()])
    assert newest(backend, list(dates), max(dates.values())) == dates
    assert set(exact(backend, list(dates.items()))) == set(dates.items())
    for key_id, created in dates.items():
        assert newest(backend, [key_id], created - 1) == {}


def test_dates_are_stored_as_the_other_implementations_read_them(backend: Backend) -> None:
    insert(backend, [row("_IK_7_s_p", START + 7)])
    [(text,)] = backend.sql("SELECT CAST(created AS CHAR(30)) FROM encryption_key")
    assert text.strip().removesuffix("+00") == "2027-01-15 08:00:07"


def test_other_programs_rows_are_not_ours(sqlite: Backend) -> None:
    insert(sqlite, [row("_IK_7_s_p", START)])
    strange = [
        "'2027-01-15 08:00:01.000000'",
        "'2027-01-15T08:00:02'",
        "'2027-01-15 08:00:03+00:00'",
        "1800000060",
        "1800000060.5",
        "''",
        "x'00ff'",
    ]
    for created in strange:
        sqlite.sql(f"INSERT INTO encryption_key VALUES ('_IK_7_s_p', {created}, '{{}}')")  # noqa: S608
    sqlite.sql("INSERT INTO encryption_key VALUES ('_IK_8_s_p', '2027-02-31 08:00:01', '{}')")
    sqlite.sql("INSERT INTO encryption_key VALUES ('__asherah_internal:x', '2000-01-01 00:00:00', 'x')")
    assert newest(sqlite, ["_IK_7_s_p", "_IK_8_s_p"]) == {"_IK_7_s_p": START}
    assert set(exact(sqlite, [("_IK_7_s_p", START + n) for n in range(100)])) == {("_IK_7_s_p", START)}
    assert [one.created for one in versions(sqlite, "_IK_7_s_p")] == [START]


def test_rows_of_other_programs_on_postgresql(request: pytest.FixtureRequest) -> None:
    for backend in _backend("postgresql", request):
        insert(backend, [row("_IK_7_s_p", START)])
        for created in ("infinity", "-infinity", "2027-01-15 08:00:01.5+00", "0044-03-15 00:00:00+00 BC"):
            backend.sql(f"INSERT INTO encryption_key VALUES ('_IK_7_s_p', '{created}', '{{}}')")  # noqa: S608
        assert newest(backend, ["_IK_7_s_p"]) == {"_IK_7_s_p": START}
        assert [one.created for one in versions(backend, "_IK_7_s_p")] == [START]


def test_only_a_taken_place_is_forgiven(server: Backend) -> None:
    with pytest.raises(MetastoreError):
        insert(server, [row("_IK_" + "x" * 300, START)])
    server.sql("ALTER TABLE encryption_key ADD CONSTRAINT no_sevens CHECK (id <> '_IK_7_s_p')")
    with pytest.raises(MetastoreError) as caught:
        insert(server, [row("_IK_7_s_p", START, Key="c2VjcmV0"), row("_IK_8_s_p", START)])
    assert "c2VjcmV0" not in f"{caught.value}"
    assert newest(server, ["_IK_7_s_p", "_IK_8_s_p"]) == {}


def test_a_missing_table_is_named_with_the_remedy(backend: Backend) -> None:
    backend.sql("DROP TABLE encryption_key")
    with pytest.raises(MetastoreError, match="create_metastore"):
        newest(backend, ["_IK_7_s_p"])
    with pytest.raises(MetastoreError, match="create_metastore"):
        versions(backend, "_IK_7_s_p")
    with pytest.raises(MetastoreError, match="create_metastore"):
        replace(backend, row("_IK_7_s_p", START), "{}")
