# SPDX-License-Identifier: Apache-2.0
"""Declarations that cannot work are refused when mappers are configured, and for Core tables at the first statement."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

import pytest
from sqlalchemy import (
    ARRAY,
    CHAR,
    CheckConstraint,
    Column,
    Computed,
    Enum,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    Numeric,
    Sequence,
    String,
    Table,
    TypeDecorator,
    UniqueConstraint,
    Uuid,
    func,
    insert,
    or_,
    select,
    text,
    update,
)  # fmt: skip
from sqlalchemy import (
    case as sql_case,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import column_property, foreign, registry, relationship, remote

from sa_asherah import ConfigurationError, Encrypted
from tests.matrix.registration import CASES, Case, case
from tests.orm.app import App

ADVICE: Final = re.compile(
    r"\b(use|give|put|map|remove|must be|declare|set|order by|sort|compute|join)\b", re.IGNORECASE
)


class Declaration(Case):
    """A case that needs no database, let alone six."""

    def drivers(self) -> list[str]:
        return ["pysqlite"]


def declaration(row: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Register a function that declares what the row says."""

    def register(declare: Callable[[], None]) -> Callable[[], None]:
        name = f"writing_declarations.{declare.__name__}"
        CASES.append(Declaration(row, name, lambda _: declare(), frozenset()))
        return declare

    return register


class Declarations:
    """Tables and classes that nobody else knows."""

    def __init__(self) -> None:
        self.registry = registry()
        self.tables: dict[str, Table] = {}
        self.classes: list[type[Any]] = []  # a registry alone does not keep them

    def table(self, name: str, *parts: Any) -> Table:
        """Declare a table with a key."""
        keys = [Column("id", Integer, primary_key=True)]
        found = self.tables[name] = Table(name, self.registry.metadata, *keys, *parts)
        return found

    def map(self, name: str, *parts: Any, **options: Callable[[Table], Any]) -> type[Any]:
        """Declare a class and its table; options of the mapper are made of the table."""
        class_ = type(name.title(), (), {})
        table = self.table(name, *parts)
        self.classes.append(class_)
        self.registry.map_imperatively(class_, table, **{key: make(table) for key, make in options.items()})
        return class_


Declare = Callable[[Declarations], Any]


def refused(*declarations: Declare) -> None:
    """Configure each on its own, which must fail and say what to do; raise the last error."""
    error: BaseException | None = None
    for declare in declarations:
        made = Declarations()
        declare(made)
        try:
            with pytest.raises(ConfigurationError) as caught:
                made.registry.configure()
        finally:
            made.registry.dispose()
        error = caught.value
        assert ADVICE.search(str(error)), f"the error does not say what to do: {error}"
    assert error is not None
    raise error


def allowed(*declarations: Declare) -> None:
    """Configure each on its own."""
    for declare in declarations:
        made = Declarations()
        declare(made)
        made.registry.configure()
        made.registry.dispose()


def tenant() -> Column[Any]:
    return Column("tenant", Integer)


def secret(type_: Any = None, **options: Any) -> Column[Any]:
    return Column("secret", type_ or Encrypted(String(), owner="tenant"), **options)


def things(*parts: Any, **options: Callable[[Table], Any]) -> Declare:
    return lambda made: made.map("things", *parts, **options)


def owned_by(*owner: Any) -> Declare:
    """Declare a table whose owner column has these arguments."""
    return things(Column("tenant", *owner), secret())


def with_columns(add: Callable[[Any], Any]) -> Declare:
    """Declare a class and something more, by the columns of its table."""

    def declare(made: Declarations) -> None:
        made.map("things", tenant(), secret())
        add(made.tables["things"].c)

    return declare


@declaration("encrypted column in the primary key")
def primary_key() -> None:
    refused(things(tenant(), secret(primary_key=True)))


@declaration("encrypted column as a foreign key")
def foreign_key() -> None:
    refused(
        lambda made: (
            made.map("others"),
            made.map(
                "things",
                tenant(),
                Column("secret", Encrypted(String(), owner="tenant"), ForeignKey("others.id")),
            ),
        )
    )


@declaration("encrypted column with server_default, Computed or Identity")
def made_by_the_server() -> None:
    type_ = Encrypted(Integer(), owner="tenant")
    refused(
        things(tenant(), secret(server_default="x")),
        things(tenant(), secret(server_onupdate=text("x"))),
        things(tenant(), Column("secret", type_, Computed("1"))),
        things(tenant(), Column("secret", type_, Identity())),
    )


@declaration("encrypted column with a SQL expression or a Sequence as default or onupdate")
def made_by_an_expression() -> None:
    refused(
        things(tenant(), secret(default=func.now())),
        things(tenant(), secret(onupdate=func.now())),
        things(tenant(), Column("secret", Encrypted(Integer(), owner="tenant"), Sequence("numbers"))),
    )


