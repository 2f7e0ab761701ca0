# SPDX-License-Identifier: Apache-2.0
"""SQLite builds a table anew to give it a CHECK: what it had besides, it has afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy.exc import IntegrityError

from sa_asherah.alembic import MigrationError
from tests.migrations.test_operations import ALLOW, REQUIRE

if TYPE_CHECKING:
    from tests.migrations.site import Site

TABLE = """CREATE TABLE patients (
    id INTEGER PRIMARY KEY AUTOINCREMENT, ssn TEXT, name TEXT COLLATE NOCASE, "a ) b" TEXT DEFAULT ')', -- not ) yet
    age INTEGER CHECK (age < 200), weight INTEGER CONSTRAINT heavy CHECK (weight < 900),
    parent INTEGER REFERENCES patients, twice INTEGER AS (2 * age) STORED, UNIQUE (name) /* nor ) here */
) -- end"""
TABLES = (
    TABLE,
    "CREATE TABLE log (ssn TEXT)",
    "CREATE TABLE visits (id INTEGER PRIMARY KEY, patient INTEGER REFERENCES patients ON DELETE CASCADE)",
    "CREATE VIEW adults AS SELECT id FROM patients WHERE age > 17",
    "CREATE UNIQUE INDEX ix_adults ON patients (ssn, upper(name)) WHERE age > 17",
    "CREATE INDEX ix_age ON patients (age)",
    "CREATE TRIGGER written AFTER UPDATE ON patients BEGIN INSERT INTO log VALUES (NEW.age || 'a:b'); END",
    "INSERT INTO patients (id, age, name) VALUES (1, 18, 'Bob'), (7, 1, 'Ann')",
    "DELETE FROM patients WHERE id = 7",
    "INSERT INTO visits VALUES (1, 1)",
)
SCHEMA = "SELECT type, name FROM sqlite_master WHERE name NOT LIKE 'alembic%' AND name NOT LIKE 'sqlite%' ORDER BY name"


def make(site: Site) -> None:
    """Make a table with much around it."""
    for statement in TABLES:
        site.run(statement)


@pytest.mark.parametrize("schema", ["", ', schema="main"'], ids=["default", "named"])
def test_triggers_views_and_checks_without_a_name_are_still_there(sqlite_site: Site, schema: str) -> None:
    site = sqlite_site
    make(site)
    before, declared = site.rows(SCHEMA), declaration(site)
    for statement in (REQUIRE, ALLOW):
        site.write(f"{statement[:-1]}{schema})")
        site.upgrade()
        assert site.rows(SCHEMA) == before
        for damage in ("UPDATE patients SET age = 200", "UPDATE patients SET weight = 900"):
            with pytest.raises(IntegrityError):
                site.run(damage)
        with pytest.raises(IntegrityError):
            site.run("INSERT INTO patients (name) VALUES ('BOB')")
        site.run("UPDATE patients SET age = 19")
        assert site.rows("SELECT id FROM adults") == [(1,)]
        assert site.rows("SELECT id FROM visits") == [(1,)]
    assert site.rows("SELECT ssn FROM log") == [("19a:b",)] * 2
    assert site.rows("SELECT twice FROM patients") == [(38,)]
    site.run("INSERT INTO patients (age) VALUES (2)")
    assert site.rows("SELECT max(id) FROM patients") == [(8,)]  # 7 is not given twice
    assert declaration(site) == declared.replace("TABLE patients", 'TABLE "patients"')


def declaration(site: Site) -> str:
    """Return what SQLite keeps of CREATE TABLE, with single spaces."""
    (statement,) = site.rows("SELECT sql FROM sqlite_master WHERE name = 'patients'")[0]
    return " ".join(statement.split()).replace(" )", ")")


def test_what_refers_to_a_row_is_not_deleted_with_the_old_table(sqlite_site: Site) -> None:
    site = sqlite_site
    make(site)
    site.replace(
        "    with connectable.connect() as connection:\n",
        "    with connectable.connect() as connection:\n"
        "        connection.exec_driver_sql('PRAGMA foreign_keys = ON'); connection.commit()\n",
    )
    site.write(REQUIRE)
    with pytest.raises(MigrationError, match="PRAGMA foreign_keys = OFF"):
        site.upgrade()
    site.run("DROP TABLE visits")
    with pytest.raises(MigrationError, match="PRAGMA foreign_keys = OFF"):  # rows that refer to rows of the same table
        site.upgrade()
    assert site.rows("SELECT id FROM patients") == [(1,)]


def test_a_value_that_the_check_forbids_leaves_everything_as_it_was(sqlite_site: Site) -> None:
    site = sqlite_site
    make(site)
    before = site.rows(SCHEMA)
    site.run("UPDATE patients SET ssn = 'plaintext'")
    site.write("from sa_asherah.alembic.rebuilding import rebuild\nrebuild(op, 'patients', None, 'c', 'ssn IS NULL')")
    with pytest.raises(IntegrityError):
        site.upgrade()
    assert site.rows(SCHEMA) == before
    assert site.rows("SELECT ssn FROM patients") == [("plaintext",)]


@pytest.mark.parametrize(("done", "reason"), [(ALLOW, "has no CHECK"), (f"{REQUIRE}\n{REQUIRE}", "has a CHECK")])
def test_a_check_is_made_once_and_dropped_once(sqlite_site: Site, done: str, reason: str) -> None:
    make(sqlite_site)
    sqlite_site.write(done)
    with pytest.raises(MigrationError, match=reason):
        sqlite_site.upgrade()


def test_without_a_database_there_is_nothing_to_build_it_from(sqlite_site: Site) -> None:
    sqlite_site.write(REQUIRE)
    with pytest.raises(MigrationError, match="--sql"):
        sqlite_site.upgrade_offline()
