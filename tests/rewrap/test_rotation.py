# SPDX-License-Identifier: Apache-2.0
"""System keys made ahead of time, for processes that may not make any."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

import pytest

from sa_asherah.core.system_keys import SystemKeys
from sa_asherah.errors import KeyExpiredError, KeyRecordError, KmsCiphertextError, UsageError
from tests.rewrap.services import Versioned
from tests.unit.core.fakes import DAY, EXPIRE_AFTER, IDS, START, SYSTEM_ID, FakeMetastore, World

AHEAD = 14 * DAY


class DecryptOnly(Versioned):
    """What a token that may only decrypt leaves of a service."""

    def __init__(self, service: Versioned) -> None:
        super().__init__()
        self._service = service

    def encrypt_key(self, key: bytes) -> bytes:
        raise AssertionError(f"the application wraps no key, least of all one of {len(key)} bytes")

    def decrypt_key(self, blob: bytes) -> bytes:
        return self._service.decrypt_key(blob)


class Company:
    """An officer who may encrypt and an application that may not."""

    def __init__(self) -> None:
        self.world = World()
        self.kms = Versioned()

    def officer(self, kms: Versioned | None = None, **policy: Any) -> SystemKeys:
        settings = self.world.process(**policy).policy
        return SystemKeys(IDS, settings, kms or self.kms, FakeMetastore(self.world.table))

    @property
    def dates(self) -> list[int]:
        return self.world.table.created(SYSTEM_ID)


@pytest.fixture
def company() -> Company:
    return Company()


def test_the_first_system_key_is_due_at_once(company: Company) -> None:
    looked = company.officer().rotate(dry_run=True)
    assert (looked.created, looked.due, looked.made, company.dates) == (None, True, False, [])
    made = company.officer().rotate()
    assert (made.id, made.created, made.expires) == (SYSTEM_ID, START, START + EXPIRE_AFTER)
    assert (made.due, made.made, company.dates) == (True, True, [START])


@pytest.mark.parametrize(
    ("age", "due"),
    [(0, False), (EXPIRE_AFTER - AHEAD, False), (EXPIRE_AFTER - AHEAD + 1, True), (EXPIRE_AFTER + DAY, True)],
)
def test_a_successor_is_due_14_days_before_the_end(company: Company, age: int, due: bool) -> None:  # noqa: FBT001
    company.officer().rotate()
    company.world.clock.now += age
    before = dict(company.world.table.texts)
    assert company.officer().rotate(dry_run=True).due is due
    assert company.world.table.texts == before
    rotation = company.officer().rotate()
    assert (rotation.due, rotation.made, len(company.dates)) == (due, due, 1 + due)
    assert company.officer().rotate().due is False


def test_the_officer_chooses_how_far_ahead_or_at_once(company: Company) -> None:
    company.officer().rotate()
    company.world.clock.now += 30 * DAY
    assert not company.officer().rotate(ahead=timedelta(days=60)).due
    assert company.officer().rotate(ahead=timedelta(days=61)).made
    forced = [company.officer().rotate(force=True) for _ in range(2)]  # in the same minute
    assert [rotation.made for rotation in forced] == [True, True]
    assert company.dates == [START, *(START + 30 * DAY + n for n in range(3))]


def test_a_revoked_key_needs_a_successor(company: Company) -> None:
    company.officer().rotate()
    company.world.table.edit((SYSTEM_ID, START), Revoked=True)
    assert company.officer().rotate().made


def test_ahead_longer_than_a_life_would_make_a_key_at_every_call(company: Company) -> None:
    with pytest.raises(UsageError, match="lives 7 days"):
        company.officer(expire_after=7 * DAY).rotate()
    assert company.officer(expire_after=7 * DAY).rotate(ahead=timedelta(days=1)).made
    with pytest.raises(UsageError):
        company.officer().rotate(ahead=timedelta(days=-1))


def test_the_command_makes_keys_where_the_environment_says_that_processes_do_not(company: Company) -> None:
    assert company.officer(create_system_keys=False).rotate().made


def test_an_officer_with_another_key_service_makes_no_key(company: Company) -> None:
    company.officer().rotate()
    company.world.clock.now += 2 * EXPIRE_AFTER
    with pytest.raises(KmsCiphertextError):
        company.officer(Versioned()).rotate()
    company.world.table.edit((SYSTEM_ID, START), Bind="A" * 43 + "=")
    with pytest.raises(KeyRecordError, match="Bind"):
        company.officer().rotate()
    assert company.dates == [START]


def test_of_two_officers_at_once_both_end_with_the_same_key(company: Company) -> None:
    company.world.table.before_insert = lambda _rows: others.pop()() if others else None
    seen: list[object] = []
    others = [lambda: seen.append(company.officer().rotate())]
    assert company.officer().rotate() == seen[0]
    assert company.dates == [START]


def test_an_application_that_may_only_decrypt_goes_on_over_the_expiry(
    company: Company, caplog: pytest.LogCaptureFixture
) -> None:
    company.officer().rotate()
    company.world.kms = DecryptOnly(company.kms)  # type: ignore[assignment] # as its processes see it
    application = company.world.process(create_system_keys=False)
    used: dict[int, bytes] = {}
    with caplog.at_level(logging.WARNING, "sa_asherah.hierarchy"):
        for _ in range(3 * 90):
            key = application.encryption_keys(["7"])["7"]
            assert key.parent is not None
            assert company.world.clock.now <= key.parent.created + EXPIRE_AFTER
            used[key.created] = bytes(key.secret)
            company.world.clock.now += DAY
            company.officer().rotate()  # a daily job
    assert {record.name for record in caplog.records} == {"sa_asherah.audit"}, "never degraded"
    assert len(used) >= 3
    assert len(company.dates) == 4
    fresh = company.world.process(create_system_keys=False)
    assert {created: bytes(fresh.decryption_key("7", created).secret) for created in used} == used


def test_without_the_officer_the_same_application_stops(company: Company) -> None:
    company.officer().rotate()
    company.world.kms = DecryptOnly(company.kms)  # type: ignore[assignment]
    application = company.world.process(create_system_keys=False, rotation_grace=0)
    application.encryption_keys(["7"])
    company.world.clock.now += EXPIRE_AFTER + 1
    with pytest.raises(KeyExpiredError, match="officer"):
        application.encryption_keys(["7"])
