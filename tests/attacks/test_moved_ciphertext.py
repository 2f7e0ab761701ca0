# SPDX-License-Identifier: Apache-2.0
"""A value that was moved, exchanged or damaged in the database is refused with a typed error and never returned."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from sqlalchemy import Engine, insert, select, text, union_all, update
from sqlalchemy.orm import Session, aliased, joinedload, selectinload

from sa_asherah import Encrypted, partition_scope
from sa_asherah.errors import (
    AsherahError,
    DecryptionError,
    KeyNotFoundError,
    MalformedCellError,
    OwnerRequiredError,
    WrongPlaceError,
)
from tests.attacks.registry import CANARY, Clinic, Patient, Place, Visit, assert_silent, fill

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


def put(place: Place, cell: Cell, value: Any) -> None:
    place.sql(
        f"UPDATE {cell.entity.__tablename__} SET {cell.column} = :value WHERE id = :id",  # noqa: S608
        value=value,
        id=cell.number,
    )


def read(engine: Engine, cell: Cell) -> Any:
    column = getattr(cell.entity, cell.column)
    with Session(engine) as session:
        return session.execute(select(column).where(cell.entity.id == cell.number)).scalar_one()


def assert_refused(
    kind: type[AsherahError], call: Callable[[], object], log: pytest.LogCaptureFixture
) -> AsherahError:
    """Run a read; it must raise exactly this error and show nothing of the value."""
    log.clear()
    seen: list[object] = []
    with pytest.raises(AsherahError) as caught:
        seen.append(call())
    assert not seen
    assert type(caught.value) is kind, f"{type(caught.value).__name__}: {caught.value}"
    assert_silent(caught.value, log)
    return caught.value


def test_a_value_reads_only_for_its_owner_table_and_column(filled: Place, caplog: pytest.LogCaptureFixture) -> None:
    """Every cell into every other place, each time read by a new process; the row alone is not part of a place."""
    values = {cell: read(filled.restart(), cell) for cell in CELLS}
    cells = {cell: stored(filled, cell) for cell in CELLS}
    for source, target in itertools.permutations(CELLS, 2):
        put(filled, target, cells[source])
        engine = filled.restart()
        if source.owner != target.owner:
            assert_refused(DecryptionError, lambda: read(engine, target), caplog)  # noqa: B023
        elif source[:2] != target[:2]:
            assert_refused(WrongPlaceError, lambda: read(engine, target), caplog)  # noqa: B023
        else:
            assert read(engine, target) == values[source]
        put(filled, target, cells[target])
        engine.dispose()
    assert {cell: read(filled.restart(), cell) for cell in CELLS} == values


def test_a_process_with_warm_caches_refuses_moved_values_too(filled: Place, caplog: pytest.LogCaptureFixture) -> None:
    engine = filled.restart()
    cells = {cell: stored(filled, cell) for cell in CELLS}
    for cell in CELLS:
        read(engine, cell)
    for source, target in itertools.permutations(CELLS, 2):
        if source.owner != target.owner or source[:2] != target[:2]:
            put(filled, target, cells[source])
            kind = WrongPlaceError if source.owner == target.owner else DecryptionError
            assert_refused(kind, lambda: read(engine, target), caplog)  # noqa: B023
            put(filled, target, cells[target])


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
@pytest.mark.parametrize(("source", "kind"), [((Patient, "ssn", 2), DecryptionError), ((Visit, "notes", 1), WrongPlaceError)])
def test_no_way_of_reading_returns_a_moved_value(
    filled: Place, path: str, source: tuple[Any, str, int], kind: type[AsherahError], caplog: pytest.LogCaptureFixture
) -> None:
    """From another owner and from another table, past every kind of statement."""
    put(filled, Cell(Patient, "ssn", 1), stored(filled, Cell(*source)))
    with Session(filled.restart()) as session:
        assert_refused(kind, lambda: PATHS[path](session), caplog)
