# SPDX-License-Identifier: Apache-2.0
"""Every damage of the list is found, where it was planted, and nothing else is; what is said holds no secret."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, inspect

from sa_asherah.doctor import examine
from sa_asherah.kms.static import StaticKMS
from tests.doctor.clinic import asherah
from tests.doctor.damages import DAMAGES, Damage, Patient0
from tests.doctor.surgery import PRIMARY, Surgery

DATABASES = ("sqlite", "postgresql", "mariadb")
PLANTED = [
    pytest.param(name, damage, marks=() if name == "sqlite" else pytest.mark.long, id=f"{name}-{damage.name}")
    for name in DATABASES
    for damage in DAMAGES
    if name in damage.databases
]


PLAINTEXT = re.compile(r"token \d|iban \d|a perk|notice of|a plain note|078-05")
"""What `clinic.live` and the damages write."""


def secrets_of(engine: Engine) -> Iterator[str]:
    """Yield parts of the stored values and keys, each from where no two have the same."""
    with engine.connect() as connection:
        body = Surgery(connection)
        names = inspect(connection).get_table_names()
        for row in (row for name in PRIMARY if name in names for row in body.rows(name)):
            for value in row:
                raw = value.encode() if isinstance(value, str) else value
                if isinstance(raw, bytes | memoryview) and len(raw) > 88:
                    part = bytes(raw[40:60])
                    yield from (part.hex(), repr(part)[2:-1], base64.b64encode(part).decode()[:24])
        for row in body.rows("encryption_key") if "encryption_key" in names else ():
            yield from (str(text)[:30] for name, text in body.record(row).items() if name in {"Key", "Bind"})


@pytest.mark.parametrize(("database", "damage"), PLANTED)
def test_planted_damage_is_found(request: pytest.FixtureRequest, kms: StaticKMS, database: str, damage: Damage) -> None:
    engine: Engine = request.getfixturevalue(f"{database}_copy")
    patient = Patient0(engine, kms)
    place = damage.plant(patient)
    findings = examine(engine, asherah(kms, **patient.options), patient.tables)
    found = json.dumps(findings.to_json(), indent=1)
    assert damage.code in findings.counts, found
    assert set(findings.counts) <= {damage.code} | damage.besides, found
    places = {
        (each.place.table, each.place.column, each.place.primary_key)
        for each in findings.found
        if each.code == damage.code
    }
    assert place is None or place in places, found
    assert [secret for secret in secrets_of(engine) if secret in found] == []
    assert not PLAINTEXT.search(found)
