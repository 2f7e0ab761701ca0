# SPDX-License-Identifier: Apache-2.0
"""Between stored and real values: each form opens what its type wrote, and nothing that only looks like it."""

from __future__ import annotations

import datetime as dt
import enum
import json
import threading
import uuid
import warnings
from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any, cast

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy_utils import StringEncryptedType
from sqlalchemy_utils.types.encrypted.encrypted_type import AesEngine

from sa_asherah import Asherah, Encrypted, StaticKeyWarning, partition_scope
from sa_asherah.core import cell
from sa_asherah.errors import (
    AsherahError,
    DecryptionError,
    MetastoreError,
    NotAttachedError,
    OwnerRequiredError,
    UnsupportedValueError,
    UsageError,
    WrongPartitionError,
)
from sa_asherah.kms.static import StaticKMS
from sa_asherah.reencrypt import Change, Job, Plan
from sa_asherah.reencrypt.ciphertext import EncryptedForm
from sa_asherah.reencrypt.foreign import Foreign, SQLAlchemyUtilsAES
from sa_asherah.reencrypt.form import UNOPENED, Form
from sa_asherah.reencrypt.forms import forms_of
from sa_asherah.reencrypt.report import Progress

KEY = "a secret of the other library"


class Size(enum.Enum):
    SMALL = 1
    LARGE = 2


class Words(sa.TypeDecorator[list[str]]):
    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: list[str] | None, dialect: Any) -> str | None:  # noqa: ARG002
        return None if value is None else " ".join(value)

    def process_result_value(self, value: str | None, dialect: Any) -> list[str] | None:  # noqa: ARG002
        return None if value is None else value.split()


VALUES: dict[str, tuple[Any, list[Any]]] = {
    "text": (sa.Text(), ["canary", "", "é中😀", "sa1:hello", "x" * 9000]),
    "enum": (sa.Enum(Size, native_enum=False), [Size.SMALL, Size.LARGE]),
    "words": (Words(), [["canary", "words"]]),
    "bytes": (sa.LargeBinary(), [b"", b"\0\xff", b"\xa5\x01\x01" + bytes(100)]),
    "integer": (sa.BigInteger(), [0, -(2**40)]),
    "boolean": (sa.Boolean(), [True, False]),
    "numeric": (sa.Numeric(12, 2), [Decimal("12.50"), Decimal("-0.01")]),
    "float": (sa.Double(), [0.1, -1.5]),
    "date": (sa.Date(), [dt.date(2026, 11, 23)]),
    "moment": (sa.DateTime(), [dt.datetime(2026, 11, 23, 1, 2, 3)]),  # noqa: DTZ001 -- without a zone
    "uuid": (sa.Uuid(), [uuid.UUID(int=7)]),
    "document": (sa.JSON(), [{"é": [1, "canary"]}, [], "text"]),
}


@contextmanager
def attached(url: str, **options: Any) -> Generator[tuple[sa.Engine, Asherah]]:
    engine = sa.create_engine(url, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StaticKeyWarning)
        asherah = Asherah("records", "clinic", StaticKMS(bytes(range(32)), {}))
    asherah.create_metastore(engine)
    asherah.attach(engine)
    yield engine, asherah
    asherah.close()
    engine.dispose()


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:
    """An engine with keys, for each database."""
    with attached(database_url) as (found, _):
        yield found


@pytest.fixture
def sqlite(sqlite_url: str) -> Iterator[sa.Engine]:
    """An engine with keys on SQLite."""
    with attached(sqlite_url) as (found, _):
        yield found


def described(**types: Any) -> sa.Table:
    columns = [sa.Column(each, type_) for each, type_ in types.items()]
    key = sa.Column("id", sa.String(40), primary_key=True)
    places = (sa.Column("clinic_id", sa.Integer), sa.Column("user", sa.Uuid))
    return sa.Table("t", sa.MetaData(), key, *places, *columns)


USER = uuid.UUID(int=99)


