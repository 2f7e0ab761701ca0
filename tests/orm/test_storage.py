# SPDX-License-Identifier: Apache-2.0
"""`storage="text"` and `pad=`: what the database holds, and that no other form is taken for it."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Column, ForeignKey, Integer, MetaData, String, Table, select, text

from sa_asherah import Encrypted, MalformedCellError
from sa_asherah.errors import DecryptionError
from tests.orm.app import App
from tests.orm.models import Passport


def stored(app: App, column: str) -> list[Any]:
    """List what a column of `passports` holds, in the order of `place`."""
    rows = sorted(app.stored("passports"), key=lambda row: str(row["place"]))
    return [row[column] for row in rows]


def write(app: App, column: str, value: Any) -> None:
    """Store bytes or text in a column, past everything."""
    with app.engine.begin() as connection:
        connection.execute(text(f"UPDATE passports SET {column} = :value"), {"value": value})  # noqa: S608


def test_padding_hides_the_length(app: App) -> None:
    words = ["", "c", "canary", "canary" * 10, "canary" * 10 + "ca", "canary" * 10 + "can"]
    app.add(*(Passport(clinic_id=1, place=str(place), names=word) for place, word in enumerate(words)))
    app.cold()
    assert app.rows(select(Passport.names).order_by(Passport.place)) == [(word,) for word in words]
    # 88 bytes around the padded plaintext: type byte, value, 0x80.
    assert [len(cell) - 88 for cell in stored(app, "names")] == [64, 64, 64, 64, 64, 128]


def test_text_storage_holds_text(app: App) -> None:
    app.add(Passport(clinic_id=1, place="a", memo="canary", scan=bytes(300)), Passport(clinic_id=1, place="b"))
    for column in ("memo", "scan"):
        cell, empty = stored(app, column)
        assert isinstance(cell, str)
        assert cell.startswith("sa1:pQEB")
        assert empty is None
    app.cold()
    assert app.rows(select(Passport.memo, Passport.scan).order_by(Passport.place)) == [
        ("canary", bytes(300)),
        (None,) * 2,
    ]


@pytest.mark.parametrize("column", ["memo", "scan"])
def test_damaged_text_is_refused(app: App, column: str) -> None:
    app.add(Passport(clinic_id=1, place="a", memo="canary", scan=b"canary"))
    (good,) = stored(app, column)
    changed = "B" if good[60] == "A" else "A"
    damaged = ["", "sa1:", "plain text", good[4:], good + "=", good + "A", good[:-1], good[:60] + changed + good[61:]]
    damaged += [good.replace("sa1:", "sa2:"), good.replace("sa1:", "SA1:"), f" {good}", f"{good}\n", "sa1:é" + good[5:]]
    for value in damaged:
        write(app, column, value)
        with pytest.raises(DecryptionError):
            app.rows(select(getattr(Passport, column)))
    write(app, column, good)
    assert app.rows(select(getattr(Passport, column)))[0][0]


def other_table(**types: Encrypted) -> Table:
    """Map `passports` again, with other declarations of the same labels."""
    metadata = MetaData()
    Table("clinics", metadata, Column("id", Integer, primary_key=True))
    columns: list[Column[Any]] = [Column(name, type_) for name, type_ in types.items()]
    number = Column("id", String(40), primary_key=True)
    return Table("passports", metadata, number, Column("clinic_id", ForeignKey("clinics.id")), *columns)


def test_a_cell_of_another_form_is_refused(app: App) -> None:
    """Flags are policy: neither padding nor binding is dropped or added because a cell says so."""
    app.add(Passport(clinic_id=1, place="a", number="canary", names="canary", memo="canary"))
    table = other_table(
        number=Encrypted(String(), owner="clinic_id"),
        names=Encrypted(String(), owner="clinic_id"),
        memo=Encrypted(String(), owner="clinic_id", storage="text", pad=16),
    )
    for column, message in (
        (table.c.number, "row-bound and unpadded, but the column declares not row-bound"),
        (table.c.names, "not row-bound and padded, but the column declares not row-bound and unpadded"),
        (table.c.memo, "unpadded, but the column declares not row-bound and padded"),
    ):
        with app.engine.connect() as connection, pytest.raises(MalformedCellError, match=message):
            connection.execute(select(column)).all()


def test_the_forms_of_one_statement_share_no_shortcut(app: App) -> None:
    """Cells with equal heads were opened before: their flags are looked at all the same."""
    app.add(Passport(clinic_id=1, place="a", number="canary", names="canary"))
    assert app.rows(select(Passport.number, Passport.names)) == [("canary", "canary")]
    names, number = stored(app, "names")[0], stored(app, "number")[0]
    write(app, "names", number)
    with pytest.raises(MalformedCellError):
        app.rows(select(Passport.names))
    write(app, "number", names)
    with pytest.raises(MalformedCellError):
        app.rows(select(Passport.number))
