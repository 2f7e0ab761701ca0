# SPDX-License-Identifier: Apache-2.0
"""`format="asherah"`: every way to write and read works with data row records as it does with cells."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Table, bindparam, delete, insert, lambda_stmt, select, text, union_all, update
from sqlalchemy.orm import Session, aliased

from sa_asherah import (
    DecryptionError,
    Encrypted,
    KeyNotFoundError,
    MalformedCellError,
    OwnerChangedError,
    OwnerRequiredError,
    Unreadable,
    UnsupportedOperatorError,
    UnsupportedValueError,
    WrongPartitionError,
    partition_scope,
)
from sa_asherah.kms.static import StaticKMS
from tests.orm.models import CANARY
from tests.orm.record_models import COLUMNS, RECORDS, ROWS, RecordsApp, Sheet, copies, others, sheets
from tests.orm.test_upsert import NEW, upsert
from tests.orm.traces import assert_no_traces


@pytest.fixture(params=["sync", pytest.param("async", marks=pytest.mark.long)])
def app(request: pytest.FixtureRequest, suite_url: str, static_kms: StaticKMS) -> RecordsApp:
    """Each database, by its synchronous and its asynchronous driver."""
    return RecordsApp(suite_url, static_kms, is_async=request.param == "async")


def fill(app: RecordsApp) -> None:
    app.execute(insert(sheets), ROWS)


def _objects(app: RecordsApp) -> None:
    app.add(*(Sheet(**row) for row in ROWS))


def _mappings(app: RecordsApp) -> None:
    with app.session() as session:
        session.execute(insert(Sheet), ROWS)
        session.commit()


def _parameters(app: RecordsApp) -> None:
    for row in ROWS:
        app.execute(insert(sheets), row)


def _names(app: RecordsApp) -> None:
    binds: dict[str, Any] = {key: bindparam(f"b_{key}") for key in ROWS[0]}
    app.execute(insert(sheets).values(binds), [{f"b_{key}": value for key, value in row.items()} for row in ROWS])


def _lambda(app: RecordsApp) -> None:
    with app.session() as session:
        session.execute(lambda_stmt(lambda: insert(Sheet)), ROWS)
        session.commit()


def _upsert(app: RecordsApp) -> None:
    app.execute(insert(sheets), {"id": 1, "clinic_id": 2, "words": "canary old", "cell": "canary old"})
    app.execute(upsert(app, dict.fromkeys(("clinic_id", "place", *COLUMNS), NEW), ["id"], entity=sheets), ROWS)


def _bulk_update(app: RecordsApp) -> None:
    app.execute(insert(sheets), [row | {"words": "canary old", "chart": {"canary": 0}} for row in ROWS])
    with app.session() as session:
        session.execute(update(Sheet), [{key: row[key] for key in ("id", "words", "chart")} for row in ROWS])
        session.commit()


def _core_update(app: RecordsApp) -> None:
    app.execute(insert(sheets), [row | {"words": "canary old", "count": 5} for row in ROWS])
    for row in ROWS:
        app.execute(update(sheets).where(sheets.c.id == row["id"]).values(words=row["words"], count=row["count"]))


def _attributes(app: RecordsApp) -> None:
    app.execute(insert(sheets), [row | {"words": "canary old", "scan": b"canary"} for row in ROWS])
    with app.session() as session:
        for row in ROWS:
            sheet = session.get_one(Sheet, row["id"])
            sheet.words, sheet.scan = row["words"], row["scan"]
        session.commit()


def _other_owner(app: RecordsApp) -> None:
    app.execute(insert(sheets), [row | {"clinic_id": 9} for row in ROWS])
    with app.session() as session:
        for row in ROWS:
            session.get_one(Sheet, row["id"]).clinic_id = row["clinic_id"]
        session.commit()


def _cte(app: RecordsApp) -> None:
    if app.dialect != "postgresql":  # the others have no INSERT in a CTE
        _parameters(app)
        return
    for row in ROWS:
        written = insert(sheets).values(row).returning(sheets.c.id).cte()
        app.execute(select(written.c.id))


WRITES: dict[str, Callable[[RecordsApp], object]] = {
    "unit of work": _objects,
    "bulk insert of mappings": _mappings,
    "executemany": fill,
    "one row at a time": _parameters,
    "rows in the statement": lambda app: app.execute(insert(sheets).values(ROWS)),
    "bindparam of other names": _names,
    "lambda": _lambda,
    "upsert": _upsert,
    "bulk update by primary key": _bulk_update,
    "update": _core_update,
    "attributes of loaded rows": _attributes,
    "another owner": _other_owner,
    "cte": _cte,
}


@pytest.mark.parametrize("name", WRITES)
def test_what_is_written_is_a_record_of_the_rows_owner_and_comes_back(app: RecordsApp, name: str) -> None:
    WRITES[name](app)
    assert app.read() == ROWS
    for row in ROWS:
        for column in RECORDS:
            if row[column] is not None:
                found = app.record(row["id"], column)
                assert found.keys() == {"Key", "Data"}
                assert found["Key"]["ParentKeyMeta"]["KeyId"] == f"_IK_clinic-{row['clinic_id']}_records_clinic"
    assert_no_traces(app.engine)


P = aliased(Sheet)
SUB = select(Sheet).subquery()
CTE = select(Sheet.id, Sheet.clinic_id, Sheet.words, Sheet.chart).cte()
READS: dict[str, Callable[[Session], Any]] = {
    "entity": lambda s: [(s.get_one(Sheet, row["id"]).words, s.get_one(Sheet, row["id"]).chart) for row in ROWS],
    "columns": lambda s: s.execute(select(Sheet.words, Sheet.chart).order_by(Sheet.id)).all(),
    "alias": lambda s: s.execute(select(P.words, P.chart).order_by(P.id)).all(),
    "subquery": lambda s: s.execute(select(SUB.c.words, SUB.c.chart).order_by(SUB.c.id)).all(),
    "cte": lambda s: s.execute(select(CTE.c.words, CTE.c.chart).order_by(CTE.c.id)).all(),
    "union": lambda s: [
        row[2:]
        for row in sorted(
            s.execute(
                union_all(
                    select(Sheet.id, Sheet.clinic_id, Sheet.words, Sheet.chart).where(Sheet.id < 3),
                    select(CTE).where(CTE.c.id >= 3),
                )
            )
        )
    ],
    "stream": lambda s: [
        (sheet.words, sheet.chart)
        for sheet in s.scalars(select(Sheet).order_by(Sheet.id).execution_options(yield_per=1)).all()
    ],
}


def test_every_way_to_read(app: RecordsApp) -> None:
    fill(app)
    app.cold()
    expected = [(row["words"], row["chart"]) for row in ROWS]
    for name, read in READS.items():
        with app.session() as session:
            assert [tuple(row) for row in read(session)] == expected, name


def test_returning_gives_what_was_written(app: RecordsApp) -> None:
    if app.dialect == "mariadb":
        statement: Any = insert(sheets).values(ROWS[0]).returning(sheets.c.words, sheets.c.chart)
    else:
        fill(app)
        statement = update(sheets).where(sheets.c.id == 1).values(words="canary 1")
        statement = statement.returning(sheets.c.words, sheets.c.chart)
    with app.engine.begin() as connection:
        assert connection.execute(statement).all() == [("canary 1", ROWS[0]["chart"])]


def test_one_statement_makes_one_data_row_key_for_each_owner(app: RecordsApp) -> None:
    fill(app)
    by_owner: dict[int, set[str]] = {1: set(), 2: set()}
    nonces: list[str] = []
    for row in ROWS:
        for column in RECORDS:
            if row[column] is not None:
                found = app.record(row["id"], column)
                by_owner[row["clinic_id"]].add(json.dumps(found["Key"], sort_keys=True))
                nonces.append(found["Data"][-16:])
    assert [len(keys) for keys in by_owner.values()] == [1, 1]
    assert len(set(nonces)) == len(nonces)
    before = app.record(1)["Key"]["Key"]
    app.execute(update(sheets).where(sheets.c.id == 1).values(words="canary 1"))
    assert app.record(1)["Key"]["Key"] != before


def test_equal_values_look_different(app: RecordsApp) -> None:
    app.execute(insert(sheets), [{"id": n, "clinic_id": 1, "words": CANARY} for n in range(20)])
    assert len({row["words"] for row in app.stored("sheets")}) == 20


# Owners


def test_a_record_moved_to_another_owner_is_refused_before_a_key_is_fetched(app: RecordsApp) -> None:
    fill(app)
    for column in RECORDS:
        app.put(3, column, app.record(1, column))
    for _ in range(2):  # cold, then with both owners' keys in memory
        for column in RECORDS:
            with pytest.raises(DecryptionError, match=r"another owner's.*moved here"):
                app.rows(select(sheets.c[column]).where(sheets.c.id == 3))
        app.rows(select(sheets.c.words, sheets.c.cell).where(sheets.c.id != 3))
    # Without any key, its own owner's values say that the key is gone; the moved ones never get that far.
    with app.engine.begin() as connection:
        connection.execute(text("DELETE FROM encryption_key"))
    app.cold()
    with pytest.raises(DecryptionError, match="another owner's"):
        app.rows(select(sheets.c.words).where(sheets.c.id == 3))
    with pytest.raises(KeyNotFoundError):
        app.rows(select(sheets.c.words).where(sheets.c.id == 1))
    app.execute(delete(sheets))


def test_a_record_relabelled_for_another_owner_is_refused(app: RecordsApp) -> None:
    """The key of the new owner does not open what the old owner's key wrapped."""
    fill(app)
    app.read()
    moved = app.record(1)
    moved["Key"]["ParentKeyMeta"] = app.record(3)["Key"]["ParentKeyMeta"]
    app.put(3, "words", moved)
    for _ in range(2):
        with pytest.raises(DecryptionError, match=r"does not open it.*moved here"):
            app.rows(select(sheets.c.words).where(sheets.c.id == 3))
        app.cold()
    own = app.record(3, "scan")
    app.put(3, "words", own | {"Data": moved["Data"]})
    with pytest.raises(DecryptionError, match="altered"):
        app.rows(select(sheets.c.words).where(sheets.c.id == 3))


