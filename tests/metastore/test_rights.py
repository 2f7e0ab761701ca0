# SPDX-License-Identifier: Apache-2.0
"""The rights that the documentation gives are enough, and no more: an application can destroy no key."""

from __future__ import annotations

import os
import re
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, make_url, text

from sa_asherah.core.erasure import erased
from sa_asherah.errors import MetastoreError, OwnerErasedError
from sa_asherah.metastore import open_metastore
from sa_asherah.metastore.rows import ServerRows
from sa_asherah.shred import OwnerShred
from tests.integration.records import Process
from tests.unit.core.fakes import Clock, FakeKMS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sa_asherah.core.ports import KeyRow

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "key-table.md"
STATEMENTS = re.findall(r"^(GRANT .*) TO (app|officer);$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
DAY = 86_400


class Office:
    """A database, and users of it with rights of their own."""

    def __init__(self, url: str, stack: ExitStack) -> None:
        self._url = make_url(url)
        self._is_postgresql = self._url.get_backend_name() == "postgresql"
        self._engine = create_engine(url)
        self._stack = stack
        self.clock = Clock()
        stack.callback(self._engine.dispose)
        owner = Process(url, FakeKMS(), clock=self.clock)
        owner.create_tables()
        owner.close()

    def user(self, role: str, leaving_out: str = "") -> Process:
        """Start a process of a user with the documented rights of a role."""
        name = f"{role}_{os.urandom(4).hex()}"
        self._run(f"CREATE {'ROLE' if self._is_postgresql else 'USER'} {name}", self._password())
        self._stack.callback(self._drop, name)
        rights = [grant for grant, whose in STATEMENTS if whose == role]
        assert rights
        for grant in rights:
            self._run(f"{grant.replace(leaving_out, '')} TO {name}")
        self._run(f"GRANT SELECT, INSERT ON notes TO {name}")
        if self._is_postgresql:
            self._run(f"GRANT USAGE ON SEQUENCE notes_id_seq TO {name}")
        url = self._url.set(username=name, password="pass")
        process = Process(url.render_as_string(hide_password=False), FakeKMS(), clock=self.clock)
        self._stack.callback(process.close)
        return process

    def _password(self) -> str:
        return "LOGIN PASSWORD 'pass'" if self._is_postgresql else "IDENTIFIED BY 'pass'"

    def _drop(self, name: str) -> None:
        if self._is_postgresql:
            self._run(f"DROP OWNED BY {name}")
        self._run(f"DROP {'ROLE' if self._is_postgresql else 'USER'} {name}")

    def _run(self, *words: str) -> None:
        with self._engine.begin() as connection:
            connection.execute(text(" ".join(words)))


@pytest.fixture(params=["postgresql", "mariadb"])
def office(request: pytest.FixtureRequest) -> Iterator[Office]:
    with ExitStack() as stack:
        yield Office(request.getfixturevalue(f"{request.param}_url"), stack)


def test_an_application_writes_reads_rotates_and_brings_back_with_its_rights(office: Office) -> None:
    app, officer = office.user("app"), office.user("officer")
    notes = [app.write("ann"), app.write("bob")]
    office.clock.now += 100 * DAY
    notes.append(app.write("ann"))
    keys = open_metastore(officer.engine)
    (row,) = keys.run(lambda rows: rows.newest(["_IK_ann_records_clinic"], 2**32)).values()
    assert keys.run(lambda rows: rows.remove(row), writing=True)
    office.clock.now += DAY
    notes.append(app.write("ann"))
    assert sorted(filter(None, office.user("app").read())) == sorted(notes)


def test_an_application_can_destroy_no_key(office: Office) -> None:
    app = office.user("app")
    app.write("ann")
    keys = open_metastore(app.engine)
    (row,) = keys.run(lambda rows: rows.newest(["_IK_ann_records_clinic"], 2**32)).values()
    for attempt in (
        lambda rows: rows.replace(row, erased(row)),
        lambda rows: rows.remove(row),
        lambda rows: rows.erase((), [row.id], erased),
    ):
        with pytest.raises(MetastoreError, match="GRANT"):
            keys.run(attempt, writing=True)
    assert office.user("app").read("ann") == app.read("ann")


@pytest.mark.parametrize(
    ("office", "right"),
    [("postgresql", ", UPDATE (created)"), ("postgresql", ", INSERT"), ("mariadb", ", INSERT")],
    indirect=["office"],
)
def test_without_its_rights_it_is_told_what_to_grant(office: Office, right: str) -> None:
    app = office.user("app", leaving_out=right)
    with pytest.raises(MetastoreError, match=r"GRANT SELECT, INSERT, UPDATE \(created\) ON encryption_key"):
        app.write("ann")


def test_an_owner_erased_while_it_gets_its_first_key_is_refused_and_the_second_step_ends_it(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, officer = office.user("app"), office.user("officer")
    app.write("bob")
    with OwnerShred(officer.engine, officer.asherah, "ann") as shredding:
        insert = ServerRows.insert

        def erase_before(rows: ServerRows, new: Sequence[KeyRow], parent: KeyRow | None = None) -> bool:
            if parent is not None:
                shredding.begin()
            return insert(rows, new, parent)

        with monkeypatch.context() as patch:
            patch.setattr(ServerRows, "insert", erase_before)
            with pytest.raises(OwnerErasedError):
                app.write("ann")
        for _ in range(2):  # it cannot tell that the key was never used, and waits once more
            pending = shredding.begin()
            office.clock.now = pending.until
        receipt = shredding.finish()
    assert [key_id for key_id, _ in receipt.keys] == ["_IK_ann_records_clinic"]
    with pytest.raises(OwnerErasedError):
        office.user("app").write("ann")
