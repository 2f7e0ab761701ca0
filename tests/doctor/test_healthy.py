# SPDX-License-Identifier: Apache-2.0
"""What is healthy is called healthy, and nothing is written."""

from __future__ import annotations

from sqlalchemy import Engine

from sa_asherah.doctor import examine
from sa_asherah.kms.static import StaticKMS
from tests.doctor.clinic import CLINICS, asherah, metadata


def test_a_healthy_database_has_no_findings(engine: Engine, kms: StaticKMS) -> None:
    findings = examine(engine, asherah(kms), metadata(), online=True, batch=7)
    assert [str(finding) for finding in findings.found] == []
    assert findings.is_healthy
    assert not findings.not_checked
    assert findings.opened == findings.values > 40 * len(CLINICS)
    assert findings.foreign == 5
    assert findings.tables == 6
