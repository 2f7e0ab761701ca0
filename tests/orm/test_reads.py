# SPDX-License-Identifier: Apache-2.0
"""`reads=`: older forms are read until a day, by looks alone, and nothing that looks like ciphertext falls back."""

from __future__ import annotations

import base64
import copy
import pickle
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import (
    JSON,
    Column,
    Enum,
    Integer,
    Interval,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    create_engine,
    insert,
    literal_column,
    select,
    text,
    union_all,
    update,
)
from sqlalchemy.orm import aliased

from sa_asherah import (
    ConfigurationError,
    DecryptionError,
    Encrypted,
    MalformedCellError,
    OwnerRequiredError,
    Unreadable,
    UsageError,
    WrongPartitionError,
    WrongPlaceError,
    partition_scope,
)
from sa_asherah.core import cell
from sa_asherah.kms.static import StaticKMS
from sa_asherah.orm.reading import Packed
from tests.orm.app import create_tables
from tests.orm.letters import LAST_DAY, Letter, LettersApp, encrypted, letters, older, plain, strict, unpadded

SECRET = "canary in clear"
PLAINTEXT = ("plaintext@2027-06-30",)
END = datetime(2031, 6, 1, tzinfo=UTC).timestamp()


@pytest.fixture(params=["sync", pytest.param("async", marks=pytest.mark.long)])
def app(request: pytest.FixtureRequest, suite_url: str, static_kms: StaticKMS) -> LettersApp:
    """Each database, by its synchronous and its asynchronous driver."""
    return LettersApp(suite_url, static_kms, is_async=request.param == "async")


def fill(app: LettersApp) -> None:
    """Write one row in each form: plaintext, records and unbound cells, unpadded cells, and the forms wanted."""
    app.execute(insert(plain), {"id": 1, "clinic_id": 1, "body": SECRET, "record": SECRET, "bound": SECRET})
    app.put(1, raw=SECRET)
    app.execute(insert(older), {"id": 2, "clinic_id": 1, "body": SECRET, "bound": SECRET})
    app.execute(insert(unpadded), {"id": 3, "clinic_id": 2, "bound": SECRET})
    everything = dict.fromkeys(("body", "raw", "record", "bound"), SECRET)
    app.execute(insert(letters), {"id": 4, "clinic_id": 2, **everything})
    app.cold()


READ = {("plaintext", f"slips.{name}"): 1 for name in ("body", "raw", "record")}
READ.update({("asherah", "slips.body"): 1, ("unpadded", "slips.bound"): 3, ("not-row-bound", "slips.bound"): 2})
ALL = [(SECRET,) * 4, (SECRET, None, None, SECRET), (None, None, None, SECRET), (SECRET,) * 4]
COLUMNS = (letters.c.body, letters.c.raw, letters.c.record, letters.c.bound)


def _entities(app: LettersApp) -> list[Any]:
    with app.session() as session:
        found = session.scalars(select(Letter).order_by(Letter.id)).all()
        return [(each.body, each.raw, each.record, each.bound) for each in found]


def _core(app: LettersApp) -> list[Any]:
    return app.rows(select(*COLUMNS).order_by(letters.c.id))


def _alias(app: LettersApp) -> list[Any]:
    other = aliased(Letter)
    return app.rows(select(other.body, other.raw, other.record, other.bound).order_by(other.id))


def _subquery(app: LettersApp) -> list[Any]:
    inner = select(letters).subquery()
    return app.rows(select(inner.c.body, inner.c.raw, inner.c.record, inner.c.bound).order_by(inner.c.id))


def _union(app: LettersApp) -> list[Any]:
    halves = union_all(select(letters).where(letters.c.id < 3), select(letters).where(letters.c.id >= 3)).subquery()
    return app.rows(select(halves.c.body, halves.c.raw, halves.c.record, halves.c.bound).order_by(halves.c.id))


