# SPDX-License-Identifier: Apache-2.0
"""Every inner type on every database: stored encrypted, read as from a plain column, edge values as they were."""

from __future__ import annotations

import copy
import enum
import math
import pickle
import uuid
import warnings
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import insert, null, select, update
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SAWarning
from sqlalchemy.schema import CreateTable
from sqlalchemy.types import TypeDecorator, TypeEngine, UserDefinedType

from sa_asherah import (
    ConfigurationError,
    Encrypted,
    MalformedCellError,
    UnsupportedOperatorError,
    UnsupportedValueError,
)
from sa_asherah.kms.static import StaticKMS
from tests.orm.models import CANARY
from tests.orm.type_models import KINDS, Colour, Everything, TypesApp, encrypted, kinds, twins

Row = dict[str, Any]


@pytest.fixture(params=["sync", "async"])
def app(request: pytest.FixtureRequest, suite_url: str, static_kms: StaticKMS) -> TypesApp:
    """Each database, by its synchronous and its asynchronous driver."""
    return TypesApp(suite_url, static_kms, is_async=request.param == "async")


def row(number: int, *, chosen: int = 0) -> Row:
    """A row with the first or the second value of each type."""
    return {"id": number, "clinic_id": 1} | {name: kind.values[chosen] for name, kind in KINDS.items()}


def shown(found: Any) -> Any:
    """What tells values apart that Python calls equal, and the moment of a datetime rather than its offset."""
    if isinstance(found, datetime) and found.tzinfo is not None:
        found = found.astimezone(UTC)
    return sorted(found) if isinstance(found, frozenset) else repr(found)


def plain_rows(app: TypesApp, *rows: Row) -> list[Row]:
    """Write and read rows with the plain twin, as far as this database has the types."""
    usable = [name for name, kind in KINDS.items() if app.dialect in kind.plain]
    with app.engine.begin() as connection, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Dialect sqlite.*Decimal", SAWarning)
        connection.execute(
            insert(twins), [{name: each[name] for name in ("id", "clinic_id", *usable)} for each in rows]
        )
        columns = [twins.c[name] for name in usable]
        return [dict(each) for each in connection.execute(select(*columns).order_by(twins.c.id)).mappings()]


def test_every_type_reads_like_a_plain_column_of_it(app: TypesApp) -> None:
    empty = dict.fromkeys(KINDS) | {"id": 3, "clinic_id": 1}
    rows = [row(1), row(2, chosen=1), empty]
    # Encrypted, None is SQL NULL: say so to the JSON columns of the twin.
    expected = plain_rows(app, rows[0], rows[1], empty | {"document": null(), "jsonb": null()})
    app.add(*(Everything(**each) for each in rows[:2]))
    app.execute(insert(kinds), empty)
    app.cold()
    with app.session() as session:
        entities = session.scalars(select(Everything).order_by(Everything.id)).all()
        tuples = session.execute(select(*kinds.c).order_by(kinds.c.id)).mappings().all()
        for entity, found, plain in zip(entities, tuples, expected, strict=True):
            for name, value in plain.items():
                assert shown(getattr(entity, name)) == shown(found[name]) == shown(value), name
    assert set(tuples[2].values()) == {3, 1, None}


def test_every_value_comes_back_after_every_way_of_writing(app: TypesApp) -> None:
    first, second = row(1), row(1, chosen=1)

    def assert_stored(expected: Row, clinic: int = 1) -> None:
        app.cold()
        (found,) = app.rows(select(kinds))
        assert list(map(repr, found[2:])) == [repr(expected[name]) for name in KINDS]
        assert found[1] == clinic

    (returned,) = app.rows(insert(kinds).returning(*kinds.c), first)
    assert list(map(repr, returned)) == list(map(repr, first.values()))
    assert_stored(first)
    app.execute(update(kinds).values(second))
    assert_stored(second)
    with app.session() as session:
        entity = session.get_one(Everything, 1)
        for name, kind in KINDS.items():
            setattr(entity, name, kind.values[0])
        session.commit()
    assert_stored(first)
    with app.session() as session:
        session.get_one(Everything, 1).clinic_id = 2  # every column is encrypted again
        session.commit()
    assert_stored(first, clinic=2)
    with app.session() as session:
        session.merge(Everything(**(second | {"clinic_id": 2})))
        session.commit()
    assert_stored(second, clinic=2)


