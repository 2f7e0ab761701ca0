# SPDX-License-Identifier: Apache-2.0
"""It reads only, in bounded memory, shows no secrets, counts what it does not keep, and leaves others alone."""

from __future__ import annotations

import base64
import json
import os
import tracemalloc
import uuid
from typing import Any

import pytest
from sqlalchemy import Engine, MetaData, create_engine, event, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from sa_asherah import partition_scope
from sa_asherah.core import aead, cell
from sa_asherah.core.ids import KeyIds
from sa_asherah.core.key_record import Level, bind
from sa_asherah.doctor import examine
from sa_asherah.errors import UsageError
from sa_asherah.kms.static import StaticKMS
from sa_asherah.shred.owner import OwnerShred
from tests.doctor.clinic import CLINICS, Notice, asherah, metadata
from tests.doctor.damages import SYSTEM
from tests.doctor.surgery import COLUMNS, Surgery


def stored(engine: Engine) -> dict[str, list[str]]:
    with engine.connect() as connection:
        return {name: sorted(map(str, connection.execute(text(f"SELECT * FROM {name}")))) for name in COLUMNS}  # noqa: S608


def test_nothing_but_select_is_sent(engine: Engine, kms: StaticKMS) -> None:
    before, sent = stored(engine), list[str]()

    @event.listens_for(engine, "before_cursor_execute")
    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        sent.append(statement.split(maxsplit=1)[0].upper())

    examine(engine, asherah(kms), metadata(), online=True)
    event.remove(engine, "before_cursor_execute", note)
    assert set(sent) <= {"SELECT", "PRAGMA", "SHOW", "DESCRIBE"}
    assert stored(engine) == before


def test_a_file_that_may_only_be_read_is_examined(sqlite_copy: Engine, kms: StaticKMS) -> None:
    engine = create_engine(f"sqlite:///file:{sqlite_copy.url.database}?mode=ro&uri=true")
    try:
        assert examine(engine, asherah(kms), metadata()).is_healthy
    finally:
        engine.dispose()


def test_a_user_who_may_only_select_suffices(postgresql_copy: Engine, kms: StaticKMS) -> None:
    with postgresql_copy.begin() as connection:
        connection.execute(text("DROP ROLE IF EXISTS doctor"))
        connection.execute(text("CREATE ROLE doctor LOGIN PASSWORD 'doctor'"))
        connection.execute(text("GRANT USAGE ON SCHEMA public TO doctor"))
        connection.execute(text("GRANT SELECT ON ALL TABLES IN SCHEMA public TO doctor"))
    engine = create_engine(postgresql_copy.url.set(username="doctor", password="doctor"))
    try:
        findings = examine(engine, asherah(kms), metadata())
    finally:
        engine.dispose()
        with postgresql_copy.begin() as connection:
            connection.execute(text("DROP OWNED BY doctor"))
            connection.execute(text("DROP ROLE doctor"))
    assert findings.is_healthy
    assert findings.opened == findings.values > 0


def test_all_are_counted_and_a_few_are_kept(sqlite_copy: Engine, kms: StaticKMS) -> None:
    with sqlite_copy.begin() as connection:
        connection.execute(text("UPDATE patients SET ssn = 'plain' WHERE ssn IS NOT NULL"))
    findings = examine(sqlite_copy, asherah(kms), metadata(), limit=3)
    assert len(findings.found) == 3
    assert findings.counts["plaintext"] > 3
    assert findings.has_errors


def test_no_finding_holds_a_value_a_key_or_a_ciphertext(sqlite_copy: Engine, kms: StaticKMS) -> None:
    with sqlite_copy.begin() as connection:
        body = Surgery(connection)
        secrets = [str(body.record(row).get("Key")) for row in body.rows("encryption_key")]
        cells = [bytes(row.ssn) for row in body.rows("patients") if row.ssn]
        body.run("UPDATE patients SET note = 'canary of a note', ssn = photo, clinic_id = 1 + clinic_id % 5")
        body.run("UPDATE encryption_key SET key_record = replace(key_record, 'Bind', 'Bund') WHERE id LIKE '_IK_1%'")
        secrets += [row.note for row in body.rows("patients") if row.note]
    shown = json.dumps(examine(sqlite_copy, asherah(kms), metadata(), limit=1000).to_json())
    secrets += [base64.b64encode(each).decode()[:24] for each in cells] + [each.hex()[:24] for each in cells]
    assert [secret for secret in secrets if len(secret) > 8 and secret in shown] == []
    assert "wrong-owner" in shown
    assert "canary" not in shown