def test_within_one_owner_a_record_reads_wherever_it_is_moved(app: RecordsApp) -> None:
    """A limit, stated in the documentation: nothing in a record names table, column or row."""
    fill(app)
    app.put(2, "words", app.record(1, "words"))
    app.put(1, "chart", app.record(1, "count"))
    assert [row["words"] for row in app.read()][:2] == ["canary 1", "canary 1"]
    assert app.read()[0]["chart"] == 7
    app.put(1, "words", app.record(1, "scan"))
    with pytest.raises(MalformedCellError, match="not text"):
        app.read()


def test_a_row_that_is_nobodys_is_refused(app: RecordsApp) -> None:
    fill(app)
    with app.engine.begin() as connection:
        connection.execute(text("UPDATE sheets SET clinic_id = NULL WHERE id = 1"))
    with pytest.raises(OwnerRequiredError):
        app.rows(select(sheets.c.words).where(sheets.c.id == 1))
    with pytest.raises(OwnerRequiredError):
        app.execute(insert(sheets), {"id": 7, "words": "canary"})
    app.execute(insert(sheets), {"id": 7, "words": None})
    assert app.rows(select(sheets.c.words).where(sheets.c.id == 7)) == [(None,)]


def test_the_owner_is_not_written_without_its_records(app: RecordsApp) -> None:
    fill(app)
    with pytest.raises(OwnerChangedError):
        app.execute(update(sheets).where(sheets.c.id == 1).values(clinic_id=2, cell="canary"))
    assert app.read() == ROWS


