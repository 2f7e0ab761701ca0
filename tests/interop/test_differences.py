# SPDX-License-Identifier: Apache-2.0
"""Where the two implementations differ: exactly where `docs/reference/interoperability.md` says so, and nowhere else.

Each case is tried on both. One that comes out alike must not be in the page's table, one that does not must be there
with what either does; and every row of the table has a case.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from sa_asherah import Asherah, AsherahError
from sa_asherah.core.session import Session
from tests.interop.shared_table import KeyRow, Package, PackageError, SharedTable, opened

pytestmark = pytest.mark.filterwarnings("ignore::sa_asherah.StaticKeyWarning")

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "interoperability.md"
DAY = 86_400
FORCED = {"ASHERAH_CONFIG_DRIFT_FORCE_RUN": "1"}
"""Else the package refuses to run beside another region or service that it saw first."""

Verdicts = dict[str, tuple[str, str]]


def listed() -> Verdicts:
    """Read the page's table of differences: the case, what we do, what the package does."""
    rows = re.findall(r"^\| (.+) \| (.+) \| (.+) \|$", PAGE.read_text("utf-8"), re.MULTILINE)
    return {case: (ours, theirs) for case, ours, theirs in rows if set(case) != {"-"} and ours != "sa_asherah"}


def assert_listed(verdicts: Verdicts) -> None:
    """What differs is in the table and says the same; what does not differ is not there."""
    table = listed()
    differing = {case: verdict for case, verdict in verdicts.items() if verdict[0] != verdict[1]}
    assert differing == {case: table[case] for case in verdicts if case in table}


def attempt(call: Callable[..., object], *arguments: object) -> str:
    try:
        call(*arguments)
    except AsherahError:
        return "refuses"
    return "accepts"


# Data row records


def _changed(record: str, *path: str, **members: Any) -> str:
    whole = json.loads(record)
    target = whole
    for name in path:
        target = target[name]
    for name, value in members.items():
        if value is None:
            del target[name]
        else:
            target[name] = value
    return json.dumps(whole, ensure_ascii=False)


def _key(**members: Any) -> Callable[[str], str]:
    return lambda record: _changed(record, "Key", **members)


def _parent(**members: Any) -> Callable[[str], str]:
    return lambda record: _changed(record, "Key", "ParentKeyMeta", **members)


def _data(change: Callable[[str], str]) -> Callable[[str], str]:
    return lambda record: _changed(record, Data=change(json.loads(record)["Data"]))


def _with_member(text: str) -> Callable[[str], str]:
    return lambda record: record[:-1] + f',"Note":{text}}}'


def _loose(data: str) -> str:
    """Set a bit that base64 does not use."""
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    assert data.endswith("=")
    assert not data.endswith("==")
    return data[:-2] + digits[digits.index(data[-2]) + 1] + "="


def _lower(record: str) -> str:
    return record.replace('"Data"', '"data"').replace('"Key"', '"key"')


