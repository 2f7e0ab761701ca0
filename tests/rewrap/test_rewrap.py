# SPDX-License-Identifier: Apache-2.0
"""Wrapping anew changes the wrapping and nothing else, can be stopped anywhere, and never loses a key."""

from __future__ import annotations

import base64
import dataclasses
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

from sa_asherah.core.hierarchy import Hierarchy
from sa_asherah.core.ids import KeyIds
from sa_asherah.core.policy import CryptoPolicy
from sa_asherah.core.ports import KeyManagementService, KeyRow, KeyRows
from sa_asherah.core.rewrap import Report
from sa_asherah.core.system_keys import SystemKeys
from sa_asherah.errors import MetastoreUnavailableError, UsageError
from sa_asherah.kms.succession import Succession
from tests.reachable import texts
from tests.rewrap.services import Versioned, static
from tests.unit.core.fakes import DAY, EXPIRE_AFTER, IDS, START, SYSTEM_ID, Clock, FakeMetastore, Table

KEYS = 4


class Estate:
    """A key table that a service's processes have used for years, and the keys of an owner under each system key."""

    def __init__(self, kms: KeyManagementService, ids: KeyIds = IDS) -> None:
        self.kms = kms
        self.ids = ids
        self.clock = Clock()
        self.policy = CryptoPolicy(expire_after=EXPIRE_AFTER, clock=self.clock)
        self.table = Table()
        self.owned: dict[int, bytes] = {}
        for _ in range(KEYS):
            key = self.process(kms).encryption_keys(["7"])["7"]
            self.owned[key.created] = bytes(key.secret)
            self.clock.now += EXPIRE_AFTER + DAY

    def process(self, kms: KeyManagementService) -> Hierarchy:
        return Hierarchy(self.ids, self.policy, kms, FakeMetastore(self.table))

    def operator(self, kms: KeyManagementService, rows: KeyRows | None = None, ids: KeyIds | None = None) -> SystemKeys:
        return SystemKeys(ids or self.ids, self.policy, kms, FakeMetastore(rows or self.table))

    def opens_with(self, kms: KeyManagementService) -> bool:
        process = self.process(kms)
        return {created: bytes(process.decryption_key("7", created).secret) for created in self.owned} == self.owned

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(text) for (row_id, _), text in sorted(self.table.texts.items()) if row_id == SYSTEM_ID]

    @property
    def places(self) -> list[tuple[str, int]]:
        return [(SYSTEM_ID, created) for created in self.table.created(SYSTEM_ID)]


class Intrusive:
    """A key table in which something happens right before a record is replaced."""

    def __init__(self, table: Table, happens: Callable[[KeyRow], None]) -> None:
        self._table = table
        self._happens = happens

    def replace(self, row: KeyRow, text: str) -> bool:
        self._happens(row)
        return self._table.replace(row, text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._table, name)


@pytest.fixture
def estate() -> Estate:
    return Estate(static())


def counts(report: Report) -> tuple[int, int, int, int, int, int]:
    failed, late = len(report.failed), len(report.late)
    return report.found, report.already, report.moved, report.skipped, failed, late


def without_key(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "Key"}


def test_every_record_moves_and_only_its_wrapping_changes(estate: Estate) -> None:
    estate.table.edit(estate.places[1], Revoked=True, Note={"by": "José", "n": [1, 2.5, None]})
    estate.table.texts["_SK_other_clinic", START] = "of another service"
    estate.table.texts[SYSTEM_ID + "_eu", START] = "of another region"
    before, rows = estate.records(), dict(estate.table.texts)
    new = Versioned()
    report = estate.operator(new).migrate(estate.kms)
    assert counts(report) == (KEYS, 0, KEYS, 0, 0, 0)
    assert report.is_complete
    after = estate.records()
    assert [without_key(record) for record in after] == [without_key(record) for record in before]
    assert [list(record) for record in after] == [list(record) for record in before]
    assert all(new.recognises(base64.b64decode(record["Key"])) for record in after)
    assert "José" in estate.table.texts[estate.places[1]], "the Rust peers do not unescape JSON"
    changed = {place for place, text in estate.table.texts.items() if text != rows[place]}
    assert changed == set(estate.places)
    assert estate.opens_with(new)


def test_a_second_pass_verifies_and_writes_nothing(estate: Estate) -> None:
    new = Versioned()
    estate.operator(new).migrate(estate.kms)
    rows = dict(estate.table.texts)
    new.calls.clear()
    estate.table.taken_calls()
    assert counts(estate.operator(new).migrate(estate.kms)) == (KEYS, KEYS, 0, 0, 0, 0)
    assert (estate.table.texts, new.calls) == (rows, ["decrypt"] * KEYS)
    assert "replace" not in {name for name, _ in estate.table.taken_calls()}