def test_a_scope_is_a_ceiling_and_names_the_owner_where_the_row_cannot(app: RecordsApp) -> None:
    fill(app)
    app.read()
    with partition_scope("clinic-1"):
        assert app.rows(select(sheets.c.words).where(sheets.c.id == 1)) == [("canary 1",)]
        for query in (select(sheets.c.words).where(sheets.c.id == 3), select(sheets.c.count)):
            with pytest.raises(WrongPartitionError):
                app.rows(query)
        with pytest.raises(WrongPartitionError):
            app.execute(insert(sheets), {"id": 7, "clinic_id": 2, "words": "canary"})
    blind = select(sheets.c.words, sheets.c.chart).where(sheets.c.id == 1).subquery()
    query = select(blind.c.words, blind.c.chart)
    typed = text("SELECT words, chart FROM sheets WHERE id = 1").columns(
        words=sheets.c.words.type.copy(), chart=sheets.c.chart.type.copy()
    )
    with pytest.raises(OwnerRequiredError):
        app.rows(query)
    with partition_scope("clinic-1"):
        assert app.rows(query) == [("canary 1", ROWS[0]["chart"])]
        with pytest.raises(OwnerRequiredError, match="does not tell which column"):
            app.rows(typed)
    named = text("SELECT words, chart FROM sheets WHERE id = 1").columns(
        words=Encrypted(sheets.c.words.type.inner, label="sheets.words", format="asherah"),  # type: ignore[attr-defined]
        chart=Encrypted(sheets.c.chart.type.inner, label="sheets.chart", format="asherah", storage="json"),  # type: ignore[attr-defined]
    )
    with partition_scope("clinic-1"):
        assert app.rows(named) == [("canary 1", ROWS[0]["chart"])]
    with partition_scope("clinic-2"), pytest.raises(DecryptionError, match="another owner's"):
        app.rows(named)


