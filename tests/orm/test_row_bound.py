# SPDX-License-Identifier: Apache-2.0
"""`bind_row=`: a value belongs to one row, and stays readable however the row is written."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from sqlalchemy import String, bindparam, insert, select, text, update

from sa_asherah import Encrypted, OwnerChangedError, OwnerRequiredError, UsageError, WrongPlaceError, partition_scope
from sa_asherah.errors import DecryptionError
from tests.orm.app import App
from tests.orm.models import Entry, Passport, Ticket, table_of
from tests.orm.test_upsert import NEW, upsert

FIRST, SECOND, THIRD = (uuid.UUID(int=number) for number in (1, 2, 3))
SCAN = b"canary scan"


def fill(app: App) -> None:
    """Add two rows of one owner and one of another."""
    app.add(
        Passport(id=FIRST, clinic_id=1, place="a", number="canary 1", scan=SCAN),
        Passport(id=SECOND, clinic_id=1, place="b", number="canary 2", scan=None),
        Passport(id=THIRD, clinic_id=2, place="c", number="canary 3", scan=SCAN),
    )


def read(app: App) -> list[tuple[Any, ...]]:
    """Read all rows as a process that just started does."""
    app.cold()
    return app.rows(
        select(Passport.id, Passport.clinic_id, Passport.number, Passport.scan).order_by(Passport.place, Passport.id)
    )


ROWS = [(FIRST, 1, "canary 1", SCAN), (SECOND, 1, "canary 2", None), (THIRD, 2, "canary 3", SCAN)]


def test_rows_come_back(app: App) -> None:
    fill(app)
    assert read(app) == ROWS


@pytest.mark.parametrize("column", ["number", "scan"])
def test_a_value_moved_to_another_row_of_its_owner_is_refused(app: App, column: str) -> None:
    fill(app)
    app.execute(update(Passport).where(Passport.id == SECOND).values(number="canary 2", scan=b"canary other"))
    (cell,) = (row[column] for row in app.stored("passports") if row["place"] == "a")
    with app.engine.begin() as connection:
        connection.execute(text(f"UPDATE passports SET {column} = :cell WHERE place = 'b'"), {"cell": cell})  # noqa: S608
    app.cold()
    with pytest.raises(WrongPlaceError):
        app.rows(select(getattr(Passport, column)).where(Passport.place == "b"))
    assert app.rows(select(getattr(Passport, column)).where(Passport.place == "a"))[0][0]


def test_a_padded_value_may_stand_in_every_row_of_its_owner(app: App) -> None:
    """Only `bind_row` binds to the row."""
    app.add(Passport(id=FIRST, clinic_id=1, place="a", names="canary 1"), Passport(id=SECOND, clinic_id=1, place="b"))
    (cell,) = (row["names"] for row in app.stored("passports") if row["place"] == "a")
    with app.engine.begin() as connection:
        connection.execute(text("UPDATE passports SET names = :cell"), {"cell": cell})
    assert app.rows(select(Passport.names)) == [("canary 1",), ("canary 1",)]


def test_a_key_made_by_python_is_known_in_time(app: App) -> None:
    with app.session() as session:
        passport = Passport(clinic_id=1, number="canary 1")
        session.add(passport)
        session.flush()
        assert isinstance(passport.id, uuid.UUID)
        session.execute(insert(Passport).values(clinic_id=1, number="canary 2"))
        session.execute(insert(Passport), [{"clinic_id": 1, "number": f"canary {number}"} for number in (3, 4)])
        session.execute(insert(Passport).values([{"clinic_id": 2, "number": f"canary {n}"} for n in (5, 6)]))
        session.commit()
    with app.engine.begin() as connection:
        connection.execute(insert(table_of(Passport)), [{"clinic_id": 2, "number": "canary 7"}] * 2)
    assert sorted(row[2] for row in read(app)) == [f"canary {number}" for number in (1, 2, 3, 4, 5, 6, 7, 7)]


def test_a_missing_key_is_refused(app: App) -> None:
    with pytest.raises(UsageError, match="primary key"):
        app.execute(insert(table_of(Entry)).values(tenant="x", line="canary"))
    with pytest.raises(UsageError, match="primary key"):
        app.execute(insert(table_of(Entry)).values(tenant="x", number=None, line="canary"))


def test_another_key_encrypts_the_row_again(app: App) -> None:
    fill(app)
    with app.session() as session:
        passport = session.get_one(Passport, FIRST)
        session.expire(passport, ["number"])
        passport.id = uuid.UUID(int=9)
        session.commit()
        passport.id, passport.clinic_id, passport.number = uuid.UUID(int=8), 3, "canary moved"
        session.commit()
    assert read(app) == [(uuid.UUID(int=8), 3, "canary moved", SCAN), *ROWS[1:]]


def test_another_owner_encrypts_the_row_again(app: App) -> None:
    fill(app)
    with app.session() as session:
        session.get_one(Passport, FIRST).clinic_id = 2
        session.commit()
    assert read(app) == [(FIRST, 2, "canary 1", SCAN), *ROWS[1:]]


def test_attributes_of_loaded_rows(app: App) -> None:
    fill(app)
    with app.session() as session:
        for passport in session.scalars(select(Passport)):
            passport.number = f"canary {passport.place}"
        session.commit()
    assert [row[2] for row in read(app)] == ["canary a", "canary b", "canary c"]


UPDATES: dict[str, Any] = {
    "by key": lambda app: app.execute(update(Passport).where(Passport.id == FIRST).values(number="canary new")),
    "by other criteria": lambda app: app.execute(
        update(Passport).where(Passport.place == "a").values(number="canary new")
    ),
    "many by key": lambda app: app.execute(
        update(table_of(Passport)).where(table_of(Passport).c.id == bindparam("key")),
        [{"key": FIRST, "number": "canary new"}, {"key": SECOND, "number": "canary 2"}],
    ),
    "many mappings": lambda app: app.rows(
        select(Passport.id).where(Passport.id == _bulk(app, {"id": FIRST, "number": "canary new"}))
    ),
    "another key and all that is bound to it": lambda app: app.execute(
        update(Passport).where(Passport.id == FIRST).values(id=FIRST, number="canary new", scan=SCAN)
    ),
}


def _bulk(app: App, *rows: dict[str, Any]) -> uuid.UUID:
    with app.session() as session:
        session.execute(update(Passport), list(rows))
        session.commit()
    return FIRST


@pytest.mark.parametrize("name", UPDATES)
def test_an_update_of_one_row(app: App, name: str) -> None:
    fill(app)
    UPDATES[name](app)
    assert read(app) == [(FIRST, 1, "canary new", SCAN), *ROWS[1:]]


def test_an_update_of_several_rows_is_refused(app: App) -> None:
    fill(app)
    with pytest.raises(OwnerRequiredError, match="2 owners or primary keys"):
        app.execute(update(Passport).where(Passport.clinic_id == 1).values(number="canary"))
    app.execute(update(Passport).where(Passport.clinic_id == 1).values(number=None))
    app.execute(update(Passport).where(Passport.clinic_id == 7).values(number="canary"))
    assert [row[2] for row in read(app)] == [None, None, "canary 3"]


def test_another_key_alone_is_refused(app: App) -> None:
    fill(app)
    with pytest.raises(OwnerChangedError, match=r"passports\.scan"):
        app.execute(update(Passport).where(Passport.id == FIRST).values(id=uuid.UUID(int=9), number="canary"))
    assert read(app) == ROWS


def test_an_upsert_that_may_meet_another_row_is_refused(app: App) -> None:
    fill(app)
    row = {"id": uuid.UUID(int=9), "clinic_id": 1, "place": "a", "number": "canary new"}
    everything = ["clinic_id", "number", "names", "memo", "scan"]
    with pytest.raises(OwnerChangedError, match=r"passports\.id"):
        app.execute(upsert(app, dict.fromkeys(everything, NEW), ["place"], entity=Passport), row)
    app.execute(upsert(app, dict.fromkeys(["id", *everything], NEW), ["place"], entity=Passport), row)
    assert read(app) == [(uuid.UUID(int=9), 1, "canary new", None), *ROWS[1:]]


def test_ciphertext_is_copied_only_with_its_key(app: App) -> None:
    fill(app)
    table = table_of(Passport)
    with pytest.raises(OwnerChangedError, match="primary key"):
        app.execute(
            insert(table).from_select(
                ["clinic_id", "number"], select(table.c.clinic_id, table.c.number), include_defaults=False
            )
        )


def test_a_subquery_needs_the_key(app: App) -> None:
    fill(app)
    with_key = select(Passport.id, Passport.clinic_id, Passport.number).subquery()
    assert len(app.rows(select(with_key.c.number))) == len(ROWS)
    without = select(Passport.clinic_id, Passport.number).subquery()
    with pytest.raises(OwnerRequiredError, match="primary key is not in reach"):
        app.rows(select(without.c.number))
    without_owner = select(Passport.id, Passport.number, Passport.scan).where(Passport.clinic_id == 1).subquery()
    with partition_scope("1"):
        found = app.rows(select(without_owner.c.number, without_owner.c.scan).order_by(without_owner.c.id))
    assert found == [("canary 1", SCAN), ("canary 2", None)]


def test_text_cannot_tell_the_row(app: App) -> None:
    fill(app)
    typed = text("SELECT number FROM passports").columns(
        number=Encrypted(String(), label="passports.number", bind_row="id")
    )
    with partition_scope("1"), pytest.raises(OwnerRequiredError, match="bound to its row"):
        app.rows(typed)


def test_the_owner_may_be_the_rest_of_the_key(app: App) -> None:
    app.add(
        Entry(tenant="x", number=1, line="canary 1"),
        Entry(tenant="x", number=2, line="canary 2"),
        Entry(tenant="y", number=1, line="canary 3"),
    )
    with app.session() as session:
        entry = session.get_one(Entry, ("x", 1))
        entry.tenant, entry.number = "z", 7
        session.commit()
    app.cold()
    found = app.rows(select(Entry.tenant, Entry.number, Entry.line).order_by(Entry.tenant, Entry.number))
    assert found == [("x", 2, "canary 2"), ("y", 1, "canary 3"), ("z", 7, "canary 1")]


def test_a_scope_names_the_owner_and_the_row_itself(app: App) -> None:
    with partition_scope("someone"):
        app.add(Ticket(code="A", words="canary a"), Ticket(code="B", words="canary b"))
        app.cold()
        assert app.rows(select(Ticket.words).order_by(Ticket.code)) == [("canary a",), ("canary b",)]
        app.execute(update(Ticket).where(Ticket.code == "A").values(words="canary new"))
        assert app.rows(select(Ticket.words).order_by(Ticket.code)) == [("canary new",), ("canary b",)]
    with partition_scope("nobody"), pytest.raises(DecryptionError):
        app.rows(select(Ticket.words))


def test_a_key_that_the_database_finds_equal_stays_the_stored_one(app: App) -> None:
    """A collation may find 'A' by 'a'; the value is encrypted for the key that is stored."""
    with partition_scope("someone"):
        app.add(Ticket(code="A", words="canary a"))
        app.execute(update(Ticket).where(Ticket.code == "a").values(words="canary new"))
        app.cold()
        assert app.rows(select(Ticket.words)) in ([("canary new",)], [("canary a",)])