@pytest.mark.parametrize("pair", ["static-static", "static-versioned", "versioned-static", "versioned-versioned"])
def test_any_pair_of_services_there_and_back(pair: str) -> None:
    old, new = {
        "static-static": (static(1), static(2)),
        "static-versioned": (static(), Versioned()),
        "versioned-static": (Versioned(), static()),
        "versioned-versioned": (Versioned(), Versioned()),  # the same form: only opening them tells
    }[pair]
    estate = Estate(old)
    for source, target in ((old, new), (new, old)):
        both = Succession(target, source)
        assert estate.opens_with(both)
        assert counts(estate.operator(target).migrate(source)) == (KEYS, 0, KEYS, 0, 0, 0)
        assert estate.opens_with(target)
        assert estate.opens_with(both)
        assert counts(estate.operator(target).migrate(source)) == (KEYS, KEYS, 0, 0, 0, 0)


def test_a_dry_run_does_everything_but_write(estate: Estate) -> None:
    rows = dict(estate.table.texts)
    new = Versioned()
    report = estate.operator(new).migrate(estate.kms, dry_run=True)
    assert (report.dry_run, *counts(report)) == (True, KEYS, 0, KEYS, 0, 0, 0)
    assert estate.table.texts == rows
    assert new.calls == ["encrypt", "decrypt"] * KEYS


def test_no_system_key_at_all_is_not_called_complete(estate: Estate) -> None:
    report = estate.operator(Versioned(), ids=KeyIds("records", "clinics")).migrate(estate.kms)
    assert (report.found, report.is_complete) == (0, False)


def test_one_that_fails_is_named_and_does_not_stop_the_others(estate: Estate) -> None:
    damaged, moved, unparsable, _ = estate.places
    rows = dict(estate.table.texts)
    estate.table.edit(damaged, Key=base64.b64encode(bytes(60)).decode())
    estate.table.edit(moved, Bind=json.loads(rows[unparsable])["Bind"])
    estate.table.texts[unparsable] = '{"Created": 1, "Created": 2}'
    broken = dict(estate.table.texts)
    new = Versioned()
    report = estate.operator(new).migrate(estate.kms)
    assert counts(report) == (KEYS, 0, 1, 0, 3, 0)
    assert not report.is_complete
    reasons = {(problem.id, problem.created): problem.reason for problem in report.failed}
    assert set(reasons) == {damaged, moved, unparsable}
    assert "damaged" in reasons[damaged]
    assert "Bind does not hold" in reasons[moved]
    assert "a member twice" in reasons[unparsable]
    assert {place for place, text in estate.table.texts.items() if text != broken[place]} == {estate.places[3]}
    estate.table.texts |= {place: rows[place] for place in (damaged, moved, unparsable)}
    assert counts(estate.operator(new).migrate(estate.kms)) == (KEYS, 1, 3, 0, 0, 0)
    assert estate.opens_with(new)


def test_retired_keys_are_skipped(estate: Estate) -> None:
    estate.table.edit(estate.places[0], Retired=3)
    text = estate.table.texts[estate.places[0]]
    assert counts(estate.operator(Versioned()).migrate(estate.kms)) == (KEYS, 0, KEYS - 1, 1, 0, 0)
    assert estate.table.texts[estate.places[0]] == text


def test_records_of_peers_have_no_bind_before_and_after(estate: Estate) -> None:
    for place in estate.places:
        estate.table.edit(place, Bind=None)
    new = Versioned()
    report = estate.operator(new).migrate(estate.kms)
    assert (report.moved, len(report.failed)) == (0, KEYS)
    assert "peers" in report.failed[0].reason
    peers = dataclasses.replace(IDS, peers=True)
    assert counts(estate.operator(new, ids=peers).migrate(estate.kms)) == (KEYS, 0, KEYS, 0, 0, 0)
    assert all("Bind" not in record for record in estate.records())


# The service misbehaves


class Forgetful(Versioned):
    """Wraps something else than it was given."""

    def encrypt_key(self, key: bytes) -> bytes:
        return super().encrypt_key(bytes(len(key)))


class Garbling(Versioned):
    """Returns what it cannot open."""

    def encrypt_key(self, key: bytes) -> bytes:
        return super().encrypt_key(key)[:-8] + b"AAAAAAA="


