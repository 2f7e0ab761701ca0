# SPDX-License-Identifier: Apache-2.0
"""The operations of hand-written migrations: what they do, what they refuse, and whose keys they use."""

from __future__ import annotations

import os
import uuid
from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from alembic.operations import MigrateOperation
from sqlalchemy.exc import DBAPIError

from sa_asherah import ConfigurationError, Encrypted
from sa_asherah.alembic import MigrationError
from sa_asherah.alembic.conversion import Conversion
from sa_asherah.alembic.copying import CreateCopyTriggersOp, DropCopyTriggersOp, RequireCopiedOp
from sa_asherah.alembic.gate import AllowPlaintextOp, RequireEncryptedOp, ValidateEncryptedOp
from sa_asherah.alembic.metastore import CreateAsherahMetastoreOp
from tests.migrations.site import ENTRY, ENVIRONMENT, GROUP, MASTER_KEY, PROJECT

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.migrations.site import Site

TABLE = """
op.create_asherah_metastore()
op.create_table(
    "patients",
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("clinic_id", sa.Uuid, nullable=False),
    sa.Column("ssn", sa.Text().with_variant(sa.dialects.mysql.LONGTEXT(), "mysql", "mariadb")),
)
"""
DROP = 'op.drop_table("patients")\nop.drop_asherah_metastore()'
CLINICS = [uuid.UUID(int=number) for number in (7, 8)]
SSN = [f"{number:03d}-ä" for number in range(30)]
TEXT = 'Encrypted(sa.String(), owner="clinic_id", storage="text")'
ENCRYPT = f'op.encrypt_column("patients", "ssn", sa.String(), {TEXT}, types={{"clinic_id": sa.Uuid()}})'
DECRYPT = f'op.decrypt_column("patients", "ssn", {TEXT}, sa.String(), types={{"clinic_id": sa.Uuid()}})'
MOVED = TEXT.replace('owner="clinic_id"', 'owner="clinic_id", partition="clinic-{}", label="ssn"')
MOVE = f'op.reencrypt_column("patients", "ssn", {TEXT}, {MOVED}, types={{"clinic_id": sa.Uuid()}})'
MOVE_BACK = f'op.reencrypt_column("patients", "ssn", {MOVED}, {TEXT}, types={{"clinic_id": sa.Uuid()}})'
REQUIRE = f'op.require_encrypted("patients", "ssn", {TEXT})'
ALLOW = f'op.allow_plaintext("patients", "ssn", {TEXT})'


def declared(type_: sa.types.TypeEngine[str]) -> sa.Table:
    """Declare the table as the application does."""
    columns = [sa.Column("id", sa.Integer, primary_key=True), sa.Column("clinic_id", sa.Uuid, nullable=False)]
    return sa.Table("patients", sa.MetaData(), *columns, sa.Column("ssn", type_))


PLAIN = declared(sa.String())
CELLS = declared(Encrypted(sa.String(), owner="clinic_id", storage="text"))


def start(site: Site) -> None:
    """Create the table and fill it."""
    site.write(TABLE, DROP)
    site.upgrade()
    with site.engine.begin() as connection:
        rows = [{"id": n, "clinic_id": CLINICS[n % 2], "ssn": ssn} for n, ssn in enumerate(SSN, start=1)]
        connection.execute(PLAIN.insert(), rows)


def contents(site: Site, table: sa.Table) -> list[str]:
    """Read the rows as the application does."""
    return [ssn for (ssn,) in site.read(sa.select(table.c.ssn).order_by(table.c.id))]


def version(site: Site) -> str:
    """Return the revision that the database is at."""
    return str(site.rows("SELECT version_num FROM alembic_version")[0][0])


def test_every_step_there_and_back_keeps_every_value(site: Site) -> None:
    start(site)
    site.write(ENCRYPT, DECRYPT)
    site.write(MOVE, MOVE_BACK)
    site.write(REQUIRE, ALLOW)
    site.write(REQUIRE.replace("require", "validate"))
    other = Encrypted(sa.String(), owner="clinic_id", partition="clinic-{}", label="ssn", storage="text")
    states = [PLAIN, CELLS, declared(other), declared(other), declared(other)]
    for state in states[1:]:
        site.upgrade("+1")
        assert contents(site, state) == SSN
        assert all(str(value).startswith("sa1:") for (value,) in site.rows("SELECT ssn FROM patients"))
    for state in reversed(states[:-1]):
        site.downgrade("-1")
        assert contents(site, state) == SSN
    assert site.rows("SELECT ssn FROM patients ORDER BY id") == [(ssn,) for ssn in SSN]
    site.upgrade()
    assert contents(site, states[-1]) == SSN
    site.downgrade("r1")
    assert contents(site, PLAIN) == SSN


