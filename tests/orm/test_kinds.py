# SPDX-License-Identifier: Apache-2.0
"""Every inner type and every kind of owner."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from sqlalchemy import insert, select, update

from sa_asherah import OwnerRequiredError, UnsupportedValueError
from sa_asherah.errors import DecryptionError
from tests.orm.app import App
from tests.orm.models import CANARY, Account, Department, Device, Report, Sample, User

TEXTS = ["", " ", "\0", CANARY + " é ß 中 😀", CANARY * 2000]
BLOBS = [b"", b"\0", bytes(range(256)), CANARY.encode() * 500]
SMALL = [0, 1, -1, 127, -128, 2**31 - 1, -(2**31)]
HUGE = [2**63 - 1, -(2**63), 2**63, -(2**63) - 1, 10**40, -(10**40), 0]
FLAGS = [True, False]


@pytest.mark.parametrize(
    ("name", "values"), [("text", TEXTS), ("blob", BLOBS), ("small", SMALL), ("huge", HUGE), ("flag", FLAGS)]
)
def test_values_come_back_as_they_were(app: App, name: str, values: list[Any]) -> None:
    values = [*values, None]
    app.add(*(Sample(id=n, clinic_id=1, **{name: value}) for n, value in enumerate(values, 1)))
    app.cold()
    with app.session() as session:
        found = session.scalars(select(getattr(Sample, name)).order_by(Sample.id)).all()
        assert found == values
        assert [type(value) for value in found] == [type(value) for value in values]
        for sample in session.scalars(select(Sample)):
            sample.clinic_id = 2
        session.commit()
    app.cold()
    with app.session() as session:
        assert session.scalars(select(getattr(Sample, name)).order_by(Sample.id)).all() == values


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("text", 1), ("text", b"x"), ("text", "\ud800"), ("blob", "x"), ("small", True), ("small", "1"), ("small", 1.0),
        ("huge", 1.5), ("flag", 1), ("flag", "true"),
    ],
)  # fmt: skip
def test_values_of_other_types_are_refused(app: App, name: str, value: Any) -> None:
    with pytest.raises(UnsupportedValueError):
        app.add(Sample(id=1, clinic_id=1, **{name: value}))
    with pytest.raises(UnsupportedValueError):
        app.execute(insert(Sample), {"id": 1, "clinic_id": 1, name: value})
    assert app.stored("samples") == []


def test_owners_of_every_kind(app: App) -> None:
    tenant = uuid.UUID("0000000a-0000-4000-8000-00000000000b")
    app.add(
        Device(id=1, tenant=tenant, code="canary device"),
        Account(id=1, login="Grüße 中 a_b", hint="canary hint"),
        Account(id=2, login="0" * 31 + "a", hint="canary looks like a uuid"),
        Account(id=3, login="007", hint="canary looks like a number"),
        Report(id=1, department=Department.RADIOLOGY, body="canary body"),
        User(id=tenant, mail="canary mail"),
    )
    app.cold()
    assert app.rows(select(Device.code)) == [("canary device",)]
    assert [hint for (hint,) in app.rows(select(Account.hint).order_by(Account.id))] == [
        "canary hint", "canary looks like a uuid", "canary looks like a number",
    ]  # fmt: skip
    assert app.rows(select(Report.body)) == [("canary body",)]
    assert app.rows(select(User.mail)) == [("canary mail",)]
    with app.session() as session:
        session.get_one(Device, 1).tenant = uuid.uuid4()
        session.get_one(Report, 1).department = Department.SURGERY
        session.get_one(Account, 1).login = "somebody"
        session.commit()
        session.get_one(Device, 1).code = "canary device 2"
        session.commit()
    app.cold()
    app.execute(update(Report).values(body="canary body 2"))
    app.execute(update(Account).where(Account.login == "somebody").values(hint="canary hint 2"))
    assert app.rows(select(Device.code)) == [("canary device 2",)]
    assert app.rows(select(Report.body)) == [("canary body 2",)]
    assert app.rows(select(Account.hint).where(Account.id == 1)) == [("canary hint 2",)]


def test_templates_name_the_partitions(app: App) -> None:
    app.add(
        Account(id=1, login="7", hint="canary 1"),
        Report(id=1, department=Department.SURGERY, body="canary 2"),
        Device(id=1, tenant=uuid.UUID(int=7), code="canary 3"),
        Sample(id=1, clinic_id=1, text="canary 4"),
    )
    with app.engine.connect() as connection:
        ids = set(connection.exec_driver_sql("SELECT id FROM encryption_key").scalars())
    assert {key.split("_")[2] for key in ids if key.startswith("_IK_")} == {
        "account-7", "department-SURGERY", f"tenant-{uuid.UUID(int=7)}", "1",
    }  # fmt: skip


def test_owners_without_canonical_text_are_refused(app: App) -> None:
    for login in ("", "a\0b"):
        with pytest.raises(OwnerRequiredError):
            app.add(Account(id=1, login=login, hint="canary"))
    assert app.stored("accounts") == []


def test_the_same_owner_text_of_two_kinds_shares_no_key(app: App) -> None:
    app.add(Account(id=1, login="1", hint="canary hint"), Sample(id=1, clinic_id=1, text="canary text"))
    with app.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE accounts SET hint = (SELECT text FROM samples)")
    with pytest.raises(DecryptionError):
        app.rows(select(Account.hint))
