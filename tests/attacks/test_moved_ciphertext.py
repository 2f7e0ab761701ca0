# SPDX-License-Identifier: Apache-2.0
"""A value that was moved, exchanged or damaged in the database is refused with a typed error and never returned."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from sqlalchemy import Engine, select, text, union_all
from sqlalchemy.orm import Session, aliased, defer, joinedload, selectinload

from sa_asherah import Encrypted, partition_scope
from sa_asherah.errors import (
    AsherahError,
    DecryptionError,
    KeyNotFoundError,
    MalformedCellError,
    WrongPlaceError,
)
from tests.attacks.registry import CANARY, Clinic, Patient, Place, Visit, assert_refused, assert_silent, secret

if TYPE_CHECKING:
    from collections.abc import Callable


class Cell(NamedTuple):
    """Where a value is."""

    entity: Any
    column: str
    number: int

    @property
    def owner(self) -> int:
        return self.number % 10

    def __repr__(self) -> str:
        return f"{self.entity.__tablename__}.{self.column} {self.number}"


CELLS = [
    Cell(entity, column, number)
    for entity, column in ((Patient, "ssn"), (Patient, "notes"), (Visit, "notes"), (Visit, "scan"), (Visit, "age"))
    for number in (1, 2, 11)
]


def stored(place: Place, cell: Cell) -> bytes:
    found = place.sql(f"SELECT {cell.column} FROM {cell.entity.__tablename__} WHERE id = :id", id=cell.number)  # noqa: S608
    return bytes(found[0][0])


def put_all(place: Place, values: dict[Cell, Any]) -> None:
    with place.raw.begin() as connection:
        for cell, value in values.items():
            statement = f"UPDATE {cell.entity.__tablename__} SET {cell.column} = :value WHERE id = :id"  # noqa: S608
            connection.execute(text(statement), {"value": value, "id": cell.number})


def read(engine: Engine, cell: Cell) -> Any:
    column = getattr(cell.entity, cell.column)
    with Session(engine) as session:
        return session.execute(select(column).where(cell.entity.id == cell.number)).scalar_one()


@pytest.mark.parametrize("restart", [True, False], ids=["cold", "warm"])
def test_a_value_reads_only_for_its_owner_table_and_column(
    filled: Place,
    restart: bool,  # noqa: FBT001
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Every cell comes into every other place; the row alone is not part of a place."""
    engine = filled.restart()
    cells = [stored(filled, cell) for cell in CELLS]
    values = [read(engine, cell) for cell in CELLS]
    for shift in range(1, len(CELLS)):
        put_all(filled, dict(zip(CELLS, cells[shift:] + cells[:shift], strict=True)))
        engine = filled.restart() if restart else engine
        sources = zip(CELLS[shift:] + CELLS[:shift], values[shift:] + values[:shift], strict=True)
        for target, (source, value) in zip(CELLS, sources, strict=True):
            if source.owner != target.owner:
                assert_refused(DecryptionError, partial(read, engine, target), caplog)
            elif source[:2] != target[:2]:
                assert_refused(WrongPlaceError, partial(read, engine, target), caplog)
            else:
                assert read(engine, target) == value
    put_all(filled, dict(zip(CELLS, cells, strict=True)))
    assert [read(filled.restart(), cell) for cell in CELLS] == values


P = aliased(Patient)
SUB = select(Patient).subquery()
CTE = select(Patient.id, Patient.clinic_id, Patient.ssn).cte()
TYPED = text("SELECT ssn FROM patients WHERE id = 1").columns(ssn=Encrypted(Patient.name.type, label="patients.ssn"))


def scoped(session: Session) -> Any:
    with partition_scope("1"):
        return session.execute(TYPED).scalar_one()


