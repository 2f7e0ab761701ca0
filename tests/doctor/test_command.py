# SPDX-License-Identifier: Apache-2.0
"""`sa-asherah doctor`: what it prints, and how it ends."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine, MetaData, text

from tests.cli.site import Outcome, run

MODELS = ("--models", "tests.doctor.clinic:Base")
NOTHING = MetaData()


@pytest.fixture
def command(sqlite_copy: Engine) -> Any:
    environ = {
        "SERVICE_NAME": "records",
        "PRODUCT_ID": "clinic",
        "KMS": "static",
        "STATIC_MASTER_KEY_HEX": bytes(range(32)).hex(),
        "RECOVERY_REGION_SUFFIXES": "us-east",
        "ASHERAH_DATABASE_URL": str(sqlite_copy.url),
    }

    def call(*arguments: str, **others: str) -> Outcome:
        return run(environ | others, "doctor", *(arguments or MODELS))

    return call


def test_health_is_status_0(command: Any) -> None:
    outcome = command()
    assert outcome.status == 0, outcome.out
    assert "Nothing is wrong" in outcome.out


def test_an_error_is_status_1_and_names_the_row(command: Any, sqlite_copy: Engine) -> None:
    with sqlite_copy.begin() as connection:
        connection.execute(text("UPDATE members SET email = 'plain@example.org' WHERE id = 1000"))
    outcome = command(*MODELS, "--json")
    assert outcome.status == 1
    (finding,) = outcome.json["findings"]
    assert {name: finding[name] for name in ("level", "code", "table", "column", "primary_key")} == {
        "level": "error",
        "code": "plaintext",
        "table": "members",
        "column": "email",
        "primary_key": ["1000"],
    }
    assert "plain@example.org" not in outcome.out


def test_a_warning_is_status_0(command: Any, sqlite_copy: Engine) -> None:
    with sqlite_copy.begin() as connection:
        connection.execute(
            text("INSERT INTO encryption_key VALUES ('_SK_records_clinic_eu', '2024-01-01 00:00:00', '')")
        )
    outcome = command()
    assert outcome.status == 0
    assert "region-unread" in outcome.out


def test_nothing_to_look_at_is_status_3(command: Any) -> None:
    assert command("--models", "tests.doctor.test_command:NOTHING").status == 3


def test_a_mistyped_name_is_status_1_and_says_which_names_there_are(command: Any) -> None:
    outcome = command(*MODELS, "--json", PRODUCT_ID="klinic")
    assert outcome.status == 1
    assert "_SK_records_clinic" in outcome.json["findings"][0]["text"]