# Damage


def test_a_bad_record_is_marked_and_the_others_are_read(app: RecordsApp) -> None:
    fill(app)
    app.put(1, "words", app.record(3))
    app.put(2, "chart", {"Key": None, "Data": ""})
    app.cold()
    with app.asherah.unreadable("mark"):
        found = app.rows(select(sheets.c.words, sheets.c.chart, sheets.c.count).order_by(sheets.c.id))
    assert [type(value) for value in found[0]] == [Unreadable, dict, int]
    assert [type(value) for value in found[1]] == [str, Unreadable, int]
    assert (found[0][0].label, found[0][0].reason) == ("sheets.words", DecryptionError)
    assert (found[1][1].label, found[1][1].reason) == ("sheets.chart", MalformedCellError)
    with app.asherah.unreadable("mark"), pytest.raises(UnsupportedValueError):
        app.execute(update(sheets).where(sheets.c.id == 1).values(words=found[0][0]))
    with pytest.raises(DecryptionError):
        app.rows(select(sheets.c.words))


def test_records_of_other_writers_are_read_whatever_their_order(app: RecordsApp) -> None:
    fill(app)
    app.read()
    good = app.record(1)
    key, parent = good["Key"], good["Key"]["ParentKeyMeta"]
    backwards = {"Data": good["Data"], "x": [1], "Key": dict(reversed(key.items())) | {"Revoked": False}}
    assert next(iter(backwards["Key"])) != "Created"
    forms = [
        json.dumps(good, indent=2),
        f" {json.dumps(good)}\n",
        json.dumps(good),
        json.dumps(good, separators=(",", ":")),
        json.dumps(backwards),
        json.dumps(good | {"Key": key | {"Created": 0}}),
        json.dumps(good | {"Key": key | {"ParentKeyMeta": dict(reversed(parent.items()))}}),
        json.dumps(good).replace("/", "\\/").replace("_IK", "\\u005fIK"),
    ]
    for form in forms:
        app.put(1, "words", form)
        app.put(1, "count", form)
        for _ in range(2):
            assert app.rows(select(sheets.c.words).where(sheets.c.id == 1)) == [("canary 1",)]
        app.cold()
        assert app.rows(select(sheets.c.words).where(sheets.c.id == 1)) == [("canary 1",)]
        with pytest.raises(MalformedCellError, match="an integer"):
            app.rows(select(sheets.c.count).where(sheets.c.id == 1))


def malformed(good: dict[str, Any]) -> list[str]:
    """Texts near a record that are none."""
    key, parent, data = good["Key"], good["Key"]["ParentKeyMeta"], good["Data"]
    whole = json.dumps(good, separators=(",", ":"))
    parents = [None, [], {}, {"KeyId": parent["KeyId"]}, parent | {"Created": 1.0}, parent | {"Created": True}]
    parents += [parent | {"Created": -1}, parent | {"KeyId": 7}, parent | {"KeyId": ""}, parent | {"KeyId": None}]
    keys = [
        None,
        "",
        [key],
        *(key | {"ParentKeyMeta": each} for each in parents),
        key | {"Created": "1"},
        key | {"Created": 1.5},
    ]
    keys += [{name: key[name] for name in key if name != left_out} for left_out in key]
    keys += [key | {"Key": each} for each in (None, "", key["Key"][:-1], key["Key"] + "=", f" {key['Key']}", "****")]
    altered = [None, "", 7, data[:-1], data + "=", data + "\n", f" {data}", data.replace("=", ""), [data]]
    altered += [data[:-4] + "-_-_"]
    records = [good | {"Key": each} for each in keys] + [good | {"Data": each} for each in altered if each != data]
    texts = [json.dumps(each, separators=(",", ":")) for each in [*records, {"Key": key}, {"Data": data}, [good]]]
    texts += [whole[:-1], whole + "}", whole + whole, "", "null", "sa1:AAAA", "plain text", "\x00", "é"]
    texts += [whole[:-1] + f',"Data":"{data}"}}', whole.replace('"Created"', '"Created":1,"Created"', 1)]
    texts += [f'{whole[:-1]},"x":{"[" * 101}{"]" * 101}}}', f'{whole[:-1]},"x":[{"0," * 1000}0]}}']
    texts += [whole[:-1] + ',"x":NaN}', whole[:-1] + ',"x":1e999}', whole[:-1] + ',"x":"\\ud800"}', "'" + whole + "'"]
    return texts