def raws(engine: sa.Engine, table: sa.Table, column: str) -> dict[str, tuple[Any, str | None, str]]:
    """Give values, owners and primary keys as no column type stands in between."""
    name: Any = sa.column(column)
    source = sa.table(table.name, name, sa.column("clinic_id"), sa.column("id"))
    query = sa.select(source.c.id, name, sa.cast(source.c.clinic_id, sa.String(40)))
    with engine.connect() as connection:
        return {row[0]: (row[1], row[2], row[0]) for row in connection.execute(query.where(name.is_not(None)))}


def write(engine: sa.Engine, table: sa.Table, column: str, values: dict[str, Any]) -> None:
    """Store what the driver takes."""
    source = sa.table(table.name, sa.column(column), sa.column("id"))
    with engine.begin() as connection:
        for key, value in values.items():
            connection.execute(
                sa.update(source).where(source.c.id == key).values({column: sa.bindparam("v")}), {"v": value}
            )


def encrypted(inner: Any, **options: Any) -> Encrypted:
    return Encrypted(inner, owner="clinic_id", **options)


TARGETS: dict[str, dict[str, Any]] = {
    "binary": {},
    "text": {"storage": "text", "label": "other.name"},
    "padded": {"pad": 32, "bind_row": "id"},
    "record": {"format": "asherah", "partition": "clinic-{}"},
    "json": {"format": "asherah", "storage": "json", "partition": "clinic-{}"},
}


def test_every_type_comes_into_every_form_and_back(engine: sa.Engine) -> None:
    plain = described(**{name: type_ for name, (type_, _) in VALUES.items()})
    goals = {f"{name}_new": encrypted(type_, **TARGETS["binary"]) for name, (type_, _) in VALUES.items()}
    whole = described(**{name: type_ for name, (type_, _) in VALUES.items()}, **goals)
    whole.create(engine)
    longest = max(len(values) for _, values in VALUES.values())
    with engine.begin() as connection:
        for number in range(longest):
            row = {name: values[number] for name, (_, values) in VALUES.items() if number < len(values)}
            connection.execute(plain.insert(), {"id": f"k{number}", "clinic_id": number % 2 + 1, **row})
    for name, (type_, values) in VALUES.items():
        target, (source,) = forms_of(
            whole, Change(name, goals[f"{name}_new"], type_, into=f"{name}_new"), engine.dialect
        )
        stored = raws(engine, plain, name)
        assert all(source.recognises(raw) for raw, _, _ in stored.values())
        opened = source.open([raw for raw, _, _ in stored.values()])
        assert dict(zip(stored, opened, strict=True)) == {f"k{n}": value for n, value in enumerate(values)}
        owners, keys = [owner for _, owner, _ in stored.values()], list(stored)
        with engine.begin() as connection:
            sealed = target.seal(opened, owners, keys, connection)
        write(engine, whole, f"{name}_new", dict(zip(keys, sealed, strict=True)))
        query = sa.select(whole.c.id, whole.c[f"{name}_new"]).where(whole.c[f"{name}_new"].is_not(None))
        with engine.connect() as connection:
            assert dict(map(tuple, connection.execute(query))) == dict(zip(stored, opened, strict=True))
        # And back: what the driver takes of the plaintext is what was there.
        back = source.seal(target.open(sealed, owners, keys))
        write(engine, whole, name, dict(zip(keys, back, strict=True)))
        assert dict(
            zip(stored, source.open([raw for raw, _, _ in raws(engine, plain, name).values()]), strict=True)
        ) == {f"k{n}": value for n, value in enumerate(values)}


