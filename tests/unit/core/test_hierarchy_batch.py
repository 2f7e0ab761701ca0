# SPDX-License-Identifier: Apache-2.0
"""Many versions of the system key at once, and system keys that others made."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from sa_asherah.core.aead import InvalidTag
from sa_asherah.errors import KeyRecordError, KmsCiphertextError, KmsError, KmsUnavailableError
from tests.unit.core.fakes import EXPIRE_AFTER, START, SYSTEM_ID, FakeKMS, World

if TYPE_CHECKING:
    from collections.abc import Sequence

PERIOD = EXPIRE_AFTER + 1
AGES = 20


class BatchKMS(FakeKMS):
    """Unwraps 200 keys in a call."""

    batch_size = 200

    def decrypt_keys(self, blobs: Sequence[bytes]) -> list[bytes | KmsError]:
        self._call(f"batch of {len(blobs)}")
        return [self._one(blob) for blob in blobs]

    def _one(self, blob: bytes) -> bytes | KmsError:
        calls = list(self.calls)
        try:
            return self.decrypt_key(blob)
        except InvalidTag:
            return KmsCiphertextError("another key")
        finally:
            self.calls = calls


@pytest.fixture
def world() -> World:
    """Return a key table of some years: each key of owner 7 has a system key of its own."""
    world = World()
    world.kms = BatchKMS()
    for age in range(AGES):
        world.clock.now = START + age * PERIOD
        world.process().encryption_keys(["7"])
    world.kms.calls.clear()
    return world


def dates(world: World) -> list[int]:
    """Return the dates of owner 7's keys."""
    return [created for key_id, created in world.table.texts if key_id != SYSTEM_ID]


def test_a_process_that_reads_values_of_all_ages_calls_the_key_service_once(world: World) -> None:
    process = world.process()
    for created in dates(world):
        process.decryption_key("7", created)
    assert len(dates(world)) == AGES
    assert world.kms.calls == [f"batch of {AGES}"]


def test_a_writer_unwraps_the_newest_system_key_only(world: World) -> None:
    world.process().encryption_keys(["7"])
    assert world.kms.calls == ["decrypt"]


def test_a_service_without_batches_is_asked_for_what_is_needed_only(world: World) -> None:
    world.kms = FakeKMS()
    world.process().decryption_key("7", dates(world)[3])
    assert world.kms.calls == ["decrypt"]
    assert ("versions", 1) not in world.table.calls


def test_one_bad_record_spoils_no_other(world: World) -> None:
    first, second, *rest = dates(world)
    other = World()
    other.kms = FakeKMS(bytes(32))
    other.process().encryption_keys(["7"])
    world.table.texts[SYSTEM_ID, first] = other.table.texts[SYSTEM_ID, START]
    world.table.edit((SYSTEM_ID, second), Bind="A" * 43 + "=")
    process = world.process()
    for created in rest:
        process.decryption_key("7", created)
    assert world.kms.calls == [f"batch of {AGES}"]
    with pytest.raises(InvalidTag):
        process.decryption_key("7", first)
    with pytest.raises(KeyRecordError, match="Bind does not hold"):
        process.decryption_key("7", second)


def test_an_outage_is_an_error_and_the_next_read_asks_for_all_again(world: World) -> None:
    process = world.process()
    world.kms.is_down = True
    with pytest.raises(KmsUnavailableError):
        process.decryption_key("7", dates(world)[0])
    world.kms.is_down = False
    process.decryption_key("7", dates(world)[0])
    assert world.kms.calls == [f"batch of {AGES}"] * 2


def test_threads_that_start_together_ask_once(world: World) -> None:
    process = world.process()
    start = threading.Barrier(8)

    def read(created: int) -> None:
        start.wait(10)
        process.decryption_key("7", created)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(read, dates(world)[:8]))
    assert world.kms.calls == [f"batch of {AGES}"]


def test_a_system_key_that_another_process_made_is_told(world: World, caplog: pytest.LogCaptureFixture) -> None:
    process = world.process(expire_after=4 * PERIOD)
    process.encryption_keys(["7"])
    world.clock.now += PERIOD
    world.process().encryption_keys(["7"])
    with caplog.at_level(logging.WARNING):
        process.encryption_keys(["8"])
    assert [record.name for record in caplog.records] == ["sa_asherah.audit"]
    assert f"system_key_appeared: {SYSTEM_ID} created {world.table.created(SYSTEM_ID)[-1]}" in caplog.text
    process.encryption_keys(["9"])
    assert len(caplog.records) == 1


def test_a_system_key_of_this_process_is_not_told(world: World, caplog: pytest.LogCaptureFixture) -> None:
    process = world.process()
    process.encryption_keys(["7"])
    world.clock.now += PERIOD
    with caplog.at_level(logging.WARNING):
        process.encryption_keys(["7"])
        process.encryption_keys(["8"])
    assert world.kms.calls[-1] == "encrypt"
    assert not caplog.records
