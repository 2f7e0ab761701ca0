# SPDX-License-Identifier: Apache-2.0
"""Owners of every kind: the same text on every database, whatever type the application puts over the column."""

from __future__ import annotations

import enum
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Enum,
    ForeignKey,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    TypeDecorator,
    Unicode,
    Uuid,
    create_engine,
    insert,
    select,
    text,
    update,
)  # fmt: skip
from sqlalchemy.dialects import mysql
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from sa_asherah import Asherah, Encrypted, OwnerChangedError, OwnerRequiredError, WrongPartitionError, partition_scope
from sa_asherah.kms.static import StaticKMS
from sa_asherah.orm.owner import canonical, canonical_text, owner_kind, owner_text


class Colour(enum.Enum):
    RED = "r"
    BLUE = 2


class Sized(str, enum.Enum):  # noqa: UP042 # as applications wrote it before StrEnum
    SMALL = "s"
    LARGE = "l"


class Lower(TypeDecorator[str]):
    """Stores something else than the program sets."""

    impl = String(40)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:  # noqa: ARG002
        return value if value is None else value.lower()


class Slug:
    """A value of the program's own."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Slug) and other.name.lower() == self.name.lower()

    def __hash__(self) -> int:
        return 1


class SlugType(TypeDecorator[Slug]):
    impl = Lower
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:  # noqa: ARG002
        return None if value is None else f"slug-{value.name}"

    def process_result_value(self, value: Any, dialect: Any) -> Any:  # noqa: ARG002
        return None if value is None else Slug(value.removeprefix("slug-"))


class Padded(TypeDecorator[int]):
    impl = Integer
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:  # noqa: ARG002
        return None if value is None else int(value) + 1000

    def process_result_value(self, value: Any, dialect: Any) -> Any:  # noqa: ARG002
        return None if value is None else str(value - 1000)


class AnyUuid(TypeDecorator[uuid.UUID]):
    impl = Uuid
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        given = uuid.UUID(str(value))
        return given if dialect.name == "postgresql" else uuid.UUID(given.hex)


class ByValue(TypeDecorator[str]):
    impl = Enum(Colour)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:  # noqa: ARG002
        return None if value is None else Colour(value)


UUID = uuid.UUID("0000000a-0000-4000-8000-00000000000b")
OWNERS: Final[dict[str, tuple[Any, list[Any]]]] = {
    "integer": (Integer(), [0, 7, -7, 2**31 - 1, -(2**31)]),
    "big": (BigInteger(), [7, 2**63 - 1, -(2**63)]),
    "small": (SmallInteger(), [7, -(2**15)]),
    "big_variant": (BigInteger().with_variant(Integer(), "sqlite"), [7, 2**31 - 1]),
    "unsigned": (Integer().with_variant(mysql.INTEGER(unsigned=True), "mysql", "mariadb"), [2**31 - 1]),
    "string": (
        String(40),
        ["a", "A", "007", "0" * 31 + "a", " a ", "a ", "Grüße 中 \U0001f600", "a_b{}%'\"\\", str(UUID)],
    ),
    "text": (Text(), ["a", "x" * 200]),
    "unicode": (Unicode(40), ["ä"]),
    "collated": (String(40, collation=None), ["Bob", "bob"]),
    "uuid": (Uuid(), [UUID, uuid.UUID(int=0)]),
    "uuid_char": (Uuid(native_uuid=False), [UUID]),
    "uuid_text": (Uuid(as_uuid=False), [str(UUID), UUID.hex]),
    "enum": (Enum(Colour, name="colours"), [Colour.RED, Colour.BLUE]),
    "enum_by_name": (Enum(Colour, name="colours"), ["RED"]),
    "enum_varchar": (Enum(Colour, native_enum=False), [Colour.RED]),
    "enum_of_text": (Enum(Sized, name="sizes"), [Sized.SMALL, Sized.LARGE]),
    "enum_of_words": (Enum("up", "down", name="ways"), ["up", "down"]),
    "lower": (Lower(), ["Bob", "bob"]),
    "slug": (SlugType(), [Slug("Bob"), Slug("ANN")]),
    "padded": (Padded(), ["7", 8]),
    "any_uuid": (AnyUuid(), [str(UUID), UUID]),
    "by_value": (ByValue(), ["r", 2]),
}
"""Types of owner columns and owners to set."""

metadata = MetaData()
TABLES: Final = {
    name: Table(
        f"owned_by_{name}",
        metadata,
        Column("id", Integer, primary_key=True, autoincrement=False),
        Column("owner", type_),
        Column("secret", Encrypted(String(), owner="owner", partition=name + "-{}")),
        mysql_charset="utf8mb4",
        mysql_collate="utf8mb4_bin",
    )
    for name, (type_, _) in OWNERS.items()
}


@contextmanager
def attached(url: str, kms: StaticKMS) -> Generator[Engine]:
    """Give an engine of a process that just started; all tables exist."""
    engine = create_engine(url)
    asherah = Asherah("records", "clinic", kms)
    asherah.attach(engine)
    try:
        with engine.begin() as connection:
            metadata.create_all(connection)
            asherah.create_metastore(connection)
        yield engine
    finally:
        asherah.close()
        engine.dispose()


def write(connection: Connection) -> None:
    """Write a row for each owner, by one statement and by several."""
    for name, (_, owners) in OWNERS.items():
        rows: list[dict[str, Any]] = [
            {"id": n, "owner": owner, "secret": f"canary {n}"} for n, owner in enumerate(owners)
        ]
        connection.execute(insert(TABLES[name]), rows)
        connection.execute(insert(TABLES[name]).values([row | {"id": row["id"] + 100} for row in rows]))


def read(connection: Connection, values: str = "canary") -> None:
    for name, (_, owners) in OWNERS.items():
        found = connection.execute(select(TABLES[name].c.secret).order_by(TABLES[name].c.id)).scalars().all()
        assert found == [f"{values} {n}" for n in range(len(owners))] * 2, name


def test_every_owner_reads_what_it_wrote_and_updates_it(database_url: str, static_kms: StaticKMS) -> None:
    with attached(database_url, static_kms) as engine, engine.begin() as connection:
        write(connection)
    with attached(database_url, static_kms) as engine, engine.begin() as connection:
        read(connection)
        for name, (_, owners) in OWNERS.items():
            table = TABLES[name]
            for key in range(len(owners)):
                for number in (key, key + 100):
                    connection.execute(update(table).where(table.c.id == number).values(secret=f"new {key}"))
    with attached(database_url, static_kms) as engine, engine.begin() as connection:
        read(connection, "new")


@pytest.mark.parametrize("other", ["postgresql_url", "mariadb_url"])
def test_rows_copied_to_another_database_open_there(
    sqlite_url: str, other: str, static_kms: StaticKMS, request: pytest.FixtureRequest
) -> None:
    there: str = request.getfixturevalue(other)
    for source, target in ((sqlite_url, there), (there, f"{sqlite_url}.back")):
        with attached(source, static_kms) as first, attached(target, static_kms) as second:
            with first.begin() as connection:
                if source == sqlite_url:
                    write(connection)
            copy(first, second)
        with attached(target, static_kms) as engine, engine.begin() as connection:
            read(connection)


def copy(source: Engine, target: Engine) -> None:
    """Copy cells and keys as they are, owners as the types say, as a migration between databases does."""
    raw = MetaData()
    keys = Table("encryption_key", raw, Column("id", Text), Column("created", Text), Column("key_record", Text))
    with source.connect() as reading, target.begin() as writing:
        for name, table in TABLES.items():
            rows = [tuple(row) for row in reading.execute(select(table.c.id, table.c.owner))]
            cells = dict(map(tuple, reading.execute(text(f"SELECT id, secret FROM {table.name}"))))  # noqa: S608
            for number, owner in rows:
                writing.execute(insert(table).values(id=number, owner=owner))
                move = text(f"UPDATE {table.name} SET secret = :cell WHERE id = :id")  # noqa: S608
                writing.execute(move, {"cell": bytes(cells[number]), "id": number})
            assert name
        created = "to_char(created AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS')"
        shown = created if source.dialect.name == "postgresql" else "CAST(created AS CHAR)"
        zone = " +00" if target.dialect.name == "postgresql" else ""
        json = "CAST(:record AS JSONB)" if target.dialect.name == "postgresql" else ":record"
        time = "CAST(:created AS TIMESTAMPTZ)" if target.dialect.name == "postgresql" else ":created"
        record = "CAST(key_record AS CHAR)" if source.dialect.name == "mariadb" else "CAST(key_record AS TEXT)"
        for row in reading.execute(text(f"SELECT id, {shown}, {record} FROM {keys.name}")):  # noqa: S608
            statement = text(f"INSERT INTO {keys.name} (id, created, key_record) VALUES (:id, {time}, {json})")  # noqa: S608
            writing.execute(statement, {"id": row[0], "created": f"{row[1]}{zone}", "record": row[2]})


KINDS: Final[dict[str, tuple[Any, Any]]] = {
    "int": (BigInteger(), st.integers(-(2**63), 2**63 - 1)),
    "str": (Text(), st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)),
    "uuid": (Uuid(), st.uuids(version=4)),
    "enum": (Enum(Colour), st.sampled_from(Colour)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_text_of_a_value_is_the_text_that_sql_renders(database_url: str, kind: str) -> None:
    type_, values = KINDS[kind]
    engine = create_engine(database_url)
    table = Table("t", MetaData(), Column("owner", type_), mysql_charset="utf8mb4", mysql_collate="utf8mb4_bin")
    cast = "CAST(CONVERT(owner USING utf8mb4) AS CHAR)" if "maria" in database_url else "CAST(owner AS TEXT)"
    with engine.begin() as connection:
        table.create(connection)

        @given(st.lists(values, min_size=1, max_size=8))
        @settings(max_examples=10)
        def check(owners: list[Any]) -> None:
            connection.execute(table.delete())
            for owner in owners:
                connection.execute(insert(table).values(owner=owner))
            found = [canonical_text(kind, row) for row in connection.execute(text(f"SELECT {cast} FROM t")).scalars()]  # type: ignore[arg-type] # noqa: S608
            assert sorted(found) == sorted(
                owner_text(table.c.owner, owner_kind(table.c.owner), each) for each in owners
            )

        check()
    engine.dispose()


class Moody(TypeDecorator[str]):
    """Gives each database a text of its own."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return f"{dialect.name}-{value}"


