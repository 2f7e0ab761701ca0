# SPDX-License-Identifier: Apache-2.0
"""Columns with `format="asherah"` share their values with the published package `asherah`, in both directions."""

from __future__ import annotations

import base64
import enum
import json
import sqlite3
import uuid
from contextlib import closing
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Column, Connection, Integer, MetaData, String, Table, create_engine, insert, select, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import TypeEngine

from sa_asherah import Asherah, Encrypted
from sa_asherah.kms import StaticKMS
from tests.interop.shared_table import MASTER_KEY, SharedTable
from tests.interop.test_package import PARTITIONS

pytestmark = pytest.mark.filterwarnings("ignore::sa_asherah.StaticKeyWarning")

REFERENCE = Path(__file__).parents[1] / "vectors" / "reference"


class Colour(enum.Enum):
    RED = 1


# Inner type, value, and the plaintext that a program in another language gets and gives.
VALUES: dict[str, tuple[TypeEngine[Any], Any, bytes]] = {
    "words": (sa.String(), "Ünïcødé 账户 \0", "Ünïcødé 账户 \0".encode()),
    "blank": (sa.Text(), "", b""),
    "scan": (sa.LargeBinary(), bytes(range(256)), bytes(range(256))),
    "truth": (sa.Boolean(), True, b"true"),
    "total": (sa.Integer(), -(2**70), b"-1180591620717411303424"),
    "fee": (sa.Numeric(), Decimal("12.50"), b"12.50"),
    "rate": (sa.Float(), 0.1, b"0.1"),
    "born": (sa.Date(), date(2020, 2, 29), b"2020-02-29"),
    "alarm": (sa.Time(), time(7, 30), b"07:30:00"),
    "seen": (sa.DateTime(timezone=True), datetime(2020, 2, 29, 12, tzinfo=UTC), b"2020-02-29T12:00:00+00:00"),
    "token": (sa.Uuid(), uuid.UUID(int=7), b"00000000-0000-0000-0000-000000000007"),
    "colour": (sa.Enum(Colour), Colour.RED, b"RED"),
    "chart": (sa.JSON(), {"é": [1, None]}, '{"é":[1,null]}'.encode()),
}
EXPECTED = {name: value for name, (_, value, _) in VALUES.items()}
TEXTS, DOCUMENTS = (
    Table(
        f"shared_{storage}",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("owner", String(40)),
        *(
            Column(name, Encrypted(inner, owner="owner", format="asherah", storage=storage))
            for name, (inner, _, _) in VALUES.items()
        ),
    )
    for storage in ("text", "json")
)


def stored(connection: Connection, table: Table) -> list[tuple[str, str, str]]:
    """List partition, column and record, as another program gets them."""
    rows = connection.execute(text(f"SELECT * FROM {table.name} ORDER BY id")).mappings().all()  # noqa: S608
    assert rows
    return [
        (row["owner"], name, row[name] if isinstance(row[name], str) else json.dumps(row[name]))
        for row in rows
        for name in VALUES
    ]


def put(connection: Connection, table: Table, row: dict[str, Any]) -> None:
    """Insert a row as another program does."""
    cast = "CAST(:{} AS JSON)" if table is DOCUMENTS and connection.dialect.name == "postgresql" else ":{}"
    values = ", ".join(cast.format(name) if name in VALUES else f":{name}" for name in row)
    connection.execute(text(f"INSERT INTO {table.name} ({', '.join(row)}) VALUES ({values})"), row)  # noqa: S608


@pytest.mark.parametrize("table", [TEXTS, DOCUMENTS], ids=["text", "json"])
def test_the_package_reads_what_a_column_writes_and_a_column_what_the_package_writes(
    plain: SharedTable, table: Table
) -> None:
    with plain.ours() as (_, engine):
        table.create(engine)
        with engine.begin() as connection:
            connection.execute(insert(table), [EXPECTED | {"owner": partition} for partition in PARTITIONS])
            ours = stored(connection, table)
        assert len(ours) == len(VALUES) * len(PARTITIONS)
        found = plain.decrypt(*((partition, record) for partition, _, record in ours))
        assert found == [VALUES[name][2] for _, name, _ in ours]

        theirs = iter(plain.encrypt(*((partition, VALUES[name][2]) for partition, name, _ in ours)))
        with engine.begin() as connection:
            connection.execute(table.delete())
            for number, partition in enumerate(PARTITIONS, 1):
                put(connection, table, {"id": number, "owner": partition} | {name: next(theirs) for name in VALUES})
        for _ in range(2):
            with engine.connect() as connection:
                rows = connection.execute(select(table).order_by(table.c.id)).mappings().all()
            assert [dict(row) for row in rows] == [
                EXPECTED | {"id": number, "owner": partition} for number, partition in enumerate(PARTITIONS, 1)
            ]


def test_a_json_column_of_another_service_need_not_be_jsonb(plain: SharedTable) -> None:
    """PostgreSQL's JSON keeps spaces, order and escapes as they came."""
    other: TypeEngine[Any] = postgresql.JSON() if plain.kind == "postgresql" else sa.Text()
    columns = [Column(c.name, other if c.name in VALUES else c.type) for c in DOCUMENTS.c]
    made = Table(DOCUMENTS.name, MetaData(), *columns)
    with plain.ours() as (_, engine):
        made.create(engine)
        with engine.begin() as connection:
            connection.execute(insert(DOCUMENTS), EXPECTED | {"id": 1, "owner": "user1"})
            record = stored(connection, DOCUMENTS)[0][2]
            spaced = json.dumps(json.loads(record), indent=1)
            put(connection, DOCUMENTS, {"id": 2, "owner": "user1", "words": spaced.replace("_IK", "\\u005fIK")})
            rows = connection.execute(select(DOCUMENTS).order_by(DOCUMENTS.c.id)).mappings().all()
        assert dict(rows[0]) == EXPECTED | {"id": 1, "owner": "user1"}
        assert rows[1]["words"] == EXPECTED["words"]


def test_the_28_reference_records_are_read_in_columns(tmp_path: Path) -> None:
    vectors: list[dict[str, Any]] = json.loads((REFERENCE / "vectors.json").read_text("utf-8"))["vectors"]
    table = Table(
        "blobs",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("owner", String(60)),
        Column("data", Encrypted(sa.LargeBinary(), owner="owner", format="asherah")),
    )
    file = tmp_path / "keys.sqlite"
    with closing(sqlite3.connect(REFERENCE / "keys.sqlite")) as source, closing(sqlite3.connect(file)) as copy:
        source.backup(copy)
    engine = create_engine(f"sqlite:///{file}")
    table.create(engine)
    with engine.begin() as connection:
        for number, vector in enumerate(vectors):
            put(connection, table, {"id": number, "owner": vector["partition"], "data": vector["drr"]})
    read = 0
    for service, suffix in {(one["config"]["ServiceName"], one["config"].get("RegionSuffix", "")) for one in vectors}:
        kms = StaticKMS(MASTER_KEY, environ={})
        with Asherah(service, "prod", kms, region_suffix=suffix, peers=True) as asherah:
            asherah.attach(engine)
            with engine.connect() as connection:
                for number, vector in enumerate(vectors):
                    config = vector["config"]
                    if (config["ServiceName"], config.get("RegionSuffix", "")) == (service, suffix):
                        found = connection.scalar(select(table.c.data).where(table.c.id == number))
                        assert found == base64.b64decode(vector["plaintext"])
                        read += 1
            asherah.detach(engine)
    engine.dispose()
    assert read == 28