@declaration("encrypted column in an Index")
def index() -> None:
    refused(
        things(tenant(), secret(index=True)),
        things(tenant(), secret(), Index("pair", "tenant", "secret")),
        with_columns(lambda columns: Index("low", func.lower(columns.secret))),
        with_columns(lambda columns: Index("some", columns.id, postgresql_where=func.length(columns.secret) > 1)),
    )


@declaration("encrypted column in a UniqueConstraint")
def unique() -> None:
    refused(
        things(tenant(), secret(unique=True)),
        things(tenant(), secret(), UniqueConstraint("tenant", "secret")),
        things(tenant(), secret(), postgresql.ExcludeConstraint(("secret", "="))),
    )


@declaration("encrypted column in a CheckConstraint")
def check() -> None:
    refused(
        with_columns(
            lambda columns: columns.id.table.append_constraint(CheckConstraint(func.length(columns.secret) > 1))
        )
    )


@declaration("encrypted column in a CheckConstraint or an Index by IS NULL")
def check_null() -> None:
    def declare(columns: Any) -> None:
        columns.id.table.append_constraint(CheckConstraint(or_(columns.secret.is_(None), columns.tenant > 1)))
        Index("some", columns.id, postgresql_where=columns.secret.is_not(None))

    allowed(with_columns(declare))


@declaration("encrypted discriminator")
def discriminator() -> None:
    refused(
        things(tenant(), secret(), polymorphic_on=lambda table: table.c.secret, polymorphic_identity=lambda _: "x"),
        things(
            tenant(),
            secret(),
            polymorphic_on=lambda table: sql_case((func.lower(table.c.secret) == "x", "x"), else_="y"),
            polymorphic_identity=lambda _: "x",
        ),
    )


@declaration("encrypted version_id_col")
def version() -> None:
    column = secret(Encrypted(Integer(), owner="tenant"), nullable=False)
    refused(things(tenant(), column, version_id_col=lambda table: table.c.secret))


def _related(join: Callable[[Table, Table], Any], **options: Any) -> Declare:
    def declare(made: Declarations) -> None:
        other = made.map("others", tenant(), Column("secret", Encrypted(String(), owner="tenant", label="o")))
        made.map(
            "things",
            tenant(),
            secret(),
            properties=lambda table: {
                "others": relationship(
                    other, primaryjoin=join(table, made.tables["others"]), viewonly=True, uselist=True, **options
                )
            },
        )

    return declare


@declaration("encrypted column in the join of a relationship")
def relationship_join() -> None:
    def secondary(made: Declarations) -> None:
        link = made.table("links", tenant(), secret(), Column("thing", ForeignKey("things.id")))
        other = made.map("others", Column("code", String(9)))
        join = link.c.secret == made.tables["others"].c.code
        properties = {"others": relationship(other, secondary=link, secondaryjoin=foreign(join.left) == join.right)}
        made.map("things", properties=lambda _: properties)

    refused(
        _related(lambda thing, other: foreign(thing.c.secret) == remote(other.c.secret)),
        _related(lambda thing, other: (foreign(thing.c.id) == other.c.id) & (func.lower(other.c.secret) == "x")),
        secondary,
    )


@declaration("relationship ordered by an encrypted column")
def relationship_order() -> None:
    def declare(made: Declarations) -> None:
        other = made.map("others", Column("thing", ForeignKey("things.id")), tenant(), secret())
        order = made.tables["others"].c.secret
        made.map("things", properties=lambda _: {"others": relationship(other, order_by=[order])})

    refused(declare)


@declaration("column_property over a function of an encrypted column")
def computed_property() -> None:
    refused(
        things(tenant(), secret(), properties=lambda table: {"low": column_property(func.lower(table.c.secret))}),
        things(
            tenant(),
            secret(),
            properties=lambda table: {"first": column_property(select(table.c.secret).limit(1).scalar_subquery())},
        ),
    )


class Wrapped(TypeDecorator[str]):
    impl = Encrypted(String(), owner="tenant")
    cache_ok = True


@declaration("Encrypted inside another type, or with variants")
def inside_another_type() -> None:
    type_ = Encrypted(String(), owner="tenant")
    refused(
        things(tenant(), secret(Wrapped())),
        things(tenant(), secret(ARRAY(type_))),
        things(tenant(), secret(String().with_variant(type_, "postgresql"))),
        things(tenant(), secret(type_.with_variant(String(), "sqlite"))),
    )


@declaration("owner= that names no column of the same table")
def missing_owner() -> None:
    def inherited(made: Declarations) -> None:
        parent = made.map("parents", tenant())
        child = type("Child", (parent,), {})
        table = Table(
            "children", made.registry.metadata, Column("id", ForeignKey("parents.id"), primary_key=True), secret()
        )
        made.classes.append(child)
        made.registry.map_imperatively(child, table, inherits=parent)

    refused(things(secret()), inherited)


