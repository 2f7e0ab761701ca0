# SPDX-License-Identifier: Apache-2.0
"""Every event happens, and the page of events says what there is: names, attributes, levels, loggers."""

from __future__ import annotations

import ast
import logging
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import sa_asherah
from sa_asherah import write_audit_log
from sa_asherah.core.events import Events
from sa_asherah.core.logs import LOGGERS
from tests.telemetry.page import names, rows

if TYPE_CHECKING:
    from tests.telemetry.stage import Stage

PACKAGE = Path(sa_asherah.__file__).parent


def test_every_event_is_on_the_page_with_its_attributes_and_no_other(stage: Stage) -> None:
    stage.play("the value")
    told: dict[str, set[str]] = {}
    for name, attributes in stage.told:
        told.setdefault(name, set()).update(attributes)
    assert told == {row["event"]: set(names(row["attributes"])) for row in rows("event")}


def test_the_source_emits_the_events_of_the_page_and_no_other() -> None:
    emitted: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case ast.Call(func=ast.Attribute(attr="emit"), args=[ast.Constant(value=str(name))]):
                    emitted.add(name)
                case _:
                    pass
    assert emitted == {row["event"] for row in rows("event")}


def test_the_audit_log_has_every_event_at_its_level(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    stage.watch = lambda asherah: asherah.events.listen(write_audit_log, decrypts=True)
    with caplog.at_level(logging.DEBUG, "sa_asherah.audit"):
        stage.play("the value")
    records = [record for record in caplog.records if record.name == "sa_asherah.audit"]
    assert {(record.__dict__["event"], record.levelname) for record in records} == {
        (row["event"], row["level"]) for row in rows("event")
    }
    assert [(record.__dict__["event"], record.__dict__["asherah"]) for record in records] == stage.told
    for record in records:
        assert record.getMessage().startswith(f"{record.__dict__['event']}: ")


def test_the_audit_log_leaves_out_what_was_not_asked_for(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "sa_asherah.audit"):
        stage.play("the value")
    events = Counter(record.__dict__.get("event") for record in caplog.records if record.name == "sa_asherah.audit")
    assert events == Counter(name for name, _ in stage.told if name != "values_decrypted")


def test_the_loggers_of_the_page_are_those_of_the_source() -> None:
    used: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        module = "sa_asherah." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for name in re.findall(r"^\w+ = logging\.getLogger\((.+)\)$", path.read_text("utf-8"), re.MULTILINE):
            used.add(module if name == "__name__" else ast.literal_eval(name))
    assert used == set(LOGGERS) == {row["logger"] for row in rows("logger")}


SECRETS = {
    "Vault's token": "hvs.CAESIJ6cFRlbXBsYXRlX3Rva2VuX2Zvcl90ZXN0cw",
    "a batch token": "hvb.AAAAAQJ7lqIhUeJ2c6kxS2Jxb3Jkd29yZA",
    "an old token": "s.kSdRwxv0Lr8Sih5kYf8mXyQ7",
    "what Transit wrapped": "vault:v12:8SDd3WHDOjf7mq69CyCqYjBXAiQQAVZRkFM13ok481zoCmHnSeDX9vyf7w==",
    "a JWT": "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJrdWJlcm5ldGVzIn0.c2lnbmF0dXJl",
    "a key in hexadecimal": bytes(range(32)).hex(),
    "a key in base64": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
}


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("name", LOGGERS)
def test_whatever_looks_like_a_secret_is_masked(name: str, secret: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, name):
        logging.getLogger(name).info("%s failed: %s", "the call", ValueError(f"denied ({SECRETS[secret]}) here"))
        logging.getLogger(name).info(f"header={SECRETS[secret]}")  # noqa: G004 -- how it is logged must not matter
    assert caplog.messages == ["the call failed: denied (<redacted>) here", "header=<redacted>"]


@pytest.mark.parametrize(
    "told",
    [
        "_IK_123e4567-e89b-12d3-a456-426614174000_records_clinic created 1800000000",
        "_IK_" + "5a" * 32 + "_records_clinic created 1800000000",
        "https://vault.example.com:8200/v1/transit/decrypt/clinic: 503",
        "the record was altered; restore the row from a backup",
    ],
)
def test_what_an_operator_needs_is_not_masked(told: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "sa_asherah.hierarchy"):
        logging.getLogger("sa_asherah.hierarchy").info("%s", told)
    assert caplog.messages == [told]


def test_a_listener_that_fails_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[str] = []

    def fail(_name: str, _attributes: object) -> None:
        raise ValueError("the value")

    events = Events(fail, lambda name, _attributes: heard.append(name))
    events.emit("key_created", id="_SK_a_b", created=1)
    assert heard == ["key_created"]
    assert "ValueError" in caplog.text
    assert "the value" not in caplog.text


def test_a_listener_is_called_once_however_often_it_was_added() -> None:
    heard: list[str] = []

    def hear(name: str, _attributes: object) -> None:
        heard.append(name)

    events = Events()
    assert not events.decrypts
    for decrypts in (False, True, True):
        events.listen(hear, decrypts=decrypts)
    events.emit("key_created")
    events.emit("values_decrypted")
    assert heard == ["key_created", "values_decrypted"]
    events.listen(hear)
    assert not events.decrypts
    events.emit("values_decrypted")
    events.ignore(hear)
    events.ignore(hear)
    events.emit("key_created")
    assert heard == ["key_created", "values_decrypted"]
