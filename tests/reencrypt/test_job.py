# SPDX-License-Identifier: Apache-2.0
"""Jobs on each database: what becomes what, over which keys, and what is never called complete."""

from __future__ import annotations

import logging
import traceback
import uuid
from datetime import datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Column, Integer, String, Table, Text
from sqlalchemy.dialects import mysql

from sa_asherah import Encrypted
from sa_asherah.errors import ConfigurationError, KmsUnavailableError, NotAttachedError, ReencryptionError
from sa_asherah.reencrypt.converter import Converter
from sa_asherah.reencrypt.job import Job, require_finished
from sa_asherah.reencrypt.plan import Change, Plan
from sa_asherah.reencrypt.report import Progress, Report
from tests.reencrypt.scene import ENCRYPTED, LONG_TEXT, NEW, OLD, Scene, between, notes, plan, rows

CELL = "sa1:"


def run(scene: Scene, what: Plan, **options: Any) -> Report:
    settings: dict[str, Any] = {"batch": 7, **options}
    return Job(scene.engine, scene.asherah, what, **settings).run()


def assert_equal(scene: Scene, table: Table, count: int) -> None:
    """Every row reads as what it was."""
    bodies = scene.bodies(table)
    assert len(bodies) == count
    assert all(body == clear for body, clear in bodies)


def assert_finished(scene: Scene, name: str) -> None:
    with scene.engine.connect() as connection:
        require_finished(connection, name)


def test_plaintext_becomes_cells_in_place(scene: Scene) -> None:
    scene.fill(OLD, rows(100))
    scene.sql("UPDATE notes SET body = NULL, clear = NULL WHERE id = 50")
    scene.sql("UPDATE notes SET body = :long, clear = :long WHERE id = 51", long="é" * 9000)
    scene.sql("UPDATE notes SET body = '', clear = '' WHERE id = 52")
    report = run(scene, plan(), workers=2)
    assert (report.found, report.converted, report.already, report.left) == (99, 99, 0, 0)
    assert report.is_complete
    assert report.keys_before == {"plaintext": 99}
    assert sum(report.keys_after.values()) == 99
    assert "plaintext" not in report.keys_after
    assert_equal(scene, NEW, 100)
    assert all(stored is None or stored.startswith(CELL) for stored in scene.stored())
    assert_finished(scene, report.name)
    again = run(scene, plan())
    assert (again.already, again.converted, again.passes, again.is_complete) == (99, 0, 1, True)
    verified = Job(scene.engine, scene.asherah, plan()).verify()
    assert (verified.found, verified.already, verified.is_complete) == (99, 99, True)


