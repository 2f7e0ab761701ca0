# SPDX-License-Identifier: Apache-2.0
"""What SQLAlchemy-Utils, cryptography and pgcrypto really wrote is read, what was altered is not; keys stay inside."""

from __future__ import annotations

import base64
import copy
import datetime as dt
import functools
import pickle
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from cryptography.fernet import Fernet, MultiFernet
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy_utils import EncryptedType, StringEncryptedType
from sqlalchemy_utils.types.encrypted.encrypted_type import AesEngine, AesGcmEngine, FernetEngine

from sa_asherah import Encrypted
from sa_asherah.errors import ConfigurationError, DecryptionError, UsageError
from sa_asherah.reencrypt.foreign import (
    FernetTokens,
    Foreign,
    PgpSymmetric,
    SQLAlchemyUtilsAES,
    SQLAlchemyUtilsFernet,
    SQLAlchemyUtilsGCM,
)
from sa_asherah.reencrypt.job import Job
from sa_asherah.reencrypt.plan import Change, Plan
from tests.reencrypt.scene import Scene

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DIALECT = DefaultDialect()
KEY = "a secret of the other library"
VALUES: list[tuple[Any, Any]] = [
    (sa.String(), "canary"),
    (sa.String(), ""),
    (sa.String(), "x" * 16),
    (sa.Unicode(), "é中😀" * 40),
    (sa.Integer(), -12),
    (sa.Boolean(), True),
    (sa.Boolean(), False),
    (sa.Float(), 0.1),
    (sa.Date(), dt.date(2026, 11, 23)),
    (sa.Time(), dt.time(1, 2, 3)),
    (sa.DateTime(), dt.datetime(2026, 11, 23, 1, 2, 3, 4)),  # noqa: DTZ001 -- without a zone
]
ENGINES: dict[str, tuple[Any, Any, Callable[..., Foreign]]] = {
    "gcm": (AesGcmEngine, None, SQLAlchemyUtilsGCM),
    "fernet": (FernetEngine, None, SQLAlchemyUtilsFernet),
    "naive": (AesEngine, None, SQLAlchemyUtilsAES),
    **{
        name: (AesEngine, name, functools.partial(SQLAlchemyUtilsAES, padding=name))
        for name in ("pkcs5", "oneandzeroes", "zeroes")
    },
}


@pytest.fixture(params=list(ENGINES))
def kind(request: pytest.FixtureRequest) -> tuple[Any, Any, Callable[..., Foreign]]:
    """One of the library's engines, its padding, and our type for it."""
    return ENGINES[request.param]


def raw_of(type_: sa.types.TypeEngine[Any], value: Any) -> Any:
    """Store a value through a type in a table, and give what the driver gives without one."""
    engine = sa.create_engine("sqlite://")
    table = sa.Table("t", sa.MetaData(), sa.Column("v", type_))
    with engine.begin() as connection:
        table.create(connection)
        connection.execute(table.insert(), {"v": value})
        found = connection.exec_driver_sql("SELECT v FROM t").scalar_one()
    engine.dispose()
    return found


@pytest.mark.filterwarnings("ignore:The 'EncryptedType' class:DeprecationWarning")
def test_values_of_sqlalchemy_utils_are_read(kind: tuple[Any, Any, Callable[..., Foreign]]) -> None:
    engine, padding, ours = kind
    for inner, value in VALUES:
        raw = raw_of(StringEncryptedType(inner, KEY, engine, padding), value)
        type_ = ours(KEY, inner)
        assert type_.recognises(raw)
        assert type_.open(raw) == value
        assert ours(KEY.encode, inner).open(raw) == value
    binary = raw_of(EncryptedType(sa.String(), KEY, engine, padding), "canary")
    assert isinstance(binary, bytes)
    assert ours(KEY, sa.String(), storage="binary").open(binary) == "canary"


def test_a_column_is_read_through_the_type_and_not_written(kind: tuple[Any, Any, Callable[..., Foreign]]) -> None:
    engine, padding, ours = kind
    theirs = sa.Table("t", sa.MetaData(), sa.Column("v", StringEncryptedType(sa.String(), KEY, engine, padding)))
    table = sa.Table("t", sa.MetaData(), sa.Column("v", ours(KEY, sa.String())))
    database = sa.create_engine("sqlite://")
    with database.begin() as connection:
        theirs.create(connection)
        connection.execute(theirs.insert(), [{"v": "canary"}, {"v": None}])
        assert list(connection.execute(sa.select(table.c.v))) == [("canary",), (None,)]
        with pytest.raises(UsageError, match="only reads") as caught:
            connection.execute(table.insert(), {"v": "canary"})
        assert "canary" not in str(caught.value)
    database.dispose()


