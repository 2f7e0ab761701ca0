# SPDX-License-Identifier: Apache-2.0
"""A small patient registry in a SQLite file, shown from both sides: `python -m sa_asherah.demo`."""

from __future__ import annotations

import os
import sys
import tempfile
import textwrap
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, Engine, ForeignKey, String, Text, create_engine, func, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sa_asherah import Asherah, Encrypted
from sa_asherah.errors import DecryptionError, StaticKeyWarning
from sa_asherah.kms import StaticKMS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["main"]


class Base(DeclarativeBase):
    """Base of the two tables."""


class Clinic(Base):
    """A clinic: the owner of its patients' data."""

    __tablename__ = "clinics"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String())


class Patient(Base):
    """A patient; what is said of the person is encrypted under a key of the clinic."""

    __tablename__ = "patients"

    id: Mapped[int] = mapped_column(primary_key=True)
    clinic_id: Mapped[int] = mapped_column(ForeignKey("clinics.id"))
    name: Mapped[str] = mapped_column(Encrypted(String(), owner="clinic_id"))
    ssn: Mapped[str] = mapped_column(Encrypted(String(), owner="clinic_id"))
    notes: Mapped[str | None] = mapped_column(Encrypted(Text(), owner="clinic_id"))


CLINICS = ["Riverside Clinic", "Hillside Clinic"]
PATIENTS = [
    (1, "Ada Okafor", "078-05-1120", "allergic to penicillin"),
    (1, "Bruno Weiß", "219-09-9999", None),
    (1, "Chloé Martin", "457-55-5462", "second visit in March"),
    (2, "Daniel Novák", "640-12-7788", "diabetes, type 2"),
    (2, "Elif Çelik", "511-30-0451", "needs an interpreter"),
    (2, "Farid Haddad", "302-77-1926", None),
]
NEW_NOTES = "penicillin allergy not confirmed"

RAW = (
    "SELECT id, clinic_id, hex(substr(ssn, 1, 24)) AS first_24, hex(substr(ssn, -4)) AS last_4, length(ssn) AS bytes\n"
    "FROM patients ORDER BY id"
)
KEYS = "SELECT id, created FROM encryption_key ORDER BY id DESC"
SSNS = "SELECT id, ssn FROM patients WHERE id IN (1, 4) ORDER BY id"
SWAP = "UPDATE patients SET ssn = :ssn WHERE id = :id"
WIDTH = 104
CELL_START = "A5010100"


class UnexpectedError(Exception):
    """A block did not show what it says."""


def main() -> int:
    """Run the six blocks.

    Returns:
        The exit code: 1 if any block did not show what it says.
    """
    print("A patient registry of two clinics. The SQLite file is in a temporary folder; the master key was drawn for")
    print("this run and is held by the program itself (static KMS), which is for development and tests only.")
    with tempfile.TemporaryDirectory() as folder:
        engine = create_engine(URL.create("sqlite", database=str(Path(folder) / "registry.db")))
        try:
            with _static_asherah() as asherah:
                _fill(engine, asherah)
                _run(engine, Path(folder))
        except UnexpectedError as error:
            print(f"\nFAILED: {error}")
            return 1
        finally:
            engine.dispose()
    return 0


def _static_asherah() -> Asherah:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StaticKeyWarning)  # main() says so in its own words
        return Asherah("registry", "demo", StaticKMS(os.urandom(32)))


def _fill(engine: Engine, asherah: Asherah) -> None:
    asherah.attach(engine)
    asherah.create_metastore(engine)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all(Clinic(name=name) for name in CLINICS)
        session.flush()
        session.add_all(
            Patient(clinic_id=clinic_id, name=name, ssn=ssn, notes=notes) for clinic_id, name, ssn, notes in PATIENTS
        )
        session.commit()


def _run(engine: Engine, folder: Path) -> None:
    _show_application(engine)
    _show_raw_table(engine)
    _show_key_table(engine)
    _show_update(engine)
    _show_swap(engine)
    _show_scan(engine, folder)


def _show_application(engine: Engine) -> None:
    _head(1, "What the application reads", "select(Patient)")
    with Session(engine) as session:
        patients = session.scalars(select(Patient).order_by(Patient.id)).all()
        rows = [(patient.clinic_id, patient.name, patient.ssn, patient.notes) for patient in patients]
    _print_rows(("clinic_id", "name", "ssn", "notes"), rows)
    _expect(rows == PATIENTS, "the application does not read what it wrote")


def _show_raw_table(engine: Engine) -> None:
    _head(2, "What the database holds", RAW)
    rows = _query(engine, RAW)
    _print_rows(("id", "clinic_id", "ssn, first 24 bytes", "last 4", "bytes"), rows)
    print(f"{CELL_START} marks an encrypted value; the date of the clinic's key follows, then a random salt that rows")
    print("written together for one clinic share. The rest of the value, not shown here, differs in every row.")
    _expect(len(rows) == len(PATIENTS), "there are not six rows")
    _expect(all(row.first_24.startswith(CELL_START) for row in rows), "a stored value is no ciphertext")


