# SPDX-License-Identifier: Apache-2.0
"""What an `env.py` may do besides: asynchronous drivers, other schemas, several tenants, connections of its own."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from sa_asherah import ConfigurationError, Encrypted
from tests.migrations.site import PLUGINS, Site
from tests.servers.database import async_url

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sa_asherah import Asherah

SSN = [f"{number:03d}-ä" for number in range(20)]
TABLE = """
op.create_table(
    "patients",
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("clinic_id", sa.Integer, nullable=False),
    sa.Column("ssn", sa.Text().with_variant(sa.dialects.mysql.LONGTEXT(), "mysql", "mariadb")),
    sa.Column("note", sa.Text()),
    schema={schema!r},
)
"""
TEXT = 'Encrypted(sa.Text(), owner="clinic_id", label="ssn", storage="text")'
CELL = 'Encrypted(sa.Text(), owner="clinic_id", label="note")'
ROUND = {
    f"""
op.encrypt_column("patients", "ssn", sa.Text(), {TEXT}, schema={{schema!r}})
op.require_encrypted("patients", "ssn", {TEXT}, schema={{schema!r}})
op.validate_encrypted("patients", "ssn", {TEXT}, schema={{schema!r}})
""": f"""
op.allow_plaintext("patients", "ssn", {TEXT}, schema={{schema!r}})
op.decrypt_column("patients", "ssn", {TEXT}, sa.Text(), schema={{schema!r}})
""",
    f"""
op.add_column("patients", sa.Column("copy", {CELL}), schema={{schema!r}})
op.create_copy_triggers("patients", "note", "copy", ["clinic_id"], schema={{schema!r}})
""": """
op.drop_copy_triggers("patients", "note", "copy", schema={schema!r})
op.drop_column("patients", "copy", schema={schema!r})
""",
    f"""