class Counting(TypeDecorator[str]):
    """Never says the same again."""

    impl = String
    cache_ok = True
    count = 0

    def process_bind_param(self, value: Any, dialect: Any) -> Any:  # noqa: ARG002
        type(self).count += 1
        return f"{value}-{self.count}"


class Nothing(TypeDecorator[str]):
    impl = String
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:  # noqa: ARG002
        return None if value == "nobody" else value


@pytest.mark.parametrize(
    ("type_", "owner", "advice"),
    [
        (Moody(), "a", "let it give the same value"),
        (Counting(), "a", "let it give the same value"),
        (Nothing(), "nobody", "set the owner column"),
        (Lower(), None, "set the owner column"),
        (String(3), "long", "make the column longer"),
        (String(3).with_variant(Text(), "postgresql"), "long", "make the column longer"),
        (String(9), "", "must have an owner"),
        (String(9), "a\0", "plain text"),
        (String(9), "\ud800", "plain text"),
        (String(9), 7, "set a value of that kind"),
        (String(9), Sized.SMALL, "set a value of that kind"),
        (Integer(), "7", "set a value of that kind"),
        (Integer(), True, "set a value of that kind"),
        (Integer(), 7.0, "set a value of that kind"),
        (Uuid(), 7, "set a value of that kind"),
        (Uuid(), "{" + str(UUID) + "}", "correct the owner"),
        (Uuid(as_uuid=False), str(UUID).upper(), "lower case"),
        (Enum(Colour), "red", "set one of its members"),
        (Enum(Colour), Sized.SMALL, "set one of its members"),
        (Enum("up", "down"), "Up", "set one of its members"),
        (ByValue(), None, "set the owner column"),
    ],
    ids=range(21),
)
def test_an_owner_that_would_be_stored_as_another_is_refused_with_advice(type_: Any, owner: Any, advice: str) -> None:
    column = Table("t", MetaData(), Column("owner", type_)).c.owner
    with pytest.raises(OwnerRequiredError, match=advice):
        owner_text(column, owner_kind(column), owner)


