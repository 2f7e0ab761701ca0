# SPDX-License-Identifier: Apache-2.0
"""Values made at run time, every form in which one could show, and everything an application does with them."""

from __future__ import annotations

import base64
import os
import pickle
import traceback
from collections.abc import Callable, Iterator
from typing import Any, Final

from sqlalchemy import bindparam, create_engine, delete, func, insert, lambda_stmt, literal, select, update
from sqlalchemy import text as text_sql
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session, aliased, joinedload

from sa_asherah import UsageError, partition_scope
from tests.attacks.registry import Clinic, Patient, Visit
from tests.reachable import texts

_TABLE: Any = Patient.__table__


class Canaries:
    """A flock of values that begin alike; nothing else in the world holds this beginning."""

    def __init__(self) -> None:
        self._mark = os.urandom(12).hex()
        self._count = 0
        self._forms = list(_forms(self._mark))

    def new(self) -> str:
        """Give a value that was never there."""
        self._count += 1
        return f"{self._mark}-{self._count:04}"

    def show_in(self, *things: object) -> bool:
        """Tell whether one shows in texts, bytes, or the text of anything else, in whatever form."""
        return any(form in _raw(thing) for thing in things for form in self._forms)

    def are_reachable_from(self, thing: object, *elsewhere: type) -> bool:
        """Tell whether one can be reached from an object, however deep."""
        return any(map(self.show_in, texts(thing, *elsewhere)))

    def show_in_error(self, error: BaseException) -> bool:
        """Tell whether one shows in an error, in what caused it, in its pickle or in what is printed of it."""
        shown: list[Any] = ["".join(traceback.format_exception(error))]
        for link in _links(error):
            shown += [link, repr(link), link.args, vars(link), getattr(link, "__notes__", ""), *texts(link)]
            shown += [getattr(link, name, None) for name in ("params", "statement", "orig")]
            try:
                shown.append(pickle.dumps(link))
            except UsageError as refused:  # parameters that are sealed
                shown.append(refused)
        return self.show_in(*shown)


def _forms(value: str) -> Iterator[bytes]:
    for raw in (value.encode(), value.encode("utf-16-le"), value.encode("utf-16-be")):
        yield raw
        yield raw.hex().encode()
        yield raw.hex().upper().encode()
        for shift in range(3):
            # The first and the last characters mix with what stands beside.
            yield base64.b64encode(b"\0" * shift + raw)[4:-4]


def _raw(thing: object) -> bytes:
    if isinstance(thing, bytes | bytearray | memoryview):
        return bytes(thing)
    return str(thing).encode("utf-8", "surrogatepass")


def _links(error: BaseException) -> list[BaseException]:
    found = [error]
    for link in found:
        found += [each for each in (link.__cause__, link.__context__) if each is not None and each not in found]
    return found


def write_and_read(engine: Engine, canaries: Canaries) -> None:
    """Write and read encrypted columns in the usual ways."""
    new = canaries.new
    with Session(engine) as session:
        session.add(Clinic(id=8, name="eight", patients=[Patient(id=80, ssn=new()), Patient(id=81, notes=new())]))
        session.add_all([Clinic(id=9, name="nine"), Patient(id=82, clinic_id=8, ssn=new(), notes=new())])
        session.flush()
        session.execute(insert(Patient), [_patient(n, new()) for n in (83, 84)])
        session.execute(insert(Patient).values([_patient(n, new()) for n in (85, 86)]))
        session.execute(insert(_TABLE).values(_patient(87, new())))
        insert_by_lambda(session, 88, new())
        session.bulk_save_objects([Patient(**_patient(89, new()))])
        session.bulk_insert_mappings(Patient.__mapper__, [_patient(90, new())])
        session.add(Visit(id=1, clinic_id=8, patient_id=80, notes=new(), scan=new().encode()))
        session.commit()
        _change(session, new)
        session.commit()
        _read(session)
        session.execute(delete(Patient).where(Patient.id == 90))
        session.commit()


def insert_by_lambda(session: Session, number: int, text: str) -> None:
    """Insert a patient by a lambda that encloses the values."""
    session.execute(lambda_stmt(lambda: insert(Patient).values(id=number, clinic_id=8, ssn=text)))


def _patient(number: int, text: str) -> dict[str, Any]:
    return {"id": number, "clinic_id": 8, "ssn": text}


