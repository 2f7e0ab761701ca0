# SPDX-License-Identifier: Apache-2.0
"""The damages that are planted, each in a healthy database; `docs/reference/findings-of-doctor.md` lists them."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Column, Engine, Integer, MetaData, String, Table, Text

from sa_asherah import Encrypted
from sa_asherah.core import cell
from sa_asherah.core.ports import KeyManagementService
from tests.doctor.clinic import DAY, NOW, asherah, live, metadata
from tests.doctor.surgery import Surgery

KEY_TABLE = "encryption_key"
SYSTEM, OWNED = "_SK_records_clinic", "_IK_3_records_clinic"
EVERY = ("sqlite", "postgresql", "mariadb")
Place = tuple[str, str | None, tuple[str, ...]]
LONG_TEXT = {"mariadb": "LONGTEXT COLLATE utf8mb4_bin"}


@dataclass
class Patient0:
    """What a damage is planted in."""

    engine: Engine
    kms: KeyManagementService
    tables: MetaData = field(default_factory=metadata)
    options: dict[str, Any] = field(default_factory=dict[str, Any])

    def operate(self, work: Callable[[Surgery], Place | None]) -> Place | None:
        """Change the database past the package."""
        with self.engine.begin() as connection:
            return work(Surgery(connection))

    def column(self, name: str, column: str) -> Column[Any]:
        """Return a declared column."""
        return self.tables.tables[name].c[column]


Plant = Callable[[Patient0], Place | None]


@dataclass(frozen=True)
class Damage:
    """One damage.

    `code` must be found, at `place` if `plant` returns one; nothing but `code` and `besides` may be.
    """

    name: str
    code: str
    plant: Plant
    besides: frozenset[str]
    databases: tuple[str, ...]


DAMAGES: list[Damage] = []


def damage(code: str, *besides: str, on: tuple[str, ...] = EVERY) -> Callable[[Plant], Plant]:
    """Add a damage to the list, by the name of the function that plants it."""

    def add(plant: Plant) -> Plant:
        name = plant.__name__.strip("_").replace("_", " ")
        DAMAGES.append(Damage(name, code, plant, frozenset(besides), on))
        return plant

    return add


def surgery(
    code: str, *besides: str, on: tuple[str, ...] = EVERY
) -> Callable[[Callable[[Surgery], Place | None]], Any]:
    """Add a damage that needs nothing but the database."""

    def add(work: Callable[[Surgery], Place | None]) -> Any:
        def plant(patient: Patient0) -> Place | None:
            return patient.operate(work)

        plant.__name__ = work.__name__
        return damage(code, *besides, on=on)(plant)

    return add


def at(row: Any, created: int | None = None) -> Place:
    """Return the place of a key."""
    return KEY_TABLE, None, (row.id, str(created if created is not None else Surgery.record(row)["Created"]))


def flipped(text: str) -> str:
    """Return base64 of bytes of which one is another."""
    raw = bytearray(base64.b64decode(text))
    raw[-1] ^= 1
    return base64.b64encode(raw).decode()


# The key table


@surgery("key-table-missing")
def _key_table_dropped(body: Surgery) -> Place:
    body.run("DROP TABLE encryption_key")
    return KEY_TABLE, None, ()


@surgery("key-table-unsafe")
def _key_table_without_its_primary_key(body: Surgery) -> Place:
    body.drop_primary_key()
    return KEY_TABLE, None, ()


@surgery("key-table-unsafe", on=("mariadb",))
def _key_ids_compared_without_case(body: Surgery) -> Place:
    body.run("ALTER TABLE encryption_key MODIFY id VARCHAR(255) COLLATE utf8mb4_general_ci NOT NULL")
    return KEY_TABLE, None, ()


@damage("names-differ", "key-missing")
def _product_renamed_in_the_settings(patient: Patient0) -> Place:
    patient.options["product"] = "hospital"
    return KEY_TABLE, None, ()


@damage("region-unread", "key-missing", "value-damaged")
def _other_region_not_read(patient: Patient0) -> Place:
    patient.options["read_suffixes"] = ()
    return KEY_TABLE, None, ()


# Keys


@surgery("key-malformed")
def _key_record_without_its_key(body: Surgery) -> Place:
    row = body.key(OWNED)
    body.change_key(row, Key=None)
    return at(row)


@surgery("key-date-differs")
def _member_created_changed(body: Surgery) -> Place:
    row = body.key(OWNED)
    created = body.record(row)["Created"]
    body.change_key(row, Created=created + 60)
    return at(row, created)


@surgery("key-date-unusable", "key-missing", "value-damaged")
def _date_of_a_key_in_no_form(body: Surgery) -> None:
    if body.dialect == "mariadb":
        body.run("SET SESSION sql_mode = ''")
    date = {"sqlite": "'2023-11-14'", "postgresql": "created + interval '0.5 s'", "mariadb": "'0000-00-00'"}
    body.run(
        f"UPDATE encryption_key SET created = {date[body.dialect]} WHERE id = :id AND created = :created",  # noqa: S608
        id=OWNED,
        created=body.key(OWNED).created,
    )


@damage("key-from-future")
def _clock_half_a_year_ahead(patient: Patient0) -> None:
    live(patient.engine, asherah(patient.kms, NOW + 180 * DAY), 20, clinics=(3,))


@surgery("key-twice", "key-table-unsafe")
def _key_stored_twice(body: Surgery) -> Place:
    row = body.key(OWNED)
    body.drop_primary_key()
    body.insert_key(row.id, row.created, body.record(row))
    return at(row)


@surgery("key-copied", "key-bind-broken")
def _wrapped_key_copied_to_another_owner(body: Surgery) -> Place:
    source, row = body.key(OWNED), body.key("_IK_4_records_clinic")
    body.change_key(row, Key=body.record(source)["Key"])
    return at(row)


@surgery("key-unbound")
def _bind_removed(body: Surgery) -> Place:
    row = body.key(OWNED)
    body.change_key(row, Bind=None)
    return at(row)


@surgery("key-bind-broken", "key-missing", "value-damaged")
def _key_dated_anew(body: Surgery) -> None:
    row = body.key(OWNED)
    record = body.record(row)
    body.change_key(row, Created=record["Created"] + 86_400)
    body.run(
        "UPDATE encryption_key SET created = :later WHERE id = :id AND created = :created",
        id=OWNED,
        created=row.created,
        later="2023-11-15 22:13:00" + ("+00" if body.dialect == "postgresql" else ""),
    )


@surgery("key-bind-broken")
def _system_key_with_another_bind(body: Surgery) -> Place:
    row = body.key(SYSTEM)
    body.change_key(row, Bind=flipped(body.record(row)["Bind"]))
    return at(row)


@surgery("key-parent-missing")
def _system_key_deleted(body: Surgery) -> Place:
    row = body.key(SYSTEM)
    body.run("DELETE FROM encryption_key WHERE id = :id AND created = :created", id=row.id, created=row.created)
    return at(body.key(OWNED))


@surgery("key-parent-foreign")
def _parent_of_another_service(body: Surgery) -> Place:
    row = body.key(OWNED)
    created = body.record(row)["ParentKeyMeta"]["Created"]
    body.change_key(row, ParentKeyMeta={"KeyId": "_SK_billing_shop", "Created": created})
    return at(row)


@surgery("key-unopenable")
def _bit_of_an_owners_key_flipped(body: Surgery) -> Place:
    row = body.key(OWNED)
    body.change_key(row, Key=flipped(body.record(row)["Key"]))
    return at(row)


@surgery("system-key-unopenable")
def _bit_of_a_system_key_flipped(body: Surgery) -> Place:
    row = body.key(SYSTEM)
    body.change_key(row, Key=flipped(body.record(row)["Key"]))
    return at(row)


@surgery("key-missing", "value-damaged")
def _owners_keys_deleted(body: Surgery) -> Place:
    body.delete_keys(OWNED)
    row = body.rows("visits", clinic_id=3)[0]
    return "visits", "fee", ("3", str(row.number))


@surgery("shred-unfinished")
def _tombstone_and_the_keys_still_there(body: Surgery) -> Place:
    date = "1970-01-02 00:00:00" + ("+00" if body.dialect == "postgresql" else "")
    body.insert_key("_XK" + OWNED[3:], date, {"Created": DAY, "Key": "AA==", "Revoked": True})
    return at(body.key(OWNED))


@surgery("shred-without-tombstone", "value-erased")
def _keys_destroyed_and_no_tombstone(body: Surgery) -> Place:
    row = body.key(OWNED)
    body.change_key(row, Revoked=True, Key=base64.b64encode(bytes(60)).decode())
    return at(row)


@surgery("key-orphaned")
def _all_rows_of_an_owner_deleted(body: Surgery) -> Place:
    for name in ("patients", "visits"):
        body.run(f"DELETE FROM {name} WHERE clinic_id = 3")  # noqa: S608
    body.run("DELETE FROM notices WHERE id BETWEEN 300 AND 399")
    return at(body.keys(OWNED)[-1])


# Declarations and columns


@damage("declaration-refused")
def _owner_column_that_is_not_there(patient: Patient0) -> Place:
    key = Column("id", Integer, primary_key=True)
    Table("drafts", patient.tables, key, Column("body", Encrypted(String(), owner="nobody")))
    return "drafts", None, ()


@damage("schemas-share-tables")
def _two_schemas_with_equal_tables(patient: Patient0) -> None:
    schema = {"sqlite": "main", "postgresql": "public"}.get(
        patient.engine.dialect.name, patient.engine.url.database or ""
    )
    patient.tables.tables["patients"].to_metadata(patient.tables, schema=schema, referred_schema_fn=lambda *_: None)


@damage("no-primary-key")
def _table_declared_without_primary_key(patient: Patient0) -> Place:
    type_ = LONG_TEXT.get(patient.engine.dialect.name, "TEXT")
    patient.operate(lambda body: body.run("DROP TABLE IF EXISTS loose"))
    patient.operate(lambda body: body.run(f"CREATE TABLE loose (name VARCHAR(40), body {type_})"))
    secret: Column[str] = Column("body", Encrypted(String(), owner="name", partition="user-{}", storage="text"))
    Table("loose", patient.tables, Column("name", String(40)), secret)
    return "loose", None, ()


@surgery("table-missing", "key-orphaned")
def _table_dropped(body: Surgery) -> Place:
    body.run("DROP TABLE members")
    return "members", None, ()


@surgery("column-missing")
def _column_renamed(body: Surgery) -> Place:
    body.run("ALTER TABLE archive RENAME COLUMN body TO text")
    return "archive", "body", ()


def archive(surgeon: Surgery, **types: str) -> None:
    """Create the empty table with other types."""
    binary = {"sqlite": "BLOB", "postgresql": "BYTEA"}.get(surgeon.dialect, "LONGBLOB")
    types = {"body": binary, "remark": LONG_TEXT.get(surgeon.dialect, "TEXT")} | types
    surgeon.run("DROP TABLE archive")
    surgeon.run(
        f"CREATE TABLE archive (id INTEGER PRIMARY KEY, clinic_id INTEGER, body {types['body']}, "
        f"remark {types['remark']})"
    )


@surgery("column-type-wrong")
def _text_column_for_binary_cells(body: Surgery) -> Place:
    archive(body, body="TEXT")
    return "archive", "body", ()


@surgery("column-narrow", "column-collation-unsafe", on=("postgresql", "mariadb"))
def _text_column_of_a_hundred_characters(body: Surgery) -> Place:
    archive(body, remark="VARCHAR(100)")
    return "archive", "remark", ()


@surgery("column-narrow", on=("mariadb",))
def _blob_of_64_kibibytes(body: Surgery) -> Place:
    archive(body, body="BLOB")
    return "archive", "body", ()


@surgery("column-collation-unsafe", on=("mariadb",))
def _text_column_compared_without_case(body: Surgery) -> Place:
    body.run("ALTER TABLE archive MODIFY remark LONGTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci")
    return "archive", "remark", ()


# Values


@surgery("plaintext")
def _plaintext_in_a_text_column(body: Surgery) -> Place:
    row = body.rows("patients", clinic_id=3)[0]
    return "patients", "note", body.put("patients", row, note="a plain note")


@surgery("plaintext")
def _plaintext_in_a_binary_column(body: Surgery) -> Place:
    row = body.rows("patients", clinic_id=3)[0]
    return "patients", "ssn", body.put("patients", row, ssn=b"078-05-1120")


@damage("window-open")
def _plaintext_left_in_a_window(patient: Patient0) -> Place:
    return _in_window(patient, "2099-01-01")


@damage("window-over")
def _plaintext_left_after_the_end_of_a_window(patient: Patient0) -> Place:
    return _in_window(patient, datetime.fromtimestamp(NOW - DAY, UTC).date().isoformat())


def _in_window(patient: Patient0, end: str) -> Place:
    patient.column("patients", "note").type = Encrypted(
        Text(), owner="clinic_id", reads=(f"plaintext@{end}",), storage="text", pad=32
    )
    place = patient.operate(_plaintext)
    assert place is not None
    return place


def _plaintext(body: Surgery) -> Place:
    row = body.rows("patients", clinic_id=3)[0]
    return "patients", "note", body.put("patients", row, note="a plain note")


@damage("window-open")
def _cells_without_padding_left_in_a_window(patient: Patient0) -> None:
    windowed = Encrypted(String(), owner="clinic_id", reads=("unpadded@2099-01-01",), pad=16)
    patient.column("patients", "ssn").type = windowed


@surgery("value-malformed")
def _cell_cut_off(body: Surgery) -> Place:
    row = body.rows("patients", clinic_id=3)[0]
    return "patients", "ssn", body.put("patients", row, ssn=bytes(row.ssn)[:80])


@surgery("value-malformed")
def _text_of_a_cell_with_a_foreign_character(body: Surgery) -> Place:
    row = body.rows("patients", clinic_id=3)[0]
    return "patients", "note", body.put("patients", row, note=row.note[:60] + "!" + row.note[61:])


@surgery("value-malformed")
def _first_byte_of_a_cell_damaged(body: Surgery) -> Place:
    row = body.rows("patients", clinic_id=3)[0]
    return "patients", "ssn", body.put("patients", row, ssn=b"\xa7" + bytes(row.ssn)[1:])


@surgery("value-malformed")
def _record_cut_off(body: Surgery) -> Place:
    row = body.rows("visits", clinic_id=3)[0]
    return "visits", "summary", body.put("visits", row, summary=row.summary[:-2])


@surgery("format-differs")
def _record_in_a_column_of_cells(body: Surgery) -> Place:
    row = body.rows("visits", clinic_id=3)[0]
    return "visits", "fee", body.put("visits", row, fee=row.summary.encode())


@surgery("format-differs")
def _cell_as_text_in_a_column_of_records(body: Surgery) -> Place:
    row, other = body.rows("visits", clinic_id=3)[0], body.rows("patients", clinic_id=3)[0]
    return "visits", "summary", body.put("visits", row, summary=other.note)


@damage("flags-differ")
def _padding_declared_after_values_were_written(patient: Patient0) -> None:
    patient.column("patients", "ssn").type = Encrypted(String(), owner="clinic_id", pad=16)


@damage("inner-type-differs")
def _inner_type_changed(patient: Patient0) -> None:
    patient.column("visits", "fee").type = Encrypted(String(), owner="clinic_id")


@surgery("owner-missing")
def _owner_set_to_null(body: Surgery) -> Place:
    row = body.rows("patients", clinic_id=3)[0]
    return "patients", "clinic_id", body.put("patients", row, clinic_id=None)


@surgery("owner-malformed")
def _owner_longer_than_a_key_id(body: Surgery) -> Place:
    row = body.rows("members", name="u3")[0]
    return "members", "name", body.put("members", row, name="u" * 280)


@surgery("wrong-owner")
def _row_given_to_another_owner(body: Surgery) -> Place:
    row = body.rows("patients", clinic_id=3)[0]
    return "patients", "ssn", body.put("patients", row, clinic_id=4)


@surgery("wrong-owner")
def _value_of_a_row_that_owns_itself_moved(body: Surgery) -> Place:
    row, other = body.rows("accounts")[:2]
    return "accounts", "iban", body.put("accounts", row, iban=other.iban)


@surgery("wrong-owner")
def _cell_copied_from_another_owner(body: Surgery) -> Place:
    row, other = body.rows("visits", clinic_id=3)[0], body.rows("visits", clinic_id=4)[0]
    return "visits", "fee", body.put("visits", row, fee=other.fee)


@surgery("wrong-owner")
def _record_copied_from_another_owner(body: Surgery) -> Place:
    row, other = body.rows("visits", clinic_id=3)[0], body.rows("visits", clinic_id=4)[0]
    return "visits", "summary", body.put("visits", row, summary=other.summary)


@surgery("wrong-column")
def _cell_moved_to_another_table(body: Surgery) -> Place:
    row, other = body.rows("visits", clinic_id=3)[0], body.rows("patients", clinic_id=3)[0]
    return "visits", "fee", body.put("visits", row, fee=other.ssn)


@surgery("wrong-row")
def _row_bound_cell_moved_to_another_row(body: Surgery) -> Place:
    row, other = body.rows("patients", clinic_id=3)[:2]
    return "patients", "photo", body.put("patients", row, photo=other.photo)


@surgery("value-damaged")
def _bit_of_a_value_without_owner_column_flipped(body: Surgery) -> Place:
    row = body.rows("notices")[0]
    return "notices", "body", body.put("notices", row, body=bytes(row.body)[:-1] + bytes([row.body[-1] ^ 1]))


@surgery("wrong-column")
def _cell_moved_to_a_column_without_owner(body: Surgery) -> Place:
    row, other = body.rows("notices")[0], body.rows("patients", clinic_id=3)[0]
    return "notices", "body", body.put("notices", row, body=other.ssn)


@surgery("value-damaged")
def _bit_of_a_ciphertext_flipped(body: Surgery) -> Place:
    row = body.rows("patients", clinic_id=3)[0]
    stored = bytearray(row.ssn)
    stored[cell.NONCE_END] ^= 1
    return "patients", "ssn", body.put("patients", row, ssn=bytes(stored))


@surgery("value-damaged")
def _bit_of_a_commitment_flipped(body: Surgery) -> Place:
    row = body.rows("patients", clinic_id=3)[0]
    stored = bytearray(row.ssn)
    stored[40] ^= 1
    return "patients", "ssn", body.put("patients", row, ssn=bytes(stored))


@surgery("value-damaged")
def _bit_of_a_record_flipped(body: Surgery) -> Place:
    row = body.rows("visits", clinic_id=3)[0]
    start, data = row.summary.split('"Data":"')
    stored = f'{start}"Data":"{flipped(data[:-2])}"}}'
    return "visits", "summary", body.put("visits", row, summary=stored)