RECORDS: dict[str, Callable[[str], str]] = {
    "a record as it was written": lambda record: record,
    "a record with white space": lambda record: json.dumps(json.loads(record), indent=2),
    "a record with its members in another order": lambda record: json.dumps(json.loads(record), sort_keys=True),
    "a record with a member that nobody knows": _with_member('{"a": [1, null]}'),
    "a record with a number that is not finite": _with_member("1e999"),
    "a record with NaN": _with_member("NaN"),
    "a record with a lone surrogate": _with_member('"\\ud800"'),
    "a record with a member nested 90 deep": _with_member("[" * 90 + "]" * 90),
    "a record with a member nested more than 100 deep": _with_member("[" * 101 + "]" * 101),
    "a record with an unknown member of more than 1,000 parts": _with_member(f"[1{',1' * 1_000}]"),
    "a record with `Data` twice": lambda record: record[:-1] + ',"Data":"AAAA"}',
    "a record with an unknown member twice": lambda record: record[:-1] + ',"a":1,"a":2}',
    "a record with escaped letters": lambda record: record.replace("user1", "\\u0075ser1"),
    "a record with escaped slashes": lambda record: record.replace("/", "\\/"),
    "a record after a byte order mark": lambda record: "\ufeff" + record,
    "a record before other text": lambda record: record + "x",
    "a record in a list": lambda record: f"[{record}]",
    "a record with member names in small letters": _lower,
    "an empty text": lambda _: "",
    "a record without `Data`": lambda record: _changed(record, Data=None),
    "a record with empty `Data`": lambda record: _changed(record, Data=""),
    "a record without `Key`": lambda record: _changed(record, Key=None),
    "a record without `ParentKeyMeta`": _key(ParentKeyMeta=None),
    "a record without `Key.Created`": _key(Created=None),
    "a record with `Key.Created` 0": _key(Created=0),
    "a record with a negative `Key.Created`": _key(Created=-1),
    "a record with `Key.Created` after the year 9999": _key(Created=2**53),
    "a record with `Key.Created` as a text": _key(Created="1795436520"),
    "a record with `Key.Created` as a fraction": _key(Created=1795436520.0),
    "a record with `Key.Revoked` true": _key(Revoked=True),
    "a record without the date of its key": _parent(Created=None),
    "a record with the date of a key that is not there": _parent(Created=1),
    "a record of another partition": _parent(KeyId="_IK_user2_svc_prod"),
    "a record without the id of its key": _parent(KeyId=None),
    "a record of a region that has no key": _parent(KeyId="_IK_user1_svc_prod_eu-west-1"),
    "base64 of the URL alphabet": _data(lambda data: data.replace("+", "-").replace("/", "_")),
    "base64 without its padding": _data(lambda data: data.rstrip("=")),
    "base64 with a line break": _data(lambda data: data[:40] + "\n" + data[40:]),
    "base64 with unused bits set": _data(_loose),
    "`Data` cut off": _data(lambda data: data[:-8]),
    "`Data` shorter than a tag and a nonce": _data(lambda _: "AAAA"),
    "`Data` altered": _data(lambda data: ("B" if data[0] == "A" else "A") + data[1:]),
    "`Key.Key` cut off": lambda record: _changed(record, "Key", Key=json.loads(record)["Key"]["Key"][:-8]),
}
PAYLOAD = bytes(range(250)) + b"plaintext"


def test_data_row_records(plain: SharedTable) -> None:
    # Its base64 has everything that can be written in two ways.
    with plain.ours() as (asherah, _), plain.package() as package:
        session = asherah.session("user1")
        written = iter(lambda: session.encrypt(PAYLOAD), "")
        record = next(each for each in written if {"+", "/"} <= set(json.loads(each)["Data"]))
        asherah.session("user2").encrypt(b"makes a key")
        changed = {case: change(record) for case, change in RECORDS.items()}
        answers = package.ask(*[("decrypt", "user1", text) for text in changed.values()])
        theirs = dict(zip(changed, answers, strict=True))
        for good, text in answers:
            assert not good or base64.b64decode(text) == PAYLOAD
        ours = {case: attempt(_open, session, text) for case, text in changed.items()}
    assert_listed({case: (ours[case], _word(theirs[case])) for case in RECORDS})


def _open(session: Session, record: str) -> None:
    assert session.decrypt(record) == PAYLOAD


def _word(answer: tuple[bool, str]) -> str:
    return "accepts" if answer[0] else "refuses"


# Key records


def _record(**members: Any) -> Callable[[KeyRow], KeyRow]:
    def change(row: KeyRow) -> KeyRow:
        record = {name: value for name, value in (row.record | members).items() if value is not ...}
        return row._replace(record=record)

    return change


def _date(seconds: float) -> Callable[[KeyRow], KeyRow]:
    """Move a key to another date, record and column alike."""

    def change(row: KeyRow) -> KeyRow:
        created = int(time.time() + seconds)
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(created))
        return KeyRow(row.id, moment, row.record | {"Created": created})

    return change


def _text(row: KeyRow) -> KeyRow:
    return row._replace(record=row.record | {"Created": str(row.record["Created"])})


def _fraction(row: KeyRow) -> KeyRow:
    return row._replace(record=row.record | {"Created": float(row.record["Created"])})


def _other_second(row: KeyRow) -> KeyRow:
    return row._replace(record=row.record | {"Created": row.record["Created"] + 1})


def _altered(row: KeyRow) -> KeyRow:
    key = row.record["Key"]
    return row._replace(record=row.record | {"Key": ("B" if key[0] == "A" else "A") + key[1:]})