def _change(session: Session, new: Callable[[], str]) -> None:
    patient = session.get_one(Patient, 80)
    patient.ssn, patient.notes = new(), new()
    session.flush()
    patient.clinic_id = 9
    session.flush()
    session.merge(Patient(id=81, ssn=new()))
    session.execute(update(Patient).where(Patient.id == 82).values(ssn=new()))
    session.execute(update(Patient), [{"id": n, "notes": new()} for n in (83, 84)])
    session.connection().execute(
        update(_TABLE).where(_TABLE.c.id == bindparam("number")).values(ssn=bindparam("text")),
        [{"number": n, "text": new()} for n in (85, 86)],
    )
    with session.begin_nested() as savepoint:
        session.execute(update(Patient).where(Patient.id == 87).values(ssn=new()))
        savepoint.rollback()


def _read(session: Session) -> None:
    other = aliased(Patient)
    inner = select(Patient.clinic_id, Patient.ssn).subquery()
    for statement in (
        select(Patient).options(joinedload(Patient.clinic)),
        select(Patient.ssn, Patient.notes),
        select(other.ssn),
        select(inner.c.ssn),
        lambda_stmt(lambda: select(Visit.scan)),
    ):
        assert session.execute(statement).all()
    session.refresh(session.get_one(Patient, 80))


def _executing(make: Callable[[str], Any], *parameters: Callable[[str], Any]) -> Callable[[Engine, str], None]:
    def act(engine: Engine, text: str) -> None:
        with Session(engine) as session:
            session.execute(make(text), *(each(text) for each in parameters))
            session.commit()

    return act


def _adding(make: Callable[[str], Any]) -> Callable[[Engine, str], None]:
    def act(engine: Engine, text: str) -> None:
        with Session(engine) as session:
            session.add(make(text))
            session.commit()

    return act


def _moved_by_another(engine: Engine, text: str) -> None:
    with Session(engine) as session:
        patient = session.get_one(Patient, 81)
        with engine.begin() as other:
            other.execute(text_sql("UPDATE patients SET clinic_id = 9 WHERE id = 81"))
        patient.ssn = text
        session.flush()


def _outside_the_scope(engine: Engine, text: str) -> None:
    with partition_scope("9"):
        _adding(lambda text: Patient(id=95, clinic_id=8, ssn=text))(engine, text)


def _without_asherah(engine: Engine, text: str) -> None:
    other = create_engine(engine.url)
    try:
        _adding(lambda text: Patient(id=95, clinic_id=8, ssn=text))(other, text)
    finally:
        other.dispose()


FAILURES: Final[dict[str, Callable[[Engine, str], None]]] = {
    "a double key in a flush": _adding(lambda text: Patient(id=80, clinic_id=8, ssn=text, notes=text)),
    "a double key in an executemany": _executing(
        lambda _: insert(_TABLE),
        lambda text: [{"id": n, "clinic_id": 8, "ssn": text} for n in (95, 80)],
    ),
    "a double key in values": _executing(lambda text: insert(Patient).values(id=80, clinic_id=8, ssn=text)),
    "an unknown parent": _adding(lambda text: Visit(id=80, clinic_id=8, patient_id=None, notes=text)),
    "no owner": _adding(lambda text: Patient(id=95, ssn=text)),
    "another type": _adding(lambda text: Patient(id=95, clinic_id=8, ssn=text.encode())),
    "a list": _adding(lambda text: Patient(id=95, clinic_id=8, ssn=[text])),
    "a SQL expression": _adding(lambda text: Patient(id=95, clinic_id=8, ssn=func.lower(text))),
    "an expression in an UPDATE": _executing(lambda text: update(Patient).values(ssn=func.lower(text))),
    "several owners": _executing(lambda text: update(Patient).values(ssn=text)),
    "an equality": _executing(lambda text: select(Patient).where(Patient.ssn == text)),
    "a list of values": _executing(lambda text: select(Patient).where(Patient.ssn.in_([text]))),
    "a literal on the left": _executing(lambda text: select(Patient).where(literal(text) == Patient.ssn)),
    "a function": _executing(lambda text: select(func.coalesce(Patient.ssn, text))),
    "a function in the criteria of a DELETE": _executing(
        lambda text: delete(Patient).where(func.coalesce(Patient.ssn, text).is_(None))
    ),
    "an owner that has moved": _moved_by_another,
    "outside the scope": _outside_the_scope,
    "without an Asherah": _without_asherah,
}
"""What fails with a value in hand."""
