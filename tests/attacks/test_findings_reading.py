# SPDX-License-Identifier: Apache-2.0
"""What once read a value unverified, as None, or not at all: rows S1, S2, S11, S14 and S15 of the findings."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NewType

import pytest
from sqlalchemy import (
    Column,
    Engine,
    ForeignKey,
    Integer,
    MetaData,
    NullPool,
    String,
    Table,
    bindparam,
    case,
    func,
    insert,
    literal,
    literal_column,
    make_url,
    select,
    text,
    tuple_,
    type_coerce,
    union,
    union_all,
)
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.ext.declarative import ConcreteBase
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    aliased,
    configure_mappers,
    mapped_column,
)
from sqlalchemy.sql.selectable import LABEL_STYLE_TABLENAME_PLUS_COL

from sa_asherah import Encrypted, partition_scope
from sa_asherah.errors import (
    ConfigurationError,
    DecryptionError,
    OwnerRequiredError,
    UnsupportedOperatorError,
    UsageError,
    WrongPlaceError,
)
from tests.attacks.registry import (
    CANARY,
    Clinic,
    Patient,
    Place,
    Visit,
    asherah_of,
    assert_nowhere,
    assert_refused,
    place_of,
    refused,
    secret,
)

if TYPE_CHECKING:
    from collections.abc import Callable


def rows(engine: Engine, query: Any) -> list[Any]:
    with Session(engine) as session:
        return [*session.execute(query).all()]


# S1: NULL owner


@pytest.mark.parametrize(
    "query",
    [
        select(Patient).where(Patient.id == 1),
        select(Patient.ssn, Patient.notes).where(Patient.id == 1),
        select(select(Patient).subquery()),
        union_all(
            select(Patient.id, Patient.clinic_id, Patient.ssn), select(Patient.id, Patient.clinic_id, Patient.ssn)
        ),
    ],
    ids=["entity", "tuple", "subquery", "union"],
)
def test_a_value_whose_owner_is_null_is_an_error_and_not_none(
    filled: Place, query: Any, caplog: pytest.LogCaptureFixture
) -> None:
    # S1
    filled.sql("UPDATE patients SET clinic_id = NULL WHERE id = 1")
    assert_refused(OwnerRequiredError, partial(rows, filled.restart(), query), caplog)


def test_null_reads_as_none_with_and_without_an_owner(filled: Place) -> None:
    # S1
    filled.sql("UPDATE patients SET clinic_id = NULL, ssn = NULL, notes = NULL WHERE id = 1")
    filled.sql("UPDATE patients SET ssn = NULL WHERE id = 2")
    query = select(Patient.ssn, Patient.notes).where(Patient.id.in_([1, 2])).order_by(Patient.id)
    assert rows(filled.restart(), query) == [(None, None), (None, secret("n", 2))]


def test_deleting_the_parent_of_a_row_cannot_take_the_owner_from_its_values(
    filled: Place, caplog: pytest.LogCaptureFixture
) -> None:
    # S1: the ORM sets the foreign key, which is the owner, to NULL
    filled.sql("DELETE FROM visits")
    with Session(filled.restart()) as session, refused(OwnerRequiredError, filled, session, caplog):
        session.delete(session.get_one(Clinic, 1))
        session.flush()


def test_the_owner_goes_together_with_the_values(filled: Place) -> None:
    # S1: the way that the error of the test above names
    with Session(filled.restart()) as session:
        patient = session.get_one(Patient, 1)
        patient.clinic_id = patient.ssn = patient.notes = None
        session.commit()
    assert rows(filled.restart(), select(Patient.clinic_id, Patient.ssn).where(Patient.id == 1)) == [(None, None)]


# S2: the owner by lineage, never by name


def steal(place: Place) -> None:
    """Put a value of owner 1 into the row of owner 2."""
    place.sql(
        "UPDATE patients SET ssn = (SELECT ssn FROM (SELECT ssn FROM patients WHERE id = 1) AS source) WHERE id = 2"
    )


Other = aliased(Patient)
JOINED = (
    select(Patient.ssn, Clinic.id.label("clinic_id")).join(Clinic, Clinic.id == 1).where(Patient.id == 2).subquery()
)
VISITED = select(Patient.ssn, Visit.clinic_id).join(Visit, Visit.id == 1).where(Patient.id == 2).subquery()
ITSELF = select(Patient.ssn, Other.clinic_id).join(Other, Other.id == 1).where(Patient.id == 2).subquery()
LABELLED = select(Patient.ssn, literal(1).label("clinic_id")).where(Patient.id == 2).subquery()
MIXED = union_all(
    select(Patient.ssn, Patient.clinic_id).where(Patient.id == 12),
    select(Patient.ssn, literal(1).label("clinic_id")).where(Patient.id == 2),
).subquery()


@pytest.mark.parametrize(
    "source", [JOINED, VISITED, ITSELF, LABELLED, MIXED], ids=["join", "namesake", "self-join", "literal", "union"]
)
def test_a_column_that_is_only_called_like_the_owner_does_not_open_a_value(
    filled: Place, source: Any, caplog: pytest.LogCaptureFixture
) -> None:
    # S2 a: the check was made against another row's owner
    steal(filled)
    assert_refused(OwnerRequiredError, partial(rows, filled.restart(), select(source.c.ssn)), caplog)


def test_the_owners_own_row_opens_values_of_a_joined_subquery(filled: Place, caplog: pytest.LogCaptureFixture) -> None:
    # S2 b: the second table's owner has another name in the subquery
    joined = select(Patient, Visit).join(Visit, Visit.patient_id == Patient.id).where(Patient.id == 2).subquery()
    notes = [column for column in joined.c if isinstance(column.type, Encrypted) and "notes" in column.name]
    assert rows(filled.restart(), select(*notes)) == [(secret("n", 2), secret("v", 2))]
    steal(filled)
    assert_refused(DecryptionError, partial(rows, filled.restart(), select(joined.c.ssn)), caplog)


def test_query_union_and_renamed_columns_find_the_owner(filled: Place, caplog: pytest.LogCaptureFixture) -> None:
    # S2 c: it was not found
    prefixed = select(Patient).where(Patient.id == 2).set_label_style(LABEL_STYLE_TABLENAME_PLUS_COL).subquery()

    def read_both(engine: Engine) -> list[Any]:
        with Session(engine) as session:
            first, second = (session.query(Patient).where(Patient.id == number) for number in (1, 2))
            return [patient.ssn for patient in first.union(second).order_by(Patient.id)]

    assert read_both(filled.restart()) == [secret("ssn", 1), secret("ssn", 2)]
    assert rows(filled.restart(), select(prefixed.c.patients_ssn)) == [(secret("ssn", 2),)]
    steal(filled)
    assert_refused(DecryptionError, partial(read_both, filled.restart()), caplog)
    assert_refused(DecryptionError, partial(rows, filled.restart(), select(prefixed.c.patients_ssn)), caplog)


def test_branches_of_a_concrete_hierarchy_are_opened_for_their_own_owner_or_refused(place: Place) -> None:
    # S2 d: the column `own` of the union is not the owner of the second class
    class Concrete(DeclarativeBase):
        pass

    class First(ConcreteBase, Concrete):
        __tablename__ = "firsts"
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        own: Mapped[int]
        note: Mapped[str] = mapped_column(Encrypted(String(), owner="own", partition="first-{}", label="notes"))
        __mapper_args__ = {"polymorphic_identity": "first", "concrete": True}  # noqa: RUF012

    class Second(First):
        __tablename__ = "seconds"
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        own: Mapped[int]
        own2: Mapped[int]
        note: Mapped[str] = mapped_column(Encrypted(String(), owner="own2", partition="second-{}"))
        __mapper_args__ = {"polymorphic_identity": "second", "concrete": True}  # noqa: RUF012

    configure_mappers()
    engine = place.create(Concrete.metadata)
    with Session(engine) as session:
        session.add_all([First(id=1, own=1, note=CANARY), Second(id=2, own=1, own2=2, note=CANARY)])
        session.commit()
    with Session(place.restart()) as session:
        with pytest.raises(UnsupportedOperatorError):
            session.scalars(select(First)).all()
        assert session.get_one(Second, 2).note == CANARY


# S11: comparisons that the column's comparator never sees

PLAIN: list[Callable[[], Any]] = [
    lambda: literal(CANARY) == Patient.ssn,
    lambda: bindparam("q", CANARY) == Patient.ssn,
    lambda: func.lower(Patient.ssn) == CANARY,
    lambda: func.coalesce(Patient.ssn, CANARY) == "x",
    lambda: type_coerce(Patient.ssn, String) == CANARY,
    lambda: case((Patient.id == 1, CANARY), else_="x") == Patient.ssn,
    lambda: tuple_(Patient.ssn, Patient.id).in_([(CANARY, 1)]),
    lambda: Patient.ssn.in_(select(Visit.notes)),
    lambda: Patient.ssn == CANARY,
    lambda: Patient.ssn.is_distinct_from(CANARY),
    lambda: Patient.ssn.between(CANARY, CANARY),
    lambda: Patient.ssn.like(CANARY),
    lambda: Patient.ssn.op("~")(CANARY),
    lambda: Patient.ssn + CANARY == "x",
]
EXPANDED = 6


@pytest.mark.parametrize("number", range(len(PLAIN)))
def test_a_comparison_with_plaintext_is_refused_before_anything_is_sent(
    filled: Place, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    # S11
    engine = filled.restart()
    condition = PLAIN[number]
    # What IN expands is seen only when it is bound.
    kind = UsageError if number == EXPANDED else UnsupportedOperatorError
    assert_refused(kind, lambda: rows(engine, select(Patient.id).where(condition())), caplog)
    assert_nowhere(engine)


@pytest.mark.parametrize(
    "query",
    [
        select(func.max(Patient.ssn)),
        select(func.length(Patient.ssn)),
        select(Patient.ssn).distinct(),
        select(func.count()).group_by(Patient.ssn),
        select(Patient.id).order_by(Patient.ssn),
        union(select(Patient.ssn), select(Patient.notes)),
        select(case((Patient.id == 1, Patient.ssn))),
        select(select(Patient.ssn).where(Patient.id == 1).scalar_subquery()),
    ],
)
def test_what_would_compute_with_ciphertext_is_refused(filled: Place, query: Any) -> None:
    # S11
    with pytest.raises(UsageError):
        rows(filled.restart(), query)


def test_what_ciphertext_can_do_works(filled: Place) -> None:
    # S11
    engine = filled.restart()
    assert rows(engine, select(func.count(Patient.ssn))) == [(4,)]
    assert rows(engine, select(Patient.id).where(Patient.ssn.is_(None))) == []
    assert len(rows(engine, select(Patient.id).where(Patient.ssn.is_not(None)))) == 4


# S15: one type instance for several columns

Hidden = NewType("Hidden", str)
SHARED = Encrypted(String(), owner="own")


class Sharing(DeclarativeBase):
    type_annotation_map = {Hidden: Encrypted(String(), owner="own")}  # noqa: RUF012


class ByInstance(Sharing):
    __tablename__ = "by_instance"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    own: Mapped[int] = mapped_column(unique=True)
    first: Mapped[str] = mapped_column(SHARED)
    second: Mapped[str] = mapped_column(SHARED)


class ByAnnotation(Sharing):
    __tablename__ = "by_annotation"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    own: Mapped[int] = mapped_column(ForeignKey("by_instance.own"))
    first: Mapped[Hidden]
    second: Mapped[Hidden]


@pytest.fixture
def sharing(place: Place) -> Place:
    with Session(place.create(Sharing.metadata)) as session:
        session.add(ByInstance(id=1, own=1, first="a", second="b"))
        session.flush()
        session.add(ByAnnotation(id=1, own=1, first="c", second="d"))
        session.commit()
    return place


def test_a_type_that_serves_several_columns_learns_no_label(sharing: Place) -> None:
    # S15: the last column that got the type gave it its label
    table = ByAnnotation.__table__
    assert table.c.first.type is table.c.second.type or repr(table.c.first.type) == repr(table.c.second.type)
    assert SHARED.label is None
    engine = sharing.restart()
    for entity, first, second in ((ByInstance, "a", "b"), (ByAnnotation, "c", "d")):
        assert rows(engine, select(entity.first)) == [(first,)]
        assert rows(engine, select(entity.second)) == [(second,)]
        assert rows(engine, select(entity.second, entity.first)) == [(second, first)]


@pytest.mark.parametrize("entity", [ByInstance, ByAnnotation])
def test_columns_that_share_a_type_are_different_places(
    sharing: Place, entity: Any, caplog: pytest.LogCaptureFixture
) -> None:
    # S15: also with the other column's processor in the cache
    engine = sharing.restart()
    assert len(rows(engine, select(entity.first)) + rows(engine, select(entity.second))) == 2
    sharing.sql(f"UPDATE {entity.__tablename__} SET second = first")  # noqa: S608
    assert_refused(WrongPlaceError, partial(rows, engine, select(entity.second)), caplog)
    assert_refused(WrongPlaceError, partial(rows, sharing.restart(), select(entity.second)), caplog)
    assert len(rows(engine, select(entity.first))) == 1


def test_a_text_or_coerced_value_needs_a_label_of_its_own(sharing: Place, caplog: pytest.LogCaptureFixture) -> None:
    # S15: it got the processor of the column read before
    engine = sharing.restart()
    assert rows(engine, select(ByInstance.first, ByInstance.second)) == [("a", "b")]
    statement = text("SELECT second FROM by_instance")
    labelled = Encrypted(String(), label="by_instance.second")
    false = Encrypted(String(), label="by_instance.first")
    column = literal_column("second", String())
    with partition_scope("1"):
        assert_refused(OwnerRequiredError, partial(rows, engine, statement.columns(second=SHARED)), caplog)
        assert_refused(WrongPlaceError, partial(rows, engine, statement.columns(second=false)), caplog)
        assert rows(engine, statement.columns(second=labelled)) == [("b",)]
        coerced = select(type_coerce(column, labelled)).select_from(ByInstance)
        assert rows(engine, coerced) == [("b",)]
        coerced = select(type_coerce(column, false)).select_from(ByInstance)
        assert_refused(WrongPlaceError, partial(rows, engine, coerced), caplog)


# S14: SQL per dialect


def test_a_mariadb_connection_in_latin1_reads_owners_beyond_ascii(mariadb_url: str) -> None:
    # S14: the owner's bytes were latin1
    with place_of(mariadb_url) as place:
        metadata = MetaData()
        table = named_owner(metadata)
        engine = place.create(metadata)
        with engine.begin() as connection:
            connection.execute(insert(table), {"id": 1, "own": "Zo\u00eb", "ssn": CANARY})
        latin1 = make_url(mariadb_url).update_query_dict({"charset": "latin1"})
        place.url = latin1.render_as_string(hide_password=False)
        engine = place.restart()
        with engine.begin() as connection:
            assert connection.exec_driver_sql("SELECT @@character_set_connection").scalar() == "latin1"
            assert connection.execute(select(table.c.ssn)).scalar() == CANARY
            connection.execute(insert(table), {"id": 2, "own": "J\u00f6rg", "ssn": CANARY})
        place.url = mariadb_url
        with place.restart().connect() as connection:
            assert connection.execute(select(table.c.own, table.c.ssn)).all() == [
                ("Zo\u00eb", CANARY),
                ("J\u00f6rg", CANARY),
            ]


def test_a_mariadb_value_beyond_max_allowed_packet_is_an_error_and_not_none(
    mariadb_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    # S14: CONCAT gave NULL
    with place_of(mariadb_url) as place:
        metadata = MetaData()
        table = named_owner(metadata)
        engine = place.create(metadata)
        with engine.begin() as connection:
            connection.execute(insert(table), {"id": 1, "own": "clinic-1", "ssn": CANARY})
        place.sql("UPDATE owned SET ssn = repeat('a', @@max_allowed_packet - 2)")
        assert place.sql("SELECT ssn IS NULL FROM owned") == [(0,)]
        error = assert_refused(OwnerRequiredError, partial(rows, place.restart(), select(table.c.ssn)), caplog)
        assert "max_allowed_packet" in str(error)


def test_an_sqlite_database_in_utf_16_is_refused_before_anything_is_written(
    sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    # S14: what was written there could not be read
    with place_of(sqlite_url) as place:
        with place.raw.connect() as connection:
            connection.exec_driver_sql("PRAGMA encoding = 'UTF-16'")
            connection.exec_driver_sql("CREATE TABLE first (id INTEGER)")
            connection.commit()
        metadata = MetaData()
        table = named_owner(metadata)
        engine = place.create(metadata)
        with engine.connect() as connection:
            with refused(ConfigurationError, place, connection, caplog) as caught:
                connection.execute(insert(table), {"id": 1, "own": "1", "ssn": CANARY})
            assert "UTF-16" in str(caught.value)
            with pytest.raises(ConfigurationError):
                connection.execute(select(table.c.ssn))


def test_postgresql_without_standard_conforming_strings_reads(postgresql_url: str) -> None:
    # S14: '\x00' was an escape there, and every read failed
    with place_of(postgresql_url) as place:
        metadata = MetaData()
        table = named_owner(metadata)
        place.create(metadata)
        options = {"connect_args": {"options": "-c standard_conforming_strings=off -c escape_string_warning=off"}}
        engine = place.restart(engine_options=options)
        with engine.begin() as connection:
            assert connection.exec_driver_sql("SHOW standard_conforming_strings").scalar() == "off"
            connection.execute(insert(table), {"id": 1, "own": "a\\b'c", "ssn": CANARY})
            assert connection.execute(select(table.c.own, table.c.ssn)).one() == ("a\\b'c", CANARY)
        assert rows(place.restart(), select(table.c.ssn)) == [(CANARY,)]


class OtherDialect(DefaultDialect):
    name = "other"


def test_a_database_of_another_family_is_refused_when_attaching() -> None:
    # S14: it would have got the rendering that serves str(statement)
    engine = Engine(NullPool(lambda: None), OtherDialect(), make_url("other://"))  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="PostgreSQL, MySQL, MariaDB or SQLite"):
        asherah_of().attach(engine)


def named_owner(metadata: MetaData) -> Table:
    return Table(
        "owned",
        metadata,
        Column("id", Integer, primary_key=True, autoincrement=False),
        Column("own", String(40), nullable=False),
        Column("ssn", Encrypted(String(), owner="own")),
        mysql_charset="utf8mb4",
    )