def test_what_is_no_record_is_refused_with_a_cold_and_with_a_warm_cache(app: RecordsApp) -> None:
    fill(app)
    texts = [each for row in (1, 2) for each in malformed(app.record(row))]
    if app.dialect == "postgresql":
        texts.remove("\x00")
        texts.remove("\x00")
    with app.engine.begin() as connection:
        statement = text("INSERT INTO sheets (id, clinic_id, words) VALUES (:id, 1, :words)")
        connection.execute(statement, [{"id": id_, "words": each} for id_, each in enumerate(texts, 100)])
    bad = select(sheets.c.words).where(sheets.c.id >= 100)
    app.cold()
    for _ in range(2):
        with app.asherah.unreadable("mark"):
            found = [value for (value,) in app.rows(bad)]
        assert {(type(value), value.reason) for value in found} == {(Unreadable, MalformedCellError)}
        assert len(found) == len(texts)
        assert len(app.rows(select(sheets.c.words).where(sheets.c.id < 100))) == len(ROWS)
    with pytest.raises(MalformedCellError, match="not a data row record"):
        app.rows(bad)


# What is refused


def test_ciphertext_is_copied_with_its_owner_and_in_its_own_form_only(app: RecordsApp) -> None:
    fill(app)

    def copy(*columns: Any, to: list[str], table: Table = copies) -> None:
        app.execute(insert(table).from_select(["id", *to], select(sheets.c.id, *columns)))

    copy(sheets.c.clinic_id, sheets.c.words, sheets.c.chart, to=["clinic_id", "words", "chart"])
    found = app.rows(select(copies.c.words, copies.c.chart).order_by(copies.c.id))
    assert found == [(row["words"], row["chart"]) for row in ROWS]
    app.execute(delete(copies))
    for other in others.values():
        with pytest.raises(OwnerChangedError):
            copy(sheets.c.clinic_id, sheets.c.words, to=["clinic_id", "words"], table=other)
    with pytest.raises(OwnerChangedError):
        copy(sheets.c.clinic_id, sheets.c.words, to=["clinic_id", "chart"])
    with pytest.raises(OwnerChangedError):
        copy(sheets.c.words, to=["words"])
    with pytest.raises(OwnerChangedError):
        copy(sheets.c.id.label("clinic_id"), sheets.c.words, to=["clinic_id", "words"])
    assert [app.stored(table.name) for table in (copies, *others.values())] == [[]] * 5


def test_json_storage_offers_no_operators_on_ciphertext(app: RecordsApp) -> None:
    for make in (
        lambda: sheets.c.chart == {"a": 1},
        lambda: sheets.c.words.like("canary%"),
        lambda: sheets.c.chart["Key"],
    ):
        with pytest.raises((UnsupportedOperatorError, NotImplementedError, TypeError)):
            make()
    with pytest.raises(UnsupportedOperatorError):
        app.rows(select(sheets.c.id).order_by(sheets.c.chart))
    fill(app)
    assert app.rows(select(sheets.c.id).where(sheets.c.chart.is_(None)).order_by(sheets.c.id)) == [(3,), (4,)]


def test_values_of_other_types_are_refused(app: RecordsApp) -> None:
    for column, value in (("words", b"canary"), ("scan", "canary"), ("count", True), ("chart", {1, 2})):
        with pytest.raises(UnsupportedValueError):
            app.execute(insert(sheets), {"id": 1, "clinic_id": 1, column: value})
    assert app.stored("sheets") == []
