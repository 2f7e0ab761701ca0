# SPDX-License-Identifier: Apache-2.0
"""What once was cached wrongly, refused without need or failed in a mapping: rows S16 to S20 of the findings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import ForeignKey, String, TypeDecorator, bindparam, func, insert, lambda_stmt, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, with_loader_criteria

from sa_asherah import ConfigurationError, Encrypted, OwnerChangedError, OwnerRequiredError, UnsupportedOperatorError
from tests.attacks.registry import CANARY, Base, Clinic, Patient, Place, assert_refused, secret

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Dialect


class Own(DeclarativeBase):
    pass


class Holder(Own):
    __tablename__ = "holders"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


class Thing(Own):
    """The attributes have other names than their columns; subclasses share the table."""

    __tablename__ = "things"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    kind: Mapped[str] = mapped_column(String(9))
    holder: Mapped[int] = mapped_column("holder_column", ForeignKey("holders.id"))
    words: Mapped[str | None] = mapped_column("words_column", Encrypted(String(), owner="holder_column"))
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "thing"}  # noqa: RUF012


class Book(Thing):
    title: Mapped[str | None] = mapped_column(Encrypted(String(), owner="holder_column"))
    __mapper_args__ = {"polymorphic_identity": "book"}  # noqa: RUF012


def things(place: Place) -> Any:
    """Write a thing of one holder and books of two; give a new engine."""
    engine = place.create(Own.metadata)
    with Session(engine) as session:
        session.add_all([Holder(id=1), Holder(id=2)])
        session.flush()
        session.add(Thing(id=1, holder=1, words=f"{CANARY} 1"))
        session.add(Book(id=2, holder=2, words=f"{CANARY} 2", title=f"{CANARY} title"))
        session.commit()
    return place.restart()


# S16: two inner types looked equal to SQLAlchemy's cache


class Uncached(TypeDecorator[str]):
    impl = String
    cache_ok = False

    def __init__(self, mark: str) -> None:
        super().__init__()
        self.mark = mark


class Marked(TypeDecorator[str]):
    """Writes its mark into the plaintext, and takes it away again."""

    impl = String
    cache_ok = True

    def __init__(self, mark: str) -> None:
        super().__init__()
        self.mark = mark

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        return None if value is None else self.mark + value

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        return None if value is None else value.removeprefix(self.mark)


def test_an_inner_type_that_cannot_be_cached_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="cache_ok"):
        Encrypted(Uncached("a"))


def test_inner_types_that_differ_are_cached_apart() -> None:
    keys = {Encrypted(Marked(mark))._static_cache_key for mark in ("a", "b", "b")}
    assert len(keys) == 2


# S17: the look-up of owners before an UPDATE by criteria

patients = Base.metadata.tables["patients"]


def test_an_update_of_no_row_writes_nothing(filled: Place) -> None:
    before = filled.content()
    with filled.restart().begin() as connection:
        done = connection.execute(update(patients).where(Patient.id == 99).values(ssn=CANARY))
        assert done.rowcount == 0
    assert filled.content() == before


def test_the_look_up_has_the_statement_s_parameters(filled: Place) -> None:
    statement = update(patients).where(Patient.clinic_id == bindparam("b")).values(ssn=f"{CANARY} new")
    with filled.restart().begin() as connection:
        connection.execute(statement, {"b": 1})
    with Session(filled.restart()) as session:
        found = session.execute(select(Patient.clinic_id, Patient.ssn).order_by(Patient.id)).all()
    assert found == [(1, f"{CANARY} new"), (2, secret("ssn", 2)), (1, f"{CANARY} new"), (2, secret("ssn", 12))]


@pytest.mark.parametrize("by", ["inheritance", "loader criteria"])
def test_the_look_up_has_the_criteria_of_the_entity(place: Place, by: str) -> None:
    """Without them both holders' rows would be found and the UPDATE refused."""
    statement: Any = update(Book).values(words=f"{CANARY} new")
    if by == "loader criteria":
        statement = update(Thing).values(words=f"{CANARY} new").options(with_loader_criteria(Thing, Thing.id == 2))
    with Session(things(place)) as session:
        session.execute(statement, execution_options={"synchronize_session": False})
        session.commit()
        with pytest.raises(OwnerRequiredError, match="2 owners"):
            session.execute(update(Thing).values(words=CANARY), execution_options={"synchronize_session": False})
    with Session(place.restart()) as session:
        assert session.scalars(select(Thing.words).order_by(Thing.id)).all() == [f"{CANARY} 1", f"{CANARY} new"]


# S18: keys of values that are not column keys

