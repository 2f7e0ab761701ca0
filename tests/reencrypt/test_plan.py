# SPDX-License-Identifier: Apache-2.0
"""A plan that cannot work, or that would lose values, is refused before anything runs."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import JSON, Column, Integer, LargeBinary, MetaData, PickleType, String, Table, Text

from sa_asherah import Encrypted
from sa_asherah.errors import ConfigurationError
from sa_asherah.reencrypt import Change, Plan
from sa_asherah.reencrypt.foreign import FernetTokens, PgpSymmetric, SQLAlchemyUtilsAES

TARGET = Encrypted(String(), owner="clinic_id", storage="text")
BINARY = Encrypted(String(), owner="clinic_id")
RECORD = Encrypted(String(), owner="clinic_id", format="asherah")
FERNET_KEY = "A" * 43 + "="


def table(**types: Any) -> Table:
    columns = [Column(name, type_) for name, type_ in types.items()]
    key = Column("id", Integer, primary_key=True)
    return Table("patients", MetaData(), key, Column("clinic_id", Integer), Column("old_clinic", Integer), *columns)


def plan(*changes: Change, **types: Any) -> Plan:
    return Plan(table(**{"ssn": Text(), "ssn_new": LargeBinary(), "scan": LargeBinary(), **types}), changes)


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        (Change("nothing", TARGET, String()), "no column 'nothing'"),
        (Change("ssn", TARGET, String(), into="nothing"), "no column 'nothing'"),
        (Change("id", TARGET, String()), "primary key"),
        (Change("ssn", TARGET, String(), into="ssn"), "into="),
        (Change("ssn", TARGET, ()), "source="),
        (Change("scan", Encrypted(LargeBinary(), "clinic_id"), LargeBinary()), "into="),
        (Change("scan", LargeBinary(), Encrypted(LargeBinary(), "clinic_id")), "into="),
        (Change("ssn", BINARY, String()), "into=.*storage='text'"),
        (Change("ssn", String(), BINARY), "into="),
        (Change("ssn", BINARY, TARGET), "into="),
        (Change("ssn", TARGET, Integer()), "into="),
        (Change("ssn", TARGET, PgpSymmetric("k")), "into="),
        (Change("ssn", Encrypted(JSON(), "clinic_id", format="asherah", storage="json"), RECORD), "into="),
        (Change("ssn", TARGET, (String(), SQLAlchemyUtilsAES("k"))), "comes last"),
        (Change("ssn", TARGET, (String(), Text())), "comes last"),
        (Change("ssn", Text(), String()), "only Encrypted columns are decrypted"),
        (Change("ssn", Text(), FernetTokens(FERNET_KEY)), "only Encrypted columns are decrypted"),
        (Change("ssn", FernetTokens(FERNET_KEY), TARGET), "read only"),
        (Change("ssn", Encrypted(String(), "nobody", storage="text"), String()), "owner='nobody'"),
        (Change("ssn", TARGET, Encrypted(String(), "nobody", storage="text")), "owner='nobody'"),
        (Change("ssn", Encrypted(String(), "clinic_id", bind_row="clinic_id", storage="text"), String()), "bind_row"),
        (Change("ssn_new", Encrypted(String()), PickleType()), "refused"),
    ],
)
def test_what_cannot_work_is_refused_with_advice(change: Change, advice: str) -> None:
    with pytest.raises(ConfigurationError, match=advice):
        plan(change)


def test_a_plan_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no column"):
        plan()
    with pytest.raises(ConfigurationError, match="no column"):
        Plan.of(table(ssn=Text()))
    with pytest.raises(ConfigurationError, match="no table"):
        Plan.of(table(ssn=Text()).metadata)
    keyless = Table("t", MetaData(), Column("ssn", Text()), Column("clinic_id", Integer))
    with pytest.raises(ConfigurationError, match="primary key"):
        Plan(keyless, [Change("ssn", TARGET, String())])


@pytest.mark.parametrize(
    "changes",
    [
        [Change("ssn", TARGET, String()), Change("ssn", TARGET, String())],
        [Change("ssn", BINARY, String(), into="ssn_new"), Change("scan", BINARY, String(), into="ssn_new")],
        [Change("ssn", BINARY, String(), into="ssn_new"), Change("ssn_new", BINARY, BINARY)],
        [Change("ssn", BINARY, String(), into="ssn_new"), Change("ssn", TARGET, String())],
    ],
    ids=["column", "goal", "goal-is-column", "column-twice"],
)
def test_a_column_comes_once(changes: list[Change]) -> None:
    with pytest.raises(ConfigurationError, match="comes twice"):
        plan(*changes)


def test_no_source_or_target_that_is_no_type() -> None:
    wrong: Any = "text"
    for target, source in ((wrong, String()), (TARGET, (wrong,))):
        with pytest.raises(ConfigurationError, match="SQLAlchemy types"):
            Change("ssn", target, source)
    assert Change("ssn", TARGET, String).sources[0].__class__ is String  # type: ignore[arg-type]


def test_an_owner_is_not_changed_by_the_plan_that_needs_it() -> None:
    owned = Encrypted(String(), owner="name", storage="text")
    with pytest.raises(ConfigurationError, match="same plan"):
        plan(Change("ssn", owned, String()), Change("name", TARGET, String()), name=String())


@pytest.mark.parametrize(
    "declared",
    [
        Encrypted(String(), owner="old_clinic", storage="text"),
        Encrypted(String(), owner="clinic_id", partition="clinic-{}", storage="text"),
        Encrypted(String(), owner="clinic_id", label="patients.other", storage="text"),
        Encrypted(String(), owner="clinic_id", storage="text", pad=16),
        BINARY,
        RECORD,
    ],
)
def test_what_the_table_declares_must_be_source_or_target(declared: Encrypted) -> None:
    """Else what the application writes meanwhile would be read by nobody."""
    with pytest.raises(ConfigurationError, match="neither a source nor the target"):
        plan(Change("ssn", TARGET, String()), ssn=declared)
    if declared.storage == "text":
        assert plan(Change("ssn", TARGET, declared), ssn=declared).changes
        assert plan(Change("ssn", declared, TARGET), ssn=declared).changes


def test_two_columns_do_not_get_one_label() -> None:
    changes = [Change(name, Encrypted(String(), "clinic_id", label="p.q", storage="text"), String()) for name in "ab"]
    with pytest.raises(ConfigurationError, match="same label"):
        plan(*changes, a=Text(), b=Text())
    with pytest.raises(ConfigurationError, match="same label"):
        plan(changes[0], a=Text(), b=changes[1].target)


def test_a_new_column_may_keep_the_label_of_the_old_one() -> None:
    old = Encrypted(String(), owner="clinic_id", storage="text")
    new = Encrypted(String(), owner="clinic_id", label="patients.ssn")
    assert plan(Change("ssn", new, old, into="ssn_new"), ssn=old, ssn_new=new).changes[0].goal == "ssn_new"


def test_owner_changed_and_label_renamed_are_sources() -> None:
    old = Encrypted(String(), owner="old_clinic", partition="old-{}", label="people.number", storage="text")
    made = plan(Change("ssn", TARGET, [old, String()]))
    assert [place.key for place in made.places] == ["clinic_id", "old_clinic"]
    assert made.name == "patients: ssn"


def test_everything_declared_comes_to_its_newest_key() -> None:
    windows = ("plaintext@2020-01-01", "asherah@2020-01-01", "unpadded@2020-01-01")
    read = Encrypted(String(), owner="clinic_id", reads=windows, storage="text", pad=32)
    declared = table(ssn=read, scan=Encrypted(LargeBinary(), owner="clinic_id"))
    made = Plan.of(declared)
    assert made.newest_key
    assert [change.column for change in made.changes] == ["ssn", "scan"]
    ssn, scan = made.changes
    assert [repr(source) for source in ssn.sources] == [
        repr(read),
        "Encrypted(String(), owner='clinic_id', storage='text')",
        "Encrypted(String(), owner='clinic_id', format='asherah')",
        "String()",
    ]
    assert [repr(source) for source in scan.sources] == [repr(scan.target)]
    (one,) = Plan.of(declared.metadata, name="spring")
    assert (one.table, one.name) == (declared, "spring patients")


def test_a_window_for_text_in_a_binary_column_can_be_finished() -> None:
    declared = table(ssn=Encrypted(String(), owner="clinic_id", reads=("plaintext@2027-06-30",)))
    assert len(Plan.of(declared).changes[0].sources) == 2


def test_the_fingerprint_tells_plans_apart() -> None:
    changes = [
        Change("ssn", TARGET, String()),
        Change("ssn", TARGET, (SQLAlchemyUtilsAES("k"), String())),
        Change("ssn", TARGET.variant(pad=16), String()),
        Change("ssn", BINARY, String(), into="ssn_new"),
    ]
    assert len({plan(change).fingerprint for change in changes}) == len(changes)
    assert plan(changes[0]).fingerprint == plan(Change("ssn", TARGET.variant(), String())).fingerprint