op.encrypt_column("patients", "note", sa.Text(), {CELL}, into="copy", schema={{schema!r}})
op.require_copied("patients", "note", "copy", schema={{schema!r}})
""": f"""
op.decrypt_column("patients", "copy", {CELL}, sa.Text(), into="note", schema={{schema!r}})
""",
}
PLAIN: dict[str, sa.types.TypeEngine[str]] = {"ssn": sa.Text(), "note": sa.Text()}
CELLS: dict[str, sa.types.TypeEngine[str]] = {
    "ssn": Encrypted(sa.Text(), owner="clinic_id", label="ssn", storage="text"),
    "copy": Encrypted(sa.Text(), owner="clinic_id", label="note"),
}


CONFIGURE = "        context.configure(\n            connection"


def begin(site: Site, schema: str | None = None) -> None:
    """Write the revisions that encrypt; run those before."""
    site.write("op.create_asherah_metastore()")
    site.write(TABLE.format(schema=schema))
    site.upgrade()
    for upgrade, downgrade in ROUND.items():
        site.write(upgrade.format(schema=schema), downgrade.format(schema=schema))


def fill(site: Site, table: str = "patients") -> None:
    """Write plaintext as the application did."""
    rows = [{"id": number, "clinic": number % 3, "ssn": ssn} for number, ssn in enumerate(SSN, start=1)]
    site.run(f"INSERT INTO {table} (id, clinic_id, ssn, note) VALUES (:id, :clinic, :ssn, :ssn)", rows)  # noqa: S608


def contents(
    site: Site, types: dict[str, sa.types.TypeEngine[str]], schema: str | None = None
) -> list[tuple[Any, ...]]:
    """Read the rows as an application does that declares these types."""
    columns = [sa.Column("id", sa.Integer, primary_key=True), sa.Column("clinic_id", sa.Integer)]
    encrypted = [sa.Column(name, type_) for name, type_ in types.items()]
    patients = sa.Table("patients", sa.MetaData(), *columns, *encrypted, schema=schema)
    return site.read(sa.select(*(patients.c[name] for name in types)).order_by(patients.c.id))


TRUTH = [(ssn, ssn) for ssn in SSN]


@pytest.fixture
def schema(site: Site) -> Iterator[str]:
    """A schema that is not the default one; on SQLite the name of that one."""
    if site.engine.dialect.name == "sqlite":
        yield "main"
        return
    name = f"{site.engine.url.database}_other"
    site.run(f"CREATE SCHEMA {name}")
    yield name
    site.run(f"DROP SCHEMA {name}" + (" CASCADE" if site.engine.dialect.name == "postgresql" else ""))


def test_tables_of_another_schema_go_there_and_back(site: Site, schema: str) -> None:
    begin(site, schema)
    fill(site, f"{schema}.patients")
    site.upgrade()
    assert contents(site, CELLS, schema) == TRUTH
    site.downgrade("r2")
    assert contents(site, PLAIN, schema) == TRUTH


@pytest.fixture
def async_site(database_url: str, tmp_path: Path, asherah: Asherah) -> Iterator[Site]:
    """A script directory as `alembic init -t async` makes it."""
    with Site(tmp_path / "site", database_url, asherah, "async") as found:
        yield found


def test_an_asynchronous_env_py_goes_there_and_back(async_site: Site) -> None:
    begin(async_site)
    fill(async_site)
    async_site.upgrade()
    assert contents(async_site, CELLS) == TRUTH
    async_site.config.attributes["asherah_engine"] = async_site.engine  # a synchronous driver does the work
    async_site.downgrade("r2")
    assert contents(async_site, PLAIN) == TRUTH


def test_an_engine_that_cannot_do_the_work_is_refused(sqlite_site: Site) -> None:
    begin(sqlite_site)
    fill(sqlite_site)
    engine = create_async_engine(async_url(sqlite_site.url))
    for given, reason in ((engine, "asherah_engine"), (engine.sync_engine, "a synchronous driver")):
        sqlite_site.config.attributes["asherah_engine"] = given  # no greenlet runs a synchronous env.py
        with pytest.raises(ConfigurationError, match=reason):
            sqlite_site.upgrade()
    assert contents(sqlite_site, PLAIN) == TRUTH


@pytest.mark.parametrize("database_url", ["postgresql", "mariadb"], indirect=True)
def test_the_work_is_done_where_env_py_went_and_nowhere_else(site: Site, schema: str) -> None:
    enter = f"SET search_path TO {schema}" if site.engine.dialect.name == "postgresql" else f"USE {schema}"
    begin(site)  # a table of the same name, where every connection begins
    fill(site)
    site.run("DROP TABLE alembic_version")
    lines = f"connection.exec_driver_sql({enter!r}); connection.commit()\n        "
    lines += f"connection.dialect.default_schema_name = {schema!r}\n"  # as Alembic's cookbook says
    site.replace(CONFIGURE, f"        {lines}{CONFIGURE}")
    site.upgrade("r2")
    fill(site, f"{schema}.patients")
    site.upgrade()
    assert contents(site, PLAIN) == TRUTH
    count = "SELECT count(*) FROM {}patients WHERE ssn LIKE 'sa1:%'"
    assert site.rows(count.format("")) == [(0,)]
    assert site.rows(count.format(f"{schema}.")) == [(len(SSN),)]
    site.downgrade("r2")
    assert contents(site, PLAIN, schema) == TRUTH


def test_work_in_another_database_is_no_success(sqlite_site: Site, tmp_path: Path) -> None:
    begin(sqlite_site)
    fill(sqlite_site)
    shutil.copy(str(sqlite_site.engine.url.database), tmp_path / "other.db")
    other = sa.create_engine(f"sqlite:///{tmp_path / 'other.db'}")
    sqlite_site.config.attributes["asherah_engine"] = other
    with pytest.raises(ConfigurationError, match="another database"):
        sqlite_site.upgrade()
    other.dispose()
    assert sqlite_site.rows("SELECT version_num FROM alembic_version") == [("r2",)]
    assert contents(sqlite_site, PLAIN) == TRUTH


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        ("connection.begin()", "in a transaction"),
        ("connection = connection.execution_options(schema_translate_map={'a': 'b'})", "schema_translate_map"),
    ],
    ids=["transaction", "translation"],
)
def test_an_env_py_under_which_it_cannot_work_is_refused(sqlite_site: Site, before: str, reason: str) -> None:
    begin(sqlite_site)
    fill(sqlite_site)
    sqlite_site.replace(CONFIGURE, f"        {before}\n{CONFIGURE}")
    with pytest.raises(ConfigurationError, match=reason):
        sqlite_site.upgrade()
    assert contents(sqlite_site, PLAIN) == TRUTH


def test_keys_that_are_attached_to_the_engine_are_used(sqlite_site: Site) -> None:
    begin(sqlite_site)
    fill(sqlite_site)
    sqlite_site.config.attributes["keys"] = sqlite_site.config.attributes.pop("asherah")
    attach = "config.attributes['keys'].attach(connectable)\n    with connectable.connect()"
    sqlite_site.replace("with connectable.connect()", attach)
    sqlite_site.upgrade()
    assert contents(sqlite_site, CELLS) == TRUTH


def test_autogenerate_looks_into_other_schemas(postgresql_site: Site) -> None:
    site = postgresql_site
    site.run("CREATE SCHEMA other")
    site.replace(PLUGINS, f"{PLUGINS}, include_schemas=True")
    for type_, expected in ((sa.Text(), 1), (CELLS["ssn"], 4), (CELLS["ssn"], 1)):
        metadata = sa.MetaData()
        columns = [sa.Column("id", sa.Integer, primary_key=True), sa.Column("clinic_id", sa.Integer)]
        sa.Table("patients", metadata, *columns, sa.Column("ssn", type_), sa.Column("note", sa.Text), schema="other")
        assert len(site.autogenerate(metadata)) == expected
        site.upgrade()
        if isinstance(type_, sa.Text):
            fill(site, "other.patients")
    found = contents(site, {"ssn": CELLS["ssn"], "note": sa.Text()}, "other")
    assert found == TRUTH
    site.downgrade("-5")
    assert contents(site, PLAIN, "other") == TRUTH