@pytest.mark.parametrize("read", [_entities, _core, _alias, _subquery, _union])
def test_every_form_is_read_on_every_path_and_counted(app: LettersApp, read: Any) -> None:
    fill(app)
    for times in (1, 2):
        assert read(app) == ALL
        assert app.counts == {place: number * times for place, number in READ.items()}


def test_returning_reads_every_form(app: LettersApp) -> None:
    fill(app)
    rows = [{"id": 5, "clinic_id": 1, "body": SECRET, "bound": SECRET}]
    assert app.rows(insert(letters).returning(letters.c.body, letters.c.bound), rows) == [(SECRET, SECRET)]
    deleted = app.rows(letters.delete().where(letters.c.id <= 2).returning(letters.c.body, letters.c.raw))
    assert set(deleted) == {(SECRET, None), (SECRET, SECRET)}


def test_a_statement_without_the_owner_reads_in_a_scope_of_one(app: LettersApp) -> None:
    fill(app)
    body = encrypted(letters.c.body.type.reads, storage="text", label="slips.body")  # type: ignore[attr-defined]
    query = text("SELECT body FROM slips WHERE id < 3 ORDER BY id").columns(body=body)
    with partition_scope("clinic-1"):
        assert app.rows(query) == [(SECRET,), (SECRET,)]
    with pytest.raises(OwnerRequiredError):
        app.rows(query)


def test_what_is_written_is_a_cell(app: LettersApp) -> None:
    fill(app)
    with app.session() as session:
        for letter in session.scalars(select(Letter)):
            letter.body = letter.raw = letter.record = letter.bound = f"{letter.id} canary"
        session.commit()
    app.execute(update(letters).where(letters.c.id == 1).values(body="1 canary", raw="1 canary"))
    assert app.rows(select(*(strict.c[column.key] for column in COLUMNS)).order_by(strict.c.id)) == [
        (f"{number} canary",) * 4 for number in (1, 2, 3, 4)
    ]
    assert not app.counts.keys() - READ.keys()


def test_an_unchanged_value_stays_as_it_is(app: LettersApp) -> None:
    """A flush writes what changed and nothing else; the job does the rest."""
    fill(app)
    with app.session() as session:
        letter = session.get_one(Letter, 1)
        letter.raw = "canary"
        session.commit()
    assert app.stored("slips")[0]["body"] == SECRET


def test_a_new_owner_takes_the_plaintext_along_as_a_cell(app: LettersApp) -> None:
    fill(app)
    with app.session() as session:
        session.get_one(Letter, 1).clinic_id = 3
        session.commit()
    found = select(strict.c.clinic_id, strict.c.body, strict.c.raw, strict.c.record, strict.c.bound)
    assert app.rows(found.where(strict.c.id == 1)) == [(3, *(SECRET,) * 4)]


def test_everything_else_is_plaintext(app: LettersApp) -> None:
    fill(app)
    for value in ("", "sa1:", "sa1:hello", "SA1:pQEB", " sa1:pQEB", "sa2:pQEB", "{}", '{"Key":1}', "é中😀"):
        app.put(1, body=value, raw=value, record=value)
        assert app.rows(select(*COLUMNS[:3]).where(letters.c.id == 1)) == [(value,) * 3]


def looks_like_a_cell() -> list[str]:
    """Texts that begin as cells do."""
    head = b"\xa5\x01\x01"
    made = [head, head + b"\0", head + bytes(86), head + bytes(200), head + b"\xff" * 100, head + b"\3" + bytes(96)]
    return [cell.to_text(each) for each in made] + ["sa1:pQEBAAAA*", "sa1:pQEBAAAA==", "sa1:pQEB canary"]


def test_plaintext_that_looks_like_a_cell_is_refused(app: LettersApp) -> None:
    fill(app)
    query = select(letters.c.body).where(letters.c.id == 1)
    for value in looks_like_a_cell():
        app.put(1, body=value)
        with pytest.raises(DecryptionError):
            app.rows(query)
        with app.asherah.unreadable("mark"):
            ((found,),) = app.rows(query)
        assert isinstance(found, Unreadable)