WRITES: dict[str, Callable[[Session], Any]] = {
    "attributes": lambda session: session.execute(
        insert(Thing).values(id=3, kind="thing", holder=1, words=f"{CANARY} 3")
    ),
    "attributes, in parameters": lambda session: session.execute(
        insert(Thing), [{"id": 3, "kind": "thing", "holder": 1, "words": f"{CANARY} 3"}]
    ),
    "foreign names": lambda session: session.execute(
        insert(Thing).values(
            id=bindparam("i"), kind="thing", holder=bindparam("h"), words=bindparam("w", type_=Thing.words.type)
        ),
        {"i": 3, "h": 1, "w": f"{CANARY} 3"},
    ),
    "the owner in the statement": lambda session: session.execute(
        insert(Thing).values(holder=1, kind="thing"), {"id": 3, "words": f"{CANARY} 3"}
    ),
    "lambda": lambda session: session.execute(
        lambda_stmt(lambda: insert(Thing)), [{"id": 3, "kind": "thing", "holder": 1, "words": f"{CANARY} 3"}]
    ),
}


@pytest.mark.parametrize("name", WRITES)
def test_values_under_other_keys_are_encrypted(place: Place, name: str) -> None:
    with Session(things(place)) as session:
        WRITES[name](session)
        session.execute(update(Thing).where(Thing.id == 1).values(words=f"{CANARY} new"))
        session.commit()
    assert CANARY not in repr(place.content())
    with Session(place.restart()) as session:
        words = session.scalars(select(Thing.words).order_by(Thing.id)).all()
        assert words == [f"{CANARY} new", f"{CANARY} 2", f"{CANARY} 3"]


# S19: columns of the table that this mapper does not map


def test_a_base_class_is_updated_beside_the_columns_of_its_subclasses(place: Place) -> None:
    with Session(things(place)) as session:
        for thing in session.scalars(select(Thing)):
            thing.words = f"{CANARY} of {thing.id}"
        session.flush()
        session.get_one(Book, 2).holder = 1
        session.get_one(Thing, 1).holder = 2
        session.commit()
    with Session(place.restart()) as session:
        assert session.scalars(select(Thing.words).order_by(Thing.id)).all() == [f"{CANARY} of 1", f"{CANARY} of 2"]
        assert session.scalars(select(Book.title)).all() == [f"{CANARY} title"]


def test_values_of_another_class_in_the_row_are_not_left_behind(place: Place) -> None:
    engine = things(place)
    place.sql("UPDATE things SET kind = 'thing' WHERE id = 2")
    before = place.content()
    with Session(engine) as session:
        session.get_one(Thing, 2).holder = 1
        with pytest.raises(OwnerChangedError, match="does not map"):
            session.flush()
        session.rollback()
    assert place.content() == before


def test_an_owner_column_that_is_not_mapped_is_refused() -> None:
    class Local(DeclarativeBase):
        pass

    class Half(Local):
        __table__ = Own.metadata.tables["things"].to_metadata(Local.metadata)
        __mapper_args__ = {"exclude_properties": ["holder_column", "title"]}  # noqa: RUF012

    with pytest.raises(ConfigurationError, match="map it"):
        Local.registry.configure()
    Local.registry.dispose()
    assert Half.__table__ is not None


# S20: what packing would break on PostgreSQL, with a message of our own

GROUPED: dict[str, Callable[[], Any]] = {
    "GROUP BY": lambda: select(func.count()).group_by(Patient.ssn),
    "DISTINCT": lambda: select(Patient.ssn).distinct(),
    "DISTINCT and ORDER BY": lambda: select(Patient.ssn).distinct().order_by(Patient.ssn),
    "ORDER BY": lambda: select(Patient.id).order_by(Patient.ssn.desc()),
    "UNION": lambda: select(Patient.ssn).union(select(Patient.ssn)),
}


@pytest.mark.parametrize("name", GROUPED)
def test_grouping_by_ciphertext_is_refused(filled: Place, caplog: pytest.LogCaptureFixture, name: str) -> None:
    with Session(filled.restart()) as session:
        assert_refused(UnsupportedOperatorError, lambda: session.execute(GROUPED[name]()).all(), caplog)


def test_grouping_by_the_key_works(filled: Place) -> None:
    with Session(filled.restart()) as session:
        counted = select(Clinic.id, func.count(Patient.ssn)).join(Patient).group_by(Clinic.id).order_by(Clinic.id)
        assert session.execute(counted).all() == [(1, 2), (2, 2)]
        distinct = select(Patient.id, Patient.clinic_id, Patient.ssn).distinct().order_by(Patient.id)
        assert [row.ssn for row in session.execute(distinct)] == [secret("ssn", number) for number in (1, 2, 11, 12)]
        locked = select(Patient.ssn).where(Patient.id == 1).with_for_update(of=Patient)
        assert session.scalars(locked).all() == [secret("ssn", 1)]