@pytest.mark.parametrize("ids", [IDS, dataclasses.replace(IDS, peers=True)], ids=["bind", "peers"])
@pytest.mark.parametrize("service", [Forgetful, Garbling])
def test_a_record_whose_new_form_does_not_open_to_the_same_key_is_left_alone(
    service: type[Versioned], ids: KeyIds
) -> None:
    estate = Estate(static(), ids)
    if ids.peers:
        for place in estate.places:
            estate.table.edit(place, Bind=None)
    rows = dict(estate.table.texts)
    report = estate.operator(service()).migrate(estate.kms)
    assert counts(report) == (KEYS, 0, 0, 0, KEYS, 0)
    assert estate.table.texts == rows


def test_a_new_service_that_is_down_leaves_all_as_it_was(estate: Estate) -> None:
    rows = dict(estate.table.texts)
    new = Versioned()
    new.is_down = True
    report = estate.operator(new).migrate(estate.kms)
    assert counts(report) == (KEYS, 0, 0, 0, KEYS, 0)
    assert report.failed[0].reason == "transit is down"
    assert estate.table.texts == rows


def test_the_wrong_target_key_is_noticed_when_the_move_is_continued(estate: Estate) -> None:
    first, second = Versioned(), Versioned()
    estate.operator(first).migrate(estate.kms)
    rows = dict(estate.table.texts)
    report = estate.operator(second).migrate(estate.kms)
    assert counts(report) == (KEYS, 0, 0, 0, KEYS, 0)
    assert {problem.reason for problem in report.failed} == {"transit does not open it"}
    assert estate.table.texts == rows


def test_a_report_holds_no_key(estate: Estate) -> None:
    secrets = {
        bytes(estate.process(estate.kms)._keyring.system_key(KeyRow(*place, estate.table.texts[place])).secret)
        for place in estate.places
    }
    estate.table.edit(estate.places[0], Bind=None)
    report = estate.operator(Versioned()).migrate(estate.kms)
    found = "".join(texts(report))
    assert len(secrets) == KEYS
    assert not [secret for secret in secrets for form in (secret.decode("latin-1"), secret.hex()) if form in found]
    assert not [record["Key"] for record in estate.records() if record["Key"] in found]


# The table changes meanwhile