def test_behind_the_gate_nobody_stores_plaintext(site: Site) -> None:
    start(site)
    site.write(ENCRYPT)
    site.write(REQUIRE, ALLOW)
    site.upgrade()
    with pytest.raises(DBAPIError):
        site.run("UPDATE patients SET ssn = 'plaintext of an older program, long enough' WHERE id = 1")
    site.run("UPDATE patients SET ssn = NULL WHERE id = 1")
    site.downgrade("-1")
    site.run("UPDATE patients SET ssn = 'plaintext' WHERE id = 1")
    with pytest.raises(MigrationError, match="1 values are no ciphertext"):
        site.upgrade()


def test_a_value_that_cannot_be_read_fails_the_migration_and_stops_no_other(site: Site) -> None:
    start(site)
    site.write(ENCRYPT)
    site.upgrade()
    stored = dict(site.rows("SELECT id, ssn FROM patients"))
    # A cell of another row's owner: it must neither pass for plaintext nor for this row's value.
    site.run("UPDATE patients SET ssn = :cell WHERE id = 1", {"cell": stored[2]})
    site.run("UPDATE patients SET ssn = :ssn WHERE id = 3", {"ssn": SSN[2]})
    site.write(ENCRYPT)
    with pytest.raises(MigrationError, match="1 values cannot be read") as caught:
        site.upgrade()
    assert stored[2] not in str(caught.value)
    assert "primary key" in str(caught.value)
    assert version(site) == "r2"
    assert str(site.rows("SELECT ssn FROM patients WHERE id = 3")[0][0]).startswith("sa1:")
    site.write(REQUIRE)
    site.run("UPDATE patients SET ssn = :cell WHERE id = 1", {"cell": stored[1]})
    site.upgrade()
    assert contents(site, CELLS) == SSN


def test_the_gate_looks_at_every_conversion_of_the_column(sqlite_site: Site) -> None:
    site = sqlite_site
    start(site)
    site.write(ENCRYPT)
    site.upgrade()
    stored = dict(site.rows("SELECT id, ssn FROM patients"))
    site.run("UPDATE patients SET ssn = :cell WHERE id = 1", {"cell": stored[2]})  # no plaintext, and not readable
    site.write(f"try:\n    {MOVE}\nexcept Exception:\n    pass")
    site.write(REQUIRE)
    with pytest.raises(MigrationError, match=r"'reencrypt patients\.ssn' is not complete.*op\.reencrypt_column again"):
        site.upgrade()
    site.run("UPDATE patients SET ssn = :cell WHERE id = 1", {"cell": stored[1]})
    site.downgrade("r2")
    site.upgrade()
    assert version(site) == "r4"


def test_the_environment_names_the_keys_where_env_py_does_not(
    sqlite_site: Site, monkeypatch: pytest.MonkeyPatch, static_key_warning: Callable[[], None]
) -> None:
    start(sqlite_site)
    sqlite_site.write(ENCRYPT)
    del sqlite_site.config.attributes["asherah"]
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigurationError, match=r'SERVICE_NAME.*config\.attributes\["asherah"\]'):
        sqlite_site.upgrade()
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    static_key_warning()
    sqlite_site.upgrade()
    assert contents(sqlite_site, CELLS) == SSN
    scripts = [path.read_text(encoding="utf-8") for path in sqlite_site.folder.rglob("*.py")]
    assert not any(MASTER_KEY in script for script in scripts)


REFUSED = {
    'op.encrypt_column("patient", "ssn", sa.String(), Encrypted(sa.String(), owner="clinic_id"))': "there is no table",
    'op.encrypt_column("patients", "sn", sa.String(), Encrypted(sa.String(), owner="clinic_id"))': "has no column 'sn'",
    f'op.encrypt_column("patients", "ssn", sa.String(), {TEXT}, into="copy")': "op.create_copy_triggers",
    f'op.encrypt_column("patients", "code", sa.String(), {TEXT})': "the server's default",
    'op.encrypt_column("patients", "ssn", sa.String(), Encrypted(sa.String(), owner="clinic_id"), types={"clinic_id": '
    "sa.Uuid()})": "storage='text'",
    'op.encrypt_column("patients", "ssn", sa.String(), sa.Text())': "is an Encrypted",
    f'op.decrypt_column("patients", "ssn", sa.Text(), {TEXT})': "decrypt_column a plain type",
    'op.decrypt_column("patients", "ssn", sa.Text(), sa.String())': "what decrypt_column reads",
    f'op.encrypt_column("patients", "ssn", [], {TEXT})': "the type, or the types",
    f'op.encrypt_column("patients", "ssn", sa.String(), {TEXT}, into="ssn")': "names another column",
    'op.require_encrypted("patients", "ssn", Encrypted(sa.String(), format="asherah"))': "no mark",
}