def test_every_form_reads_and_writes_what_the_application_does(engine: sa.Engine) -> None:
    types = {name: encrypted(sa.String(), **options) for name, options in TARGETS.items()}
    table = described(**types)
    table.create(engine)
    with engine.begin() as connection:
        connection.execute(table.insert(), {"id": "a", "clinic_id": 7, **dict.fromkeys(types, "canary")})
    for name, type_ in types.items():
        target, (source,) = forms_of(table, Change(name, type_, type_), engine.dialect)
        ((raw, owner, key),) = raws(engine, table, name).values()
        assert target.recognises(raw)
        assert source.open([raw], [owner], [key]) == ["canary"]
        with engine.begin() as connection:
            (new,) = target.seal(["canary new"], [owner], [key], connection)
            assert cast("EncryptedForm", target).is_newest([raw], [owner], connection) == [True]
        write(engine, table, name, {"a": new})
        with engine.connect() as connection:
            assert connection.execute(sa.select(table.c[name])).scalar_one() == "canary new"
        partition = "_IK_7_" if "partition" not in TARGETS[name] else "_IK_clinic-7_"
        coordinates = source.coordinates(raw, owner)
        assert coordinates is not None
        assert coordinates[0] == f"{partition}records_clinic"
        assert source.key_of(raw) == target.key_of(new) != "plaintext"


def body_forms(engine: sa.Engine, *sources: Any, target: Any = None) -> tuple[Form, tuple[Form, ...]]:
    """Give the forms of a text column that is changed in place."""
    table = described(body=sa.Text())
    change = Change("body", target or encrypted(sa.Text(), storage="text", reads=("plaintext@2099-01-01",)), sources)
    return forms_of(Plan(table, [change]).table, change, engine.dialect)


def sealed(engine: sa.Engine, form: Form, *values: Any, owner: str = "7") -> list[Any]:
    with engine.begin() as connection:
        return form.seal(values, [owner] * len(values), ["k"] * len(values), connection)


def test_no_damaged_ciphertext_is_plaintext(sqlite: sa.Engine) -> None:
    aes, plain = SQLAlchemyUtilsAES(KEY, sa.Text(), "pkcs5"), sa.Text()
    target, (utils, text) = body_forms(sqlite, aes, plain)
    (good,) = sealed(sqlite, target, "canary")
    theirs = StringEncryptedType(sa.Text(), KEY, AesEngine, "pkcs5").process_bind_param("canary", sqlite.dialect)
    for raw, opens in ((good, [True, False, False]), (theirs, [False, True, False]), ("canary", [False, False, True])):
        assert [form.recognises(raw) for form in (target, utils, text)] == opens
    altered = good[:-5] + ("A" if good[-5] != "A" else "B") + good[-4:]
    for raw in (altered, good[:-4], good[:40], good + "=", "sa1:pQEB", cell.to_text(b"\xa5\x01\x01\x07" + bytes(99))):
        assert [form.recognises(raw) for form in (target, utils, text)] == [True, False, False]
        (found,) = target.open([raw], ["7"])
        assert isinstance(found, DecryptionError)
    other = StringEncryptedType(sa.Text(), "another", AesEngine, "pkcs5").process_bind_param(
        "canary" * 9, sqlite.dialect
    )
    assert not text.recognises(other)
    assert isinstance(utils.open([other])[0], DecryptionError)


def test_a_window_of_the_target_opens_nothing_here(sqlite: sa.Engine) -> None:
    """What `reads=` accepts is not yet as wanted."""
    target, _ = body_forms(sqlite, sa.Text())
    assert not target.recognises("canary")
    assert isinstance(target.open(["canary"], ["7"])[0], DecryptionError)


def test_decrypting_takes_for_plaintext_what_looks_like_no_source(sqlite: sa.Engine) -> None:
    target, (source,) = body_forms(sqlite, encrypted(sa.Text(), storage="text"), target=sa.Text())
    (good,) = sealed(sqlite, source, "canary")
    assert (target.recognises(good), target.recognises("canary")) == (False, True)
    assert not target.recognises(good[:50])
    assert target.seal(["canary", None]) == ["canary", None]


