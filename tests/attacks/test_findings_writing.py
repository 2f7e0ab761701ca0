# SPDX-License-Identifier: Apache-2.0
"""What once stored plaintext, stored the unreadable, or showed a value: rows S3, S5, S7, S10, S13 and S25."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import (
    Connection,
    ForeignKey,
    String,
    UniqueConstraint,
    bindparam,
    case,
    create_engine,
    event,
    func,
    insert,
    literal,
    literal_column,
    null,
    select,
    text,
    update,
)
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.exc import IntegrityError, StatementError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, load_only, mapped_column, relationship
from sqlalchemy.orm.exc import StaleDataError

from sa_asherah import Encrypted
from sa_asherah.errors import (
    OwnerChangedError,
    OwnerRequiredError,
    UnsupportedOperatorError,
    UnsupportedValueError,
    UsageError,
)
from tests.attacks.registry import (
    CANARY,
    Base,
    Clinic,
    Patient,
    Place,
    Visit,
    asherah_of,
    assert_nowhere,
    assert_silent,
    fill,
    place_of,
    refused,
    secret,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sa_asherah.errors import AsherahError

Table: Any = Patient.__table__


def values_of(place: Place, *numbers: int) -> list[tuple[Any, ...]]:
    """Read in a new process."""
    query = select(Patient.clinic_id, Patient.ssn, Patient.notes).where(Patient.id.in_(numbers)).order_by(Patient.id)
    with Session(place.restart()) as session:
        return [tuple(row) for row in session.execute(query)]


def untouched(number: int) -> tuple[Any, ...]:
    return number % 10, secret("ssn", number), secret("n", number)


# S3: SQL expressions as values


def scalar() -> Any:
    return select(literal(CANARY)).scalar_subquery()


EXPRESSIONS: dict[str, Callable[[], Any]] = {
    "coalesce": lambda: func.coalesce(null(), CANARY),
    "case": lambda: case((literal(1) == 1, CANARY), else_="x"),
    "literal column": lambda: literal_column(f"'{CANARY}'", String()),
    "subquery": scalar,
    "cast": lambda: literal(CANARY).cast(String),
    "text": lambda: text(f"'{CANARY}'"),
    "concatenation": lambda: literal(CANARY) + "x",
    "another column": lambda: Patient.notes,
    "another plain column": lambda: Patient.name,
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_a_sql_expression_is_no_value_for_an_encrypted_column(
    filled: Place, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    # S3: the database stored the result in plaintext
    value = EXPRESSIONS[name]
    engine = filled.restart()
    statements: list[Callable[[], Any]] = [
        lambda: update(Table).where(Table.c.id == 1).values(ssn=value()),
        lambda: update(Patient).where(Patient.id == 1).values({Patient.ssn: value()}),
        lambda: update(Patient).where(Patient.id == 1).ordered_values((Patient.ssn, value())),
        lambda: update(Patient).values(clinic_id=1, ssn=value(), notes=None),
        lambda: insert(Table).values(id=50, clinic_id=1, ssn=value()),
        lambda: insert(Table).values([{"id": 50, "clinic_id": 1, "ssn": value()}]),
        lambda: insert(Patient).values(id=50, clinic_id=1, ssn=value()),
    ]
    for statement in statements:
        with Session(engine) as session, refused(UnsupportedValueError, filled, session, caplog):
            session.execute(statement())
    with Session(engine) as session, refused(UnsupportedValueError, filled, session, caplog):
        session.add(Patient(id=50, clinic_id=1, ssn=value()))
        session.flush()
    # With the value loaded, SQLAlchemy compares the two first.
    kind = UnsupportedOperatorError if name == "another column" else UnsupportedValueError
    with Session(engine) as session, refused(kind, filled, session, caplog):
        session.get_one(Patient, 1).ssn = value()
        session.flush()
    assert_nowhere(engine)


def test_a_sql_expression_in_parameters_is_refused(filled: Place, caplog: pytest.LogCaptureFixture) -> None:
    # S3: with other rows beside it
    with filled.restart().connect() as connection:
        refusals: list[list[dict[str, Any]]] = [
            [{"ssn": func.coalesce(null(), CANARY)}],
            [{"ssn": CANARY}, {"ssn": func.lower(CANARY)}],
        ]
        for rows in refusals:
            numbered = [row | {"id": 50 + number, "clinic_id": 1} for number, row in enumerate(rows)]
            with refused(UnsupportedValueError, filled, connection, caplog):
                connection.execute(insert(Table), numbered)


def test_insert_from_select_takes_only_the_same_column_beside_its_owner(
    filled: Place, caplog: pytest.LogCaptureFixture
) -> None:
    # S3: plaintext, another column's or another owner's ciphertext
    names = ["id", "clinic_id", "ssn"]
    other = Patient.__table__.alias()
    sources = [
        select(literal(50), literal(1), literal(CANARY)),
        select(literal(50), Patient.clinic_id, literal(CANARY)).where(Patient.id == 1),
        select(literal(50), Patient.clinic_id, Patient.notes).where(Patient.id == 1),
        select(literal(50), Patient.clinic_id, Patient.name).where(Patient.id == 1),
        select(literal(50), literal(2), Patient.ssn).where(Patient.id == 1),
        select(literal(50), Visit.clinic_id, Patient.ssn).where(Patient.id == 1, Visit.id == 2),
        select(literal(50), other.c.clinic_id, Patient.ssn).where(Patient.id == 1, other.c.id == 2),
        select(literal(50), Visit.clinic_id, Visit.notes).where(Visit.id == 1),
    ]
    engine = filled.restart()
    for source in sources:
        with Session(engine) as session, refused(OwnerChangedError, filled, session, caplog):
            session.execute(insert(Patient).from_select(names, source))
    assert_nowhere(engine)
    with Session(engine) as session:
        source = select(literal(50), Patient.clinic_id, Patient.ssn).where(Patient.id == 1)
        session.execute(insert(Patient).from_select(names, source))
        session.commit()
    assert values_of(filled, 50) == [(1, secret("ssn", 1), None)]


def insert_for(place: Place) -> Any:
    """Return the INSERT that can upsert on this database."""
    return {"sqlite": sqlite.insert, "postgresql": postgresql.insert}.get(place.name, mysql.insert)


def upsert(
    place: Place, entity: Any, values: dict[str, Any], changes: Callable[[Any], dict[Any, Any]], target: list[str]
) -> Any:
    """Write an upsert of one row."""
    statement = insert_for(place)(entity).values(**values)
    if place.name in {"sqlite", "postgresql"}:
        return statement.on_conflict_do_update(index_elements=target, set_=changes(statement.excluded))
    return statement.on_duplicate_key_update(changes(statement.inserted))


def test_a_sql_expression_in_an_upsert_is_refused(filled: Place, caplog: pytest.LogCaptureFixture) -> None:
    # S3
    row = {"id": 1, "clinic_id": 1, "ssn": "x", "notes": "x"}
    engine = filled.restart()

    def changes(excluded: Any) -> dict[Any, Any]:
        return {"clinic_id": excluded.clinic_id, "ssn": excluded.ssn, "notes": func.coalesce(null(), CANARY)}

    def copy(excluded: Any) -> dict[Any, Any]:
        return {"clinic_id": excluded.clinic_id, "ssn": excluded.ssn, "notes": excluded.ssn}

    for entity in (Table, Patient):
        for change in (changes, copy):
            with Session(engine) as session, refused(UnsupportedValueError, filled, session, caplog):
                session.execute(upsert(filled, entity, row, change, ["id"]))
    assert_nowhere(engine)


# S5: the owner changes where no encrypted column is in the statement


def by_parameters(session: Session) -> None:
    session.connection().execute(update(Table).where(Table.c.id == 1), {"clinic_id": 2})


def by_many_parameters(session: Session) -> None:
    statement = update(Table).where(Table.c.id == bindparam("number"))
    session.connection().execute(statement, [{"number": 1, "clinic_id": 2}, {"number": 11, "clinic_id": 2}])


def by_bound_name(session: Session) -> None:
    statement = update(Table).where(Table.c.id == 1).values(clinic_id=bindparam("new"))
    session.connection().execute(statement, {"new": 2})


def by_primary_key(session: Session) -> None:
    session.execute(update(Patient), [{"id": 1, "clinic_id": 2}])


def by_primary_key_with_one_of_two(session: Session) -> None:
    session.execute(update(Patient), [{"id": 1, "clinic_id": 2, "ssn": CANARY}])


def by_mappings(session: Session) -> None:
    session.bulk_update_mappings(Patient, [{"id": 1, "clinic_id": 2}])


def by_values(session: Session) -> None:
    session.execute(update(Patient).where(Patient.id == 1).values(clinic_id=2))


def by_ordered_values(session: Session) -> None:
    session.execute(update(Patient).where(Patient.id == 1).ordered_values((Patient.clinic_id, 2)))


def by_query(session: Session) -> None:
    session.query(Patient).where(Patient.id == 1).update({"clinic_id": 2})


def by_expression(session: Session) -> None:
    session.execute(update(Patient).where(Patient.id == 1).values(clinic_id=Patient.clinic_id + 1))


OWNER_CHANGES = [
    by_parameters,
    by_many_parameters,
    by_bound_name,
    by_primary_key,
    by_primary_key_with_one_of_two,
    by_mappings,
    by_values,
    by_ordered_values,
    by_query,
    by_expression,
]


@pytest.mark.parametrize("change", OWNER_CHANGES)
def test_an_owner_is_not_changed_without_its_values(
    filled: Place, change: Callable[[Session], None], caplog: pytest.LogCaptureFixture
) -> None:
    # S5: afterwards the row could not be read
    with Session(filled.restart()) as session, refused(OwnerChangedError, filled, session, caplog):
        change(session)
    assert values_of(filled, 1) == [untouched(1)]


@pytest.mark.parametrize("changes", [{"clinic_id": 2}, {"clinic_id": 2, "ssn": CANARY}])
def test_an_upsert_does_not_change_the_owner_without_its_values(
    filled: Place, changes: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    # S5: upsert set_
    row = {"id": 1, "clinic_id": 2, "ssn": "x", "notes": "x"}
    with Session(filled.restart()) as session, refused(OwnerChangedError, filled, session, caplog):
        session.execute(upsert(filled, Patient, row, lambda _: dict(changes), ["id"]))


@pytest.fixture
def on_postgresql(postgresql_url: str) -> Iterator[Place]:
    with place_of(postgresql_url) as place:
        fill(place.create(Base.metadata))
        yield place


def test_an_update_inside_another_statement_is_checked_as_well(
    on_postgresql: Place, caplog: pytest.LogCaptureFixture
) -> None:
    # S5: the outer statement is a SELECT
    change = update(Patient).where(Patient.id == 1).values(clinic_id=2)
    returning = change.returning(Patient.id).cte("changed")
    deep = [select(literal(1)).where(literal(1).in_(select(returning.c.id))), select(select(returning.c.id).subquery())]
    statements = [
        select(returning.c.id),
        select(literal(1)).add_cte(change.cte("changed")),
        select(literal(1)).add_cte(update(Table).where(Table.c.id == 1).values(clinic_id=2).cte("changed")),
        update(Patient).where(Patient.id == 2).values(name="x").add_cte(change.cte("changed")),
        insert(Clinic).values(id=9, name="x").add_cte(change.cte("changed")),
    ]
    engine = on_postgresql.restart()
    for statement in statements:
        with Session(engine) as session, refused(OwnerChangedError, on_postgresql, session, caplog):
            session.execute(statement)
    for statement in deep:
        with Session(engine) as session, refused(UsageError, on_postgresql, session, caplog):
            session.execute(statement)


def test_what_an_update_inside_another_statement_writes_is_encrypted_or_refused(
    on_postgresql: Place, caplog: pytest.LogCaptureFixture
) -> None:
    # S5, S3
    change = update(Patient).where(Patient.id == 1)
    engine = on_postgresql.restart()
    with Session(engine) as session:
        returned = session.execute(
            select(change.values(clinic_id=2, ssn=CANARY, notes="n").returning(Patient.id).cte("changed").c.id)
        )
        assert returned.scalars().all() == [1]
        session.execute(select(literal(1)).add_cte(insert(Patient).values(id=50, clinic_id=1, ssn=CANARY).cte("made")))
        session.commit()
    assert values_of(on_postgresql, 1, 50) == [(2, CANARY, "n"), (1, CANARY, None)]
    statement = select(literal(1)).add_cte(change.values(ssn=func.coalesce(null(), CANARY)).cte("changed"))
    with Session(engine) as session, refused(UnsupportedValueError, on_postgresql, session, caplog):
        session.execute(statement)
    assert CANARY not in repr(on_postgresql.content())
    assert_nowhere(engine)


def test_another_listener_of_the_flush_may_change_the_owner(filled: Place) -> None:
    # S5: it ran after ours, and nobody looked again
    def give_away(mapper: object, connection: Connection, target: Patient) -> None:  # noqa: ARG001
        if target.name == "give away":
            target.clinic_id = 2

    event.listen(Patient, "before_update", give_away)
    try:
        for change in ("name", "ssn"):
            number = 1 if change == "name" else 11
            with Session(filled.restart()) as session:
                patient = session.get_one(Patient, number)
                patient.name = "give away"
                if change == "ssn":
                    patient.ssn = CANARY
                try:
                    session.commit()
                except OwnerChangedError:
                    session.rollback()
                    assert values_of(filled, number) == [untouched(number)]
                else:
                    ssn = CANARY if change == "ssn" else secret("ssn", number)
                    assert values_of(filled, number) == [(2, ssn, secret("n", number))]
    finally:
        event.remove(Patient, "before_update", give_away)


class Circle(DeclarativeBase):
    pass


class Team(Circle):
    __tablename__ = "teams"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    lead_id: Mapped[int | None] = mapped_column(ForeignKey("people.id", use_alter=True, name="lead"))
    lead: Mapped[Person | None] = relationship(foreign_keys=lead_id)


class Person(Circle):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    team_id: Mapped[int | None] = mapped_column(ForeignKey("teams.id"))
    note: Mapped[str | None] = mapped_column(Encrypted(String(), owner="team_id"))
    team: Mapped[Team | None] = relationship(foreign_keys=team_id, post_update=True)


def test_a_post_update_does_not_change_the_owner_without_its_values(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    # S5: it fires no before_update
    with Session(place.create(Circle.metadata)) as session:
        session.add_all([Team(id=1), Team(id=2)])
        session.flush()
        session.add(Person(id=1, team_id=1, note=CANARY))
        session.commit()
    with Session(place.restart()) as session, refused(OwnerChangedError, place, session, caplog):
        session.get_one(Person, 1).team = session.get_one(Team, 2)
        session.flush()
    with Session(place.restart()) as session, refused(OwnerRequiredError, place, session, caplog):
        session.add(Person(id=2, team=session.get_one(Team, 2), note=CANARY))
        session.flush()
    with Session(place.restart()) as session:
        assert session.get_one(Person, 1).note == CANARY


def test_a_multi_table_update_of_mariadb_is_checked_for_every_table(
    mariadb_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    # S5: the owner was in the other table
    with place_of(mariadb_url) as place:
        fill(place.create(Base.metadata))
        engine = place.restart()
        join = Clinic.id == Patient.clinic_id
        refusals: list[tuple[type[AsherahError], dict[Any, Any]]] = [
            (OwnerChangedError, {Patient.clinic_id: 2}),
            (OwnerChangedError, {Clinic.name: "x", Patient.clinic_id: 2}),
            (OwnerRequiredError, {Patient.ssn: CANARY}),
            (OwnerChangedError, {Patient.clinic_id: 2, Patient.ssn: CANARY}),
            (UnsupportedValueError, {Patient.clinic_id: 2, Patient.ssn: func.lower(CANARY), Patient.notes: "x"}),
        ]
        for kind, values in refusals:
            for main in (Clinic.__table__, Clinic):
                plain = {getattr(key, "expression", key): value for key, value in values.items()}
                with Session(engine) as session, refused(kind, place, session, caplog):
                    session.execute(update(main).where(join, Patient.id == 1).values(plain))  # type: ignore[arg-type]
        whole = {Patient.clinic_id: 2, Patient.ssn: CANARY, Patient.notes: "n"}
        with Session(engine) as session:
            columns: dict[Any, Any] = {key.expression: value for key, value in whole.items()}
            session.execute(update(Clinic.__table__).where(join, Patient.id == 1).values(columns))  # type: ignore[arg-type]
            session.commit()
        assert values_of(place, 1, 11) == [(2, CANARY, "n"), untouched(11)]
        assert CANARY not in repr(place.content())
        assert_nowhere(engine)


# S7: upsert onto a row of another owner


class Keyed(DeclarativeBase):
    pass


class Account(Keyed):
    __tablename__ = "accounts"
    __table_args__ = (UniqueConstraint("owner_id", "number", name="uq"),)
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    owner_id: Mapped[int]
    number: Mapped[int]
    secret: Mapped[str | None] = mapped_column(Encrypted(String(), owner="owner_id"))
    second: Mapped[str | None] = mapped_column(Encrypted(String(), owner="owner_id"))


@pytest.fixture
def accounts(place: Place) -> Place:
    with Session(place.create(Keyed.metadata)) as session:
        session.add(Account(id=1, owner_id=1, number=1, secret="old", second="old"))
        session.commit()
    return place


def accounts_of(place: Place) -> list[tuple[Any, ...]]:
    query = select(Account.id, Account.owner_id, Account.secret, Account.second).order_by(Account.id)
    with Session(place.restart()) as session:
        return [tuple(row) for row in session.execute(query)]


UNSAFE_SETS: list[Callable[[Any], dict[Any, Any]]] = [
    lambda new: {"secret": new.secret},
    lambda new: {Account.secret: new.secret},
    lambda new: {"secret": new.secret, "second": new.second},
    lambda _: {"secret": CANARY},
    lambda new: {"owner_id": new.owner_id, "secret": new.secret},
    lambda new: {"owner_id": new.owner_id},
]


@pytest.mark.parametrize("number", range(len(UNSAFE_SETS)))
def test_an_upsert_that_may_meet_another_owners_row_is_refused(
    accounts: Place, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    # S7: the row's owner stayed, the value was the other's
    row = {"id": 1, "owner_id": 2, "number": 1, "secret": CANARY, "second": CANARY}
    engine = accounts.restart()
    with Session(engine) as session, refused(OwnerChangedError, accounts, session, caplog):
        session.execute(upsert(accounts, Account, row, UNSAFE_SETS[number], ["id"]))
    assert accounts_of(accounts) == [(1, 1, "old", "old")]
    assert_nowhere(engine)


def test_an_upsert_that_sets_owner_and_all_values_works(accounts: Place) -> None:
    # S7: from the new row and with literals
    row = {"id": 1, "owner_id": 2, "number": 1, "secret": CANARY, "second": CANARY}

    def changes(new: Any) -> dict[Any, Any]:
        return {"owner_id": new.owner_id, "secret": new.secret, "second": "literal"}

    engine = accounts.restart()
    with Session(engine) as session:
        session.execute(upsert(accounts, Account, row, changes, ["id"]))
        session.commit()
    assert accounts_of(accounts) == [(1, 2, CANARY, "literal")]
    assert_nowhere(engine)
    assert CANARY not in repr(accounts.content())


def test_an_upsert_whose_target_holds_the_owner_works(accounts: Place, caplog: pytest.LogCaptureFixture) -> None:
    # S7: MySQL has no target, so it is refused there
    row = {"id": 5, "owner_id": 1, "number": 1, "secret": CANARY}
    statement = upsert(accounts, Account, row, lambda new: {"secret": new.secret}, ["owner_id", "number"])
    with Session(accounts.restart()) as session:
        if accounts.name not in {"sqlite", "postgresql"}:
            with refused(OwnerChangedError, accounts, session, caplog):
                session.execute(statement)
            return
        session.execute(statement)
        session.commit()
    assert accounts_of(accounts) == [(1, 1, CANARY, "old")]


# S10: plaintext in the statement cache


def test_no_shape_of_a_statement_leaves_plaintext_in_the_cache(filled: Place) -> None:
    # S10: values keyed by column stayed beside the sealed ones
    engine = filled.restart()
    row = {"id": 50, "clinic_id": 1, "ssn": CANARY, "notes": CANARY}
    columns = {getattr(Patient, name): value for name, value in row.items()}
    shapes: list[tuple[Any, Any]] = [
        (insert(Patient).values(row), None),
        (insert(Patient).values(columns), None),
        (insert(Table).values({Table.c[name]: value for name, value in row.items()}), None),
        (insert(Table).values([row, row | {"id": 51}]), None),
        (insert(Table).values([{Table.c[name]: value for name, value in row.items()}]), None),
        (insert(Table), row),
        (insert(Table).values(ssn=bindparam("v"), clinic_id=1), [{"id": 50, "v": CANARY}, {"id": 51, "v": CANARY}]),
        (insert(Patient), [row, row | {"id": 51}]),
        (insert(Patient).values(columns).returning(Patient.id), None),
        (upsert(filled, Patient, row, lambda _: {"clinic_id": 1, "ssn": CANARY, "notes": CANARY}, ["id"]), None),
        (update(Patient).where(Patient.id == 1).values({Patient.ssn: CANARY}), None),
        (update(Table).where(Table.c.id == 1).values({Table.c.ssn: CANARY}), None),
        (update(Table).where(Table.c.id == 1).ordered_values((Table.c.ssn, CANARY)), None),
        (update(Table).where(Table.c.id == 1), {"ssn": CANARY}),
        (update(Patient), [{"id": 1, "ssn": CANARY}, {"id": 2, "ssn": CANARY}]),
    ]
    with engine.connect() as connection, Session(connection) as session:
        for statement, parameters in shapes:
            for _ in range(2):
                with session.begin_nested() as savepoint:
                    session.execute(statement, parameters) if parameters else session.execute(statement)
                    savepoint.rollback()
        session.add(Patient(**row))
        session.get_one(Patient, 1).ssn = CANARY
        session.flush()
        session.rollback()
    assert len(engine._compiled_cache) >= 10  # type: ignore[arg-type]
    assert_nowhere(engine)


# S13: SQLAlchemy's own errors


def test_a_row_without_a_key_shows_only_that_others_are_sealed(filled: Place, caplog: pytest.LogCaptureFixture) -> None:
    # S13: the other rows' cells were printed
    before = filled.content()
    rows = [{"id": 50, "clinic_id": 1, "name": "x", "ssn": CANARY}, {"id": 51, "clinic_id": 1, "ssn": CANARY}]
    with filled.restart().connect() as connection:
        with pytest.raises(StatementError) as caught:
            connection.execute(insert(Table), rows)
        assert_silent(caught.value, caplog)
        assert "<sealed>" in str(caught.value)
        assert "\\xa5" not in str(caught.value)
        connection.commit()
    assert filled.content() == before


def test_an_error_of_the_driver_shows_sealed_values_only(filled: Place, caplog: pytest.LogCaptureFixture) -> None:
    # S13: a broken constraint prints the parameters
    with filled.restart().connect() as connection:
        for parameters in ({"id": 1, "clinic_id": 1, "ssn": CANARY}, [{"id": 1, "clinic_id": 1, "ssn": CANARY}] * 2):
            with pytest.raises(IntegrityError) as caught:
                connection.execute(insert(Table), parameters)
            assert_silent(caught.value, caplog)
            assert CANARY not in repr(caught.value.params)
            connection.rollback()


@pytest.mark.parametrize("number", [1, 2])
def test_plaintext_that_a_later_listener_puts_back_is_stopped(
    filled: Place, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    # S13: and the error that stops it does not show it
    engine = filled.restart()

    def put_back(
        connection: Connection,  # noqa: ARG001
        clause: Any,
        multiparams: Any,
        params: Any,
        options: Any,  # noqa: ARG001
    ) -> tuple[Any, Any, Any]:
        rows = multiparams or [params]
        if any("ssn" in row for row in rows):
            return clause, [row | {"ssn": CANARY} for row in rows], {}
        return clause, multiparams, params

    event.listen(engine, "before_execute", put_back, retval=True)
    rows = [{"id": 50 + at, "clinic_id": 1, "ssn": CANARY} for at in range(number)]
    with engine.connect() as connection, refused(UsageError, filled, connection, caplog):
        connection.execute(insert(Table), rows)
    with Session(engine) as session, refused(UsageError, filled, session, caplog):
        session.add(Patient(id=50, clinic_id=1, ssn=CANARY))
        session.flush()


def test_a_listener_that_sees_plaintext_is_warned_of(filled: Place, caplog: pytest.LogCaptureFixture) -> None:
    # S13: one that was registered before ours
    engine = create_engine(filled.url)
    asherah = asherah_of()
    event.listen(engine, "before_execute", lambda *_: None)
    caplog.clear()
    asherah.attach(engine)
    assert [record.levelno for record in caplog.records if "before_execute" in record.message] == [logging.WARNING]
    asherah.close()
    engine.dispose()


# S25: by primary key, without the owner in the row


def test_a_bulk_update_by_primary_key_finds_the_owners_itself(filled: Place) -> None:
    # S25
    engine = filled.restart()
    with Session(engine) as session:
        session.execute(update(Patient), [{"id": 1, "ssn": "a"}, {"id": 2, "ssn": "b"}, {"id": 12, "ssn": None}])
        session.bulk_update_mappings(Patient, [{"id": 11, "notes": "c"}])
        session.commit()
    assert values_of(filled, 1, 2, 11, 12) == [
        (1, "a", secret("n", 1)),
        (2, "b", secret("n", 2)),
        (1, secret("ssn", 11), "c"),
        (2, None, secret("n", 12)),
    ]


def test_bulk_save_of_changed_objects_finds_the_owners_itself(filled: Place) -> None:
    # S25: expired and half-loaded ones, too
    engine = filled.restart()
    with Session(engine) as session:
        patients = session.scalars(select(Patient).options(load_only(Patient.id)).order_by(Patient.id)).all()
    for patient in patients:
        patient.ssn = f"new {patient.id}"
    with Session(engine) as session:
        session.bulk_save_objects(patients)
        session.commit()
    assert [row[1] for row in values_of(filled, 1, 2, 11, 12)] == ["new 1", "new 2", "new 11", "new 12"]


def test_a_bulk_update_of_rows_that_are_not_there_is_refused(filled: Place, caplog: pytest.LogCaptureFixture) -> None:
    # S25: one of two
    before = filled.content()
    with Session(filled.restart()) as session:
        with pytest.raises(StaleDataError) as caught:
            session.execute(update(Patient), [{"id": 1, "ssn": CANARY}, {"id": 77, "ssn": CANARY}])
        assert_silent(caught.value, caplog)
        session.rollback()
    assert filled.content() == before