MINIMUM = datetime(1, 1, 1)  # noqa: DTZ001
MAXIMUM = datetime(9999, 12, 31, 23, 59, 59, 999999)  # noqa: DTZ001
EDGES: list[tuple[str, list[Any]]] = [
    ("string", ["", "\0", "secret**", CANARY * 20, " ", "'\"\\%s:x{}"]),
    ("text", ["x" * 2**20]),
    ("binary", [b"", b"\0", bytes(range(256))]),
    ("whole", [0, 2**63, -(2**63) - 1, 10**400, -(10**400)]),
    ("exact", [Decimal("1E+400"), Decimal("1.2300"), Decimal("-0"), Decimal("1E-400"), Decimal("NaN"),
    Decimal("Infinity")]),
    ("float_", [-0.0, 0.0, math.nan, math.inf, -math.inf, 5e-324, 1.7976931348623157e308]),
    ("day", [date.min, date.max]),
    ("clock", [time.min, time.max, time(1, 2, 3, 4)]),
    ("moment", [MINIMUM, MAXIMUM]),
    ("zoned", [MINIMUM.replace(tzinfo=UTC), MAXIMUM.replace(tzinfo=UTC), KINDS["zoned"].values[0]]),
    ("span", [timedelta.min, timedelta.max, timedelta(0), timedelta(microseconds=-1)]),
    ("key", [uuid.UUID(int=0)]),
    ("document", ["", 0, False, {}, [], -0.0, 10**400, "\0", {"": {"": ""}}, {"b": 1, "a": 2}]),
    ("numbers", [[], [None], [[], [[1], None]], [2**70]]),
    ("tags", [frozenset({""})]),
]  # fmt: skip


def test_values_at_the_edge_come_back_as_they_were(app: TypesApp) -> None:
    cases = [(name, value) for name, values in EDGES for value in values]
    for number, (name, value) in enumerate(cases):
        app.add(Everything(id=number, clinic_id=1, **{name: value}))
    app.cold()
    with app.session() as session:
        found = {entity.id: entity for entity in session.scalars(select(Everything))}
        for number, (name, value) in enumerate(cases):
            assert repr(getattr(found[number], name)) == repr(value), name
    assert all(stored[name] is not None for stored, (name, _) in zip(app.stored("kinds"), cases, strict=True))


OTHERS = [
    "whole", "exact", "float_", "day", "clock", "moment", "zoned", "span", "key", "key_text", "colour", "size",
    "document", "numbers", "matrix",
]  # fmt: skip


def test_values_of_other_types_are_refused_before_anything_is_sent(app: TypesApp) -> None:
    for name in OTHERS:
        with pytest.raises(UnsupportedValueError) as caught:
            app.add(Everything(id=1, clinic_id=1, **{name: {CANARY}}))
        assert CANARY not in str(caught.value)
        values = (KINDS[name].values[0], {CANARY})
        with pytest.raises(UnsupportedValueError):
            app.execute(insert(kinds), [{"id": n, "clinic_id": 1, name: value} for n, value in enumerate(values)])
    assert app.stored("kinds") == []