def test_values_of_other_owners_and_labels_do_not_open(sqlite: sa.Engine) -> None:
    old = Encrypted(sa.Text(), owner="user", partition="user-{}", label="people.note", storage="text")
    target, (source,) = body_forms(sqlite, old)
    assert (target.owner, source.owner) == ("clinic_id", "user")
    # A database writes a UUID with dashes or without; both name one owner.
    (raw,) = sealed(sqlite, source, "canary", owner=USER.hex)
    assert source.open([raw, raw], [str(USER), str(uuid.UUID(int=98))])[0] == "canary"
    for form, owner in ((source, str(uuid.UUID(int=98))), (target, "7"), (source, None), (source, "7"), (source, "")):
        (found,) = form.open([raw], [owner])
        assert isinstance(found, DecryptionError | OwnerRequiredError)
        assert "canary" not in str(found)
        assert found.__traceback__ is None
    (moved,) = sealed(sqlite, target, "canary")
    label, _ = body_forms(sqlite, sa.Text(), target=encrypted(sa.Text(), storage="text", label="t.other"))
    assert isinstance(label.open([moved], ["7"])[0], DecryptionError)


def test_a_page_is_sealed_with_one_look_up_of_keys(sqlite: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    target, _ = body_forms(sqlite, sa.Text())
    asked: list[set[str]] = []
    hierarchy = cast("EncryptedForm", target).attachment.hierarchy
    real = hierarchy.encryption_keys

    def noted(names: Collection[str], connection: object) -> Any:
        asked.append(set(names))
        return real(names, connection)

    monkeypatch.setattr(hierarchy, "encryption_keys", noted)
    values = [f"canary {number}" for number in range(300)]
    owners = [str(number % 3 + 1) for number in range(300)]
    with sqlite.begin() as connection:
        cells = target.seal([*values, None], [*owners, None], (), connection)
    assert asked == [{"1", "2", "3"}]
    assert cells.pop() is None
    assert target.open(cells, owners) == values
    salts = {cell.from_text(each)[:28] for each in cells}
    nonces = {cell.from_text(each)[60:72] for each in cells}
    assert (len(salts), len(nonces)) == (3, 300)


def test_what_cannot_be_sealed_raises_an_error_without_the_value(sqlite: sa.Engine) -> None:
    target, (plain,) = body_forms(sqlite, sa.Text())
    for value, owner, error in (
        ("canary \ud800", "7", UnsupportedValueError),
        (7, "7", UnsupportedValueError),
        ("canary", None, OwnerRequiredError),
        ("canary", "7.0", OwnerRequiredError),
    ):
        with sqlite.begin() as connection, pytest.raises(error) as caught:
            target.seal(["fine", value], ["7", owner], (), connection)
        assert "canary" not in str(caught.value)
    (found,) = plain.open([b"canary \xff"])
    with sqlite.begin() as connection, pytest.raises(UnsupportedValueError):
        target.seal([found], ["7"], (), connection)


def test_what_is_nobodys_fault_is_raised(sqlite: sa.Engine, sqlite_url: str) -> None:
    """A key table that is away must not condemn every row."""
    target, _ = body_forms(sqlite, sa.Text())
    (raw,) = sealed(sqlite, target, "canary")
    with partition_scope("8"), pytest.raises(WrongPartitionError):
        target.open([raw], ["7"])
    with sqlite.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE encryption_key RENAME TO gone")
    with attached(sqlite_url) as (cold, asherah):
        with cold.begin() as connection:
            connection.exec_driver_sql("DROP TABLE encryption_key")
        other, _ = body_forms(cold, sa.Text())
        with pytest.raises(MetastoreError):
            other.open([raw], ["7"])
        asherah.detach(cold)
        with pytest.raises(NotAttachedError):
            other.open([raw], ["7"])


UNOWNED = Encrypted(sa.Text(), storage="text")


def test_a_type_without_owner_works_in_a_scope(sqlite: sa.Engine) -> None:
    target, _ = body_forms(sqlite, sa.Text(), target=UNOWNED)
    with partition_scope("shop"), sqlite.begin() as connection:
        sealed_values = target.seal(["canary"], (), (), connection)
        assert target.open(sealed_values) == ["canary"]
    # Without one no row is to blame, and none is condemned.
    with pytest.raises(UsageError, match="partition_scope") as caught, sqlite.begin() as connection:
        target.seal(["canary"], (), (), connection)
    assert not isinstance(caught.value, UNOPENED)
    with pytest.raises(UsageError, match="partition_scope"):
        target.open(sealed_values)


def test_every_worker_works_in_the_callers_scope(sqlite: sa.Engine, sqlite_url: str) -> None:
    table = described(body=sa.Text())
    with sqlite.begin() as connection:
        table.create(connection)
        connection.execute(table.insert(), [{"id": f"{n:03}", "body": f"canary {n}"} for n in range(80)])
    both = threading.Barrier(2, timeout=30)
    seen: set[int] = set()

    def progress(_: Progress) -> None:
        if threading.get_ident() not in seen:
            seen.add(threading.get_ident())
            both.wait()  # until the other one has done a batch, too

    with attached(sqlite_url, connect_args={"timeout": 60}) as (engine, asherah):
        plan = Plan(table, [Change("body", UNOWNED, sa.Text())])
        with partition_scope("shop"):
            report = Job(engine, asherah, plan, batch=5, workers=2, progress=progress).run()
    assert (len(seen), report.converted, report.quarantined_rows, report.is_complete) == (2, 80, 0, True)


def test_an_older_key_is_not_the_newest(sqlite_url: str) -> None:
    engine = sa.create_engine(sqlite_url)
    now = 1_900_000_000.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StaticKeyWarning)
        kms = StaticKMS(bytes(range(32)), {})
    options: Any = {"expire_after": dt.timedelta(days=30), "rotation_spread": dt.timedelta(0)}
    with Asherah("records", "clinic", kms, clock=lambda: now, **options) as asherah:
        asherah.create_metastore(engine)
        asherah.attach(engine)
        target = cast("EncryptedForm", body_forms(engine, sa.Text())[0])
        (old,) = sealed(engine, target, "canary")
        assert target.is_newest([old], ["7"]) == [True]
        now += 40 * 86400
        assert target.is_newest([old], ["7"]) == [False]  # although no newer one was made yet
        assert _keys(engine) == 2
        (new,) = sealed(engine, target, "canary")
        assert target.is_newest([old, new], ["7", "7"]) == [False, True]
        assert target.key_of(old) != target.key_of(new)
        first, second = (target.coordinates(raw, "7") for raw in (old, new))
        assert first is not None
        assert second is not None
        assert (first[0], first[1] < second[1]) == (second[0], True)
    engine.dispose()


