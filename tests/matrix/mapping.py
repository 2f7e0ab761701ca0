# SPDX-License-Identifier: Apache-2.0
"""Every way to map a table: rows of two owners are written, read, changed and moved."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

from sqlalchemy import Column, ForeignKey, Integer, MetaData, String, Table, insert, select, text, update
from sqlalchemy.ext.automap import automap_base
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    column_property,
    composite,
    declarative_base,
    declared_attr,
    mapped_column,
    registry,
)

from sa_asherah import Encrypted
from sa_asherah.errors import DecryptionError
from tests.matrix.places import other_schema
from tests.matrix.registration import assert_nothing_readable, assert_refuses_moved, case
from tests.orm.app import App

SSN = Encrypted(String(), owner="clinic_id")
"""One instance of the type, which many columns share."""


def round_trip(app: App, metadata: MetaData, make: Callable[[int, str], Any], secret: Any) -> None:
    """Write, read and change rows of clinic 1 and clinic 2 through a mapping; then move their cells.

    Args:
        app: The application.
        metadata: The mapping's tables.
        make: Makes an instance of an owner with a value.
        secret: The encrypted attribute.
    """
    entity = secret.class_
    metadata.create_all(app.engine)
    try:
        app.add(make(1, "canary 1"), make(2, "canary 2"))
        with app.session() as session:
            found = session.scalars(select(entity)).all()
            (one,) = (each for each in found if getattr(each, secret.key) == "canary 1")
            setattr(one, secret.key, "canary new")
            session.commit()

        def read(_: App) -> None:
            with app.session() as session:
                found = session.scalars(select(entity)).all()
                assert {getattr(each, secret.key) for each in found} == {"canary new", "canary 2"}
                assert set(session.scalars(select(secret))) == {"canary new", "canary 2"}

        app.cold()
        read(app)
        assert_nothing_readable(app, metadata)
        assert_refuses_moved(app, metadata.sorted_tables, read)
    finally:
        metadata.drop_all(app.engine)


class Declarative(DeclarativeBase):
    pass


class Plain(Declarative):
    __tablename__ = "plain"

    id: Mapped[int] = mapped_column(primary_key=True)
    clinic_id: Mapped[int]
    ssn: Mapped[str] = mapped_column(Encrypted(String(), owner="clinic_id"))


@case("declarative, Mapped and mapped_column")
def declarative(app: App) -> None:
    round_trip(app, Declarative.metadata, lambda owner, ssn: Plain(clinic_id=owner, ssn=ssn), Plain.ssn)


Older: Any = declarative_base()


class WithColumns(Older):  # type: ignore[misc]
    __tablename__ = "with_columns"

    id = Column(Integer, primary_key=True)
    clinic_id = Column(Integer, nullable=False)
    ssn: Any = Column(SSN)


@case("declarative, Column, as before SQLAlchemy 2.0")
def declarative_with_columns(app: App) -> None:
    round_trip(app, Older.metadata, lambda owner, ssn: WithColumns(clinic_id=owner, ssn=ssn), WithColumns.ssn)


class Dataclasses(MappedAsDataclass, DeclarativeBase):
    pass


class Member(Dataclasses):
    __tablename__ = "members"

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    clinic_id: Mapped[int]
    ssn: Mapped[str | None] = mapped_column(SSN, default=None, repr=False)


decorated = registry()


@decorated.mapped_as_dataclass
class Guest:
    __tablename__ = "guests"

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    clinic_id: Mapped[int]
    ssn: Mapped[str] = mapped_column(SSN, repr=False)


@case("MappedAsDataclass, registry.mapped_as_dataclass")
def decorated_as_dataclass(app: App) -> None:
    guest: Any = Guest  # type checkers do not know the constructor
    round_trip(app, decorated.metadata, guest, guest.ssn)


@case("MappedAsDataclass, registry.mapped_as_dataclass")
def mapped_as_dataclass(app: App) -> None:
    round_trip(app, Dataclasses.metadata, Member, Member.ssn)
    assert "canary" not in repr(Member(1, "canary")), "repr=False leaves the value out"


imperatively = registry()


@dataclass
class Visitor:
    clinic_id: int
    ssn: str
    id: int | None = field(default=None)


imperatively.map_imperatively(
    Visitor,
    Table(
        "visitors",
        imperatively.metadata,
        Column("id", Integer, primary_key=True),
        Column("clinic_id", Integer, nullable=False),
        Column("ssn", SSN),
    ),
)


@case("imperative, of a dataclass too")
def imperative(app: App) -> None:
    mapped: Any = Visitor
    round_trip(app, imperatively.metadata, mapped, mapped.ssn)


@case("Table only")
def table_only(app: App) -> None:
    metadata = MetaData()
    secrets = Table(
        "secrets",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("clinic_id", Integer),
        Column("ssn", SSN, key="number"),
    )
    metadata.create_all(app.engine)
    try:
        app.execute(insert(secrets), [{"id": n, "clinic_id": n, "number": f"canary {n}"} for n in (1, 2)])
        app.execute(update(secrets).where(secrets.c.id == 1).values(number="canary new"))

        def read(_: App) -> None:
            with app.engine.connect() as connection:
                rows = connection.execute(select(secrets).order_by(secrets.c.id)).all()
                assert [row.number for row in rows] == ["canary new", "canary 2"]

        app.cold()
        read(app)
        assert_refuses_moved(app, metadata.sorted_tables, read)
    finally:
        metadata.drop_all(app.engine)


@case("reflected, the encrypted columns overridden")
def reflected(app: App) -> None:
    Declarative.metadata.create_all(app.engine)
    metadata = MetaData()
    with app.engine.connect() as connection:
        table = Table("plain", metadata, Column("ssn", SSN), autoload_with=connection)
    mapper = registry(metadata=metadata)

    class Reflected:
        clinic_id: int
        ssn: Any

        def __init__(self, clinic_id: int, ssn: str) -> None:
            self.clinic_id, self.ssn = clinic_id, ssn

    mapper.map_imperatively(Reflected, table)
    round_trip(app, metadata, Reflected, Reflected.ssn)
    mapper.dispose()


@case("automap_base, the encrypted columns declared")
def automapped(app: App) -> None:
    Declarative.metadata.create_all(app.engine)
    metadata = MetaData()
    base: Any = automap_base(metadata=metadata)
    auto: Any = type("AutoPlain", (base,), {"__tablename__": "plain", "ssn": Column(SSN)})
    with app.engine.connect() as connection:
        base.prepare(autoload_with=connection, reflection_options={"only": ["plain"]})
    round_trip(app, metadata, lambda owner, ssn: auto(clinic_id=owner, ssn=ssn), auto.ssn)
    base.registry.dispose()


@case("reflected without an override")
def reflected_as_it_is(app: App) -> None:
    Declarative.metadata.create_all(app.engine)
    try:
        app.add(Plain(clinic_id=1, ssn="canary 1"))
        with app.engine.connect() as connection:
            table = Table("plain", MetaData(), autoload_with=connection)
            assert b"canary" not in bytes(connection.execute(select(table.c.ssn)).scalar_one())
    finally:
        Declarative.metadata.drop_all(app.engine)


class Renaming(DeclarativeBase):
    pass


class Renamed(Renaming):
    """Attribute, `Column.key` and name are three things."""

    __tablename__ = "renamed"

    number: Mapped[int] = mapped_column("id", Integer(), key="k_id", primary_key=True)
    place: Mapped[int] = mapped_column("clinic", Integer(), key="k_clinic")
    secret: Mapped[str] = mapped_column("ssn_text", Encrypted(String(), owner="k_clinic"), key="k_ssn")


@case("attribute, Column.key and name differ")
def renamed(app: App) -> None:
    round_trip(app, Renaming.metadata, lambda owner, ssn: Renamed(place=owner, secret=ssn), Renamed.secret)


class Quoting(DeclarativeBase):
    pass


class Quoted(Quoting):
    __tablename__ = "Order by 'x'"

    id: Mapped[int] = mapped_column("Select", primary_key=True)
    owner: Mapped[int] = mapped_column("Group of €", Integer(), key="group")
    secret: Mapped[str] = mapped_column('From "here" %', Encrypted(String(), owner="group"))


@case("quoted names: reserved words, spaces, capitals, quotes")
def quoted(app: App) -> None:
    round_trip(app, Quoting.metadata, lambda owner, ssn: Quoted(owner=owner, secret=ssn), Quoted.secret)


@case("schema-qualified names")
def schema_qualified(app: App) -> None:
    with other_schema(app) as schema:

        class Base(DeclarativeBase):
            metadata = MetaData(schema=schema)

        class Elsewhere(Base):
            __tablename__ = "plain"

            id: Mapped[int] = mapped_column(primary_key=True)
            clinic_id: Mapped[int]
            ssn: Mapped[str] = mapped_column(SSN)

        round_trip(app, Base.metadata, lambda owner, ssn: Elsewhere(clinic_id=owner, ssn=ssn), Elsewhere.ssn)
        Base.registry.dispose()


ClinicKey = Annotated[int, "owner"]
Secret = Annotated[str, "secret"]
SSNText = Annotated[str, mapped_column(Encrypted(String(), owner="clinic_id"))]


class Annotations(DeclarativeBase):
    type_annotation_map = {Secret: Encrypted(String(), owner="clinic_id"), ClinicKey: Integer()}  # noqa: RUF012 # SQLAlchemy's way


class Annotated1(Annotations):
    __tablename__ = "annotated"

    id: Mapped[int] = mapped_column(primary_key=True)
    clinic_id: Mapped[ClinicKey]
    ssn: Mapped[Secret]
    notes: Mapped[SSNText | None]
    other: Mapped[SSNText | None]


@case("type_annotation_map, Annotated")
def annotated(app: App) -> None:
    make: Callable[[int, str], Any] = lambda owner, ssn: Annotated1(clinic_id=owner, ssn=ssn, notes="canary note")  # noqa: E731
    round_trip(app, Annotations.metadata, make, Annotated1.ssn)
    round_trip(app, Annotations.metadata, lambda owner, ssn: Annotated1(clinic_id=owner, ssn="canary", notes=ssn),
               Annotated1.notes)  # fmt: skip


class Mixing(DeclarativeBase):
    pass


class Owned:
    clinic_id: Mapped[int]


class HasSSN(Owned):
    ssn: Mapped[str] = mapped_column(Encrypted(String(), owner="clinic_id", partition="mixed-{}"))


class HasNotes:
    @declared_attr
    def notes(cls) -> Mapped[str | None]:  # noqa: N805 # SQLAlchemy's way
        return mapped_column(Encrypted(String(), owner="clinic_id", partition="mixed-{}"))

    @declared_attr.directive
    def __tablename__(cls) -> str:  # noqa: N805 # the same
        return re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()  # type: ignore[attr-defined]


class FirstMixed(HasSSN, HasNotes, Mixing):
    id: Mapped[int] = mapped_column(primary_key=True)


class SecondMixed(HasSSN, HasNotes, Mixing):
    id: Mapped[int] = mapped_column(primary_key=True)


@case("mixins, abstract bases, declared_attr")
def mixins(app: App) -> None:
    round_trip(app, Mixing.metadata, lambda owner, ssn: FirstMixed(clinic_id=owner, ssn=ssn), FirstMixed.ssn)
    round_trip(app, Mixing.metadata, lambda owner, ssn: SecondMixed(clinic_id=owner, ssn="x", notes=ssn),
               SecondMixed.notes)  # fmt: skip
    Mixing.metadata.create_all(app.engine)
    try:
        app.add(FirstMixed(id=1, clinic_id=1, ssn="canary"), SecondMixed(id=1, clinic_id=1, ssn="other canary"))
        with app.engine.begin() as connection:
            connection.execute(text("UPDATE first_mixed SET ssn = (SELECT ssn FROM second_mixed)"))
        with app.session() as session:
            try:
                session.scalars(select(FirstMixed.ssn)).all()
            except DecryptionError:
                return
            raise AssertionError("a mixin's column has a label of its own in each table")
    finally:
        Mixing.metadata.drop_all(app.engine)


class Composing(DeclarativeBase):
    pass


@dataclass(frozen=True)
class Name:
    first: str
    last: str


class Composed(Composing):
    __tablename__ = "composed"

    id: Mapped[int] = mapped_column(primary_key=True)
    clinic_id: Mapped[int]
    first: Mapped[str] = mapped_column(SSN)
    last: Mapped[str] = mapped_column(SSN)
    name: Mapped[Name] = composite("first", "last")


@case("composite()")
def composites(app: App) -> None:
    round_trip(app, Composing.metadata, lambda owner, ssn: Composed(clinic_id=owner, name=Name(ssn, "canary")),
               Composed.first)  # fmt: skip
    Composing.metadata.create_all(app.engine)
    try:
        app.add(Composed(clinic_id=1, name=Name("canary a", "canary b")))
        with app.session() as session:
            composed = session.scalars(select(Composed)).one()
            assert composed.name == Name("canary a", "canary b")
            composed.name = Name("canary c", "canary b")
            session.commit()
        assert app.rows(select(Composed.name)) == [(Name("canary c", "canary b"),)]
        assert_nothing_readable(app, Composing.metadata)
    finally:
        Composing.metadata.drop_all(app.engine)


class Model:
    """What Flask-SQLAlchemy's `Model` does: a table name made of the class's, and reading in the class."""

    @declared_attr.directive
    def __tablename__(cls) -> str:  # noqa: N805 # SQLAlchemy's way
        name: str = cls.__name__  # type: ignore[attr-defined]
        return name.lower()


FlaskLike: Any = declarative_base(cls=Model, metadata=MetaData())


class Customer(FlaskLike):  # type: ignore[misc]
    id = Column(Integer, primary_key=True)
    clinic_id = Column(Integer, nullable=False)
    ssn: Any = Column(SSN)


@case("declarative_base(cls=Model), as in Flask-SQLAlchemy")
def base_with_a_class(app: App) -> None:
    round_trip(app, FlaskLike.metadata, lambda owner, ssn: Customer(clinic_id=owner, ssn=ssn), Customer.ssn)


@case("another Table or a view of the same rows")
def views(app: App) -> None:
    metadata = MetaData()
    seen = Table(
        "seen",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("clinic_id", Integer),
        Column("number", Encrypted(String(), owner="clinic_id", label="plain.ssn")),
    )
    Declarative.metadata.create_all(app.engine)
    try:
        with app.engine.begin() as connection:
            connection.execute(text("CREATE VIEW seen AS SELECT id, clinic_id, ssn AS number FROM plain"))
        app.add(*(Plain(id=n, clinic_id=n, ssn=f"canary {n}") for n in (1, 2)))

        def read(_: App) -> None:
            found = app.rows(select(seen.c.number).order_by(seen.c.id))
            assert found == [("canary 1",), ("canary 2",)]

        app.cold()
        read(app)
        assert_refuses_moved(app, Declarative.metadata.sorted_tables, read)
    finally:
        with app.engine.begin() as connection:
            connection.execute(text("DROP VIEW seen"))
        Declarative.metadata.drop_all(app.engine)


class Joining(DeclarativeBase):
    pass


class Clinics(Joining):
    __tablename__ = "owners"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    motto: Mapped[str | None] = mapped_column(Encrypted(String(), owner="id"))


class Badges(Joining):
    __tablename__ = "badges"

    id: Mapped[int] = mapped_column(primary_key=True)
    clinic_id: Mapped[int] = mapped_column(ForeignKey("owners.id"))
    ssn: Mapped[str] = mapped_column(SSN)


BADGES, OWNERS = (Joining.metadata.tables[name] for name in ("badges", "owners"))


class Joined(Joining):
    __table__ = BADGES.join(OWNERS)

    id: Mapped[int] = column_property(BADGES.c.id)
    clinic_id: Mapped[int] = column_property(OWNERS.c.id, BADGES.c.clinic_id)


class FromSubquery(Joining):
    __table__ = select(Badges).where(Badges.id < 3).subquery()
    __mapper_args__ = {"primary_key": [__table__.c.id]}  # noqa: RUF012 # SQLAlchemy's way


@case("a class mapped to a join or a subquery")
def mapped_to_selectables(app: App) -> None:
    Joining.metadata.create_all(app.engine)
    try:
        app.add(*(Clinics(id=n, motto=f"canary motto {n}") for n in (1, 2)))
        app.add(*(Badges(id=n, clinic_id=n, ssn=f"canary {n}") for n in (1, 2)))

        def read(_: App) -> None:
            with app.session() as session:
                joined: Any = session.scalars(select(Joined).order_by(Joined.id)).all()
                assert [(each.ssn, each.motto) for each in joined] == [
                    ("canary 1", "canary motto 1"), ("canary 2", "canary motto 2"),
                ]  # fmt: skip
                found: Any = session.scalars(select(FromSubquery).order_by(FromSubquery.__table__.c.id)).all()
                assert [each.ssn for each in found] == ["canary 1", "canary 2"]

        app.cold()
        read(app)
        assert_refuses_moved(app, Joining.metadata.sorted_tables, read)
    finally:
        Joining.metadata.drop_all(app.engine)