# Of each key record: whether its data can still be read, and what encrypts next.
KEYS: dict[str, Callable[[KeyRow], KeyRow]] = {
    "a key record as it was written": lambda row: row,
    "a key record with a member that nobody knows": _record(Note={"a": [1, None]}),
    "a key record with `Revoked` false": _record(Revoked=False),
    "a key record with `Revoked` null": _record(Revoked=None),
    "a key record with `Revoked` true": _record(Revoked=True),
    "a key record with `Revoked` 1": _record(Revoked=1),
    "a key record without `Bind`": _record(Bind=...),
    "a key record with another `Bind`": _record(Bind=base64.b64encode(bytes(32)).decode()),
    "a key record with `Bind` null": _record(Bind=None),
    "a key record without `ParentKeyMeta`": _record(ParentKeyMeta=...),
    "a key record whose `Created` is a text": _text,
    "a key record whose `Created` is a fraction": _fraction,
    "a key record whose `Created` is not the column's": _other_second,
    "a key record whose `Key` was altered": _altered,
    "a key of ours moved to another date": _date(-7 * DAY),
    "a key 4 minutes ahead": lambda row: _record(Bind=...)(_date(240)(row)),
    "a key a day ahead": lambda row: _record(Bind=...)(_date(DAY)(row)),
    "an expired key": lambda row: _record(Bind=...)(_date(-91 * DAY)(row)),
}


def _owner(number: int) -> str:
    return f"owner{number}"


def _moved(record: str, row: KeyRow) -> str:
    return _changed(record, "Key", "ParentKeyMeta", Created=int(float(row.record["Created"])))


def _next_key(record: str | None, row: KeyRow) -> str:
    """Tell which key encrypted a record; none if encrypting was refused."""
    if record is None:
        return "refuses to encrypt"
    same = json.loads(record)["Key"]["ParentKeyMeta"]["Created"] == float(row.record["Created"])
    return "encrypts on" if same else "makes a new key"


def test_key_records(plain: SharedTable) -> None:
    """Both look at altered keys of owners of their own, before either makes new ones."""
    with plain.ours(clock=lambda: time.time() - 30 * DAY) as (asherah, _):
        records = [asherah.session(_owner(number)).encrypt(PAYLOAD) for number in range(2 * len(KEYS))]
    altered: list[KeyRow] = []
    for number in range(2 * len(KEYS)):
        change = list(KEYS.values())[number % len(KEYS)]
        (row,) = (row for row in plain.rows(plain.key_id(_owner(number))) if row.id == plain.key_id(_owner(number)))
        altered.append(change(row))
        plain.put(row, altered[-1])
    verdicts: Verdicts = {}
    with plain.ours() as (asherah, _), plain.package() as package:
        for number, case in enumerate(KEYS):
            theirs = number + len(KEYS)
            verdicts[case] = (
                _our_use(asherah, _owner(number), records[number], altered[number]),
                _its_use(package, _owner(theirs), records[theirs], altered[theirs]),
            )
    assert_listed(verdicts)


def _our_use(asherah: Asherah, owner: str, record: str, row: KeyRow) -> str:
    session = asherah.session(owner)
    reads = attempt(_open, session, _moved(record, row))
    written: str | None = None
    with contextlib.suppress(AsherahError):
        written = session.encrypt(PAYLOAD)
    return f"{'reads' if reads == 'accepts' else reads}, {_next_key(written, row)}"


def _its_use(package: Package, owner: str, record: str, row: KeyRow) -> str:
    ((good, text),) = package.ask(("decrypt", owner, _moved(record, row)))
    assert not good or base64.b64decode(text) == PAYLOAD
    ((went_well, written),) = package.ask(("encrypt", owner, ""))
    return f"{'reads' if good else 'refuses'}, {_next_key(written if went_well else None, row)}"


# System keys


def _without_parent(table: SharedTable) -> None:
    (row,) = table.rows(table.key_id(None))
    table.put(row, _record(ParentKeyMeta=None)(row))


# How old the system key and the owner's key are in days, and what happened then.
SYSTEM_KEYS: dict[str, tuple[int, int, Callable[[SharedTable], None]]] = {
    "a system key as it was made": (30, 30, lambda _table: None),
    "a system key that was revoked": (30, 30, lambda table: table.revoke_newest(None)),
    "a system key that expired before the owner's key": (98, 30, lambda _table: None),
    "a system key with `ParentKeyMeta` null": (30, 30, _without_parent),
    "a system key that was deleted": (30, 30, lambda table: table.delete(table.key_id(None))),
}