@declaration("owner column that is itself encrypted")
def encrypted_owner() -> None:
    refused(owned_by(Encrypted(Integer(), label="x")))


@declaration("owner column that the server fills")
def server_made_owner() -> None:
    refused(
        things(Column("tenant", Integer, server_default="1"), secret()),
        things(Column("tenant", Integer, default=func.random()), secret()),
        owned_by(Integer, Computed("id")),
        owned_by(Integer, Identity()),
        owned_by(Integer, Sequence("numbers")),
    )


@declaration("owner column that is not mapped")
def unmapped_owner() -> None:
    refused(things(tenant(), secret(), exclude_properties=lambda _: ["tenant"]))


@declaration("owner column with a foreign key that cascades")
def cascading_owner() -> None:
    def cascading(**action: Any) -> Declare:
        return lambda made: (
            made.map("others"),
            made.map("things", Column("tenant", ForeignKey("others.id", **action)), secret()),
        )

    refused(
        *(cascading(onupdate=action) for action in ("CASCADE", "SET NULL", "SET DEFAULT", "cascade")),
        *(cascading(ondelete=action) for action in ("SET NULL", "SET DEFAULT")),
    )


@declaration("owner column whose foreign key deletes the row")
def deleting_owner() -> None:
    allowed(
        *(
            lambda made, action=action: (
                made.map("others"),
                made.map("things", Column("tenant", ForeignKey("others.id", ondelete=action)), secret()),
            )
            for action in ("CASCADE", "RESTRICT", "NO ACTION")
        )
    )


class Upper(TypeDecorator[str]):
    impl = String
    cache_ok = True

    def bind_expression(self, bindparam: Any) -> Any:
        return func.upper(bindparam)


class Shouting(String):
    def bind_processor(self, dialect: Any) -> Any:  # noqa: ARG002
        return lambda value: None if value is None else value.upper()


class Guid(TypeDecorator[Any]):
    """A UUID, as SQLAlchemy's documentation once recommended."""

    impl = CHAR
    cache_ok = True

    def load_dialect_impl(self, dialect: Any) -> Any:
        return dialect.type_descriptor(postgresql.UUID() if dialect.name == "postgresql" else CHAR(32))


@declaration("owner column of another type than Integer, String, Uuid and Enum, or a TypeDecorator over them")
def owner_types() -> None:
    refused(
        *(owned_by(type_) for type_ in (Numeric(9), CHAR(9), LargeBinary(), postgresql.INET(), Guid(), Shouting())),
        owned_by(Upper()),
        owned_by(Enum("x", "y").with_variant(Integer(), "sqlite")),
        owned_by(String(36).with_variant(Uuid(), "postgresql")),
    )


@declaration("two owner columns that mean different things and share the default partition=")
def meanings() -> None:
    def two(made: Declarations) -> None:
        made.map("tenants")
        made.map("users")
        made.map("things", Column("tenant", ForeignKey("tenants.id")), secret())
        made.map("notes", Column("tenant", ForeignKey("users.id")), secret())

    refused(two, things(tenant(), secret(), Column("user", Integer), Column("more", Encrypted(String(), owner="user"))))


@declaration("two owner columns of different kinds that share any partition=")
def kinds() -> None:
    def two(made: Declarations) -> None:
        for name, type_ in (("things", Integer), ("notes", String(9))):
            made.map(name, Column("tenant", type_), secret(Encrypted(String(), owner="tenant", partition="t-{}")))

    refused(two)


@declaration("two encrypted columns with equal labels")
def labels() -> None:
    type_ = Encrypted(String(), owner="tenant", label="things.secret")
    refused(
        things(tenant(), secret(type_), Column("more", type_)),
        lambda made: (made.map("things", tenant(), secret()), made.map("notes", tenant(), secret(type_))),
    )


@declaration("a table or column name with a dot, without label=")
def dots() -> None:
    refused(
        lambda made: made.map("my.things", tenant(), secret()),
        things(tenant(), Column("a.b", Encrypted(String(), owner="tenant"))),
    )


@declaration("bind_row= that is no key, or is numbered by the server")
def row_bound() -> None:
    def bound(name: str) -> Declare:
        return things(tenant(), secret(Encrypted(String(), owner="tenant", bind_row=name)))

    refused(bound("id"), bound("tenant"), bound("nothing"))


@case("any of these on a Table that no class maps")
def core_table(app: App) -> None:
    values = {"id": 1, "tenant": 1, "secret": "canary"}
    for parts in (
        [tenant(), secret(index=True)],
        [Column("tenant", Numeric(9)), secret()],
        [tenant(), secret(Wrapped())],
        [Column("tenant", Integer, server_default="1"), secret()],
    ):
        table = Declarations().table("things", *parts)
        for statement in (select(table.c.id), select(table), insert(table).values(values), update(table).values(id=2)):
            with pytest.raises(ConfigurationError):
                app.execute(statement)
    app.execute(select(Declarations().table("things", secret())))
