# SPDX-License-Identifier: Apache-2.0
"""`--sql` renders what is SQL and refuses, with a text and a status, what needs keys or a look at the rows."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from sa_asherah.alembic import MigrationError
from tests.migrations.test_operations import ALLOW, DECRYPT, ENCRYPT, REQUIRE, TABLE

if TYPE_CHECKING:
    from tests.migrations.site import Site

TRIGGERS = 'op.create_copy_triggers("patients", "ssn", "copy", ["clinic_id"])'
RENDERED = {
    "postgresql+psycopg": ["NOT VALID", "VALIDATE CONSTRAINT", "EXECUTE FUNCTION", "key_record JSONB"],
    "mysql+pymysql": ["ck_patients_ssn_encrypted", "BEFORE UPDATE", "CREATE TABLE IF NOT EXISTS encryption_key"],
}


@pytest.mark.parametrize("driver", RENDERED)
def test_ddl_is_rendered(sqlite_site: Site, driver: str) -> None:
    sqlite_site.config.set_main_option("sqlalchemy.url", f"{driver}://nobody@127.0.0.1:1/nothing")
    sqlite_site.write(TABLE)
    sqlite_site.write(f"{TRIGGERS}\n{REQUIRE}\n{REQUIRE.replace('require', 'validate')}")
    sqlite_site.write(f'{ALLOW}\nop.drop_copy_triggers("patients", "ssn", "copy")')
    sqlite_site.write("op.drop_asherah_metastore(destroy_keys=True)")
    sqlite_site.upgrade_offline()
    sql = sqlite_site.output.getvalue()
    assert [text for text in RENDERED[driver] if text not in sql] == []
    assert "\\:" not in sql


@pytest.mark.parametrize(
    "statement",
    [ENCRYPT, DECRYPT, 'op.require_copied("patients", "ssn", "copy")', "op.drop_asherah_metastore()"],
    ids=["encrypt", "decrypt", "require_copied", "drop"],
)
def test_what_looks_at_rows_is_refused(sqlite_site: Site, statement: str) -> None:
    sqlite_site.write(statement)
    with pytest.raises(MigrationError, match="--sql"):
        sqlite_site.upgrade_offline()


def test_the_command_line_says_so_and_fails(sqlite_site: Site) -> None:
    sqlite_site.write(TABLE)
    sqlite_site.write(ENCRYPT)
    command, environment = sqlite_site.alembic("upgrade", "head", "--sql")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 255
    assert "op.encrypt_column changes data under keys that SQL does not have" in said
    assert "Traceback" not in said


def test_an_installed_package_needs_no_line_in_env_py(sqlite_site: Site) -> None:
    sqlite_site.replace(', autogenerate_plugins=["alembic.autogenerate.*", "sa_asherah"]', "")
    assert "asherah" not in (sqlite_site.folder / "migrations" / "env.py").read_text(encoding="utf-8")
    sqlite_site.write(TABLE)
    sqlite_site.write(ENCRYPT)
    command, environment = sqlite_site.alembic("upgrade", "head")
    subprocess.run(command, env=environment, capture_output=True, check=True)
    assert sqlite_site.rows("SELECT count(*) FROM encryption_key") == [(0,)]