@pytest.mark.parametrize("name", ["gcm", "fernet"])
@given(data=st.data())
def test_an_altered_authenticated_value_is_refused(name: str, data: st.DataObject) -> None:
    engine, padding, ours = ENGINES[name]
    theirs = StringEncryptedType(sa.String(), KEY, engine, padding)
    raw: Any = theirs.process_bind_param("canary", DIALECT)
    place = data.draw(st.integers(0, len(raw) - 1))
    altered = raw[:place] + data.draw(st.sampled_from(["", "A", "B", "é", "=", "\n"])) + raw[place + 1 :]
    if altered != raw:
        with pytest.raises(DecryptionError):
            ours(KEY, sa.String()).open(altered)


def test_another_key_opens_nothing(kind: tuple[Any, Any, Callable[..., Foreign]]) -> None:
    engine, padding, ours = kind
    raw = raw_of(StringEncryptedType(sa.String(), KEY, engine, padding), "canary" * 20)
    with pytest.raises(DecryptionError) as caught:
        ours("another key", sa.String()).open(raw)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert raw not in str(caught.value)


@pytest.mark.parametrize("value", ["", "canary", "YWJj", "*" * 16, "é", b"\xff", 7, None])
def test_what_is_none_of_its_values_is_not_recognised(
    kind: tuple[Any, Any, Callable[..., Foreign]], value: Any
) -> None:
    type_ = kind[2](KEY, sa.String())
    assert not type_.recognises(value)
    with pytest.raises(DecryptionError):
        type_.open(value)


@given(value=st.text(max_size=70).filter(lambda text: not text.endswith("*")))
@pytest.mark.parametrize("padding", ["naive", "pkcs5", "oneandzeroes", "zeroes"])
def test_every_text_comes_back_whatever_the_padding(padding: Any, value: str) -> None:
    theirs = StringEncryptedType(sa.String(), KEY, AesEngine, padding)
    assert SQLAlchemyUtilsAES(KEY, sa.String(), padding).open(theirs.process_bind_param(value, DIALECT)) == value


@pytest.mark.parametrize("storage", ["text", "binary"])
def test_tokens_of_fernet_and_multifernet_are_read(storage: Any) -> None:
    keys = [Fernet.generate_key() for _ in range(3)]
    tokens = [Fernet(key).encrypt("canary é".encode()) for key in keys]
    tokens.append(MultiFernet([Fernet(key) for key in keys]).encrypt("canary é".encode()))
    type_ = FernetTokens([keys[0], keys[1].decode(), lambda: keys[2]], sa.String(), storage)
    for token in tokens:
        raw = token.decode() if storage == "text" else token
        assert type_.recognises(raw)
        assert type_.open(raw) == "canary é"
        assert FernetTokens(keys, sa.LargeBinary(), storage).open(raw) == "canary é".encode()
    with pytest.raises(DecryptionError):
        FernetTokens(keys[0]).open(tokens[1])
    old = Fernet(keys[0]).encrypt_at_time(b"canary", 0)
    assert FernetTokens(keys[0]).open(old) == "canary"


@given(data=st.binary(max_size=100))
def test_every_token_is_read(data: bytes) -> None:
    key = base64.urlsafe_b64encode(bytes(range(32)))
    assert FernetTokens(key, sa.LargeBinary()).open(Fernet(key).encrypt(data)) == data


@pytest.mark.parametrize("key", ["", "short", "A" * 42 + "==", b"\xff" * 44, None, []])
def test_an_unusable_key_is_refused(key: Any) -> None:
    with pytest.raises(ConfigurationError):
        FernetTokens(key)


@pytest.mark.parametrize(
    ("name", "value"), [("padding", "pkcs7"), ("storage", "json"), ("inner", sa.Interval()), ("key", "")]
)
def test_an_unusable_argument_is_refused(name: str, value: Any) -> None:
    arguments: dict[str, Any] = {"key": KEY, name: value}
    with pytest.raises(ConfigurationError):
        SQLAlchemyUtilsAES(**arguments)