def _keys(engine: sa.Engine) -> int:
    with engine.connect() as connection:
        return int(connection.exec_driver_sql("SELECT count(*) FROM encryption_key").scalar_one())


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Form, Form]]:
    """The form of cells and that of plaintext of one text column."""
    with attached(f"sqlite:///{tmp_path_factory.mktemp('forms') / 'forms.db'}") as (engine, _):
        target, (plain,) = body_forms(engine, sa.Text())
        sealed(engine, target, "warm")
        yield target, plain


@given(value=st.text(alphabet=st.characters(codec="utf-8"), max_size=60) | st.binary(max_size=80).map(cell.to_text))
def test_a_stored_text_is_either_plaintext_or_ciphertext(texts: tuple[Form, Form], value: str) -> None:
    target, plain = texts
    assert target.recognises(value) != plain.recognises(value)
    (found,) = (target if target.recognises(value) else plain).open([value], ["7"])
    assert found == value or isinstance(found, AsherahError)


def test_forms_show_no_key() -> None:
    table = described(body=sa.Text())
    change = Change("body", encrypted(sa.Text(), storage="text"), SQLAlchemyUtilsAES(KEY))
    target, (source,) = forms_of(table, change, sa.create_engine("sqlite://").dialect)
    assert isinstance(source.type, Foreign)
    assert KEY not in json.dumps([repr(target), repr(source), repr(vars(source)), repr(change)])
