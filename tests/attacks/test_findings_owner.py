# SPDX-License-Identifier: Apache-2.0
"""What once encrypted for the wrong owner: rows S4, S6, S8, S9 and S12 of the findings."""

from __future__ import annotations

import enum
import uuid
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import (
    CHAR,
    Column,
    Computed,
    Enum,
    FetchedValue,
    ForeignKey,
    Identity,
    Integer,
    MetaData,
    Numeric,
    Sequence,
    String,
    Table,
    TypeDecorator,
    Uuid,
    bindparam,
    event,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    attributes,
    defer,
    mapped_column,
    object_session,
    raiseload,
    relationship,
)

from sa_asherah import Encrypted
from sa_asherah.errors import (
    AsherahError,
    ConfigurationError,
    MetastoreUnavailableError,
    OwnerChangedError,
    OwnerRequiredError,
)
from sa_asherah.orm.plan import plan_of
from tests.attacks.registry import CANARY, Clinic, Patient, Place, assert_silent, place_of, refused, secret

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from sqlalchemy import Engine


def row_of(place: Place, number: int) -> tuple[Any, ...]:
    """Read a row in a new process."""
    query = select(Patient.clinic_id, Patient.ssn, Patient.notes).where(Patient.id == number)
    with Session(place.restart()) as session:
        return tuple(session.execute(query).one())


def give_away(engine: Engine, number: int, owner: int = 2) -> None:
    """Change the owner of a row as another session does, which re-encrypts it."""
    with Session(engine) as session:
        session.get_one(Patient, number).clinic_id = owner
        session.commit()


# S4: the owner in memory is not the row's any more