FERNET_KEY = base64.urlsafe_b64encode(b"k" * 32).decode()
TYPES: dict[str, tuple[str, Foreign]] = {
    "aes": (KEY, SQLAlchemyUtilsAES(KEY)),
    "gcm": (KEY, SQLAlchemyUtilsGCM(KEY)),
    "utils-fernet": (KEY, SQLAlchemyUtilsFernet(KEY)),
    "fernet": (FERNET_KEY, FernetTokens(FERNET_KEY)),
    "pgp": (KEY, PgpSymmetric(KEY)),
}


@pytest.mark.parametrize("name", list(TYPES))
def test_a_key_is_in_no_text_pickle_or_cache_key(name: str) -> None:
    key, type_ = TYPES[name]
    table = sa.Table("t", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("v", type_))
    storage: Any = type_.storage
    change = Change("v", sa.String(), sa.String())
    assert change.sources
    target = _target(storage)
    plan = Plan(table, [Change("v", target, type_)])
    query = sa.select(table.c.v)
    shown = [repr(type_), str(type_), repr(type_._secret), repr(table), repr(plan), str(query), plan.fingerprint]
    shown += [repr(vars(type_)), repr(query._generate_cache_key())]
    assert not any(key in text for text in shown)
    assert query._generate_cache_key() is None  # else a statement would be shared by types of two keys
    for leave in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match="pickled") as caught:
            leave(type_)
        assert key not in str(caught.value)
    engine = sa.create_engine("sqlite://")
    with engine.connect() as connection:
        table.create(connection)
        connection.execute(query)
    assert key not in repr(engine._compiled_cache)
    engine.dispose()


def _target(storage: str) -> Any:
    return Encrypted(sa.String(), storage=storage)  # type: ignore[arg-type]


# In a job


def people(*columns: sa.Column[Any]) -> sa.Table:
    key = sa.Column("id", sa.Integer, primary_key=True)
    return sa.Table("people", sa.MetaData(), key, sa.Column("tenant", sa.String(20)), *columns)


def wanted(name: str, **options: Any) -> Encrypted:
    return Encrypted(sa.Text(), owner="tenant", label=f"people.{name}", **options)


def test_a_job_encrypts_in_place_what_each_library_wrote(sqlite_scene: Scene) -> None:
    names = [*ENGINES, "multifernet"]
    keys = [Fernet.generate_key() for _ in range(2)]
    types: list[Any] = [
        StringEncryptedType(sa.String(), KEY, engine, padding) for engine, padding, _ in ENGINES.values()
    ]
    written = people(*map(sa.Column, names, [*types, sa.Text()]))
    tokens = [MultiFernet([Fernet(keys[n % 2])]).encrypt(b"canary %d" % n).decode() for n in range(12)]
    values = [{"tenant": f"tenant {n % 3}", **dict.fromkeys(ENGINES, f"canary {n}")} for n in range(12)]
    sqlite_scene.fill(written, [row | {"multifernet": token} for row, token in zip(values, tokens, strict=True)])
    alien = StringEncryptedType(sa.String(), "another key", AesGcmEngine).process_bind_param("canary", DIALECT)
    sqlite_scene.sql("UPDATE people SET gcm = :alien WHERE id = 5", alien=alien)
    ours: list[Any] = [make(KEY, sa.Text()) for _, _, make in ENGINES.values()]
    sources = dict(zip(names, [*ours, FernetTokens(keys, sa.Text())], strict=True))
    plain = people(*(sa.Column(name, sa.Text()) for name in names))
    plan = Plan(plain, [Change(name, wanted(name, storage="text"), source) for name, source in sources.items()])
    report = Job(sqlite_scene.engine, sqlite_scene.asherah, plan).run()
    assert (report.found, report.converted, report.is_complete) == (12, 11, False)
    assert [(each.primary_key, each.column) for each in report.quarantined] == [("[5]", "gcm")]
    assert "canary" not in repr(report)
    new = people(*(sa.Column(name, wanted(name, storage="text")) for name in names))
    with sqlite_scene.engine.connect() as connection:
        for row in connection.execute(sa.select(new).where(new.c.id != 5)).mappings():
            assert {row[name] for name in names} == {f"canary {row['id'] - 1}"}
        assert connection.execute(sa.text("SELECT gcm FROM people WHERE id = 5")).scalar_one() == alien