def test_system_keys(plain: SharedTable) -> None:
    verdicts: Verdicts = {}
    for number, (case, (system_age, age, change)) in enumerate(SYSTEM_KEYS.items()):
        mine, its = (replace(plain, service=f"{side}{number}") for side in ("mine", "its"))
        (my_record, my_row), (its_record, its_row) = (_made(table, system_age, age) for table in (mine, its))
        for table in (mine, its):
            change(table)
        with mine.ours() as (asherah, _), its.package() as package:
            verdicts[_where(plain, case)] = (
                _our_use(asherah, "user1", my_record, my_row),
                _its_use(package, "user1", its_record, its_row),
            )
    assert_listed(verdicts)


def _made(table: SharedTable, system_age: int, age: int) -> tuple[str, KeyRow]:
    """Encrypt in the past, with a system key that was made before."""
    with table.ours(clock=lambda: time.time() - system_age * DAY) as (asherah, _):
        asherah.session("user2").encrypt(b"makes the system key")
    with table.ours(clock=lambda: time.time() - age * DAY) as (asherah, _):
        record = asherah.session("user1").encrypt(PAYLOAD)
    (row,) = table.rows(table.key_id("user1"))
    return record, row


# Names and settings

_LONGEST = 255 - len("_IK__svc_prod")
OWNERS = {
    "an empty partition": "",
    "a partition of one space": " ",
    "a partition with a line break": "a\nb",
    "a partition with quotes and a backslash": "a'b\"c\\d",
    "a partition with a NUL": "a\0b",
    "a key id of 255 characters": "x" * _LONGEST,
    "a key id of 256 characters": "x" * (_LONGEST + 1),
}


def test_partitions(plain: SharedTable) -> None:
    with plain.ours() as (asherah, _):
        ours = {case: attempt(asherah.session, owner) for case, owner in OWNERS.items()}
    with plain.package() as package, plain.package() as reader:
        theirs = {case: _round_trip(package, reader, owner) for case, owner in OWNERS.items()}
    assert_listed({_where(plain, case): (ours[case], theirs[case]) for case in OWNERS})


def _round_trip(writer: Package, reader: Package, owner: str) -> str:
    ((is_written, record),) = writer.ask(("encrypt", owner, ""))
    if not is_written:
        return "refuses"
    ((is_read, _),) = reader.ask(("decrypt", owner, record))
    return "accepts" if is_read else "loses the value"


SETTINGS: dict[str, tuple[str, dict[str, str]]] = {
    "no service": ("user", {"SERVICE_NAME": ""}),
    "an underscore in the service": ("user", {"SERVICE_NAME": "a_b"}),
    "an underscore in the service and in the partition": ("user_1", {"SERVICE_NAME": "a_b"}),
    "a quote in the service": ("user", {"SERVICE_NAME": 'a"b'}),
    "an expiry of 0": ("user", {"EXPIRE_AFTER_SECS": "0"}),
    "an expiry that is no number": ("user", {"EXPIRE_AFTER_SECS": "soon"}),
    "a precision of 0": ("user", {"CREATE_DATE_PRECISION_SECS": "0"}),
    "a static master key of 16 bytes": ("user", {"STATIC_MASTER_KEY_HEX": "00" * 16}),
    "no key service": ("user", {"KMS": ""}),
}


def test_settings(plain: SharedTable) -> None:
    verdicts: Verdicts = {}
    for case, (owner, changed) in SETTINGS.items():
        ours = attempt(_encrypted, plain, changed, owner)
        try:
            with plain.package(**FORCED, **changed) as package:
                theirs = _word(package.ask(("encrypt", owner, ""))[0])
        except PackageError:
            theirs = "refuses"
        verdicts[case] = (ours, theirs)
    assert_listed(verdicts)


def _encrypted(table: SharedTable, environ: dict[str, str], owner: str) -> str:
    names = table.environ | {"ASHERAH_PEERS": "1", "Metastore": "rdbms"} | environ
    with opened(table.url) as engine, Asherah.from_env(names) as asherah:
        asherah.attach(engine)
        return asherah.session(owner).encrypt(PAYLOAD)