def test_json_null_is_a_value_and_none_is_not(app: TypesApp) -> None:
    app.add(
        Everything(id=1, clinic_id=1, document=sa.JSON.NULL),
        Everything(id=2, clinic_id=1, document=None),
        Everything(id=3, clinic_id=1, document=null()),
        Everything(id=4, clinic_id=1),
    )
    app.cold()
    assert app.rows(select(kinds.c.document).order_by(kinds.c.id)) == [(None,)] * 4
    assert app.rows(select(kinds.c.id).where(kinds.c.document.is_not(None))) == [(1,)]
    with app.session() as session:
        moved = session.get_one(Everything, 1)
        moved.clinic_id = 2
        session.get_one(Everything, 2).clinic_id = 2
        session.flush()
        assert moved.document is None
        session.commit()
    app.cold()
    assert app.rows(select(kinds.c.clinic_id, kinds.c.document).where(kinds.c.document.is_not(None))) == [(2, None)]


def test_documents_and_lists_need_no_hash_to_be_made_unique(app: TypesApp) -> None:
    app.add(Everything(**row(1)), Everything(**row(2)))
    with app.session() as session:
        rows = session.query(Everything.id, Everything.document, kinds.c.numbers).order_by(Everything.id).all()
        assert [each.id for each in rows] == [1, 2]
        assert [each.numbers for each in rows] == [[1, 2, None]] * 2


def test_operators_of_the_inner_type_are_refused(app: TypesApp) -> None:
    columns = kinds.c
    attempts: list[Any] = [
        lambda: columns.document["a"], lambda: columns.numbers[1], lambda: columns.numbers == [1],
        lambda: columns.flag.is_(True),
        lambda: columns.colour == Colour.RED, lambda: columns.moment > datetime.now(UTC),
        lambda: columns.numbers.contains([1]),
        lambda: columns.exact + 1, lambda: columns.tags == frozenset({"A"}), lambda: columns.document == sa.JSON.NULL,
    ]  # fmt: skip
    for attempt in attempts:
        with pytest.raises(UnsupportedOperatorError):
            attempt()
    assert app.rows(select(kinds.c.id).where(columns.document.is_(None))) == []


def test_a_changed_inner_type_is_a_typed_error(app: TypesApp) -> None:
    app.add(Everything(id=1, clinic_id=1, string="canary", whole=7))
    other = sa.Table(
        "kinds", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("clinic_id", sa.Integer),
        *(sa.Column(name, encrypted(sa.Date())) for name in ("string", "whole")),
    )  # fmt: skip
    for column in (other.c.string, other.c.whole):
        with pytest.raises(MalformedCellError, match="inner type was changed"):
            app.rows(select(column))


@pytest.mark.parametrize("name", KINDS)
def test_the_column_type_answers_for_its_inner_type(name: str) -> None:
    inner = KINDS[name].type
    first, second = KINDS[name].values
    type_ = Encrypted(inner, owner="clinic_id")
    try:
        expected: Any = inner.python_type
    except NotImplementedError:
        with pytest.raises(NotImplementedError):
            type_.python_type  # noqa: B018
    else:
        assert type_.python_type is expected
    assert type_.hashable is inner.hashable
    assert type_.compare_values(first, copy.deepcopy(first))
    assert not type_.compare_values(first, second)
    assert repr(type_.copy_value(first)) == repr(first)
    assert type_.compare_values(first, pickle.loads(pickle.dumps(type_)).copy_value(first))  # noqa: S301


@pytest.mark.parametrize(
    ("driver", "storage"), [("sqlite", "BLOB"), ("postgresql+psycopg", "BYTEA"), ("mysql+pymysql", "LONGBLOB")]
)
def test_every_inner_type_is_stored_in_the_one_binary_type(driver: str, storage: str) -> None:
    dialect: Any = make_url(f"{driver}://").get_dialect()
    ddl = str(CreateTable(kinds).compile(dialect=dialect()))
    assert ddl.count(f" {storage}") == len(KINDS)
    assert "CHECK" not in ddl


def test_no_type_is_created_for_an_encrypted_enum(app: TypesApp) -> None:
    if app.dialect == "postgresql":
        metadata = sa.MetaData()
        type_ = sa.Enum(Colour, name="never_created")
        sa.Table("enums", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("e", Encrypted(type_)))
        with app.engine.begin() as connection:
            metadata.create_all(connection)
            found = connection.scalar(sa.text("SELECT count(*) FROM pg_type WHERE typname = 'never_created'"))
            metadata.drop_all(connection)
        assert found == 0


