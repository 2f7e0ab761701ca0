# SPDX-License-Identifier: Apache-2.0
"""Inserting under a parent that must not change, deleting what was read, and overwriting all records of an id."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from sa_asherah.core.ports import KeyRow
from sa_asherah.metastore import open_metastore
from tests.metastore.backends import SyncBackend, engine_of, memory_engine, row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sa_asherah.core.ports import KeyRows

START = 1_800_000_000
PARENT = ("_SK_s_p", START)
CHILD = row("_IK_7_s_p", START)


@pytest.fixture(params=["sqlite", "sqlite-memory", "postgresql", "mariadb"])
def backend(request: pytest.FixtureRequest) -> Iterator[SyncBackend]:
    url = "" if request.param == "sqlite-memory" else request.getfixturevalue(f"{request.param}_url")
    with engine_of(url) if url else memory_engine() as engine:
        made = SyncBackend(engine)
        made.run(lambda rows: rows.insert([row(*PARENT)]))
        yield made


def stored(backend: SyncBackend, place: tuple[str, int]) -> KeyRow | None:
    return backend.run(lambda rows: rows.exact([place])).get(place)


def test_a_child_is_inserted_while_its_parent_is_as_it_was_read(backend: SyncBackend) -> None:
    parent = stored(backend, PARENT)
    assert backend.run(lambda rows: rows.insert([CHILD], parent)) is True
    assert backend.run(lambda rows: rows.insert([CHILD], parent)) is True  # a taken place is no error
    assert stored(backend, ("_IK_7_s_p", START)) is not None


def test_no_child_of_a_parent_that_is_retired_or_gone(backend: SyncBackend) -> None:
    parent = stored(backend, PARENT)
    assert parent is not None
    assert backend.run(lambda rows: rows.replace(parent, row(*PARENT, Retired=2).text))
    assert backend.run(lambda rows: rows.insert([CHILD], parent)) is False
    retired = stored(backend, PARENT)
    assert retired is not None
    assert backend.run(lambda rows: rows.remove(retired)) is True
    assert backend.run(lambda rows: rows.insert([CHILD], retired)) is False
    assert stored(backend, ("_IK_7_s_p", START)) is None


def test_only_what_was_read_is_deleted(backend: SyncBackend) -> None:
    parent = stored(backend, PARENT)
    assert parent is not None
    other = KeyRow(parent.id, parent.created, parent.text + " ")

    def removed(one: KeyRow) -> bool:
        return backend.run(lambda rows: rows.remove(one))

    assert [removed(one) for one in (other, parent, parent)] == [False, True, False]


def test_every_record_of_an_id_is_overwritten_and_no_other(backend: SyncBackend) -> None:
    dates = (START, START + 1)
    others = [row("_IK_8_s_p", START), row("_IK_7_s_p_eu", START)]
    stone = row("_XK_7_s_p", 86_400)
    backend.run(lambda rows: rows.insert([*(row("_IK_7_s_p", date) for date in dates), *others]))
    before = [stored(backend, (one.id, one.created)) for one in others]

    def erase(rows: KeyRows) -> list[KeyRow]:
        return rows.erase([stone], ["_IK_7_s_p", "_IX_7_s_p"], lambda one: row(one.id, one.created, Key="bmV3").text)

    for _ in range(2):
        assert sorted(one.created for one in backend.run(erase)) == list(dates)
    assert all('"bmV3"' in getattr(stored(backend, ("_IK_7_s_p", date)), "text", "") for date in dates)
    assert [stored(backend, (one.id, one.created)) for one in others] == before
    assert stored(backend, (stone.id, stone.created)) is not None


@pytest.mark.parametrize("server", ["postgresql", "mariadb"])
def test_who_retires_a_parent_waits_for_its_child_and_then_sees_it(server: str, request: pytest.FixtureRequest) -> None:
    with engine_of(request.getfixturevalue(f"{server}_url")) as engine:
        backend = SyncBackend(engine)
        backend.run(lambda rows: rows.insert([row(*PARENT)]))
        parent = stored(backend, PARENT)
        assert parent is not None
        inserting, done = threading.Event(), threading.Event()

        def retire() -> None:
            inserting.wait(20)
            open_metastore(engine).run(lambda rows: rows.replace(parent, row(*PARENT, Retired=2).text))
            done.set()

        thread = threading.Thread(target=retire)
        thread.start()

        def insert(rows: KeyRows) -> bool:
            original = rows._insert  # type: ignore[attr-defined]

            def slowly(children: list[KeyRow]) -> None:
                inserting.set()
                assert not done.wait(0.5)
                original(children)

            rows._insert = slowly  # type: ignore[attr-defined]
            return rows.insert([CHILD], parent)

        assert backend.metastore.run(insert) is True
        thread.join(20)
        assert done.is_set()