KEYS: dict[str, tuple[list[Any], Any]] = {
    "composite": ([Integer(), String(20)], lambda n: (n // 10, "abcdefghij"[n % 10])),
    "uuid": ([sa.Uuid()], lambda n: (uuid.uuid5(uuid.NAMESPACE_OID, str(n)),)),
    "string": ([String(20)], lambda n: (f"{'äÄaA'[n % 4]} {n * 7919 % 101}",)),
    "datetime": (
        [sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")],
        lambda n: (datetime(2026, 1, 1) + timedelta(microseconds=n * 7919 % 101),),  # noqa: DTZ001 -- naive
    ),
}


@pytest.mark.parametrize("kind", KEYS)
def test_any_primary_key_serves(scene: Scene, kind: str) -> None:
    types, make = KEYS[kind]

    def table(body: Any) -> Table:
        key = [Column(f"k{n}", type_, primary_key=True, autoincrement=False) for n, type_ in enumerate(types)]
        return notes(body, key=key)

    old, new = table(LONG_TEXT), table(ENCRYPTED)
    names = [f"k{n}" for n in range(len(types))]
    scene.fill(old, [row | dict(zip(names, make(n), strict=True)) for n, row in enumerate(rows(60))])
    report = run(scene, Plan(new, [Change("body", ENCRYPTED, LONG_TEXT)]), batch=3)
    assert (report.converted, report.is_complete) == (60, True)
    assert_equal(scene, new, 60)


def encrypted(**arguments: Any) -> Encrypted:
    settings: dict[str, Any] = {"owner": "tenant", "label": "notes.body", "storage": "text", **arguments}
    return Encrypted(Text(), **settings)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (encrypted(label="notes.memo"), encrypted()),
        (encrypted(), encrypted(owner="doctor", partition="doctor-{}")),
        (encrypted(partition="old-{}"), encrypted()),
        (encrypted(format="asherah"), encrypted()),
        (encrypted(), encrypted(format="asherah")),
        (encrypted(), encrypted(pad=64)),
        (encrypted(), LONG_TEXT),
    ],
    ids=["label", "owner column", "partition", "record to cell", "cell to record", "padded", "decrypted"],
)
def test_what_was_encrypted_becomes_something_else_and_back(scene: Scene, source: Any, target: Any) -> None:
    doctor = {"doctor": "dr who"}
    before, after = (notes(type_, Column("doctor", String(20))) for type_ in (source, target))
    scene.fill(before, [row | doctor for row in rows(20)])
    report = run(scene, Plan(after, [Change("body", target, source)], name="there"))
    assert (report.converted, report.is_complete) == (20, True)
    assert_equal(scene, after, 20)
    if isinstance(target, Encrypted):
        back = run(scene, Plan(before, [Change("body", source, target)], name="back"))
        assert (back.converted, back.is_complete) == (20, True)
        assert_equal(scene, before, 20)
    else:
        assert sorted(scene.stored()) == sorted(row["body"] for row in rows(20))


def test_cells_come_under_the_newest_key(scene: Scene) -> None:
    scene.fill(NEW, rows(20))
    assert run(scene, Plan.of(NEW)).converted == 0
    later = Scene(scene.url, clock=lambda: datetime.now().timestamp() + 200 * 86400)  # noqa: DTZ005 -- seconds
    try:
        report = run(later, Plan.of(NEW))
        assert (report.converted, report.is_complete) == (20, True)
        assert set(report.keys_before).isdisjoint(report.keys_after)
        assert_equal(later, NEW, 20)
    finally:
        later.close()


def test_another_column_takes_bytes_and_keeps_what_old_writers_change(scene: Scene) -> None:
    def table(*others: Column[Any]) -> Table:
        return notes(LONG_TEXT, Column("number", Integer), *others)

    secret = Encrypted(Text(), owner="tenant", label="notes.secret")
    digits = Encrypted(Integer(), owner="tenant", label="notes.digits")
    new = table(Column("secret", secret), Column("digits", digits))
    scene.fill(new, [row | {"number": n} for n, row in enumerate(rows(30))])
    what = Plan(new, [Change("body", secret, LONG_TEXT, into="secret"), Change("number", digits, Integer(), "digits")])
    assert run(scene, what).converted == 30
    scene.sql("UPDATE notes SET body = 'changed', number = 99 WHERE id = 7")
    again = run(scene, what)
    assert (again.already, again.converted, again.is_complete) == (29, 1, True)
    with scene.engine.connect() as connection:
        for row in connection.execute(sa.select(new)):
            assert (row.secret, row.digits) == (row.body, row.number)


def test_a_value_that_old_code_emptied_does_not_come_back_from_its_copy(scene: Scene) -> None:
    secret = Encrypted(Text(), owner="tenant", label="notes.secret")
    digits = Encrypted(Integer(), owner="tenant", label="notes.digits", format="asherah")
    new = notes(LONG_TEXT, Column("number", Integer), Column("secret", secret), Column("digits", digits))
    scene.fill(new, [row | {"number": n} for n, row in enumerate(rows(9))])
    body, number = Change("body", secret, LONG_TEXT, "secret"), Change("number", digits, Integer(), "digits")
    assert run(scene, Plan(new, [body, number])).is_complete
    scene.sql("UPDATE notes SET body = NULL WHERE id IN (3, 4)")
    scene.sql("UPDATE notes SET number = NULL WHERE id = 5")
    for change, left in ((body, 2), (number, 1)):
        what = Plan(new, [change])
        report = run(scene, what)
        assert (report.converted, report.left, report.is_complete) == (0, left, False)
        assert Job(scene.engine, scene.asherah, what).verify().left == left
        with scene.engine.connect() as connection, pytest.raises(ReencryptionError, match=f"{left} rows are left"):
            require_finished(connection, report.name)
    scene.sql("UPDATE notes SET secret = NULL WHERE body IS NULL")
    scene.sql("UPDATE notes SET digits = NULL WHERE number IS NULL")
    assert run(scene, Plan(new, [body, number])).is_complete


def test_what_code_moved_to_the_new_column_stays_there(scene: Scene) -> None:
    secret = Encrypted(Text(), owner="tenant", label="notes.secret")
    new = notes(LONG_TEXT, Column("secret", secret))
    scene.fill(new, rows(9))
    what = Plan(new, [Change("body", secret, LONG_TEXT, "secret", moved=True)])
    assert run(scene, what).is_complete
    with scene.engine.begin() as connection:
        connection.execute(new.update().where(new.c.id == 3).values(body=None, secret="moved"))
        connection.execute(new.insert().values(id=10, tenant="tenant 0", secret="added"))
    report = run(scene, what)
    assert (report.converted, report.left, report.is_complete) == (0, 0, True)
    with scene.engine.connect() as connection:
        found = connection.execute(sa.select(new.c.secret).where(new.c.body.is_(None)).order_by(new.c.id))
        assert list(found.scalars()) == ["moved", "added"]


def test_an_enum_declared_as_text_is_no_primary_key_to_page_by(mariadb_url: str) -> None:
    scene = Scene(mariadb_url)
    wards = mysql.ENUM("surgery", "children", "maternity")

    def table(ward: Any, body: Any) -> Table:
        key = [Column("ward", ward, primary_key=True), Column("id", Integer, primary_key=True, autoincrement=False)]
        return notes(body, key=key)

    names = wards.enums
    scene.fill(table(wards, LONG_TEXT), [row | {"id": n, "ward": names[n % 3]} for n, row in enumerate(rows(9))])
    for type_, is_right in ((String(20), False), (wards, True), (sa.Enum(*names), True)):
        new = table(type_, ENCRYPTED)
        job = Job(scene.engine, scene.asherah, Plan(new, [Change("body", ENCRYPTED, LONG_TEXT)]), batch=2)
        for work in (job.dry_run, job.estimate, job.verify, job.run):
            if is_right:
                work()
            else:
                with pytest.raises(ConfigurationError, match="is an ENUM"):
                    work()
    assert_equal(scene, table(wards, ENCRYPTED), 9)
    scene.close()


def test_a_writer_between_reading_and_swapping_is_never_overwritten(scene: Scene) -> None:
    scene.fill(OLD, rows(10))

    def act() -> None:
        scene.sql("UPDATE notes SET body = 'NOTE 1 É', clear = 'NOTE 1 É' WHERE id = 2")
        scene.sql("UPDATE notes SET body = 'note 2 é ', clear = 'note 2 é ' WHERE id = 3")
        scene.sql("UPDATE notes SET tenant = 'TENANT 0' WHERE id = 4")
        scene.sql("DELETE FROM notes WHERE id = 5")
        scene.sql("UPDATE notes SET body = NULL, clear = NULL WHERE id = 6")

    with between(Converter, act):
        report = run(scene, plan(), batch=100)
    assert report.skipped_by_writers == 5
    assert (report.found, report.left, report.is_complete) == (8, 0, True)
    assert_equal(scene, NEW, 9)


def test_what_cannot_be_opened_is_named_and_the_rest_goes_on(scene: Scene) -> None:
    scene.fill(OLD, rows(30))
    scene.sql("UPDATE notes SET body = :shaped WHERE id = 5", shaped="sa1:pQEBAA" + "A" * 200)
    scene.sql("UPDATE notes SET tenant = NULL WHERE id = 6")
    looked = Job(scene.engine, scene.asherah, plan()).dry_run()
    assert (looked.found, looked.left, looked.quarantined_rows, looked.is_complete) == (30, 28, 2, False)
    report = run(scene, plan())
    assert (report.converted, report.quarantined_rows, report.left) == (28, 2, 0)
    assert not report.is_complete
    assert sorted(each.primary_key for each in report.quarantined) == ["[5]", "[6]"]
    assert all("Error: " in each.reason and "AAAA" not in each.reason for each in report.quarantined)
    with scene.engine.connect() as connection, pytest.raises(ReencryptionError, match="2 have values that cannot"):
        require_finished(connection, report.name)
    scene.sql("DELETE FROM notes WHERE id IN (5, 6)")
    assert run(scene, plan()).is_complete
    assert_finished(scene, report.name)


def test_a_trigger_that_rewrites_values_is_not_taken_for_success(scene: Scene) -> None:
    scene.fill(OLD, rows(10))
    with scene.engine.begin() as connection:
        for statement in TRIGGERS[scene.kind]:
            connection.exec_driver_sql(statement)
    report = run(scene, plan())
    assert not report.is_complete
    assert report.left or report.quarantined_rows
    with scene.engine.connect() as connection, pytest.raises(ReencryptionError, match="is not complete"):
        require_finished(connection, report.name)


_BEFORE = "CREATE TRIGGER rewriting BEFORE UPDATE ON notes FOR EACH ROW "
_UPPER = "UPDATE notes SET body = upper(NEW.body) WHERE id = NEW.id"
_FUNCTION = "CREATE FUNCTION rewrite() RETURNS trigger LANGUAGE plpgsql AS "
TRIGGERS = {
    "sqlite": [
        "CREATE TRIGGER rewriting AFTER UPDATE ON notes WHEN NEW.body LIKE 'sa1:%' BEGIN " + _UPPER + "; END",
    ],
    "postgresql": [
        _FUNCTION + "$$ BEGIN NEW.body := upper(NEW.body); RETURN NEW; END $$",
        _BEFORE + "EXECUTE FUNCTION rewrite()",
    ],
    "mysql": [_BEFORE + "SET NEW.body = upper(NEW.body)"],
    "mariadb": [_BEFORE + "SET NEW.body = upper(NEW.body)"],
}


def test_a_permanent_old_writer_does_not_keep_it_from_ending_with_an_honest_count(scene: Scene) -> None:
    scene.fill(OLD, rows(10))
    numbers = iter(range(1000))

    def write(progress: Progress) -> None:
        if progress.kind == "convert":
            scene.sql(
                "INSERT INTO notes (tenant, clear, body) VALUES ('tenant 0', :text, :text)",
                text=f"late {next(numbers)}",
            )

    report = run(scene, plan(), passes=2, progress=write)
    plain = sum(not stored.startswith(CELL) for stored in scene.stored())
    assert (report.passes, report.left, report.is_complete) == (3, plain, False)
    assert plain
    assert run(scene, plan()).is_complete
    assert all(body == clear for body, clear in scene.bodies(NEW))


def test_nobody_who_adds_rows_as_fast_as_they_are_converted_outruns_a_pass(scene: Scene) -> None:
    scene.fill(OLD, rows(10))
    pages: list[str] = []

    def write(progress: Progress) -> None:
        pages.append(progress.kind)
        assert len(pages) < 50, "a pass has no end"
        with scene.engine.begin() as connection:
            connection.execute(OLD.insert(), [{"tenant": "tenant 0", "clear": "late", "body": "late"}] * 5)

    report = run(scene, plan(), passes=2, batch=5, progress=write)
    assert (report.passes, report.is_complete) == (3, False)
    assert report.left == sum(not stored.startswith(CELL) for stored in scene.stored())
    assert run(scene, plan()).is_complete
    assert all(body == clear for body, clear in scene.bodies(NEW))


def test_what_an_old_writer_adds_behind_the_last_page_is_left(scene: Scene) -> None:
    scene.fill(NEW, [row | {"id": 10 * n + 10} for n, row in enumerate(rows(10))])

    def write(_: Progress) -> None:
        number = scene.sql("SELECT min(id) FROM notes")[0][0] - 1
        scene.sql("INSERT INTO notes VALUES (:number, 'tenant 0', 'late', 'late')", number=number)

    report = run(scene, plan(), passes=1, batch=100, progress=write)
    assert (report.passes, report.converted, report.left, report.is_complete) == (2, 0, 2, False)
    with scene.engine.connect() as connection, pytest.raises(ReencryptionError, match="2 rows are left"):
        require_finished(connection, report.name)
    again = run(scene, plan())
    assert (again.converted, again.is_complete) == (2, True)


def test_a_row_of_which_one_value_cannot_be_opened_is_counted_once(scene: Scene) -> None:
    """Its other value is sealed, or not if a writer was faster; in both cases the row is quarantined."""
    memo = Encrypted(Text(), owner="tenant", label="notes.memo", storage="text")
    old, new = (notes(body, Column("memo", type_)) for body, type_ in ((LONG_TEXT, LONG_TEXT), (ENCRYPTED, memo)))
    scene.fill(old, [row | {"memo": "memo"} for row in rows(6)])
    scene.sql("UPDATE notes SET memo = :shaped WHERE id IN (1, 2)", shaped="sa1:pQEBAA" + "A" * 200)

    def act() -> None:
        scene.sql("UPDATE notes SET body = 'changed', clear = 'changed' WHERE id IN (2, 3)")

    what = Plan(new, [Change("body", ENCRYPTED, LONG_TEXT), Change("memo", memo, LONG_TEXT)])
    with between(Converter, act):
        report = run(scene, what, batch=100)
    assert (report.found, report.converted, report.skipped_by_writers, report.quarantined_rows) == (6, 4, 2, 2)
    assert (report.left, report.is_complete) == (0, False)
    assert all(body == clear for body, clear in scene.bodies(notes(ENCRYPTED)))


def test_text_that_is_not_utf8_is_named_and_the_rest_goes_on(sqlite_scene: Scene) -> None:
    """SQLite stores it, and its driver refuses to read it."""
    sqlite_scene.fill(OLD, rows(5))
    sqlite_scene.sql("UPDATE notes SET body = CAST(x'66e9' AS TEXT) WHERE id = 3")
    sqlite_scene.sql("UPDATE notes SET tenant = CAST(x'66e9' AS TEXT) WHERE id = 4")
    report = run(sqlite_scene, plan())
    assert (report.found, report.converted, report.quarantined_rows, report.is_complete) == (5, 3, 2, False)
    assert [each.primary_key for each in report.quarantined] == ["[3]", "[4]"]
    stored = sqlite_scene.sql("SELECT hex(CAST(body AS BLOB)), typeof(body) FROM notes WHERE id = 3")
    assert stored == [("66E9", "text")]
    assert Job(sqlite_scene.engine, sqlite_scene.asherah, plan()).verify().quarantined_rows == 2


def test_a_primary_key_that_the_driver_cannot_read_stops_a_job(sqlite_scene: Scene) -> None:
    table = notes(ENCRYPTED, key=[Column("name", String(20), primary_key=True)])
    what = Plan(table, [Change("body", ENCRYPTED, LONG_TEXT)])
    old = notes(LONG_TEXT, key=[Column("name", String(20), primary_key=True)])
    sqlite_scene.fill(old, [row | {"name": str(n)} for n, row in enumerate(rows(9))])
    sqlite_scene.sql("UPDATE notes SET name = CAST(x'35e9' AS TEXT) WHERE name = '5'")
    with pytest.raises(ReencryptionError, match="it goes on where it stopped"):
        run(sqlite_scene, what, batch=2)
    sqlite_scene.sql("UPDATE notes SET name = '5' WHERE name NOT IN ('0', '1', '2', '3', '4', '6', '7', '8')")
    assert run(sqlite_scene, what).is_complete
    assert_equal(sqlite_scene, table, 9)


def test_a_dry_run_and_an_estimate_write_nothing(scene: Scene) -> None:
    scene.fill(OLD, rows(50))
    before = scene.stored(), sa.inspect(scene.engine).get_table_names()
    job = Job(scene.engine, scene.asherah, plan(), batch=10)
    report = job.dry_run()
    assert (report.found, report.left, report.converted, report.is_complete) == (50, 50, 0, False)
    estimate = job.estimate()
    assert (estimate.rows, estimate.to_convert, estimate.unreadable) == (50, 50, 0)
    assert estimate.seconds > 0
    assert job.verify(0.3).left
    assert (scene.stored(), sa.inspect(scene.engine).get_table_names()) == before
    assert scene.sql("SELECT count(*) FROM encryption_key")[0][0] == 0


def test_an_empty_table_is_complete(scene: Scene) -> None:
    scene.fill(OLD, [])
    report = run(scene, plan())
    assert (report.found, report.is_complete) == (0, True)


def test_values_that_the_pages_do_not_find_are_left(sqlite_scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    sqlite_scene.fill(OLD, rows(9))
    monkeypatch.setattr(Converter, "read", lambda *_: [])
    report = run(sqlite_scene, plan())
    assert (report.found, report.left, report.is_complete) == (0, 9, False)
    assert not Job(sqlite_scene.engine, sqlite_scene.asherah, plan()).verify().is_complete


def test_two_plans_of_one_name_do_not_mix(sqlite_scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    sqlite_scene.fill(OLD, rows(9))
    with monkeypatch.context() as patch:
        patch.setattr(Converter, "treat", _unavailable)
        with pytest.raises(KmsUnavailableError):
            run(sqlite_scene, plan(name="one"))
    with sqlite_scene.engine.connect() as connection, pytest.raises(ReencryptionError, match="has not ended"):
        require_finished(connection, "one")
    other = encrypted(partition="other-{}")
    with pytest.raises(ReencryptionError, match="another plan"):
        run(sqlite_scene, Plan(notes(other), [Change("body", other, LONG_TEXT)], name="one"))
    assert run(sqlite_scene, plan(name="one")).is_complete


def _unavailable(*_: object, **__: object) -> None:
    raise KmsUnavailableError("the key service is away")


def test_no_error_log_or_row_of_progress_shows_a_value(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    canary = "canary of the patient"
    scene.fill(OLD, [{"tenant": "a", "clear": "", "body": canary}])
    check = "CHECK (length(body) < 40)" if scene.kind == "sqlite" else "CHECK (char_length(body) < 40)"
    if scene.kind == "sqlite":
        scene.sql("DROP TABLE notes")
        scene.sql(f"CREATE TABLE notes (id INTEGER PRIMARY KEY, tenant TEXT, clear TEXT, body TEXT {check})")
        scene.sql("INSERT INTO notes VALUES (1, 'a', '', :canary)", canary=canary)
    else:
        scene.sql(f"ALTER TABLE notes ADD CONSTRAINT short {check}")
    caplog.set_level(logging.DEBUG)
    caplog.clear()
    with pytest.raises(ReencryptionError) as caught:
        run(scene, plan())
    told = "".join(traceback.format_exception(caught.value)) + repr(caught.value.__context__) + caplog.text
    assert canary not in told
    assert CELL not in told
    shown = [str(row) for table in ("asherah_job", "asherah_range") for row in scene.sql(f"SELECT * FROM {table}")]  # noqa: S608
    assert canary not in "".join(shown)


def test_a_job_refuses_what_cannot_work(sqlite_scene: Scene) -> None:
    engine, keys = sqlite_scene.engine, sqlite_scene.asherah
    wrong: dict[str, Any] = {"batch": 0, "workers": 0, "passes": 0, "lease": timedelta(0), "rows_per_second": 0}
    for name, value in wrong.items():
        with pytest.raises(ConfigurationError):
            Job(engine, keys, plan(), **{name: value})
    memory = sa.create_engine("sqlite://")
    with pytest.raises(NotAttachedError):
        Job(memory, keys, plan())
    keys.attach(memory)
    with pytest.raises(ConfigurationError, match="workers=1"):
        Job(memory, keys, plan(), workers=2)
    memory.dispose()
    for sample in (0.0, 1.5):
        with pytest.raises(ConfigurationError, match="sample="):
            Job(engine, keys, plan()).verify(sample)
    with engine.connect() as connection, pytest.raises(ReencryptionError, match="run it first"):
        require_finished(connection, "never begun")


def test_memory_databases_work_too() -> None:
    scene = Scene("sqlite://")
    scene.fill(OLD, rows(20))
    assert run(scene, plan()).is_complete
    assert_equal(scene, NEW, 20)
    scene.close()


def test_a_report_is_json_without_values(sqlite_scene: Scene) -> None:
    sqlite_scene.fill(OLD, rows(20))
    said: list[Progress] = []
    report = run(sqlite_scene, plan(), progress=said.append)
    assert '"is_complete": true' in report.to_json()
    assert "note" not in report.to_json().replace(report.name, "").replace('"notes"', "")
    assert [point.counts["found"] for point in report.timeline][-1] == 20
    assert {progress.number for progress in said} == {1, 2}