def test_a_decorated_owner_is_what_the_database_stores() -> None:
    expected = {"lower": "bob", "slug": "slug-bob", "padded": "1007", "any_uuid": str(UUID), "by_value": "RED"}
    for name, wanted in expected.items():
        column = TABLES[name].c.owner
        assert owner_text(column, owner_kind(column), OWNERS[name][1][0]) == wanted


def test_owners_that_a_program_calls_equal_stay_apart(sqlite_url: str, static_kms: StaticKMS) -> None:
    class Loose(str):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            return isinstance(other, str) and other.lower() == self.lower()

        def __hash__(self) -> int:
            return hash(self.lower())

    table = TABLES["string"]
    with attached(sqlite_url, static_kms) as engine, engine.begin() as connection:
        rows = [{"id": n, "owner": Loose(name), "secret": f"canary {n}"} for n, name in enumerate(("Bob", "bob"))]
        connection.execute(insert(table), rows)
    with attached(sqlite_url, static_kms) as engine, engine.begin() as connection:
        assert connection.execute(select(table.c.secret).order_by(table.c.id)).scalars().all() == [
            "canary 0",
            "canary 1",
        ]


class Levels(DeclarativeBase):
    pass


class Organisation(Levels):
    __tablename__ = "organisations"

    id: Mapped[str] = mapped_column(String(9), primary_key=True)