def test_keys_made_meanwhile_are_not_called_missing(sqlite_copy: Engine, kms: StaticKMS) -> None:
    """The key table is read first: a key that comes later is looked up by itself."""
    with sqlite_copy.begin() as connection:
        body = Surgery(connection)
        rows = body.keys("_IK_3_records_clinic")
        body.delete_keys("_IK_3_records_clinic")

    def come_back(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if "FROM visits" in statement and rows:
            late = create_engine(sqlite_copy.url)
            with late.begin() as connection:
                while rows:
                    row = rows.pop()
                    Surgery(connection).insert_key(row.id, row.created, Surgery.record(row))
            late.dispose()

    event.listen(sqlite_copy, "before_cursor_execute", come_back)
    tables = metadata()
    for name in ("patients", "members", "accounts", "notices", "archive"):
        tables.remove(tables.tables[name])
    findings = examine(sqlite_copy, asherah(kms), tables)
    assert findings.counts.keys() <= {"key-orphaned"}
    assert findings.opened == findings.values > 0


def test_an_erased_owner_is_a_note(sqlite_copy: Engine, kms: StaticKMS) -> None:
    keys = asherah(kms)
    with OwnerShred(sqlite_copy, keys, "3", metadata()) as shred:
        shred.begin()
    findings = examine(sqlite_copy, keys, metadata())
    assert set(findings.counts) == {"value-erased"}
    assert findings.is_healthy


def test_cells_of_a_column_without_owner_are_searched_once_for_a_statement(
    sqlite_copy: Engine, kms: StaticKMS, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each search tries the keys of all owners of that date: a table of millions would take hours."""
    keys = asherah(kms)
    keys.attach(sqlite_copy)
    with Session(sqlite_copy) as session, partition_scope("4"):
        session.add_all(Notice(id=10_000 + number, body="one of many") for number in range(100))
        session.commit()
    keys.detach(sqlite_copy)
    tables = metadata()
    for name in ("patients", "visits", "members", "accounts", "archive"):
        tables.remove(tables.tables[name])
    heads: list[bytes] = []
    real = cell.opener

    def opener(cell_key: bytes, head: bytes) -> cell.Decrypt:
        heads.append(head)
        return real(cell_key, head)

    monkeypatch.setattr(cell, "opener", opener)
    findings = examine(sqlite_copy, asherah(kms), tables)
    assert findings.opened == findings.values > 100
    assert 0 < len(heads) < findings.values


@pytest.mark.parametrize(("level", "codes"), [("IX", set[str]()), ("IK", {"key-bind-broken"})])
def test_index_keys_are_examined(sqlite_copy: Engine, kms: StaticKMS, level: Level, codes: set[str]) -> None:
    ids, secret = KeyIds("records", "clinic"), os.urandom(32)
    with sqlite_copy.begin() as connection:
        body = Surgery(connection)
        row = body.key(SYSTEM)
        parent = SYSTEM, body.record(row)["Created"]
        wrapped = aead.seal(kms.decrypt_key(base64.b64decode(body.record(row)["Key"])), secret)
        place = ids.index_key_id("3"), parent[1]
        members = {
            "Created": parent[1],
            "Key": base64.b64encode(wrapped).decode(),
            "ParentKeyMeta": {"KeyId": parent[0], "Created": parent[1]},
            "Bind": bind(level, ids, "3", *place, parent, secret),
        }
        body.insert_key(place[0], row.created, members)
    assert set(examine(sqlite_copy, asherah(kms), metadata()).counts) == codes


def test_rows_inserted_between_two_queries_push_none_out(sqlite_copy: Engine, kms: StaticKMS) -> None:
    tables = metadata()
    for name in ("visits", "members", "accounts", "notices", "archive"):
        tables.remove(tables.tables[name])
    late = create_engine(sqlite_copy.url)
    new = [uuid.UUID(int=number).hex for number in range(40)]  # they come first in the order of the primary key

    def insert(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if "sa_asherah_size" in statement:
            sent.append(statement)
        elif sent and new:
            with late.begin() as connection:
                while new:
                    connection.execute(text("INSERT INTO patients (id, clinic_id) VALUES (:id, 1)"), {"id": new.pop()})

    sent = list[str]()
    with sqlite_copy.connect() as connection:
        expected = connection.execute(text("SELECT count(ssn) + count(note) + count(photo) FROM patients")).scalar_one()
    event.listen(sqlite_copy, "before_cursor_execute", insert)
    findings = examine(sqlite_copy, asherah(kms), tables, batch=7)
    late.dispose()
    assert not new
    assert findings.opened == findings.values == expected


def test_large_values_are_read_a_few_at_a_time(sqlite_copy: Engine, kms: StaticKMS) -> None:
    with sqlite_copy.begin() as connection:
        connection.execute(text("UPDATE patients SET photo = zeroblob(2000000)"))
    tracemalloc.start()
    findings = examine(sqlite_copy, asherah(kms), metadata(), limit=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert findings.counts["plaintext"] * 2_000_000 > 2 * peak > 0


def test_nothing_to_look_at_is_told_from_health(sqlite_copy: Engine, kms: StaticKMS) -> None:
    assert examine(sqlite_copy, asherah(kms), MetaData()).is_empty
    assert not examine(sqlite_copy, asherah(kms), metadata()).is_empty
    assert len(CLINICS) > 1


async def test_asynchronous_engines_are_refused(kms: StaticKMS) -> None:
    engine = create_async_engine("sqlite+aiosqlite://")
    with pytest.raises(UsageError, match="synchronous driver"):
        examine(engine.sync_engine, asherah(kms), metadata())
    await engine.dispose()