def test_a_job_encrypts_in_place_what_pgcrypto_wrote(postgresql_url: str) -> None:
    scene = Scene(postgresql_url)
    scene.sql("CREATE EXTENSION pgcrypto")
    scene.fill(people(sa.Column("v", sa.LargeBinary)), [])
    for n, options in enumerate(["", "cipher-algo=aes256, compress-algo=1", "disable-mdc=1"], 1):
        insert = "INSERT INTO people VALUES (:n, 'seven', pgp_sym_encrypt(:value, :key, :options))"
        scene.sql(insert, n=n, value=f"canary {n}", key=KEY, options=options)
    plan = Plan(people(sa.Column("v", sa.LargeBinary)), [Change("v", wanted("v"), PgpSymmetric(KEY))])
    report = Job(scene.engine, scene.asherah, plan).run()
    assert (report.converted, [each.primary_key for each in report.quarantined]) == (2, ["[3]"])
    new = people(sa.Column("v", wanted("v")))
    with scene.engine.connect() as connection:
        query = sa.select(new.c.v).where(new.c.id < 3).order_by(new.c.id)
        assert list(connection.scalars(query)) == ["canary 1", "canary 2"]
    scene.close()


# pgcrypto, by a real server


OPTIONS = [
    "",
    "cipher-algo=aes192",
    "cipher-algo=aes256, compress-algo=1",
    "compress-algo=2, compress-level=9",
    "sess-key=1",
    "sess-key=1, s2k-cipher-algo=aes128, cipher-algo=aes256",
    "s2k-mode=0",
    "s2k-mode=1",
    "s2k-digest-algo=md5, cipher-algo=aes256",
    "s2k-count=1024",
    "unicode-mode=1",
]
REFUSED = ["disable-mdc=1", "cipher-algo=bf", "cipher-algo=3des", "cipher-algo=cast5"]


@pytest.fixture
def pgcrypto(postgresql_url: str) -> Iterator[sa.Connection]:
    """A connection to a database with the extension."""
    engine = sa.create_engine(postgresql_url)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE EXTENSION pgcrypto"))
        yield connection
    engine.dispose()


def pgp(connection: sa.Connection, value: Any, options: str = "", password: str = KEY) -> bytes:
    function = "pgp_sym_encrypt_bytea" if isinstance(value, bytes) else "pgp_sym_encrypt"
    query = sa.text(f"SELECT {function}(:value, :password, :options)")
    return bytes(connection.execute(query, {"value": value, "password": password, "options": options}).scalar_one())


def test_what_pgcrypto_wrote_is_read(pgcrypto: sa.Connection) -> None:
    for options in OPTIONS:
        for value in ("canary", "", "é中😀" * 10_000, "x" * 8191):
            raw = pgp(pgcrypto, value, options)
            assert PgpSymmetric(KEY).recognises(raw)
            assert PgpSymmetric(lambda: KEY).open(raw) == value, options
    for data in (b"", b"\0\xff" * 300, bytes(200_000)):
        assert PgpSymmetric(KEY, sa.LargeBinary()).open(pgp(pgcrypto, data)) == data
    pgcrypto.execute(sa.text("CREATE TABLE t (v BYTEA)"))
    pgcrypto.execute(sa.text("INSERT INTO t VALUES (pgp_sym_encrypt('canary', :key)), (NULL)"), {"key": KEY})
    table = sa.Table("t", sa.MetaData(), sa.Column("v", PgpSymmetric(KEY)))
    assert list(pgcrypto.execute(sa.select(table.c.v))) == [("canary",), (None,)]


def test_what_pgcrypto_did_not_authenticate_is_refused(pgcrypto: sa.Connection) -> None:
    for options in REFUSED:
        with pytest.raises(DecryptionError):
            PgpSymmetric(KEY).open(pgp(pgcrypto, "canary", options))
    raw = pgp(pgcrypto, "canary")
    with pytest.raises(DecryptionError):
        PgpSymmetric("another").open(raw)
    for place in range(len(raw)):
        for altered in (raw[:place], raw[:place] + bytes((raw[place] ^ 1,)) + raw[place + 1 :], raw + b"\0"):
            with pytest.raises(DecryptionError):
                PgpSymmetric(KEY).open(altered)


@given(data=st.binary(max_size=60))
def test_no_bytes_at_all_break_the_reader_of_openpgp(data: bytes) -> None:
    for raw in (data, b"\xc3\x0d\x04\x07\x03\x02" + data, b"\xd2" + data):
        with pytest.raises(DecryptionError):
            PgpSymmetric(KEY).open(raw)