@pytest.mark.parametrize("statement", REFUSED)
def test_what_cannot_work_is_refused_before_a_row_is_touched(sqlite_site: Site, statement: str) -> None:
    sqlite_site.write(
        TABLE.replace(
            'sa.Column("ssn"',
            'sa.Column("copy", sa.Text), sa.Column("code", sa.Text, server_default="x"), sa.Column("ssn"',
        )
    )
    sqlite_site.upgrade()
    sqlite_site.run("INSERT INTO patients (id, clinic_id, ssn) VALUES (1, '7', 'abc')")
    sqlite_site.write(statement)
    with pytest.raises((MigrationError, ConfigurationError), match=REFUSED[statement].replace("(", r"\(")):
        sqlite_site.upgrade()
    assert sqlite_site.rows("SELECT ssn, code, copy FROM patients") == [("abc", "x", None)]
    assert version(sqlite_site) == "r1"


def test_a_key_table_with_keys_outlives_a_downgrade(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    start(site)
    site.write(ENCRYPT, DECRYPT)
    site.upgrade()
    keys = site.rows("SELECT id, created FROM encryption_key ORDER BY id")
    site.downgrade("base")
    assert "encryption_key holds keys and stays" in caplog.text
    assert site.rows("SELECT id, created FROM encryption_key ORDER BY id") == keys
    assert keys
    site.upgrade()
    site.write("op.drop_asherah_metastore(destroy_keys=True)", "op.create_asherah_metastore()")
    site.upgrade()
    names = set(sa.inspect(site.engine).get_table_names())
    assert names == {"alembic_version", "patients"}
    site.downgrade("-1")
    site.upgrade()


CELLS_TYPE = Encrypted(sa.String(), owner="clinic_id")
OPERATIONS: list[MigrateOperation] = [
    CreateAsherahMetastoreOp(),
    Conversion("encrypt", "patients", "ssn", sa.String(50), CELLS_TYPE, into="copy", schema="a", batch=7),
    Conversion("encrypt", "patients", "ssn", sa.String(50), CELLS_TYPE, types={"clinic_id": sa.Uuid()}),
    Conversion("reencrypt", "patients", "ssn", CELLS_TYPE.variant(label="old"), CELLS_TYPE, rows_per_second=5),
    Conversion("decrypt", "patients", "ssn", CELLS_TYPE, sa.String(50)),
    CreateCopyTriggersOp("patients", "ssn", "copy", ["clinic_id"], schema="a"),
    DropCopyTriggersOp("patients", "ssn", "copy", ["clinic_id"]),
    RequireCopiedOp("patients", "ssn", "copy", schema="a"),
    RequireEncryptedOp("patients", "ssn", CELLS_TYPE, schema="a"),
    AllowPlaintextOp("patients", "ssn", CELLS_TYPE),
    ValidateEncryptedOp("patients", "ssn", CELLS_TYPE),
]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: repr(operation.to_diff_tuple()))
def test_undoing_what_undoes_an_operation_is_the_operation(operation: MigrateOperation) -> None:
    undone = operation.reverse()
    assert repr(vars(undone.reverse())) == repr(vars(operation))
    assert type(undone.reverse()) is type(operation)
    assert isinstance(operation, RequireCopiedOp | ValidateEncryptedOp) == (undone is operation)


def test_an_empty_table_is_encrypted_at_once(sqlite_site: Site) -> None:
    sqlite_site.write(TABLE)
    sqlite_site.write(ENCRYPT)
    sqlite_site.write(REQUIRE)
    sqlite_site.upgrade()
    assert version(sqlite_site) == "r3"


def test_the_package_says_where_alembic_finds_its_plugin() -> None:
    assert "alembic>=1.18" in PROJECT["optional-dependencies"]["alembic"]
    module: Any = import_module(ENTRY)
    assert callable(module.setup)
    assert [*module] == [module]  # Alembic before 1.20.1 iterates over what it loads
    installed = metadata.entry_points(group=GROUP, name="sa_asherah")
    assert {entry.value for entry in installed} <= {ENTRY}
    assert installed or "SA_ASHERAH_WHEEL" not in os.environ