@pytest.mark.parametrize("numbers", [(1,), (1, 11)], ids=["one row", "executemany"])
def test_a_flush_for_the_owner_that_was_is_stopped(
    filled: Place, numbers: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    # S4: it was encrypted for the old owner, and nobody could read it
    other = filled.restart()
    with Session(filled.restart(), expire_on_commit=False) as session:
        patients = [session.get_one(Patient, number) for number in numbers]
        session.commit()
        give_away(other, 1)
        with refused(OwnerChangedError, filled, session, caplog):
            for patient in patients:
                patient.ssn = CANARY
            session.flush()
    assert row_of(filled, 1) == (2, secret("ssn", 1), secret("n", 1))


def test_two_sessions_may_move_and_write_if_they_read_again(filled: Place) -> None:
    # S4: the repetition that the error asks for
    with Session(filled.restart(), expire_on_commit=False) as session:
        patient = session.get_one(Patient, 1)
        session.commit()
        give_away(filled.restart(), 1)
        patient.ssn = "new"
        with pytest.raises(OwnerChangedError):
            session.commit()
        session.rollback()
        patient.ssn = "new"
        session.commit()
    assert row_of(filled, 1) == (2, "new", secret("n", 1))


def test_owner_and_all_values_together_need_no_guard(filled: Place) -> None:
    # S4
    with Session(filled.restart(), expire_on_commit=False) as session:
        patient = session.get_one(Patient, 1)
        session.commit()
        give_away(filled.restart(), 1)
        patient.clinic_id, patient.ssn, patient.notes = 2, "new", "new"
        session.commit()
    assert row_of(filled, 1) == (2, "new", "new")


# S6: the database changes the owner


@pytest.mark.parametrize(
    "action",
    [
        {"onupdate": "CASCADE"},
        {"onupdate": "SET NULL"},
        {"onupdate": "set default"},
        {"ondelete": "SET NULL"},
        {"ondelete": "SET DEFAULT"},
    ],
)
def test_a_foreign_key_by_which_the_database_changes_owners_is_refused(action: dict[str, str]) -> None:
    # S6: when mappers are configured, before any statement
    class Cascading(DeclarativeBase):
        pass

    class Parent(Cascading):  # pyright: ignore[reportUnusedClass]
        __tablename__ = "parents"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Child(Cascading):  # pyright: ignore[reportUnusedClass]
        __tablename__ = "children"
        id: Mapped[int] = mapped_column(primary_key=True)
        parent_id: Mapped[int] = mapped_column(ForeignKey("parents.id", **action))  # type: ignore[arg-type]
        note: Mapped[str] = mapped_column(Encrypted(String(), owner="parent_id"))

    with pytest.raises(ConfigurationError, match="has a foreign key with ON "):
        Cascading.registry.configure()


def test_such_a_foreign_key_of_a_plain_table_is_refused_at_the_first_statement(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    # S6: Core tables are never configured
    metadata = MetaData()
    Table("parents", metadata, Column("id", Integer, primary_key=True))
    table = Table(
        "children",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("parent_id", Integer, ForeignKey("parents.id", onupdate="CASCADE")),
        Column("note", Encrypted(String(), owner="parent_id")),
    )
    with place.create(metadata).connect() as connection:
        with refused(ConfigurationError, place, connection, caplog):
            connection.execute(insert(table), {"id": 1, "parent_id": 1, "note": CANARY})
        with refused(ConfigurationError, place, connection, caplog):
            connection.execute(update(table).values(note=CANARY))


def test_a_parent_whose_key_changes_leaves_its_rows_readable(filled: Place, caplog: pytest.LogCaptureFixture) -> None:
    # S6: passive_updates trusts the database to take the rows along, which no foreign key allowed here does
    with Session(filled.restart()) as session:
        session.get_one(Clinic, 1).id = 77
        with suppress(IntegrityError):  # SQLite does not look at foreign keys by itself
            session.commit()
        assert CANARY not in caplog.text
    assert row_of(filled, 1) == (1, secret("ssn", 1), secret("n", 1))


class Active(DeclarativeBase):
    pass


class Keeper(Active):
    __tablename__ = "keepers"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    things: Mapped[list[Thing]] = relationship(passive_updates=False)


class Thing(Active):
    __tablename__ = "things"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    keeper_id: Mapped[int] = mapped_column(ForeignKey("keepers.id"))
    note: Mapped[str] = mapped_column(Encrypted(String(), owner="keeper_id"))


def test_a_parent_that_takes_its_rows_along_re_encrypts_them(sqlite_url: str) -> None:
    # S6: passive_updates=False, for databases that do not look at foreign keys
    with place_of(sqlite_url) as place:
        with Session(place.create(Active.metadata)) as session:
            session.add(Keeper(id=1, things=[Thing(id=1, note="a"), Thing(id=2, note="b")]))
            session.commit()
        with Session(place.restart()) as session:
            session.get_one(Keeper, 1).id = 77
            session.commit()
        with Session(place.restart()) as session:
            assert session.execute(select(Thing.keeper_id, Thing.note)).all() == [(77, "a"), (77, "b")]


# S8: an owner by default


class Defaults(DeclarativeBase):
    pass


class Note(Defaults):
    __tablename__ = "default_notes"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    own: Mapped[str] = mapped_column(String(40), default=lambda: str(uuid.uuid4()))
    name: Mapped[str | None] = mapped_column(
        Encrypted(String(), owner="own"), default="made", onupdate=lambda: "touched"
    )
    text: Mapped[str | None] = mapped_column(Encrypted(String(), owner="own"))
    plain: Mapped[str | None] = mapped_column(String(40))


def of_region(context: Any) -> str:
    return f"of {context.get_current_parameters()['region']}"


def in_region(context: Any) -> str:
    return f"in {context.get_current_parameters()['region']}"


class FromContext(Defaults):
    __tablename__ = "context_notes"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    region: Mapped[str] = mapped_column(String(40))
    own: Mapped[str] = mapped_column(String(40), default=of_region)
    name: Mapped[str | None] = mapped_column(Encrypted(String(), owner="own", partition="region-{}"), default=in_region)


def note_of(place: Place, number: int = 1) -> tuple[Any, ...]:
    query = select(Note.own, Note.name, Note.text).where(Note.id == number)
    with Session(place.restart()) as session:
        return tuple(session.execute(query).one())


def test_a_default_owner_is_on_the_object_and_later_flushes_use_it(place: Place) -> None:
    # S8: the attribute stayed None, and the second flush encrypted for None
    with Session(place.create(Defaults.metadata)) as session:
        note = Note(id=1, text="first")
        session.add(note)
        session.flush()
        owner = note.own
        assert str(uuid.UUID(owner)) == owner
        assert note.name == "made"
        note.text = "second"
        session.flush()
        assert note.own == owner
        session.commit()
    assert note_of(place) == (owner, "touched", "second")


def test_a_default_owner_is_evaluated_once_a_row_in_core_and_bulk(place: Place) -> None:
    # S8
    engine = place.create(Defaults.metadata)
    table: Any = Note.__table__
    with Session(engine) as session:
        session.connection().execute(insert(table), {"id": 1, "text": "a"})
        session.connection().execute(insert(table), [{"id": 2, "text": "b"}, {"id": 3, "text": "c"}])
        session.connection().execute(insert(table).values([{"id": 4, "text": "d"}, {"id": 5, "text": "e"}]))
        session.execute(insert(Note), [{"id": 6, "text": "f"}, {"id": 7, "text": "g"}])
        session.bulk_save_objects([Note(id=8, text="h"), Note(id=9, text="i")])
        session.commit()
    found = [note_of(place, number) for number in range(1, 10)]
    assert [row[1:] for row in found] == [("made", text) for text in "abcdefghi"]
    assert len({row[0] for row in found}) == 9


def test_a_default_may_look_at_its_row(place: Place) -> None:
    # S8: through the context that SQLAlchemy gives
    engine = place.create(Defaults.metadata)
    table: Any = FromContext.__table__
    with Session(engine) as session:
        note = FromContext(id=1, region="north")
        session.add(note)
        session.flush()
        assert (note.own, note.name) == ("of north", "in north")
        session.connection().execute(insert(table), [{"id": 2, "region": "south"}, {"id": 3, "region": "west"}])
        session.execute(insert(FromContext).values(id=4, region="east"))
        session.commit()
    with Session(place.restart()) as session:
        query = select(FromContext.own, FromContext.name).order_by(FromContext.id)
        expected = [(f"of {each}", f"in {each}") for each in ("north", "south", "west", "east")]
        assert [tuple(row) for row in session.execute(query)] == expected


def test_onupdate_of_an_encrypted_column_is_encrypted_in_every_update(place: Place) -> None:
    # S8: it was made after the encryption
    with Session(place.create(Defaults.metadata)) as session:
        session.add_all([Note(id=1, own="a"), Note(id=2, own="b"), Note(id=3, own="c")])
        session.commit()
        session.get_one(Note, 1).plain = "x"
        session.commit()
        session.execute(update(Note).where(Note.id == 2).values(plain="x"))
        session.execute(update(Note), [{"id": 3, "plain": "x"}])
        session.commit()
    assert [note_of(place, number)[1] for number in (1, 2, 3)] == ["touched"] * 3


@pytest.mark.parametrize(
    "owner",
    [
        lambda: Column("own", Integer, server_default="1"),
        lambda: Column("own", Integer, FetchedValue()),
        lambda: Column("own", Integer, Sequence("owners")),
        lambda: Column("own", Integer, Identity()),
        lambda: Column("own", Integer, Computed("id + 1")),
        lambda: Column("own", Integer, default=func.random()),
        lambda: Column("own", Integer, default=select(func.max(1)).scalar_subquery()),
    ],
    ids=["server_default", "fetched", "sequence", "identity", "computed", "function", "subquery"],
)
def test_an_owner_that_the_server_makes_is_refused_with_advice(owner: Callable[[], Column[Any]]) -> None:
    # S8
    table = Table("t", MetaData(), Column("id", Integer, primary_key=True), owner())
    table.append_column(Column("note", Encrypted(String(), owner="own")))
    with pytest.raises(ConfigurationError, match="filled by the server"):
        plan_of(table)


# S9: what a flush notes


@contextmanager
def statements_of(engine: Engine) -> Generator[list[str]]:
    """Collect what is sent about patients."""
    sent: list[str] = []

    def collect(connection: object, cursor: object, statement: str, *_: object) -> None:  # noqa: ARG001
        if "patients" in statement:
            sent.append(statement.split(maxsplit=1)[0])

    event.listen(engine, "before_cursor_execute", collect)
    yield sent
    event.remove(engine, "before_cursor_execute", collect)


def test_another_sessions_flush_leaves_the_notes_of_this_one(filled: Place) -> None:
    # S9 a: all notes were wiped
    engine = filled.restart()

    def flush_elsewhere(mapper: object, connection: object, target: Patient) -> None:  # noqa: ARG001
        session = object_session(target)
        if session is not None and session.info.get("outer"):
            with Session(engine) as other:
                other.get_one(Patient, 12).ssn = "other"
                # SQLite lets one transaction write: there the other flush fails, which must not matter either.
                with suppress(OperationalError, MetastoreUnavailableError):
                    other.flush()
                other.rollback()

    event.listen(Patient, "before_update", flush_elsewhere)
    try:
        with Session(engine) as session:
            session.info["outer"] = True
            first, second = session.get_one(Patient, 1), session.get_one(Patient, 2)
            first.ssn = second.ssn = "new"
            session.commit()
    finally:
        event.remove(Patient, "before_update", flush_elsewhere)
    assert row_of(filled, 1)[1] == row_of(filled, 2)[1] == "new"


def test_notes_of_a_failed_flush_serve_nobody(filled: Place) -> None:
    # S9 b: a later UPDATE on the same Connection was encrypted for the owner that was
    engine = filled.restart()
    with engine.connect() as connection:
        with Session(connection, join_transaction_mode="rollback_only") as session:
            session.get_one(Patient, 1).ssn = "lost"
            session.add(Patient(id=2, clinic_id=1))
            with pytest.raises(IntegrityError):
                session.flush()
            session.rollback()
        connection.rollback()
        give_away(filled.restart(), 1)
        table: Any = Patient.__table__
        statement = update(table).where(table.c.id == bindparam("patients_id"))
        connection.execute(statement, [{"patients_id": 1, "ssn": "new"}, {"patients_id": 2, "ssn": "new"}])
        connection.execute(update(table).where(table.c.id == 11), {"ssn": "new"})
        connection.commit()
    assert row_of(filled, 1) == (2, "new", secret("n", 1))
    assert row_of(filled, 2)[:2] == (2, "new")
    assert row_of(filled, 11)[:2] == (1, "new")


def test_an_object_without_a_change_costs_no_statement(filled: Place) -> None:
    # S9 c: one SELECT for every expired object, and no UPDATE
    engine = filled.restart()
    with Session(engine) as session:
        patient, other = session.get_one(Patient, 1), session.get_one(Patient, 11)
        session.expire(patient, ["clinic_id", "ssn", "notes"])
        session.expire(other, ["clinic_id"])
        with statements_of(engine) as sent:
            session.flush()
            attributes.flag_dirty(patient)
            attributes.flag_dirty(other)
            session.flush()
        assert sent == []
        with statements_of(engine) as sent:
            patient.name = "plain"
            session.flush()
        assert sent == ["UPDATE"]


@pytest.mark.parametrize(
    "load", [lambda: defer(Patient.clinic_id, raiseload=True), lambda: raiseload("*")], ids=["owner", "all"]
)
def test_an_owner_that_may_not_be_loaded_is_asked_for(filled: Place, load: Callable[[], Any]) -> None:
    # S9 d: getattr died with raiseload
    with Session(filled.restart()) as session:
        patient = session.scalars(select(Patient).options(load()).where(Patient.id == 1)).one()
        patient.ssn = "new"
        session.commit()
    assert row_of(filled, 1) == (1, "new", secret("n", 1))


def test_values_that_may_not_be_loaded_are_re_encrypted_with_a_new_owner(filled: Place) -> None:
    # S9 d: for another owner, with everything deferred, expired, or overwritten unseen
    query = select(Patient).options(defer(Patient.ssn, raiseload=True), defer(Patient.clinic_id, raiseload=True))
    with Session(filled.restart()) as session:
        first = session.scalars(query.where(Patient.id == 1)).one()
        first.clinic_id = 2
        second = session.get_one(Patient, 11)
        session.expire(second)
        second.clinic_id = 2
        second.notes = "new"
        session.commit()
    assert row_of(filled, 1) == (2, secret("ssn", 1), secret("n", 1))
    assert row_of(filled, 11) == (2, secret("ssn", 11), "new")


# S12: the owner's text


class Colour(enum.Enum):
    red = "r"
    blue = "b"


HEX = "0" * 31 + "a"
OWNERS: list[tuple[Any, Any]] = [
    (String(40), HEX),
    (String(40), str(uuid.UUID(HEX))),
    (String(40), "05"),
    (String(40), " a "),
    (String(40), "ä-€-\U0001f600"),
    (Integer(), 5),
    (Integer(), -5),
    (Uuid(), uuid.UUID(HEX)),
    (Uuid(as_uuid=False), str(uuid.UUID(HEX))),
    (Uuid(native_uuid=False), uuid.UUID(HEX)),
    (Enum(Colour), Colour.red),
    (Enum("red", "blue", name="plain_colour"), "red"),
]


def owned(type_: Any, name: str = "owned") -> Any:
    return Table(
        name,
        MetaData(),
        Column("id", Integer, primary_key=True, autoincrement=False),
        Column("own", type_),
        Column("note", Encrypted(String(), owner="own")),
        mysql_charset="utf8mb4",
    )


@pytest.mark.parametrize(("type_", "owner"), OWNERS, ids=range(len(OWNERS)))
def test_an_owner_reads_what_it_wrote_whatever_its_text_looks_like(place: Place, type_: Any, owner: Any) -> None:
    # S12: 32 hex digits became a UUID on reading only
    table = owned(type_)
    with place.create(table.metadata).begin() as connection:
        connection.execute(insert(table), {"id": 1, "own": owner, "note": CANARY})
        connection.execute(insert(table).values(id=2, own=owner, note=CANARY))
    with place.restart().begin() as connection:
        assert connection.execute(select(table.c.own, table.c.note)).all() == [(owner, CANARY)] * 2
        connection.execute(update(table).values(note="new"))
    with place.restart().connect() as connection:
        assert connection.execute(select(table.c.note)).scalars().all() == ["new", "new"]


@pytest.mark.parametrize(
    ("type_", "owner"),
    [
        (Integer(), "05"),
        (Integer(), "5"),
        (Integer(), True),
        (Integer(), 5.0),
        (String(40), 5),
        (String(40), b"5"),
        (String(40), ""),
        (String(40), "a\0b"),
        (String(40), None),
        (Uuid(), "no uuid"),
        (Uuid(), 5),
        (Enum(Colour), 5),
    ],
    ids=range(12),
)
def test_an_owner_of_another_python_type_is_refused(
    place: Place, type_: Any, owner: Any, caplog: pytest.LogCaptureFixture
) -> None:
    # S12: the driver would have made it fit, and the value could not be read
    table = owned(type_)
    with place.create(table.metadata).connect() as connection:
        for statement in (insert(table).values(id=1, own=owner, note=CANARY), insert(table)):
            parameters = None if statement._values else {"id": 1, "own": owner, "note": CANARY}
            with refused(OwnerRequiredError, place, connection, caplog):
                connection.execute(statement, parameters)


@pytest.mark.parametrize("type_", [Numeric(10, 2), CHAR(8)], ids=["numeric", "char"])
def test_an_owner_type_without_a_canonical_text_is_refused(type_: Any) -> None:
    # S12: one number, two texts
    with pytest.raises(ConfigurationError, match="no canonical text"):
        plan_of(owned(type_))


def test_an_owner_type_that_changes_its_value_in_sql_is_refused() -> None:
    # S12: what is stored is not what the program set
    class Upper(TypeDecorator[str]):
        impl = String
        cache_ok = True

        def bind_expression(self, bindparam: Any) -> Any:
            return func.upper(bindparam)

    with pytest.raises(ConfigurationError):
        plan_of(owned(Upper()))


def test_a_stored_owner_that_is_not_canonical_is_refused_on_reading(
    sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    # S12: SQLite stores what it is given
    with place_of(sqlite_url) as place:
        table = owned(Integer())
        with place.create(table.metadata).begin() as connection:
            connection.execute(insert(table), {"id": 1, "own": 5, "note": CANARY})
        for false in ("'05x'", "5.5", "''", "'5' || char(0)"):
            place.sql(f"UPDATE owned SET own = {false}")  # noqa: S608
            with place.restart().connect() as connection:
                query = select(table.c.note)
                with pytest.raises(AsherahError) as caught:
                    connection.execute(query).scalar_one()
                assert_silent(caught.value, caplog)
