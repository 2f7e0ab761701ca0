# SPDX-License-Identifier: Apache-2.0
"""What the published package `asherah` wrote becomes cells, and what became records again is read by it."""

from __future__ import annotations

import pytest
from sqlalchemy import Column, Integer, MetaData, String, Table, Text, select, text

from sa_asherah import Encrypted
from sa_asherah.reencrypt import Change, Job, Plan
from tests.interop.shared_table import SharedTable

pytestmark = pytest.mark.filterwarnings("ignore::sa_asherah.StaticKeyWarning")

RECORD = Encrypted(Text(), owner="owner", label="notes.body", format="asherah")
CELL = Encrypted(Text(), owner="owner", label="notes.body", storage="text")
PARTITIONS = ("7", "tenant-é")


def notes(type_: Encrypted) -> Table:
    key = Column("id", Integer, primary_key=True)
    return Table("notes", MetaData(), key, Column("owner", String(40)), Column("body", type_))


def test_records_of_the_package_become_cells_and_cells_records_for_the_package(plain: SharedTable) -> None:
    old, new = notes(RECORD), notes(CELL)
    truth = [(partition, f"canary {n} é") for n, partition in enumerate(PARTITIONS * 5)]
    records = plain.encrypt(*((partition, value.encode()) for partition, value in truth))
    with plain.ours() as (asherah, engine):
        old.create(engine)
        with engine.begin() as connection:
            rows = [{"o": owner, "b": record} for (owner, _), record in zip(truth, records, strict=True)]
            numbered = [{"id": n, **row} for n, row in enumerate(rows, 1)]
            connection.execute(text("INSERT INTO notes (id, owner, body) VALUES (:id, :o, :b)"), numbered)
        there = Job(engine, asherah, Plan(new, [Change("body", CELL, RECORD)])).run()
        assert (there.converted, there.is_complete) == (len(truth), True)
        with engine.connect() as connection:
            assert list(connection.scalars(text("SELECT body FROM notes WHERE body NOT LIKE 'sa1:%'"))) == []
            query = select(new.c.owner, new.c.body).order_by(new.c.id)
            assert [tuple(row) for row in connection.execute(query)] == truth
        back = Job(engine, asherah, Plan(old, [Change("body", RECORD, CELL)], name="back")).run()
        assert (back.converted, back.is_complete) == (len(truth), True)
        with engine.connect() as connection:
            stored = connection.execute(text("SELECT owner, body FROM notes ORDER BY id")).all()
    assert plain.decrypt(*((owner, record) for owner, record in stored)) == [value.encode() for _, value in truth]
