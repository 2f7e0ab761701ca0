# SPDX-License-Identifier: Apache-2.0
"""The migrations of the documentation run, there and back."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from alembic import op

import sa_asherah.alembic

if TYPE_CHECKING:
    from tests.migrations.site import Site

DOCS = Path(__file__).parents[2] / "docs"
TABLE = """
import sqlalchemy as sa
from alembic import op


def upgrade():
    op.create_table(
        "patients",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("clinic_id", sa.Integer, nullable=False),
        sa.Column("ssn", sa.String(50)),
        sa.Column("scan", sa.LargeBinary),
    )


def downgrade():
    op.drop_table("patients")
"""


def test_the_migrations_of_the_page_keep_every_value(site: Site) -> None:
    text = (DOCS / "how-to" / "alembic.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    found = [TABLE, *(block for block in blocks if "def upgrade()" in block)]
    assert len(found) == 9
    for number, block in enumerate(found):
        before = f"p{number - 1}" if number else None
        path = site.folder / "migrations" / "versions" / f"p{number}.py"
        path.write_text(f"revision = 'p{number}'\ndown_revision = {before!r}\n{block}", encoding="utf-8")
    site.upgrade("p0")
    truth = [(number, f"ssn {number} ä", f"scan {number}".encode()) for number in range(1, 10)]
    rows = [{"id": number, "ssn": ssn, "scan": scan} for number, ssn, scan in truth]
    site.run("INSERT INTO patients (id, clinic_id, ssn, scan) VALUES (:id, 7, :ssn, :scan)", rows)
    for _ in range(2):
        site.upgrade()
        (first, second), *others = site.rows("SELECT ssn, scan_encrypted FROM patients")
        assert first.startswith("sa1:")
        assert bytes(second)[:2] == b"\xa5\x01"
        assert len(others) == 8
        site.downgrade("p0")
        stored = site.rows("SELECT id, ssn, scan FROM patients ORDER BY id")
        assert [(number, ssn, bytes(scan)) for number, ssn, scan in stored] == truth


def test_every_operation_is_on_the_page_and_no_other() -> None:
    text = (DOCS / "reference" / "alembic.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `op\.(\w+)\(", text, re.MULTILINE)
    sources = [path.read_text(encoding="utf-8") for path in Path(sa_asherah.alembic.__file__).parent.glob("*.py")]
    known = [name for source in sources for name in re.findall(r'@Operations\.register_operation\("(\w+)"\)', source)]
    assert sorted(named) == sorted(known)
    assert all(callable(getattr(op, name)) for name in known)