def test_plaintext_that_looks_like_a_record_is_refused(app: LettersApp) -> None:
    fill(app)
    for value in ('{"Key":{"ParentKeyMeta"', '{"ParentKeyMeta":{}}', '\n{"Data":"","ParentKeyMeta":0}'):
        app.put(1, body=value, record=value)
        for column in (letters.c.body, letters.c.record):
            with pytest.raises(DecryptionError):
                app.rows(select(column).where(letters.c.id == 1))


def test_a_moved_cell_or_record_is_refused_and_never_text(app: LettersApp) -> None:
    fill(app)
    stored = {row["id"]: row for row in app.stored("slips")}
    moves: list[tuple[int, dict[str, Any], type[DecryptionError]]] = [
        (1, {"body": stored[4]["body"]}, DecryptionError),  # from another owner
        (3, {"body": cell.to_text(bytes(stored[4]["raw"]))}, WrongPlaceError),  # from another column
        (3, {"raw": cell.from_text(stored[4]["body"])}, WrongPlaceError),
        (3, {"body": stored[2]["body"]}, DecryptionError),  # a record of another owner
        (1, {"record": stored[4]["record"]}, DecryptionError),
        (3, {"bound": stored[4]["bound"]}, WrongPlaceError),  # from another row of the same owner
    ]
    for row, values, error in moves:
        app.put(row, **values)
        (name,) = values
        with pytest.raises(error):
            app.rows(select(letters.c[name]).where(letters.c.id == row))


def test_a_form_without_a_window_is_refused(app: LettersApp) -> None:
    fill(app)
    stored = app.stored("slips")
    app.put(4, raw=stored[1]["body"])  # a record
    assert app.rows(select(letters.c.raw).where(letters.c.id == 4)) == [(stored[1]["body"],)]  # text, and nothing else
    app.put(4, bound=SECRET.encode())
    with pytest.raises(MalformedCellError):
        app.rows(select(letters.c.bound).where(letters.c.id == 4))
    padded = encrypted(pad=64, label="slips.raw")
    app.execute(update(table := _raw(padded)).where(table.c.id == 4).values(raw=SECRET, clinic_id=2))
    with pytest.raises(MalformedCellError):  # padded, where nothing of the kind is declared
        app.rows(select(letters.c.raw).where(letters.c.id == 4))


def _raw(type_: Encrypted) -> Table:
    key = Column("id", Integer, primary_key=True, autoincrement=False)
    return Table("slips", MetaData(), key, Column("clinic_id", Integer), Column("raw", type_))


def test_text_that_is_not_utf8_is_refused(app: LettersApp) -> None:
    fill(app)
    app.put(1, raw=b"\xff canary")
    with pytest.raises(MalformedCellError) as caught:
        app.rows(select(letters.c.raw).where(letters.c.id == 1))
    assert caught.value.__cause__ is None
    assert "canary" not in str(caught.value)


def test_a_window_closes_at_the_end_of_its_day(app: LettersApp) -> None:
    app.now = END - 40 * 86400
    fill(app)
    app.now = END - 1
    assert _core(app) == ALL
    app.now = END
    app.cold()
    places = [(1, "body"), (1, "raw"), (1, "record"), (1, "bound"), (2, "body"), (2, "bound"), (3, "bound")]
    for row, name in places:
        with pytest.raises(MalformedCellError, match=LAST_DAY) as caught:
            app.rows(select(letters.c[name]).where(letters.c.id == row))
        assert SECRET not in str(caught.value)
    assert app.rows(select(*COLUMNS).where(letters.c.id == 4)) == [ALL[3]]
    assert not app.counts
    app.execute(update(letters).where(letters.c.id == 1).values(body="canary"))
    assert app.rows(select(letters.c.body).where(letters.c.id == 1)) == [("canary",)]


