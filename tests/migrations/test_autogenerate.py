# SPDX-License-Identifier: Apache-2.0
"""Autogenerate sees that columns became encrypted, and what it writes carries the data there and back."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from alembic import command

from sa_asherah import Encrypted
from tests.migrations.site import MASTER_KEY

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.migrations.site import Site

SSN = [f"{number:03d}-12-ä" for number in range(40)]
NOTES = [None if number % 7 == 0 else f"Note {number} " for number in range(40)]


def clinic(**changed: sa.types.TypeEngine[Any]) -> sa.MetaData:
    """Declare the application, with some columns of other types."""
    metadata = sa.MetaData()
    sa.Table("clinics", metadata, sa.Column("id", sa.Integer, primary_key=True))
    types: dict[str, sa.types.TypeEngine[Any]] = {"ssn": sa.String(50), "note": sa.Text(), "scan": sa.LargeBinary()}
    types |= changed
    sa.Table(
        "patients",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("clinic_id", sa.ForeignKey("clinics.id"), nullable=False),
        sa.Column("ssn", types["ssn"], nullable=False),
        sa.Column("note", types["note"]),
        sa.Column("scan", types["scan"]),
    )
    return metadata


def fill(site: Site) -> None:
    """Write plaintext as the application did."""
    site.run("INSERT INTO clinics (id) VALUES (1), (2)")
    rows = [
        {"id": n, "clinic": 1 + n % 2, "ssn": ssn, "note": note, "scan": ssn.encode()}
        for n, (ssn, note) in enumerate(zip(SSN, NOTES, strict=True), start=1)
    ]
    site.run("INSERT INTO patients (id, clinic_id, ssn, note, scan) VALUES (:id, :clinic, :ssn, :note, :scan)", rows)


TRUTH = [(n, ssn, note, ssn.encode()) for n, (ssn, note) in enumerate(zip(SSN, NOTES, strict=True), start=1)]
ENCRYPTED: Mapping[str, dict[str, Encrypted]] = {
    "in place": {
        "ssn": Encrypted(sa.String(50), owner="clinic_id", storage="text"),
        "note": Encrypted(sa.Text(), owner="clinic_id", storage="text"),  # only the CHECK tells
    },
    "by copy": {
        "ssn": Encrypted(sa.String(50), owner="clinic_id", partition="clinic-{}"),
        "scan": Encrypted(sa.LargeBinary(), owner="clinic_id", partition="clinic-{}", pad=32),
        "note": Encrypted(sa.Text(), owner="clinic_id", partition="clinic-{}", storage="text"),
    },
}
STATES = ["plain", "plain", "copied", "encrypted", "encrypted"]
"""What holds the values before, and after expand, backfill, contract and validate."""


def contents(site: Site, change: str, state: str) -> list[tuple[Any, ...]]:
    """Read the rows as an application does that was written for this state."""
    types = ENCRYPTED[change]
    copies = {name: type_ for name, type_ in types.items() if state == "copied" and type_.storage == "binary"}
    metadata = clinic() if state == "plain" else clinic(**{name: types[name] for name in types.keys() - copies.keys()})
    patients = metadata.tables["patients"]
    for name, type_ in copies.items():
        patients.append_column(sa.Column(f"{name}_encrypted", type_.variant(label=f"patients.{name}")))
    columns = [patients.c[f"{name}_encrypted" if name in copies else name] for name in ("id", "ssn", "note", "scan")]
    return site.read(sa.select(*columns).order_by(patients.c.id))


@pytest.mark.parametrize("change", ENCRYPTED)
def test_what_autogenerate_writes_encrypts_there_and_back_and_there_again(site: Site, change: str) -> None:
    encrypted = clinic(**ENCRYPTED[change])
    site.autogenerate(clinic(), "start")
    site.upgrade()
    fill(site)
    before = site.heads()[0]
    texts = site.autogenerate(encrypted, "encrypt")
    assert "Encrypted(" in texts[0]
    assert "from sa_asherah import Encrypted" in texts[0]
    assert not any(MASTER_KEY in text for text in texts)
    states = STATES[: len(texts) + 1]
    for state in states[1:]:
        site.upgrade("+1")
        assert contents(site, change, state) == TRUTH
    assert_no_plaintext(site, change)
    for state in reversed(states[:-1]):
        site.downgrade("-1")
        assert contents(site, change, state) == TRUTH
    assert site.rows("SELECT version_num FROM alembic_version") == [(before,)]
    site.upgrade()
    assert_no_plaintext(site, change)

    again = site.autogenerate(encrypted, "again")
    assert len(again) == 1
    assert [body_of(again[0], name) for name in ("upgrade", "downgrade")] == ["pass", "pass"]
    site.upgrade()
    command.check(site.config)
    assert contents(site, change, "encrypted") == TRUTH


def assert_no_plaintext(site: Site, change: str) -> None:
    """Fail unless every value is stored as a cell."""
    query = f"SELECT {', '.join(ENCRYPTED[change])} FROM patients"  # noqa: S608 -- names of columns
    stored = [value for row in site.rows(query) for value in row if value is not None]
    assert [value for value in stored if raw(value) not in {b"sa", b"\xa5\x01"}] == []


def raw(value: str | bytes) -> bytes:
    """Return the first bytes of a value as it is stored."""
    return value[:2].encode() if isinstance(value, str) else bytes(value[:2])


def body_of(script: str, name: str) -> str:
    """Return the statements of a revision's function, without its docstring."""
    for node in ast.parse(script).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return "\n".join(ast.unparse(statement) for statement in node.body[1:])
    raise AssertionError(name)