def _show_key_table(engine: Engine) -> None:
    _head(3, "The key table", KEYS)
    rows = [(key_id, created, _level(key_id)) for key_id, created in _query(engine, KEYS)]
    _print_rows(("id", "created (UTC)", "level"), rows)
    print("The master key wraps the system key, the system key wraps one key for each clinic.")
    levels = sorted(level for _, _, level in rows)
    _expect(levels == ["intermediate", "intermediate", "system"], "there is not one key for each clinic")


def _level(key_id: str) -> str:
    return {"_SK_": "system", "_IK_": "intermediate"}.get(key_id[:4], "unknown")


def _show_update(engine: Engine) -> None:
    _head(4, "An update", f"patient.notes = {NEW_NOTES!r}")
    raw = "SELECT hex(substr(ssn, 1, 24)), hex(substr(notes, 1, 24)) FROM patients WHERE id = 1"
    ((ssn, notes),) = _query(engine, raw)
    with Session(engine) as session:
        session.get_one(Patient, 1).notes = NEW_NOTES
        session.commit()
        read = session.scalar(select(Patient.notes).where(Patient.id == 1))
    ((ssn_now, notes_now),) = _query(engine, raw)
    _print_rows(("column", "before", "after"), [("ssn", ssn, ssn_now), ("notes", notes, notes_now)])
    print(f"The application reads: {read}")
    _expect(read == NEW_NOTES, "the new value is not read")
    _expect(ssn_now == ssn and notes_now != notes, "not exactly the changed value was encrypted again")


def _show_swap(engine: Engine) -> None:
    _head(5, "Two ciphertexts swapped between the clinics", f"{SWAP}   -- patients 1 and 4, each gets the other's")
    with Session(engine) as session:
        (id_1, ssn_1), (id_2, ssn_2) = session.execute(text(SSNS))
        session.execute(text(SWAP), [{"id": id_1, "ssn": ssn_2}, {"id": id_2, "ssn": ssn_1}])
        read = [_read_ssn(session, number + 1) for number in range(len(PATIENTS))]
        session.rollback()
        again = [_read_ssn(session, number + 1) for number in range(len(PATIENTS))]
    _print_rows(("id", "ssn"), [(number + 1, _shown(ssn)) for number, ssn in enumerate(read)])
    refusals = [str(ssn) for ssn in read if isinstance(ssn, DecryptionError)]
    print(textwrap.fill("".join(refusals[:1]), WIDTH))
    print("The swap is rolled back: all are read again.")
    ssns = [ssn for _, _, ssn, _ in PATIENTS]
    _expect([isinstance(ssn, DecryptionError) for ssn in read] == [True, False, False] * 2, "a moved value was read")
    _expect(read[1:3] + read[4:] == ssns[1:3] + ssns[4:], "a value that was not moved is not read")
    _expect(again == ssns, "after the rollback the values are not as before")


def _read_ssn(session: Session, patient_id: int) -> str | DecryptionError | None:
    try:
        return session.scalar(select(Patient.ssn).where(Patient.id == patient_id))
    except DecryptionError as error:
        return error


def _shown(ssn: str | DecryptionError | None) -> str:
    return f"refused: {type(ssn).__name__}" if isinstance(ssn, DecryptionError) else str(ssn)


def _show_scan(engine: Engine, folder: Path) -> None:
    _head(6, "The bytes of the database file", "for every plaintext: is it in the file, its -wal or its -journal?")
    with engine.connect() as connection:
        clinics = connection.scalar(select(func.count()).select_from(Clinic))
        patients = connection.scalar(select(func.count()).select_from(Patient))
    stored = b"".join(path.read_bytes() for path in sorted(folder.iterdir()))
    _expect(all(name.encode() in stored for name in CLINICS), "the search misses what is not encrypted")
    found = sum(stored.count(value) * len(value) for value in _plaintexts())
    print(
        f"{len(stored):,} bytes searched for {len(set(_plaintexts()))} values; "
        "the clinics' names, which are not encrypted, were found."
    )
    summary = f"{clinics} clinics, {patients} patients, {found} plaintext bytes in the file"
    _expect((clinics, patients, found) == (len(CLINICS), len(PATIENTS), 0), summary)
    print(f"\nOK: {summary}")


def _plaintexts() -> Iterator[bytes]:
    for _, name, ssn, notes in PATIENTS:
        yield from (value.encode() for value in (name, ssn, notes) if value is not None)
    yield NEW_NOTES.encode()


def _query(engine: Engine, statement: str) -> Sequence[Any]:
    with engine.connect() as connection:
        return connection.execute(text(statement)).all()


def _head(number: int, title: str, statement: str) -> None:
    quoted = statement.replace("\n", "\n  ")
    print(f"\n{number}. {title}\n{'-' * (len(title) + 3)}\n> {quoted}")


def _print_rows(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print rows under their names, in columns as wide as needed."""
    lines = [names, *([str(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(value.ljust(width) for value, width in zip(line, widths, strict=True)).rstrip())


def _expect(condition: bool, otherwise: str) -> None:  # noqa: FBT001
    if not condition:
        raise UnexpectedError(otherwise)


if __name__ == "__main__":
    sys.exit(main())
