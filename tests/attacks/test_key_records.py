# SPDX-License-Identifier: Apache-2.0
"""Key records that somebody altered in the database: neither read with nor written with, on every database."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from sa_asherah.errors import KeyNotFoundError, KeyRecordError, KmsCiphertextError
from tests.attacks.registry import CANARY, NOW, Patient, Place, assert_refused, refused, secret

if TYPE_CHECKING:
    from collections.abc import Callable

SK = "_SK_records_clinic"
IK1 = "_IK_1_records_clinic"
IK2 = "_IK_2_records_clinic"
DAY = 86_400

Record = dict[str, Any]


def moment(created: int) -> str:
    return datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%d %H:%M:%S")


class Keys:
    """The key table in the hands of somebody who can write to it."""

    def __init__(self, place: Place) -> None:
        self.place = place
        is_postgresql = place.name == "postgresql"
        self._json = "CAST(:record AS JSONB)" if is_postgresql else ":record"
        self._date = "CAST(:created AS TIMESTAMPTZ)" if is_postgresql else ":created"
        self._zone = "+00" if is_postgresql else ""

    def records(self) -> dict[str, Record]:
        """Read the newest record of each id."""
        rows = self.place.sql("SELECT id, CAST(key_record AS CHAR(4000)) FROM encryption_key ORDER BY created")
        return {key_id: json.loads(found) for key_id, found in rows}

    def write(self, key_id: str, record: Record | str, created: int = NOW) -> None:
        """Replace a record, or add one."""
        self.delete(key_id, created)
        found = record if isinstance(record, str) else json.dumps(record)
        insert = f"INSERT INTO encryption_key (id, created, key_record) VALUES (:id, {self._date}, {self._json})"  # noqa: S608
        self.place.sql(insert, id=key_id, record=found, created=moment(created) + self._zone)

    def delete(self, key_id: str, created: int = NOW) -> None:
        statement = f"DELETE FROM encryption_key WHERE id = :id AND created = {self._date}"  # noqa: S608
        self.place.sql(statement, id=key_id, created=moment(created) + self._zone)


@pytest.fixture
def keys(filled: Place) -> Keys:
    """Clinics 1 and 2 of the product `clinic` and of `billing`, which shares database and master key."""
    with Session(filled.restart(product="billing")) as session:
        session.add(Patient(id=90, clinic_id=1, ssn=secret("ssn", 90)))
        session.commit()
        session.delete(session.get_one(Patient, 90))
        session.commit()
    return Keys(filled)


def read(engine: Engine, number: int) -> Any:
    with Session(engine) as session:
        return session.execute(select(Patient.ssn).where(Patient.id == number)).scalar_one()


def assert_useless(
    keys: Keys, owner: int, log: pytest.LogCaptureFixture, *, reading: type[Any] = KeyRecordError, **options: Any
) -> None:
    """A new process neither reads nor writes for this owner, and still does for the other one if it should."""
    place = keys.place
    assert_refused(reading, partial(read, place.restart(**options), owner), log)
    with Session(place.restart(**options)) as session, refused(KeyRecordError, place, session, log):
        session.add(Patient(id=70, clinic_id=owner, ssn=CANARY))
        session.flush()


def assert_fine(place: Place, *owners: int) -> None:
    engine = place.restart()
    for owner in owners:
        assert read(engine, owner) == secret("ssn", owner)
        with Session(engine) as session:
            session.add(Patient(id=80 + owner, clinic_id=owner, ssn=secret("ssn", 80 + owner)))
            session.commit()
        assert read(place.restart(), 80 + owner) == secret("ssn", 80 + owner)


def take_cell(place: Place) -> None:
    """Put owner 1's value into owner 2's row: what the altered records are for."""
    place.sql(
        "UPDATE patients SET ssn = (SELECT ssn FROM (SELECT ssn FROM patients WHERE id = 1) AS source) WHERE id = 2"
    )


def test_a_record_copied_to_another_owners_id_gives_that_owner_nothing(
    keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    """Attack 8: with plain Asherah, owner 2 reads the value of owner 1 after this."""
    take_cell(keys.place)
    keys.write(IK2, keys.records()[IK1])
    assert_useless(keys, 2, caplog)
    assert_fine(keys.place, 1)


def test_a_record_moved_to_another_owners_id_gives_that_owner_nothing(
    keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    take_cell(keys.place)
    keys.delete(IK2)
    keys.place.sql("UPDATE encryption_key SET id = :new WHERE id = :old", new=IK2, old=IK1)
    assert_useless(keys, 2, caplog)
    assert_refused(KeyNotFoundError, partial(read, keys.place.restart(), 1), caplog)


def test_exchanged_records_are_refused_for_both(keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
    first, second = keys.records()[IK1], keys.records()[IK2]
    keys.write(IK1, second)
    keys.write(IK2, first)
    assert_useless(keys, 1, caplog)
    assert_useless(keys, 2, caplog)


def test_the_key_of_another_record_is_refused(keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
    """Attack 8, with the record's own `Bind` and with the other's."""
    take_cell(keys.place)
    first, second = keys.records()[IK1], keys.records()[IK2]
    keys.write(IK2, second | {"Key": first["Key"]})
    assert_useless(keys, 2, caplog)
    keys.write(IK2, second | {"Key": first["Key"], "Bind": first["Bind"]})
    assert_useless(keys, 2, caplog)
    keys.write(IK2, second)
    assert_fine(keys.place, 1)


@pytest.mark.parametrize("peers", [False, True], ids=["alone", "peers"])
def test_a_revoked_key_cannot_come_back_in_the_record_of_its_successor(
    keys: Keys,
    peers: bool,  # noqa: FBT001
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Attack 9: an older key under a newer date."""
    old = keys.records()[IK1]
    keys.write(IK1, old | {"Revoked": True})
    with Session(keys.place.restart()) as session:
        session.add(Patient(id=60, clinic_id=1, ssn=secret("ssn", 60)))
        session.commit()
    new = keys.records()[IK1]
    assert new["Created"] == NOW + 1
    assert new["ParentKeyMeta"] == old["ParentKeyMeta"]
    keys.write(IK1, new | {"Key": old["Key"]}, NOW + 1)
    assert_refused(KeyRecordError, partial(read, keys.place.restart(peers=peers), 60), caplog)
    with Session(keys.place.restart(peers=peers)) as session, refused(KeyRecordError, keys.place, session, caplog):
        session.add(Patient(id=70, clinic_id=1, ssn=CANARY))
        session.flush()
    assert read(keys.place.restart(peers=peers), 1) == secret("ssn", 1), "a revoked key still decrypts its own values"


