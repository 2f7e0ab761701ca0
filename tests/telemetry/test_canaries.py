# SPDX-License-Identifier: Apache-2.0
"""Whatever happens to keys and values, and however loud the logs: no value, key or ciphertext is told to anybody."""

from __future__ import annotations

import base64
import json
import logging
import os
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import text

from sa_asherah import Asherah, write_audit_log
from tests.telemetry.stage import NEW_MASTER_KEY, OLD_MASTER_KEY, Stage
from tests.telemetry.test_metrics import Collector, sdk

__all__ = ["sdk"]


def forms(secret: bytes) -> Iterator[str]:
    """Yield every text that would give some bytes away."""
    yield from (secret.hex(), secret.hex().upper(), repr(secret)[2:-1], repr(bytearray(secret))[12:-2])
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        yield encode(secret).decode().rstrip("=")
    yield secret.decode("latin-1")


def keys(asherah: Asherah) -> Iterator[bytes]:
    """Yield the keys that an Asherah has in memory."""
    for engine in asherah._engines:
        keyring = asherah._attachment(engine).hierarchy._keyring
        for key in (*keyring.system._keys.values(), *keyring.intermediate._keys.values()):
            yield from (bytes(key.secret), bytes(key.cell_key))


def stored(stage: Stage) -> Iterator[str]:
    """Yield wrapped keys and ciphertexts, as the database has them."""
    with stage.engine.connect() as connection:
        for record in connection.execute(
            text("SELECT key_record FROM encryption_key WHERE substr(id, 1, 4) <> '_XK_'")
        ).scalars():
            yield from (json.loads(record)["Key"], json.loads(record)["Bind"])
        for ssn, note, card in connection.execute(text("SELECT ssn, note, card FROM patients")):
            yield from (note[4:60], json.loads(card)["Data"], json.loads(card)["Key"]["Key"])
            yield from forms(ssn[28:60])


@pytest.mark.parametrize("loud", [False, True], ids=["as it is", "all that can be asked for"])
def test_no_secret_is_told(stage: Stage, sdk: Collector, caplog: pytest.LogCaptureFixture, *, loud: bool) -> None:
    canary = f"canary {os.urandom(12).hex()}"
    processes: list[Asherah] = []

    def watch(asherah: Asherah) -> None:
        processes.append(asherah)
        if loud:
            asherah.events.listen(write_audit_log, decrypts=True)
        sdk.watch(asherah, decrypts=loud, partitions=loud)

    stage.watch = watch
    with caplog.at_level(logging.DEBUG):
        stage.play(canary)
    told = everything(stage, sdk, caplog)
    assert "_IK_7_records_clinic" in told, "what is told is looked at"
    secrets = {OLD_MASTER_KEY, NEW_MASTER_KEY, canary.encode(), *(key for each in processes for key in keys(each))}
    assert len(secrets) > 10
    looked_for = {form for secret in secrets for form in forms(secret)} | set(stored(stage))
    assert [form for form in looked_for if form in told] == []


def everything(stage: Stage, sdk: Collector, caplog: pytest.LogCaptureFixture) -> str:
    """Return all that was told, to whomever."""
    records: list[Any] = [caplog.text, *(record.__dict__ for record in caplog.records)]
    spans = [span.to_json() for span in sdk.spans]
    points = [(name, attributes, point.to_json()) for name, attributes, point in sdk.points()]
    return "\n".join(map(repr, [*records, *stage.told])) + "\n".join([*spans, *map(repr, points)]) + caplog.text