def test_plaintext_keeps_to_owner_and_scope(app: LettersApp) -> None:
    fill(app)
    one = select(letters.c.body).where(letters.c.id == 1)
    with partition_scope("clinic-2"), pytest.raises(WrongPartitionError):
        app.rows(one)
    app.execute(text("UPDATE slips SET clinic_id = NULL WHERE id = 1"))
    with pytest.raises(OwnerRequiredError):
        app.rows(one)


def test_stored_values_in_a_window_are_not_copied(app: LettersApp) -> None:
    """It would write plaintext into an encrypted column."""
    fill(app)
    names = ["id", "clinic_id", "body"]
    source = select(literal_column("9"), letters.c.clinic_id, letters.c.body).where(letters.c.id == 1)
    for target in (letters, strict):
        with pytest.raises(UsageError, match="reads="):
            app.execute(insert(target).from_select(names, source))


Opener = Callable[[str], str]


@pytest.fixture(scope="module")
def stored_forms(static_kms: StaticKMS, sqlite_suite: str) -> Iterator[tuple[Opener, str, str]]:
    """A function that opens letter bodies of clinic 1, and a cell and a record for it to open."""
    app = LettersApp(sqlite_suite, static_kms)
    create_tables(sqlite_suite, app.new_asherah())
    found: list[str] = []

    def body() -> None:
        fill(app)
        app.execute(insert(letters), {"id": 6, "clinic_id": 1, "body": SECRET})
        found.extend(row["body"] for row in app.stored("slips") if row["id"] in {2, 6})

    app.run(body)
    packed = Packed(cast("Encrypted", letters.c.body.type), "int", "slips.body")
    engine = create_engine(sqlite_suite)
    with app.new_asherah() as asherah:
        asherah.attach(engine)
        attachment = asherah._attachment(engine)
        yield lambda stored: packed.open(attachment, "clinic-1", stored.encode(), b"1"), found[1], found[0]
    engine.dispose()


@given(data=st.data())
def test_nothing_altered_is_read_while_it_looks_like_ciphertext(
    stored_forms: tuple[Opener, str, str], data: st.DataObject
) -> None:
    """In a window, too, what an attacker alters in ciphertext never comes out as another text."""
    open_, *kinds = stored_forms
    stored = data.draw(st.sampled_from(kinds))
    place = data.draw(st.integers(0, len(stored) - 1))
    new = data.draw(st.sampled_from(["", "A", "é", "\n", stored[place] * 2, "\\", '"']))
    altered = stored[:place] + new + stored[place + 1 :]
    try:
        value = open_(altered)
    except DecryptionError:
        return
    is_marked = altered.startswith("sa1:pQEB") or '"ParentKeyMeta"' in altered
    assert value == (SECRET if is_marked else altered)


# Declarations