class Project(Levels):
    __tablename__ = "projects"

    id: Mapped[int] = mapped_column(primary_key=True)
    organisation_id: Mapped[str] = mapped_column(ForeignKey("organisations.id"))
    organisation: Mapped[Organisation] = relationship()
    plan: Mapped[str | None] = mapped_column(Encrypted(String(), owner="organisation_id", partition="org-{}"))


class Task(Levels):
    """Two levels: a column of the project's and one of the organisation's, both known from relationships."""

    __tablename__ = "tasks"

    id: Mapped[int] = mapped_column(primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id"))
    organisation_id: Mapped[str] = mapped_column(ForeignKey("organisations.id"))
    project: Mapped[Project] = relationship()
    organisation: Mapped[Organisation] = relationship()
    words: Mapped[str | None] = mapped_column(Encrypted(String(), owner="project_id", partition="project-{}"))
    price: Mapped[str | None] = mapped_column(Encrypted(String(), owner="organisation_id", partition="org-{}"))


def test_levels_of_owners_come_from_relationships_and_stay_within_a_scope(
    database_url: str, static_kms: StaticKMS
) -> None:
    with attached(database_url, static_kms) as engine:
        Levels.metadata.create_all(engine)
        with Session(engine) as session:
            organisation = Organisation(id="acme")
            project = Project(id=7, organisation=organisation, plan="canary plan")
            session.add(Task(id=1, project=project, organisation=organisation, words="canary w", price="canary p"))
            with pytest.raises(WrongPartitionError), partition_scope("org-acme"):
                session.flush()
            session.rollback()
            project.organisation = organisation
            session.add(Task(id=1, project=project, organisation=organisation, words="canary w", price="canary p"))
            with partition_scope("org-acme", "project-7"):
                session.commit()
        with Session(engine) as session, partition_scope("org-acme"):
            assert session.execute(select(Task.price, Project.plan).join(Task.project)).all() == [
                ("canary p", "canary plan")
            ]
            with pytest.raises(WrongPartitionError):
                session.scalars(select(Task.words)).all()
        with Session(engine) as session:
            task = session.get_one(Task, 1)
            task.project = Project(id=8, organisation=Organisation(id="other"))
            session.commit()
            assert (task.words, task.price, task.project_id) == ("canary w", "canary p", 8)


def test_errors_about_owners_say_what_to_do(sqlite_url: str, static_kms: StaticKMS) -> None:
    table = TABLES["integer"]
    rows = [{"id": n, "owner": n, "secret": "canary"} for n in (1, 2)]
    within = select(table.c.secret).subquery()
    forms: list[tuple[Any, type[Exception], str]] = [
        (insert(table).values(id=9, secret="canary"), OwnerRequiredError, "must be set in the INSERT"),
        (insert(table).values(id=9, owner=None, secret="canary"), OwnerRequiredError, "set the owner column"),
        (insert(table).values(id=9, owner="9", secret="canary"), OwnerRequiredError, "set a value of that kind"),
        (update(table).values(secret="canary"), OwnerRequiredError, "name one in the WHERE, or assign to"),
        (update(table).values(owner=3), OwnerChangedError, "write all of them in the same UPDATE, or"),
        (select(within.c.secret), OwnerRequiredError, "select the owner column beside it"),
        (
            insert(table).from_select(["id", "owner", "secret"], select(table.c.id + 9, table.c.id, table.c.secret)),
            OwnerChangedError,
            "select the same encrypted column and its own owner column",
        ),
    ]
    with attached(sqlite_url, static_kms) as engine:
        with engine.begin() as connection:
            connection.execute(insert(table), rows)
        for statement, error, advice in forms:
            with engine.begin() as connection, pytest.raises(error, match=advice) as caught:
                connection.execute(statement).all()
            assert "canary" not in str(caught.value)


def test_canonical_text_is_stable() -> None:
    assert canonical("enum", Colour.RED) == canonical_text("enum", "RED") == "RED"
    for text_ in ("", "07", "+7", "7.0", " 7", "\uff17"):
        with pytest.raises(OwnerRequiredError):
            canonical_text("int", text_)
