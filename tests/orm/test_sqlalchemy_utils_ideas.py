# SPDX-License-Identifier: Apache-2.0
"""What SQLAlchemy-Utils promises of its encrypted type, as promises of ours.

Its public tests check: each type comes back as it was, phone numbers and colours through types of their own, a key
chosen at run time, a wrong key, damaged ciphertext, plaintexts of many lengths, another ciphertext each time, and what
an equality test finds. Its choices of cipher and padding have no counterpart: there is one cell format.
"""

from __future__ import annotations

import operator
import re
import string
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Date,
    DateTime,
    Enum,
    Integer,
    MetaData,
    String,
    Table,
    Time,
    Unicode,
    bindparam,
    delete,
    insert,
    literal,
    select,
    text,
    update,
)  # fmt: skip
from sqlalchemy.types import TypeDecorator

from sa_asherah import (
    DecryptionError,
    Encrypted,
    OwnerRequiredError,
    UnsupportedOperatorError,
    UnsupportedValueError,
    WrongPartitionError,
    partition_scope,
)  # fmt: skip
from sa_asherah.kms.static import StaticKMS
from tests.orm.app import App
from tests.orm.models import CANARY

Value = dict[str, Any]


@dataclass(frozen=True)
class Phone:
    digits: str


class PhoneType(TypeDecorator[Phone]):
    """A value class over text, which normalises on writing."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: Phone | str | None, dialect: Any) -> str | None:  # noqa: ARG002
        if value is None:
            return None
        return re.sub(r"\D", "", value.digits if isinstance(value, Phone) else value)

    def process_result_value(self, value: str | None, dialect: Any) -> Phone | None:  # noqa: ARG002
        return None if value is None else Phone(value)


class ColourType(TypeDecorator[tuple[int, int, int]]):
    """A tuple over an integer."""

    impl = Integer
    cache_ok = True

    def process_bind_param(self, value: tuple[int, int, int] | None, dialect: Any) -> int | None:  # noqa: ARG002
        return None if value is None else int.from_bytes(bytes(value))

    def process_result_value(self, value: int | None, dialect: Any) -> Any:  # noqa: ARG002
        return None if value is None else tuple(value.to_bytes(3))


TEHRAN = timezone(timedelta(hours=3, minutes=30))
COLUMNS: dict[str, tuple[Any, Any]] = {
    "name": (Unicode(), f"{CANARY} Zoë"),
    "token": (String(), CANARY + string.printable),
    "active": (Boolean(), True),
    "accounts": (Integer(), 2),
    "phone": (PhoneType(), Phone("4930123456")),
    "colour": (ColourType(), (255, 127, 0)),
    "day": (Date(), date(2010, 10, 2)),
    "clock": (Time(), time(10, 12, 45, 22)),
    "moment": (DateTime(), datetime(2010, 10, 2, 10, 12, 45, 2334)),  # noqa: DTZ001
    "zoned": (DateTime(timezone=True), datetime(2017, 8, 21, 4, 26, 36, 523010, tzinfo=TEHRAN)),
    "choice": (Enum("One", "Two", name="choices"), "One"),
    "settings": (JSON(), {"key": CANARY}),
}
VALUES: Value = {name: value for name, (_, value) in COLUMNS.items()}
users = Table(
    "utils_users",
    MetaData(),
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("team", String(20)),
    *(Column(name, Encrypted(inner, owner="team", partition="team-{}")) for name, (inner, _) in COLUMNS.items()),
)


class UsersApp(App):
    """An application with this table too, empty at the start of each test."""

    def _empty(self) -> None:
        super()._empty()
        users.metadata.create_all(self.engine)
        self.execute(delete(users))

    def _assert_nothing_readable(self) -> None:
        super()._assert_nothing_readable()
        for row in self.stored(users.name):
            assert all(CANARY.encode() not in bytes(row[name]) for name in COLUMNS if row[name] is not None)


@pytest.fixture(params=["sync", "async"])
def app(request: pytest.FixtureRequest, suite_url: str, static_kms: StaticKMS) -> UsersApp:
    """Each database, by its synchronous and its asynchronous driver."""
    return UsersApp(suite_url, static_kms, is_async=request.param == "async")


def add(app: UsersApp, number: int, team: str, **values: Any) -> None:
    app.execute(insert(users), {"id": number, "team": team} | values)


def test_each_type_comes_back_as_it_was(app: UsersApp) -> None:
    add(app, 1, "one", **VALUES)
    app.cold()
    (found,) = app.rows(select(*(users.c[name] for name in COLUMNS)))
    assert list(found) == list(VALUES.values())
    assert [type(value) for value in found] == [type(value) for value in VALUES.values()]


def test_none_is_null_in_each_type(app: UsersApp) -> None:
    add(app, 1, "one", **dict.fromkeys(VALUES))
    assert app.stored(users.name) == [{"id": 1, "team": "one"} | dict.fromkeys(VALUES)]
    assert app.rows(select(users)) == [(1, "one", *dict.fromkeys(VALUES).values())]


def test_a_user_type_normalises_on_writing(app: UsersApp) -> None:
    add(app, 1, "one", phone="(030) 123-456")
    assert app.rows(select(users.c.phone)) == [(Phone("030123456"),)]


def test_a_text_outside_the_list_is_refused(app: UsersApp) -> None:
    with pytest.raises(UnsupportedValueError):
        add(app, 1, "one", choice="Three")


def test_a_moment_keeps_its_offset(app: UsersApp) -> None:
    add(app, 1, "one", zoned=VALUES["zoned"])
    ((found,),) = app.rows(select(users.c.zoned))
    assert found.isoformat() == "2017-08-21T04:26:36.523010+03:30"


def test_the_key_is_chosen_by_the_row_not_by_a_variable(app: UsersApp) -> None:
    add(app, 1, "one", name=f"{CANARY} One")
    add(app, 2, "two", name=f"{CANARY} Two")
    app.cold()
    assert app.rows(select(users.c.name).order_by(users.c.id)) == [(f"{CANARY} One",), (f"{CANARY} Two",)]
    with partition_scope("team-two"):
        assert app.rows(select(users.c.name).where(users.c.team == "two")) == [(f"{CANARY} Two",)]
        with pytest.raises(WrongPartitionError):
            app.rows(select(users.c.name).where(users.c.team == "one"))


def test_the_wrong_key_is_a_typed_error(app: UsersApp) -> None:
    add(app, 1, "one", **VALUES)
    add(app, 2, "two", name=CANARY)
    app.execute(text("UPDATE utils_users SET team = 'two' WHERE id = 1"))
    for name in COLUMNS:
        with pytest.raises(DecryptionError):
            app.rows(select(users.c[name]).where(users.c.id == 1))
    with pytest.raises(OwnerRequiredError):
        add(app, 3, "", name=CANARY)


def test_texts_of_every_length_come_back(app: UsersApp) -> None:
    texts = [string.printable[:length] for length in range(49)]
    app.execute(insert(users), [{"id": n, "team": "one", "token": each} for n, each in enumerate(texts)])
    app.cold()
    assert [token for (token,) in app.rows(select(users.c.token).order_by(users.c.id))] == texts


def test_a_damaged_or_cut_value_is_a_typed_error(app: UsersApp) -> None:
    add(app, 1, "one", name=CANARY)
    cell = bytes(app.stored(users.name)[0]["name"])
    changed = [cell[:at] + bytes([cell[at] ^ 1]) + cell[at + 1 :] for at in (0, 3, 4, 12, 28, 60, 72, len(cell) - 1)]
    for damaged in (*changed, cell[:20], cell[:-1], cell + b"\0", b"", CANARY.encode()):
        app.execute(text("UPDATE utils_users SET name = :cell").bindparams(bindparam("cell", damaged)))
        with pytest.raises(DecryptionError):
            app.rows(select(users.c.name))
    app.execute(text("UPDATE utils_users SET name = :cell").bindparams(bindparam("cell", cell)))
    assert app.rows(select(users.c.name)) == [(CANARY,)]


def test_equal_values_have_different_ciphertexts(app: UsersApp) -> None:
    same = [{"id": number, "team": "one"} | VALUES for number in range(4)]
    app.execute(insert(users), same[:2])
    app.execute(insert(users), same[2])
    app.execute(insert(users), same[3])
    app.execute(update(users).where(users.c.id == 3).values(VALUES))
    cells = [bytes(row[name]) for row in app.stored(users.name) for name in COLUMNS]
    assert len(set(cells)) == len(cells) == 4 * len(COLUMNS)


def test_a_search_by_value_is_refused_rather_than_finding_nothing(app: UsersApp) -> None:
    add(app, 1, "one", **VALUES)
    for name, value in VALUES.items():
        with pytest.raises(UnsupportedOperatorError):
            operator.eq(users.c[name], value)
    with pytest.raises(UnsupportedOperatorError):
        app.rows(select(users.c.id).where(literal(CANARY) == users.c.name))
    found = [row[0] for row in app.rows(select(users.c.id, users.c.name)) if row[1] == VALUES["name"]]
    assert found == [1]