class Words(TypeDecorator[list[str]]):
    """A decorator over text."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: list[str] | None, dialect: Any) -> str | None:  # noqa: ARG002
        return None if value is None else " ".join(value)

    def process_result_value(self, value: str | None, dialect: Any) -> list[str] | None:  # noqa: ARG002
        return None if value is None else value.split()


class Bytes(TypeDecorator[bytes]):
    impl = LargeBinary
    cache_ok = True


@pytest.mark.parametrize(
    "reads",
    [
        "plaintext",
        "plaintext@",
        "plaintext@2027-6-30",
        "plaintext@2027-02-30",
        "plaintext@20270630",
        "plaintext@2027-W26-3",
        "plaintext@9999-12-31",
        "plaintext@2027-06-30 ",
        "Plaintext@2027-06-30",
        "@2027-06-30",
        "cell@2027-06-30",
        "plaintext@2027-06-30T00:00:00",
        "plaintext@٢٠٢٧-٠٦-٣٠",
        7,
        None,
    ],
)
def test_a_malformed_window_is_refused(reads: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"YYYY|2027-06-30"):
        Encrypted(String(), reads=(reads,))


@pytest.mark.parametrize(
    ("inner", "options"),
    [
        (LargeBinary(), {"reads": PLAINTEXT}),
        (Bytes(), {"reads": PLAINTEXT}),
        (Integer(), {"reads": PLAINTEXT, "storage": "text"}),
        (JSON(), {"reads": PLAINTEXT, "format": "asherah", "storage": "json"}),
        (String(), {"reads": PLAINTEXT, "format": "asherah", "storage": "json"}),
        (String(), {"reads": ("asherah@2027-06-30",), "format": "asherah"}),
        (Interval(), {"reads": ("asherah@2027-06-30",), "storage": "text"}),
        (String(), {"reads": ("unpadded@2027-06-30",)}),
        (String(), {"reads": ("not-row-bound@2027-06-30",), "pad": 16}),
        (String(), {"reads": (*PLAINTEXT, "plaintext@2028-06-30")}),
    ],
)
def test_a_window_that_could_not_decide_is_refused(inner: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Encrypted(inner, **options)


@pytest.mark.parametrize("inner", [String(), Text(), Enum("canary a", "canary b"), Words()])
def test_a_window_keeps_its_declaration(inner: Any) -> None:
    reads = ("plaintext@2027-06-30", "asherah@2028-01-01")
    type_ = Encrypted(inner, owner="o", reads=reads, storage="text")
    assert type_.reads == reads
    assert f"reads={reads!r}" in repr(type_)
    assert "reads" not in repr(Encrypted(String(), owner="o"))
    for other in (copy.copy(type_), copy.deepcopy(type_), pickle.loads(pickle.dumps(type_)), type_.copy()):  # noqa: S301
        assert (other.reads, bool(other.windows), "plaintext" in other.windows) == (reads, True, True)


def test_windows_are_part_of_the_cache_key() -> None:
    keys = {
        Encrypted(String(), reads=reads)._static_cache_key
        for reads in ((), ("plaintext@2027-06-30",), ("plaintext@2027-07-01",), ("asherah@2027-06-30",))
    }
    assert len(keys) == 4


def test_arguments_come_in_the_documented_order() -> None:
    type_ = Encrypted(String(), "o", "t-{}", "l", "cell", ["unpadded@2027-06-30"], "text", None, 16)
    assert (type_.reads, type_.storage, type_.pad) == (("unpadded@2027-06-30",), "text", 16)
    assert repr(type_) == (
        "Encrypted(String(), owner='o', partition='t-{}', label='l', reads=('unpadded@2027-06-30',), storage='text', "
        "pad=16)"
    )


def test_a_variant_has_no_windows() -> None:
    type_ = Encrypted(String(), "o", reads=("unpadded@2027-06-30",), pad=16)
    assert repr(type_.variant()) == "Encrypted(String(), owner='o', pad=16)"
    assert repr(type_.variant(pad=0)) == "Encrypted(String(), owner='o')"


def test_a_decorator_reads_its_own_plaintext(app: LettersApp) -> None:
    fill(app)
    app.put(1, body="canary words")
    words = Encrypted(Words(), "clinic_id", "clinic-{}", "slips.body", reads=(f"plaintext@{LAST_DAY}",), storage="text")
    key = Column("id", Integer, primary_key=True, autoincrement=False)
    table = Table("slips", MetaData(), key, Column("clinic_id", Integer), Column("body", words))
    assert app.rows(select(table.c.body).where(table.c.id == 1)) == [(["canary", "words"],)]


def test_base64_of_the_mark_is_the_prefix_of_every_cell_in_text() -> None:
    assert cell.to_text(b"\xa5\x01\x01" + bytes(3)).startswith("sa1:" + base64.b64encode(b"\xa5\x01\x01").decode())