PATHS: dict[str, Callable[[Session], Any]] = {
    "get": lambda s: s.get(Patient, 1).ssn,  # type: ignore[union-attr]
    "tuple": lambda s: s.execute(select(Patient.id, Patient.ssn).where(Patient.id == 1)).one().ssn,
    "alias": lambda s: s.execute(select(P.ssn).where(P.id == 1)).scalar_one(),
    "subquery": lambda s: s.execute(select(SUB.c.ssn).where(SUB.c.id == 1)).scalar_one(),
    "cte": lambda s: s.execute(select(CTE.c.ssn).where(CTE.c.id == 1)).scalar_one(),
    "union": lambda s: [
        row.ssn for row in s.execute(union_all(select(Patient.id, Patient.clinic_id, Patient.ssn), select(CTE)))
    ],
    "joinedload": lambda s: s.scalars(select(Clinic).options(joinedload(Clinic.patients))).unique().all(),
    "selectinload": lambda s: s.scalars(select(Clinic).options(selectinload(Clinic.patients))).all(),
    "lazy": lambda s: s.get(Clinic, 1).patients,  # type: ignore[union-attr]
    "stream": lambda s: s.scalars(select(Patient).execution_options(yield_per=1)).all(),
    "core": lambda s: s.connection().execute(select(Patient.__table__)).all(),
    "scope": scoped,
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("source", "kind"), [((Patient, "ssn", 2), DecryptionError), ((Visit, "notes", 1), WrongPlaceError)]
)
def test_no_way_of_reading_returns_a_moved_value(
    filled: Place, path: str, source: tuple[Any, str, int], kind: type[AsherahError], caplog: pytest.LogCaptureFixture
) -> None:
    """From another owner and from another table, past every kind of statement."""
    put_all(filled, {Cell(Patient, "ssn", 1): stored(filled, Cell(*source))})
    with Session(filled.restart()) as session:
        assert_refused(kind, lambda: PATHS[path](session), caplog)


def flip(cell: bytes, bit: int) -> bytes:
    changed = bytearray(cell)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def plant(place: Place, cells: list[Any]) -> None:
    """Make rows of owner 1, from id 100 on, that hold these bytes."""
    statement = text("INSERT INTO patients (id, clinic_id, name, ssn) VALUES (:id, 1, 'x', :ssn)")
    with place.raw.begin() as connection:
        connection.execute(statement, [{"id": 100 + number, "ssn": cell} for number, cell in enumerate(cells)])


