# SPDX-License-Identifier: Apache-2.0
"""Application processes whose tokens may only decrypt; an officer makes their system keys ahead of time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from sa_asherah import KeyExpiredError
from sa_asherah.errors import KmsPermissionError
from sa_asherah.kms.vault import VaultTransitKMS
from sa_asherah.kms.vault.policy import policies
from tests.integration.conftest import AuditedAccess
from tests.integration.records import Process

DAY = 24 * 3600.0
KEY = bytes(range(32))


class Site:
    """A database, an officer and an application whose days pass as the test says."""

    def __init__(self, access: AuditedAccess, url: str) -> None:
        self.now = time.time()
        texts = policies(access.mount, access.key)
        self.application_token = access.secret(access.server.token(texts["application-decrypt-only"]))
        self._access, self._url = access, url
        self._processes: list[Process] = []
        self._officer_token = access.secret(access.server.token(texts["officer"]))
        self.officer = self._started(access.kms(token=self._officer_token))
        self.officer.create_tables()
        self.application = self.start()

    def clock(self) -> float:
        """Tell the time."""
        return self.now

    def start(self) -> Process:
        """Start another application process."""
        return self._started(self._access.kms(token=self.application_token), create_system_keys=False)

    def close(self) -> None:
        """End all processes."""
        for process in self._processes:
            process.close()

    def _started(self, kms: VaultTransitKMS, **options: Any) -> Process:
        process = Process(self._url, kms, clock=self.clock, **options)
        self._processes.append(process)
        return process

    def rotate(self) -> bool:
        """Do what the officer's nightly job does; tell whether it made a key."""
        return self.officer.asherah.system_keys(self.officer.engine).rotate().made


@pytest.fixture
def site(audited: AuditedAccess, sqlite_url: str) -> Iterator[Site]:
    site = Site(audited, sqlite_url)
    yield site
    site.close()


def test_an_application_token_cannot_plant_a_system_key(audited: AuditedAccess, site: Site) -> None:
    kms = audited.kms(token=site.application_token)
    error = audited.refusal(KmsPermissionError, lambda: kms.encrypt_key(KEY))
    assert f"{audited.mount}/encrypt/{audited.key}" in str(error)
    assert (error.operation, error.status) == ("encrypt", 403)


def test_without_a_system_key_the_application_asks_for_the_officer(audited: AuditedAccess, site: Site) -> None:
    with pytest.raises(KeyExpiredError, match="officer's token"):
        site.application.write()
    assert audited.calls("encrypt") == []
    assert site.rotate()
    note = site.application.write()
    assert site.application.read() == [note]


def test_rotation_ahead_of_time_interrupts_nobody(audited: AuditedAccess, site: Site) -> None:
    assert site.rotate()
    notes, made = [site.application.write()], 0
    for _ in range(30):  # ten months: three system keys end
        site.now += 10 * DAY
        made += site.rotate()
        notes += [site.application.write(), site.application.write("old tenant")]
        assert site.application.read() == notes
    assert made >= 3
    fresh = site.start()
    assert fresh.read() == notes
    officers = audited.calls("encrypt")
    assert len(officers) == made + 1
    tokens = {call["auth"]["accessor"] for call in audited.calls("decrypt")}
    assert len({call["auth"]["accessor"] for call in officers}) == 1
    assert len(tokens) == 2, "officer and application, told apart by the audit file"
    application = tokens - {call["auth"]["accessor"] for call in officers}
    assert len(application) == 1, "its token never asked for an encryption"
