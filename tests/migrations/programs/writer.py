# SPDX-License-Identifier: Apache-2.0
"""An application of one version that changes rows until its standard input ends, then says what it wrote last.

`writer VERSION URL PART`: version `old` knows only plaintext; `reading` writes ciphertext and reads both (`reads=`);
`both` writes the old column and its encrypted copy, and reads the copy, or the old column where that is NULL; `copy`
knows only the copy. It changes the rows whose number modulo 2 is PART, each value twice, and adds some. After each
change it reads everything, and fails if it does not find what it wrote.
"""

from __future__ import annotations

import json
import select
import sys
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from sa_asherah import Asherah, Encrypted

_PARTS = 2
_PAUSE = 0.05
"""Seconds between two writes: SQLite lets others wait for ever otherwise."""
_DEADLOCK = 1213


def table(version: str) -> sa.Table:
    """Declare the table as this version of the application does."""
    ssn: sa.types.TypeEngine[str] = sa.String()
    if version == "reading":
        ssn = Encrypted(sa.String(), owner="clinic_id", storage="text", reads=("plaintext@2099-12-31",))
    columns: list[sa.Column[Any]] = [sa.Column("id", sa.Integer, primary_key=True), sa.Column("clinic_id", sa.Integer)]
    if version != "copy":
        columns.append(sa.Column("ssn", ssn))
    if version in {"both", "copy"}:
        columns.append(sa.Column("ssn_encrypted", Encrypted(sa.String(), owner="clinic_id", label="patients.ssn")))
    return sa.Table("patients", sa.MetaData(), *columns)


def check(engine: sa.Engine, patients: sa.Table, version: str, written: dict[int, str]) -> None:
    """Fail unless every value is there, and those written here are the last ones."""
    with engine.connect() as connection:
        columns = [column for column in patients.columns if column.name.startswith("ssn")]
        rows = connection.execute(sa.select(patients.c.id, *reversed(columns)))
        found = {number: next((ssn for ssn in values if ssn is not None), None) for number, *values in rows}
    if None in found.values():
        raise SystemExit("a value is gone")
    if version != "old" and any(str(ssn).startswith("sa1:") for ssn in found.values()):
        raise SystemExit("ciphertext was read as a value")
    if written.items() - found.items():
        raise SystemExit("another value was read than was written")


def change(engine: sa.Engine, patients: sa.Table, row: dict[str, Any], added: int | None) -> None:
    """Change a row and add one, and begin anew after a deadlock: MariaDB makes one where a table is altered."""
    number = row.pop("id")
    while True:
        try:
            with engine.begin() as connection:
                connection.execute(patients.update().where(patients.c.id == number).values(row))
                if added is not None:
                    connection.execute(patients.insert().values(row | {"id": added}))
        except OperationalError as error:
            if error.orig is None or error.orig.args[0] != _DEADLOCK:
                raise
        else:
            return


def main() -> None:
    """Write until told to stop."""
    version, url, part = sys.argv[1], sys.argv[2], int(sys.argv[3])
    engine = sa.create_engine(url, connect_args={"timeout": 60} if url.startswith("sqlite") else {})
    if url.startswith("sqlite"):
        event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF"))
    if version != "old":
        Asherah.from_env().attach(engine)
    patients = table(version)
    with engine.connect() as connection:
        rows = connection.scalars(sa.select(patients.c.id).order_by(patients.c.id)).all()
    mine = [number for number in rows if number % _PARTS == part]
    written: dict[int, str] = {}
    turn, new = 0, max(rows) // 1000 * 1000 + 1000 + part
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while not select.select([sys.stdin], [], [], _PAUSE)[0]:
        number, ssn = mine[turn // 2 % len(mine)], f"{version}-{part}-{turn // 2:06d}"
        values = {column.name: ssn for column in patients.columns if column.name.startswith("ssn")}
        added = new + _PARTS * turn if turn % 5 == 0 else None
        change(engine, patients, {"id": number, "clinic_id": turn // 2 % 3, **values}, added)
        written[number] = ssn
        if added is not None:
            written[added] = ssn
        check(engine, patients, version, written)
        turn += 1
    sys.stdout.write(json.dumps(written))
    engine.dispose()


if __name__ == "__main__":
    main()