def errors_of(engine: Engine, count: int, log: pytest.LogCaptureFixture) -> list[AsherahError]:
    """Read planted rows one by one; each must raise."""
    errors: list[AsherahError] = []
    log.clear()
    with engine.connect() as connection:
        for number in range(count):
            with pytest.raises(DecryptionError) as caught:
                connection.execute(select(Patient.ssn).where(Patient.id == 100 + number)).scalar_one()
            errors.append(caught.value)
    for error in errors:
        assert_silent(error, log)
    return errors


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_every_flipped_bit_of_a_cell_is_refused(
    filled: Place,
    warm: bool,  # noqa: FBT001
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where the bit is decides which error it is; there is no bit that does not matter."""
    cell = stored(filled, Cell(Patient, "ssn", 1))
    plant(filled, [flip(cell, bit) for bit in range(len(cell) * 8)])
    engine = filled.restart()
    if warm:
        assert read(engine, Cell(Patient, "ssn", 1)) == secret("ssn", 1)
    kinds = [type(error) for error in errors_of(engine, len(cell) * 8, caplog)]
    assert set(kinds[: 4 * 8]) == {MalformedCellError}  # mark and flags
    assert set(kinds[4 * 8 : 12 * 8]) <= {KeyNotFoundError, MalformedCellError}  # the key's date
    assert set(kinds[12 * 8 : 60 * 8]) == {DecryptionError}  # salt and commitment
    assert set(kinds[60 * 8 :]) == {WrongPlaceError}  # nonce, ciphertext and tag


def test_a_cell_of_any_other_length_is_refused(filled: Place, caplog: pytest.LogCaptureFixture) -> None:
    cell = stored(filled, Cell(Patient, "ssn", 1))
    changed = [cell[:end] for end in range(len(cell))] + [cell[start:] for start in range(1, len(cell))]
    changed += [cell + b"\0", b"\0" + cell, cell + cell]
    plant(filled, changed)
    errors_of(filled.restart(), len(changed), caplog)


def test_plaintext_in_an_encrypted_column_is_refused(filled: Place, caplog: pytest.LogCaptureFixture) -> None:
    """Also plaintext that looks like the beginning of a cell, and other formats."""
    values = [CANARY.encode(), b"\xa5\x01\x01\x00" + CANARY.encode() * 8, b'{"Key":{"Created":1},"Data":"AA=="}']
    values += [b"sa1:" + b"A" * 120, b"\x01" + CANARY.encode()]
    plant(filled, values)
    errors_of(filled.restart(), len(values), caplog)


def test_a_cell_put_together_from_two_cells_is_refused(filled: Place, caplog: pytest.LogCaptureFixture) -> None:
    first, second = stored(filled, Cell(Patient, "ssn", 1)), stored(filled, Cell(Patient, "ssn", 11))
    assert first[:60] == second[:60], "one statement wrote both, under one data row key"
    with Session(filled.restart()) as session:
        session.add(Patient(id=50, clinic_id=1, ssn=secret("ssn", 50)))
        session.commit()
    other = stored(filled, Cell(Patient, "ssn", 50))
    mixed = [first[:cut] + other[cut:] for cut in (4, 12, 28, 60, 72, len(first) - 16)]
    mixed += [first[:cut] + second[cut:] for cut in (72, len(first) - 16)]
    plant(filled, [cell for cell in mixed if cell not in {first, second, other}])
    errors_of(filled.restart(), len([cell for cell in mixed if cell not in {first, second, other}]), caplog)


def test_a_row_given_to_another_owner_past_the_program_is_refused(
    filled: Place, caplog: pytest.LogCaptureFixture
) -> None:
    filled.sql("UPDATE patients SET clinic_id = 2 WHERE id = 1")
    engine = filled.restart()
    assert_refused(DecryptionError, partial(read, engine, Cell(Patient, "ssn", 1)), caplog)
    filled.sql("UPDATE patients SET clinic_id = 1 WHERE id = 1")
    assert read(engine, Cell(Patient, "ssn", 1)) == secret("ssn", 1)


def test_a_row_given_to_an_owner_without_a_key_is_refused(filled: Place, caplog: pytest.LogCaptureFixture) -> None:
    """And reading makes no key."""
    filled.sql("INSERT INTO clinics (id, name) VALUES (3, 'new')")
    filled.sql("UPDATE patients SET clinic_id = 3 WHERE id = 1")
    keys = filled.sql("SELECT id FROM encryption_key ORDER BY id")
    engine = filled.restart()
    assert_refused(KeyNotFoundError, partial(read, engine, Cell(Patient, "ssn", 1)), caplog)
    assert filled.sql("SELECT id FROM encryption_key ORDER BY id") == keys


def test_another_product_with_the_same_tables_and_owners_reads_nothing(
    filled: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """Before it has keys of its own, and after."""
    engine = filled.restart(product="billing")
    assert_refused(KeyNotFoundError, partial(read, engine, Cell(Patient, "ssn", 1)), caplog)
    with Session(engine) as session:
        session.add(Patient(id=50, clinic_id=1, ssn=secret("ssn", 50)))
        session.commit()
    engine = filled.restart(product="billing")
    assert_refused(DecryptionError, partial(read, engine, Cell(Patient, "ssn", 1)), caplog)
    assert_refused(DecryptionError, partial(read, filled.restart(), Cell(Patient, "ssn", 50)), caplog)


def test_one_bad_value_among_good_ones_is_not_returned_with_them(
    filled: Place, caplog: pytest.LogCaptureFixture
) -> None:
    put_all(filled, {Cell(Patient, "ssn", 11): stored(filled, Cell(Patient, "ssn", 2))})
    with Session(filled.restart()) as session:
        assert_refused(DecryptionError, lambda: session.scalars(select(Patient)).all(), caplog)
        session.rollback()
        assert session.scalars(select(Patient.ssn).where(Patient.id == 12)).all() == [secret("ssn", 12)]


def test_an_update_does_not_heal_or_hide_a_moved_value(filled: Place, caplog: pytest.LogCaptureFixture) -> None:
    """Changing the owner of a row re-encrypts what it can read, and refuses what it cannot."""
    put_all(filled, {Cell(Patient, "ssn", 1): stored(filled, Cell(Patient, "ssn", 2))})
    before = filled.content()
    with Session(filled.restart()) as session:
        patient = session.execute(select(Patient).options(defer(Patient.ssn)).where(Patient.id == 1)).scalar_one()
        patient.clinic_id = 2
        assert_refused(DecryptionError, session.flush, caplog)
        session.rollback()
    assert filled.content() == before