# Time


def test_revocation_takes_effect(plain: SharedTable) -> None:
    """A day's precision, so that both keys of an owner would get the same date."""
    environ = {"CREATE_DATE_PRECISION_SECS": str(DAY), "REVOKE_CHECK_INTERVAL_SECS": "0"}
    settings: dict[str, Any] = {"precision": timedelta(days=1), "check_interval": timedelta(0)}
    with plain.ours(**settings) as (asherah, _), plain.package(**environ) as package:
        for owner in ("mine", "its"):
            asherah.session(owner).encrypt(b"makes the keys")
        package.encrypt(("its", b""))
        rows = {row.id: row for row in plain.rows("_IK_")}
        for owner in ("mine", "its"):
            plain.revoke_newest(owner)
        mine, its = rows[plain.key_id("mine")], rows[plain.key_id("its")]
        with plain.package(**environ) as fresh:
            later = _next_key(_written(fresh, "its"), its)
        running = _next_key(_written(package, "its"), its)
        ours = _next_key(asherah.session("mine").encrypt(b""), mine)
    case = "a key that was revoked within its `precision`"
    assert_listed({case: (ours, later), "the same with a running process and a check interval of 0": (ours, running)})


def _written(package: Package, owner: str) -> str | None:
    ((good, record),) = package.ask(("encrypt", owner, ""))
    return record if good else None


# Regions

REGIONS = {
    "a value of another region": ("us-west-2", "eu-central-1"),
    "a value of a region, where none is set": ("us-west-2", ""),
    "a value without a region, in a region": ("", "eu-central-1"),
}


def test_regions(plain: SharedTable) -> None:
    verdicts: Verdicts = {}
    for case, (written, read) in REGIONS.items():
        writer, reader = replace(plain, suffix=written), replace(plain, suffix=read)
        with writer.ours() as (asherah, _):
            record = asherah.session("user1").encrypt(PAYLOAD)
        with reader.ours() as (asherah, _), reader.package(**FORCED) as package:
            ours = attempt(_open, asherah.session("user1"), record)
            verdicts[case] = (ours, _word(package.ask(("decrypt", "user1", record))[0]))
        with reader.ours(read_suffixes=(written,)) as (asherah, _):
            assert asherah.session("user1").decrypt(record) == PAYLOAD
    assert_listed(verdicts)


@pytest.mark.parametrize("copies", [True, False])
def test_the_package_copies_a_key_to_another_owner_unless_that_is_switched_off(
    plain: SharedTable, *, copies: bool
) -> None:
    environ = {} if copies else {"SELF_HEAL_RECOVERED_KEYS": "false"}
    with plain.ours(clock=lambda: time.time() - DAY) as (asherah, _):
        record = asherah.session("user1").encrypt(PAYLOAD)
    relabelled = _parent(KeyId=plain.key_id("user2"))(record)
    with plain.package(**environ) as package:
        assert package.decrypt(("user1", relabelled)) == [PAYLOAD]
    assert len(plain.keys("user2")) == copies
    with plain.ours() as (asherah, _), plain.package(**environ) as package:
        assert attempt(_open, asherah.session("user2"), relabelled) == ("accepts" if copies else "refuses")
        assert package.ask(("decrypt", "user2", relabelled))[0][0] == copies
    with plain.ours(peers=False) as (asherah, _):
        assert attempt(_open, asherah.session("user2"), relabelled) == "refuses"


def _where(table: SharedTable, case: str) -> str:
    """Name a case as the page does where databases differ."""
    special = f"{case}, on {DATABASES[table.kind]}"
    return special if special in listed() else case


DATABASES = {"sqlite": "SQLite", "postgresql": "PostgreSQL", "mariadb": "MariaDB"}


def test_each_row_of_the_page_has_a_case() -> None:
    timed = {
        "a key that was revoked within its `precision`",
        "the same with a running process and a check interval of 0",
    }
    cases = timed.union(RECORDS, KEYS, SYSTEM_KEYS, OWNERS, SETTINGS, REGIONS)
    assert {re.sub(", on (SQLite|PostgreSQL|MariaDB)$", "", case) for case in listed()} <= cases