class Uncached(TypeDecorator[str]):
    impl = sa.String
    cache_ok = False


class OverPickle(TypeDecorator[Any]):
    impl = sa.PickleType
    cache_ok = True


class OverArray(TypeDecorator[Any]):
    impl = sa.ARRAY(sa.Integer)
    cache_ok = True


class OwnBinding(sa.String):
    def bind_processor(self, dialect: Any) -> Any:  # noqa: ARG002
        return str.upper


class OwnExpression(TypeDecorator[str]):
    impl = sa.String
    cache_ok = True

    def bind_expression(self, bindparam: Any) -> Any:
        return sa.func.lower(bindparam)


class Money(UserDefinedType[Any]):
    cache_ok = True


class Twice(enum.Enum):
    ONE = 1
    TWO = 2


REFUSED: list[tuple[Any, str]] = [
    (sa.PickleType, "unpickling executes code"),
    (sa.PickleType(impl=sa.LargeBinary), "JSON"),
    (OverPickle, "unpickling executes code"),
    (sa.ARRAY(sa.PickleType()), "unpickling executes code"),
    (sa.ARRAY(OverPickle()), "unpickling executes code"),
    (Uncached, "cache_ok"),
    (sa.ARRAY(Uncached()), "cache_ok"),
    (sa.ARRAY(OverArray()), "dimensions"),
    (OwnBinding, "process_bind_param"),
    (OwnExpression, "bind_expression"),
    (Encrypted(sa.String(), owner="id"), "not supported"),
    (sa.ARRAY(Encrypted(sa.String())), "not supported"),
    (Money, "TypeDecorator over"),
    (sa.types.NullType, "not supported"),
    (mysql.SET("a", "b"), "not supported"),
    (mysql.YEAR, "not supported"),
    (postgresql.HSTORE, "not supported"),
    (postgresql.INET, "not supported"),
    (postgresql.INT4RANGE, "not supported"),
    (postgresql.TSVECTOR, "not supported"),
    (sa.ARRAY(postgresql.INET()), "not supported"),
    (sa.Enum(Twice, values_callable=lambda members: ["same" for _ in members]), "different text"),
    (sa.Enum(Twice, values_callable=lambda members: [member.name.encode() for member in members]), "different text"),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_inner_types_that_cannot_be_safe_are_refused_where_they_are_declared(number: int) -> None:
    inner, words = REFUSED[number]
    with pytest.raises(ConfigurationError, match=words):
        Encrypted(inner, owner="clinic_id")


ACCEPTED: list[TypeEngine[Any]] = [
    sa.CHAR(3), sa.NVARCHAR(3), sa.UnicodeText(), mysql.LONGTEXT(), postgresql.CITEXT(), sa.BINARY(3),
    sa.VARBINARY(3), mysql.LONGBLOB(),
    postgresql.BYTEA(), mysql.TINYINT(), sa.REAL(), mysql.DOUBLE(), postgresql.DOUBLE_PRECISION(), sa.DECIMAL(),
    mysql.TIME(fsp=6),
    mysql.DATETIME(fsp=6), postgresql.TIMESTAMP(timezone=True), sqlite.JSON(),
    postgresql.INTERVAL(), postgresql.UUID(),
    postgresql.ENUM("a", name="a"), mysql.ENUM("a"), postgresql.JSON(), mysql.JSON(),
    postgresql.ARRAY(sa.Enum(Twice)), OverArray(),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(ACCEPTED)))
def test_the_databases_own_names_of_these_types_are_accepted(number: int) -> None:
    type_ = Encrypted(ACCEPTED[number], owner="clinic_id")
    assert type_.inner is ACCEPTED[number]