@pytest.mark.parametrize("shift", [-DAY, -60, 60, 300])
def test_a_re_dated_record_is_refused(keys: Keys, shift: int, caplog: pytest.LogCaptureFixture) -> None:
    """Attack 9: by its column alone, and by its column and its text."""
    record = keys.records()[IK1]
    for altered in (record, record | {"Created": NOW + shift}):
        keys.delete(IK1)
        keys.write(IK1, altered, NOW + shift)
        assert_useless(keys, 1, caplog, reading=KeyNotFoundError)
    keys.delete(IK1, NOW + shift)
    keys.write(IK1, record | {"Created": NOW + shift})
    assert_useless(keys, 1, caplog)


def test_a_record_dated_into_the_future_never_encrypts(keys: Keys) -> None:
    """Attack 9: a record of the year 2100 would be the newest for a lifetime."""
    forged = keys.records()[IK1] | {"Created": 4_102_444_800}
    keys.write(IK1, forged, 4_102_444_800)
    keys.write(SK, keys.records()[SK] | {"Created": 4_102_444_800}, 4_102_444_800)
    assert_fine(keys.place, 1)


def test_a_record_without_bind_is_refused(keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
    """Attack 16: only the configuration can allow it, never a row of the database."""
    record = keys.records()[IK1]
    del record["Bind"]
    keys.write(IK1, record)
    assert_useless(keys, 1, caplog)
    assert_fine(keys.place, 2)
    assert read(keys.place.restart(peers=True), 1) == secret("ssn", 1)


def test_a_system_key_record_without_bind_is_refused(keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
    record = keys.records()[SK]
    del record["Bind"]
    keys.write(SK, record)
    assert_useless(keys, 1, caplog)
    assert_useless(keys, 2, caplog)


@pytest.mark.parametrize("bind", ["", "AAAA", None, 0, "A" * 43 + "="])
@pytest.mark.parametrize("key_id", [SK, IK1])
def test_a_false_bind_is_refused_with_peers_too(
    keys: Keys, key_id: str, bind: object, caplog: pytest.LogCaptureFixture
) -> None:
    keys.write(key_id, keys.records()[key_id] | {"Bind": bind})
    assert_useless(keys, 1, caplog)
    assert_useless(keys, 1, caplog, peers=True)


def test_the_system_key_of_another_product_is_refused(keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
    """Attack 11: the same master key opens it, the record does not hold."""
    own, other = keys.records()[SK], keys.records()["_SK_records_billing"]
    for forged in (other, own | {"Key": other["Key"]}, other | {"Bind": own["Bind"]}):
        keys.write(SK, forged)
        assert_useless(keys, 1, caplog)
    keys.write(SK, own)
    assert_fine(keys.place, 1, 2)


def test_an_owners_key_of_another_product_is_refused(keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
    """Attack 8: with its own system key, and as if it had ours."""
    own, other = keys.records()[IK1], keys.records()["_IK_1_records_billing"]
    assert other["ParentKeyMeta"]["KeyId"] == "_SK_records_billing"
    for forged in (
        other,
        other | {"ParentKeyMeta": own["ParentKeyMeta"]},
        own | {"ParentKeyMeta": other["ParentKeyMeta"]},
    ):
        keys.write(IK1, forged)
        assert_useless(keys, 1, caplog)


def test_a_record_that_names_another_system_key_of_ours_is_refused(
    keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    """Attack 7: the system key it names exists, but did not wrap it."""
    records = keys.records()
    with Session(keys.place.restart(clock=lambda: NOW + 100 * DAY)) as session:
        session.add(Patient(id=60, clinic_id=2, ssn=secret("ssn", 60)))
        session.commit()
    meta = {"KeyId": SK, "Created": keys.records()[SK]["Created"]}
    assert meta["Created"] != NOW
    keys.write(IK1, records[IK1] | {"ParentKeyMeta": meta})
    assert_useless(keys, 1, caplog)
    keys.write(IK1, records[IK1] | {"ParentKeyMeta": {"KeyId": SK, "Created": NOW - DAY}})
    assert_refused(KeyNotFoundError, partial(read, keys.place.restart(), 1), caplog)
    without_parent = dict(records[IK1])
    del without_parent["ParentKeyMeta"]
    keys.write(IK1, without_parent)
    assert_useless(keys, 1, caplog)


@pytest.mark.parametrize("member", ["Key", "Bind"])
def test_every_altered_character_of_a_record_is_refused(
    keys: Keys, member: str, caplog: pytest.LogCaptureFixture
) -> None:
    record = keys.records()[IK1]
    engine = keys.place.restart()
    good = record[member]
    for at in range(0, len(good.rstrip("=")), 3):
        other = "A" if good[at] != "A" else "g"
        keys.write(IK1, record | {member: good[:at] + other + good[at + 1 :]})
        assert_refused(KeyRecordError, partial(read, engine, 1), caplog)
    keys.write(IK1, record)
    assert read(engine, 1) == secret("ssn", 1), "the same process reads again once the record is back"


def test_an_altered_system_key_is_refused(keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
    record = keys.records()[SK]
    changed = ("A" if record["Key"][0] != "A" else "B") + record["Key"][1:]
    keys.write(SK, record | {"Key": changed})
    assert_refused(KmsCiphertextError, partial(read, keys.place.restart(), 1), caplog)


NOT_RECORDS = ["null", "[]", "17", '"text"', "{}", '{"Created": 1800000000}', '{"a":' * 500 + "1" + "}" * 500]


@pytest.mark.parametrize("found", NOT_RECORDS, ids=range(len(NOT_RECORDS)))
def test_what_is_no_record_is_refused(keys: Keys, found: str, caplog: pytest.LogCaptureFixture) -> None:
    keys.write(IK1, found)
    assert_useless(keys, 1, caplog)


def test_an_ambiguous_record_is_refused(keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
    """Attack 19: two parsers would take two different keys from it. JSONB keeps one of two equal names."""
    take_cell(keys.place)
    first, second = keys.records()[IK1], keys.records()[IK2]
    ambiguous = json.dumps(first)[:-1] + "," + json.dumps(second)[1:]
    for found in (ambiguous, json.dumps(second | {"Created": float(NOW)}), json.dumps(second | {"Created": str(NOW)})):
        if keys.place.name == "postgresql" and found is ambiguous:
            found = json.dumps(second | {"Created": True})  # noqa: PLW2901
        keys.write(IK2, found)
        assert_useless(keys, 2, caplog)


def delete_owner(keys: Keys) -> None:
    keys.delete(IK1)


def delete_system(keys: Keys) -> None:
    keys.delete(SK)


@pytest.mark.parametrize("delete", [delete_owner, delete_system])
def test_a_deleted_record_is_an_error_until_it_is_back_and_reading_makes_no_other(
    keys: Keys, delete: Callable[[Keys], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Attack 10."""
    records = keys.records()
    now = [float(NOW)]
    engine = keys.place.restart(clock=lambda: now[0])
    delete(keys)
    left = keys.records()
    assert_refused(KeyNotFoundError, partial(read, engine, 1), caplog)
    assert keys.records() == left
    for key_id in records.keys() - left.keys():
        keys.write(key_id, records[key_id])
    now[0] += 10  # for so long what was not found is not looked for again
    assert read(engine, 1) == secret("ssn", 1)


def test_rows_of_others_in_the_key_table_do_no_harm(keys: Keys) -> None:
    keys.write("_IK_1_other_app", "{}")
    keys.write("something else", "[]")
    keys.write("_IK_1_records_clinic_eu-west-1", keys.records()[IK2])
    assert_fine(keys.place, 1, 2)


def test_a_record_exchanged_under_a_running_process_is_refused_at_the_next_check(
    keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    now = [float(NOW)]
    engine = keys.place.restart(clock=lambda: now[0])
    assert read(engine, 2) == secret("ssn", 2)
    keys.write(IK2, keys.records()[IK1])
    now[0] += 2 * 3600
    with Session(engine) as session, refused(KeyRecordError, keys.place, session, caplog):
        session.add(Patient(id=70, clinic_id=2, ssn=CANARY))
        session.flush()
