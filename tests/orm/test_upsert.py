# SPDX-License-Identifier: Apache-2.0
"""Upserts on the three databases: what is allowed never leaves a value that its row's owner cannot read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import func, literal, select
from sqlalchemy.dialects import mysql, postgresql, sqlite

from sa_asherah import OwnerChangedError, OwnerRequiredError, UsageError
from tests.orm.app import App
from tests.orm.models import Slot
from tests.orm.traces import assert_no_traces

NEW = object()
"""The value that the upsert tried to insert: `excluded.column`, `inserted.column`."""

OWN_SLOT = {"id": 1, "clinic_id": 1, "number": 7, "first": "canary new 1", "second": "canary new 2"}
OTHER_OWNER = OWN_SLOT | {"clinic_id": 2}


def upsert(app: App, assigned: dict[str, Any], target: Any, *, entity: Any = Slot) -> Any:
    """Build the upsert of the database at hand; MySQL's has no target."""
    if app.dialect == "mariadb":
        on_duplicate = mysql.insert(entity)
        new = on_duplicate.inserted
        return on_duplicate.on_duplicate_key_update({k: new[k] if v is NEW else v for k, v in assigned.items()})
    make: Callable[[Any], Any] = postgresql.insert if app.dialect == "postgresql" else sqlite.insert
    statement: Any = make(entity)
    values = {k: statement.excluded[k] if v is NEW else v for k, v in assigned.items()}
    if isinstance(target, str):
        return statement.on_conflict_do_update(set_=values, constraint=target)
    return statement.on_conflict_do_update(set_=values, index_elements=target)


def fill(app: App) -> None:
    app.add(
        Slot(id=1, clinic_id=1, number=7, first="canary 1", second="canary 2"),
        Slot(id=2, clinic_id=2, number=8, first="canary 3"),
    )


def read(app: App) -> list[tuple[Any, ...]]:
    app.cold()
    return app.rows(select(Slot.clinic_id, Slot.first, Slot.second).order_by(Slot.id))


BEFORE = [(1, "canary 1", "canary 2"), (2, "canary 3", None)]
ALL = {"clinic_id": NEW, "first": NEW, "second": NEW}


def test_a_new_row_is_inserted(app: App) -> None:
    row = OWN_SLOT | {"id": 5, "number": 5}
    app.execute(upsert(app, ALL, [Slot.id]).values(row))
    app.execute(upsert(app, ALL, [Slot.id]), row | {"id": 6, "number": 6})
    assert read(app) == [(1, "canary new 1", "canary new 2")] * 2


def test_owner_and_all_columns_may_be_taken_over(app: App) -> None:
    fill(app)
    app.execute(upsert(app, ALL, [Slot.id]), [OTHER_OWNER, OWN_SLOT | {"id": 2, "number": 8}])
    assert read(app) == [(2, "canary new 1", "canary new 2"), (1, "canary new 1", "canary new 2")]


def test_literals_may_be_set_for_the_inserted_owner(app: App) -> None:
    fill(app)
    assigned = {"clinic_id": 2, "first": "canary literal", "second": None}
    app.execute(upsert(app, assigned, [Slot.id]).values(OTHER_OWNER))
    assert read(app)[0] == (2, "canary literal", None)
    assert_no_traces(app.engine)


def test_the_owner_in_the_target_is_enough(app: App) -> None:
    fill(app)
    for target in ([Slot.clinic_id, Slot.number], "slots_of_clinic"):
        if app.dialect == "mariadb" or (app.dialect == "sqlite" and isinstance(target, str)):
            continue  # no target; no constraint by name
        row = OWN_SLOT | {"id": 9, "number": 7, "first": f"canary by {len(target)}"}
        app.execute(upsert(app, {"first": NEW}, target), row)
        assert read(app)[0] == (1, row["first"], "canary 2")
        app.execute(upsert(app, {"second": "canary literal"}, target).values(row))
        assert read(app)[0] == (1, row["first"], "canary literal")
        app.execute(upsert(app, {"second": "canary 2"}, target).values(row))


def test_a_value_may_not_land_in_a_row_of_another_owner(app: App) -> None:
    fill(app)
    for assigned in (
        {"first": NEW},
        {"first": "canary literal"},
        {"first": NEW, "second": NEW},
        {"clinic_id": NEW},
        {"clinic_id": 2},
        {"clinic_id": NEW, "first": NEW},
        {"clinic_id": 3, "first": "canary literal", "second": "canary literal"},
    ):
        with pytest.raises(OwnerChangedError):
            app.execute(upsert(app, assigned, [Slot.id]).values(OTHER_OWNER))
        with pytest.raises(OwnerChangedError):
            app.execute(upsert(app, assigned, [Slot.id]), OTHER_OWNER)
    assert_no_traces(app.engine)
    assert read(app) == BEFORE


def test_a_literal_for_rows_of_several_owners_is_refused(app: App) -> None:
    fill(app)
    with pytest.raises(OwnerChangedError, match="several owners"):
        app.execute(upsert(app, ALL | {"first": "canary literal"}, [Slot.id]), [OTHER_OWNER, OWN_SLOT | {"id": 2}])
    assert read(app) == BEFORE


def test_expressions_and_other_columns_are_refused(app: App) -> None:
    fill(app)
    for value in (func.lower("canary"), func.coalesce(Slot.first, "canary"), literal("canary") + "x"):
        with pytest.raises(UsageError):
            app.execute(upsert(app, ALL | {"first": value}, [Slot.id]).values(OTHER_OWNER))
    statement = upsert(app, ALL, [Slot.id])
    other = (statement.inserted if app.dialect == "mariadb" else statement.excluded)["second"]
    with pytest.raises(UsageError, match="copy the ciphertext"):
        app.execute(upsert(app, ALL | {"first": other}, [Slot.id]).values(OTHER_OWNER))
    assert_no_traces(app.engine)
    assert read(app) == BEFORE


def test_an_upsert_of_plain_columns_alone_is_free(app: App) -> None:
    fill(app)
    app.execute(upsert(app, {"number": 70}, [Slot.id]).values(OTHER_OWNER))
    assert read(app) == BEFORE


def test_doing_nothing_is_free(app: App) -> None:
    fill(app)
    if app.dialect == "mariadb":
        app.execute(mysql.insert(Slot).prefix_with("IGNORE"), OTHER_OWNER)
    else:
        make: Any = postgresql.insert if app.dialect == "postgresql" else sqlite.insert
        app.execute(make(Slot).on_conflict_do_nothing(), OTHER_OWNER)
    assert read(app) == BEFORE


def test_an_upsert_needs_an_owner(app: App) -> None:
    with pytest.raises(OwnerRequiredError):
        app.execute(upsert(app, ALL, [Slot.id]).values(id=1, first="canary", second=None))


def test_upserts_through_a_session(app: App) -> None:
    fill(app)
    with app.session() as session:
        session.execute(upsert(app, ALL, [Slot.id]), [OTHER_OWNER, OWN_SLOT | {"id": 3, "number": 3}])
        if app.dialect != "mariadb":
            returning = upsert(app, ALL, [Slot.id]).values(OTHER_OWNER | {"first": "canary returned"}).returning(Slot)
            slot = session.scalars(returning, execution_options={"populate_existing": True}).one()
            assert (slot.clinic_id, slot.first) == (2, "canary returned")
            session.execute(upsert(app, ALL, [Slot.id]).values(OTHER_OWNER))
        session.commit()
    assert read(app) == [(2, "canary new 1", "canary new 2"), BEFORE[1], (1, "canary new 1", "canary new 2")]
