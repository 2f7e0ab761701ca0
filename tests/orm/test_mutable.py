# SPDX-License-Identifier: Apache-2.0
"""Documents and lists that are changed in place are encrypted again, as a plain column would be written again."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm.attributes import flag_modified

from sa_asherah import UnsupportedValueError
from sa_asherah.kms.static import StaticKMS
from tests.orm.models import CANARY
from tests.orm.type_models import Folder, TypesApp

Change = Callable[[Folder], object]


@pytest.fixture(params=["sync", "async"])
def app(request: pytest.FixtureRequest, suite_url: str, static_kms: StaticKMS) -> TypesApp:
    """Each database, by its synchronous and its asynchronous driver."""
    return TypesApp(suite_url, static_kms, is_async=request.param == "async")


def folder(number: int = 1) -> Folder:
    return Folder(
        id=number,
        clinic_id=1,
        options={"name": CANARY, "inner": {"a": 1}},
        entries=[CANARY, {"a": [1]}],
        marks=[1, None],
        frozen={"a": [1]},
    )


def stored(app: TypesApp, number: int = 1) -> tuple[Any, ...]:
    """Read a folder as a process that just started does."""
    app.cold()
    query = select(Folder.options, Folder.entries, Folder.marks, Folder.frozen).where(Folder.id == number)
    (found,) = app.rows(query)
    return found


def replace_inner(each: Folder) -> None:
    each.options["inner"] = {**each.options["inner"], "b": 2}


def change_inner(each: Folder) -> None:
    """What is inside a tracked value is not tracked: say so, as for a plain column."""
    each.options["inner"]["b"] = 2
    each.options.changed()


def change_untracked(each: Folder) -> None:
    each.frozen["a"].append(2)
    flag_modified(each, "frozen")


OPTIONS, ENTRIES, MARKS, FROZEN = range(4)
CHANGES: dict[str, tuple[Change, int, Any]] = {
    "set key": (
        lambda each: each.options.update(new=CANARY),
        OPTIONS,
        {"name": CANARY, "inner": {"a": 1}, "new": CANARY},
    ),
    "remove key": (lambda each: each.options.pop("name"), OPTIONS, {"inner": {"a": 1}}),
    "clear": (lambda each: each.options.clear(), OPTIONS, {}),
    "replace inner": (replace_inner, OPTIONS, {"name": CANARY, "inner": {"a": 1, "b": 2}}),
    "change inner": (change_inner, OPTIONS, {"name": CANARY, "inner": {"a": 1, "b": 2}}),
    "append": (lambda each: each.entries.append(CANARY), ENTRIES, [CANARY, {"a": [1]}, CANARY]),
    "set item": (lambda each: each.entries.__setitem__(0, None), ENTRIES, [None, {"a": [1]}]),
    "reverse": (lambda each: each.marks.reverse(), MARKS, [None, 1]),
    "extend array": (lambda each: each.marks.extend([2**70]), MARKS, [1, None, 2**70]),
    "empty array": (lambda each: each.marks.clear(), MARKS, []),
    "untracked and flagged": (change_untracked, FROZEN, {"a": [1, 2]}),
}


def test_a_change_in_place_is_written_and_only_it(app: TypesApp) -> None:
    app.add(*(folder(number) for number in range(len(CHANGES))))
    before, rows = stored(app), app.stored("folders")
    with app.session() as session:
        for number, (change, _, _) in enumerate(CHANGES.values()):
            change(session.get_one(Folder, number))
        session.commit()
    columns = ("options", "entries", "marks", "frozen")
    for number, (row, now, (name, (_, place, expected))) in enumerate(
        zip(rows, app.stored("folders"), CHANGES.items(), strict=True)
    ):
        wanted = list(before)
        wanted[place] = expected
        assert stored(app, number) == tuple(wanted), name
        assert [column for column in columns if bytes(row[column]) != bytes(now[column])] == [columns[place]], name


def test_nothing_is_written_without_a_change(app: TypesApp) -> None:
    app.add(folder())
    (before,) = app.stored("folders")
    with app.session() as session:
        found = session.get_one(Folder, 1)
        assert found.options["inner"] == {"a": 1}
        found.entries = [CANARY, {"a": [1]}]  # equal to what is stored
        session.commit()
    assert app.stored("folders") == [before]


def test_a_change_is_seen_after_refresh_and_expire(app: TypesApp) -> None:
    app.add(folder())
    with app.session() as session:
        found = session.get_one(Folder, 1)
        session.refresh(found)
        assert type(found.options) is MutableDict
        found.options["one"] = 1
        session.flush()
        session.expire(found)
        found.options["two"] = 2
        found.marks.append(2)
        session.commit()
        found.options["three"] = 3
        session.commit()
    assert stored(app)[OPTIONS] == {"name": CANARY, "inner": {"a": 1}, "one": 1, "two": 2, "three": 3}
    assert stored(app)[MARKS] == [1, None, 2]


def detached(app: TypesApp) -> Folder:
    with app.session() as session:
        found = session.get_one(Folder, 1)
        session.expunge(found)
    return found


def test_a_change_is_seen_in_a_copy_that_was_pickled(app: TypesApp) -> None:
    app.add(folder())
    copy = pickle.loads(pickle.dumps(detached(app)))  # noqa: S301
    copy.options["pickled"] = True
    with app.session() as session:
        session.add(copy)
        session.commit()
        copy.marks.append(7)
        session.commit()
    assert stored(app)[OPTIONS] == {"name": CANARY, "inner": {"a": 1}, "pickled": True}
    assert stored(app)[MARKS] == [1, None, 7]


@pytest.mark.parametrize("load", [True, False])
def test_a_change_is_seen_in_a_merged_copy(app: TypesApp, load: bool) -> None:  # noqa: FBT001
    app.add(folder())
    original = detached(app)
    if load:
        original.marks.append(7)
    with app.session() as session:
        merged = session.merge(original, load=load)
        merged.marks.append(8)
        merged.options["merged"] = True
        session.commit()
    assert stored(app)[MARKS] == ([1, None, 7, 8] if load else [1, None, 8])
    assert stored(app)[OPTIONS] == {"name": CANARY, "inner": {"a": 1}, "merged": True}


def test_a_change_survives_a_move_to_another_owner(app: TypesApp) -> None:
    app.add(folder())
    with app.session() as session:
        found = session.get_one(Folder, 1)
        found.options["moved"] = True
        found.clinic_id = 2
        session.commit()
        found.marks.append(9)
        session.commit()
    assert stored(app) == (
        {"name": CANARY, "inner": {"a": 1}, "moved": True},
        [CANARY, {"a": [1]}],
        [1, None, 9],
        {"a": [1]},
    )


def test_a_rolled_back_change_is_gone(app: TypesApp) -> None:
    app.add(folder())
    with app.session() as session:
        found = session.get_one(Folder, 1)
        found.options["gone"] = True
        session.flush()
        session.rollback()
        assert "gone" not in found.options
        found.options["kept"] = True
        session.commit()
    assert stored(app)[OPTIONS] == {"name": CANARY, "inner": {"a": 1}, "kept": True}


def test_a_value_put_in_place_is_checked_at_the_flush(app: TypesApp) -> None:
    app.add(folder())
    with app.session() as session:
        found = session.get_one(Folder, 1)
        found.marks.append("no number")
        with pytest.raises(UnsupportedValueError):
            session.flush()
        session.rollback()
        assert found.marks == [1, None]
    with pytest.raises(ValueError, match="does not accept objects of type"):
        Folder(id=2, clinic_id=1, options=[1])


def test_assigning_a_new_value_tracks_that_one(app: TypesApp) -> None:
    app.add(folder())
    with app.session() as session:
        found = session.get_one(Folder, 1)
        found.options = {"a": 1}
        session.flush()
        found.options["b"] = 2
        found.entries = None
        session.commit()
        assert found.entries is None
    assert stored(app)[:2] == ({"a": 1, "b": 2}, None)