def test_a_pass_that_was_stopped_anywhere_is_continued(estate: Estate) -> None:
    for steps in range(KEYS):
        new = Versioned()
        left = iter(range(steps))

        def stop(_row: KeyRow, left: Any = left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt

        rows: Any = Intrusive(estate.table, stop)
        with pytest.raises(KeyboardInterrupt):
            estate.operator(new, rows).migrate(estate.kms)
        assert estate.opens_with(Succession(new, estate.kms))
        assert counts(estate.operator(new).migrate(estate.kms)) == (KEYS, steps, KEYS - steps, 0, 0, 0)
        assert estate.opens_with(new)
        estate.kms = new


def test_a_record_that_changes_under_the_pass_is_read_again_and_loses_nothing(estate: Estate) -> None:
    revoked: list[tuple[str, int]] = []

    def revoke(row: KeyRow) -> None:
        if (row.id, row.created) not in revoked:
            revoked.append((row.id, row.created))
            estate.table.edit((row.id, row.created), Revoked=True)

    rows: Any = Intrusive(estate.table, revoke)
    new = Versioned()
    assert counts(estate.operator(new, rows).migrate(estate.kms)) == (KEYS, 0, KEYS, 0, 0, 0)
    assert all(record["Revoked"] for record in estate.records())
    assert estate.opens_with(new)


def test_two_passes_side_by_side_move_each_record_once(estate: Estate) -> None:
    new = Versioned()
    inner: list[Report] = []

    def overtake(_row: KeyRow) -> None:
        if not inner:
            inner.append(Report())
            inner[0] = estate.operator(new).migrate(estate.kms)

    rows: Any = Intrusive(estate.table, overtake)
    outer = estate.operator(new, rows).migrate(estate.kms)
    assert counts(inner[0]) == (KEYS, 0, KEYS, 0, 0, 0)
    assert counts(outer) == (KEYS, KEYS, 0, 0, 0, 0)


def test_a_record_that_vanishes_or_never_rests_is_reported(estate: Estate) -> None:
    vanishing, restless, *_ = estate.places
    edits = iter(range(100))

    def interfere(row: KeyRow) -> None:
        place = (row.id, row.created)
        if place == vanishing:
            estate.table.texts.pop(place, None)
        elif place == restless:
            estate.table.edit(place, Note=next(edits))

    rows: Any = Intrusive(estate.table, interfere)
    report = estate.operator(Versioned(), rows).migrate(estate.kms)
    assert counts(report) == (KEYS, 0, KEYS - 2, 0, 2, 0)
    reasons = {(problem.id, problem.created): problem.reason for problem in report.failed}
    assert "deleted" in reasons[vanishing]
    assert "all the time" in reasons[restless]


def test_a_trigger_that_writes_something_else_is_noticed(estate: Estate) -> None:
    class Triggered(Intrusive):
        def replace(self, row: KeyRow, text: str) -> bool:
            done = super().replace(row, text)
            estate.table.texts[row.id, row.created] = row.text
            return done

    rows: Any = Triggered(estate.table, lambda _row: None)
    report = estate.operator(Versioned(), rows).migrate(estate.kms)
    assert counts(report) == (KEYS, 0, 0, 0, KEYS, 0)
    assert "trigger" in report.failed[0].reason


def test_an_old_process_that_makes_a_system_key_meanwhile_is_noticed(estate: Estate) -> None:
    new = Versioned()

    def live_on(_row: KeyRow) -> None:
        estate.clock.now += 60
        estate.process(estate.kms).encryption_keys([f"tenant {estate.clock.now}"])

    def once(row: KeyRow) -> None:
        if row.created == estate.places[0][1]:  # the pass begins with the newest: the others have moved by now
            live_on(row)

    estate.clock.now += EXPIRE_AFTER
    # An old process cannot open what has moved; it makes a key where the newest it knows is expired.
    rows: Any = Intrusive(estate.table, once)
    report = estate.operator(new, rows).migrate(estate.kms)
    assert counts(report) == (KEYS, 0, KEYS, 0, 0, 1)
    assert not report.is_complete
    assert (report.late[0].id, report.late[0].created) == estate.places[-1]
    assert "old key service" in report.late[0].reason
    assert counts(estate.operator(new).migrate(estate.kms)) == (KEYS + 1, KEYS, 1, 0, 0, 0)


def test_a_new_process_that_makes_a_system_key_meanwhile_is_no_concern(estate: Estate) -> None:
    new = Versioned()
    process = estate.process(Succession(new, estate.kms))
    made: list[int] = []

    def live_on(_row: KeyRow) -> None:
        if not made:
            made.append(process.encryption_keys(["8"])["8"].created)

    rows: Any = Intrusive(estate.table, live_on)
    assert counts(estate.operator(new, rows).migrate(estate.kms)) == (KEYS, 0, KEYS, 0, 0, 0)
    assert len(estate.places) == KEYS + 1
    assert estate.opens_with(new)


def test_each_move_is_in_the_audit_log(estate: Estate, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "sa_asherah.audit"):
        estate.operator(Versioned()).migrate(estate.kms)
    messages = [record.getMessage() for record in caplog.records if "rewrapped" in record.getMessage()]
    assert messages == [f"system_key_rewrapped: {key} created {date}" for key, date in reversed(estate.places)]


# To the newest version


def test_rewrap_brings_all_to_the_newest_version_and_then_finds_nothing_to_do() -> None:
    kms = Versioned()
    estate = Estate(kms)
    operator = estate.operator(kms)
    assert counts(operator.rewrap()) == (KEYS, KEYS, 0, 0, 0, 0)
    kms.rotate()
    assert counts(operator.rewrap(dry_run=True)) == (KEYS, 0, KEYS, 0, 0, 0)
    assert counts(operator.rewrap()) == (KEYS, 0, KEYS, 0, 0, 0)
    assert counts(operator.rewrap()) == (KEYS, KEYS, 0, 0, 0, 0)
    assert all(base64.b64decode(record["Key"]).startswith(b"transit:v2:") for record in estate.records())
    assert estate.opens_with(kms)


def test_rewrap_of_a_succession_is_that_of_its_current_service(estate: Estate) -> None:
    new = Versioned()
    operator = SystemKeys(IDS, estate.policy, Succession(new, estate.kms), FakeMetastore(estate.table), current=new)
    assert counts(operator.rewrap()) == (KEYS, 0, 0, 0, KEYS, 0)
    assert counts(operator.migrate(estate.kms)) == (KEYS, 0, KEYS, 0, 0, 0)
    assert counts(operator.rewrap()) == (KEYS, KEYS, 0, 0, 0, 0)


def test_a_service_without_versions_says_so(estate: Estate) -> None:
    with pytest.raises(UsageError, match="KMS=vault"):
        estate.operator(estate.kms).rewrap()


def test_a_table_out_of_reach_ends_the_pass(estate: Estate) -> None:
    metastore = FakeMetastore(estate.table)
    metastore.is_down = True
    with pytest.raises(MetastoreUnavailableError):
        SystemKeys(IDS, estate.policy, Versioned(), metastore).migrate(estate.kms)
