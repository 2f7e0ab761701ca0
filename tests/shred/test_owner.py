# SPDX-License-Identifier: Apache-2.0
"""An erased owner cannot be read or written by anybody any more; everybody else notices nothing."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Column, Integer, MetaData, String, Table, insert

from sa_asherah import (
    ConfigurationError,
    Encrypted,
    KeyRecordError,
    MetastoreUnavailableError,
    OwnerErasedError,
    UsageError,
)
from sa_asherah.core.erasure import tombstone
from sa_asherah.core.key import Key, Secret
from sa_asherah.core.key_record import KeyRecord
from sa_asherah.shred import Loss, OwnerShred, Receipt, replay, shred
from tests.integration.records import Base
from tests.shred.scene import DAY, START, WAIT, errors_of, keys_of, living_keys

if TYPE_CHECKING:
    from collections.abc import Callable

    from sa_asherah.core.ports import KeyRow
    from tests.integration.records import Process
    from tests.shred.scene import Scene

ANN = "_IK_ann_records_clinic"


def test_an_erased_owner_is_unreadable_for_ever_and_the_others_are_not(scene: Scene) -> None:
    running, other = scene.start(), scene.start()
    notes = [running.write("ann"), running.write("ann")]
    running.write("bob")
    scene.now += 91 * DAY
    notes += [running.write("ann"), other.write("ann")]
    assert other.read("ann") == running.read("ann") == notes
    with scene.shred(running, "ann") as shredding:
        assert shredding.losses() == [Loss("notes", "text", 4)]
        pending = shredding.begin()
        assert (len(pending.keys), pending.until - pending.begun) == (2, WAIT)
        assert list(errors_of(scene.start(), ["ann", "bob"])) == [OwnerErasedError, None]
        with pytest.raises(UsageError, match="finish after that"):
            shredding.finish()
        scene.now += WAIT + 1
        receipt = shredding.finish()
    assert (receipt.partition, len(receipt.keys), receipt.losses) == ("ann", 2, (Loss("notes", "text", 4),))
    for process in (running, other, scene.start()):
        assert list(errors_of(process, ["ann", "bob"])) == [OwnerErasedError, None]
        with pytest.raises(OwnerErasedError, match="was erased"):
            process.write("ann")
        process.write("bob")
    assert living_keys(keys_of(running), "ann") == []
    assert len(living_keys(keys_of(running), "bob")) == 2


def test_nothing_of_the_keys_is_left_in_the_table_and_their_places_stay_taken(scene: Scene) -> None:
    scene.start().write("ann")
    before = scene.records()
    scene.erase("ann")
    after = scene.records()
    assert set(before) < set(after)
    for place, record in before.items():
        is_owners = place[0].startswith("_IK_")
        assert (after[place] == record) != is_owners
        assert not is_owners or (after[place]["Key"] != record["Key"] and after[place]["Revoked"] is True)
    (stone,) = (record for place, record in after.items() if place[0] == "_XK_ann_records_clinic")
    assert stone["Revoked"] is True


def test_a_page_of_an_erased_owner_does_not_ask_for_each_row(small_scene: Scene) -> None:
    process = small_scene.start()
    for _ in range(3):
        process.write("ann")
    small_scene.erase("ann")
    process = small_scene.start()
    with process.asherah.unreadable("mark"):
        found = process.read("ann")
    assert [getattr(value, "reason", None) for value in found] == [OwnerErasedError] * 3


def test_an_owner_who_never_wrote_can_be_erased_and_gets_no_key(scene: Scene) -> None:
    process = scene.start()
    process.write("bob")
    scene.erase("ann")
    with pytest.raises(OwnerErasedError):
        process.write("ann")
    assert living_keys(keys_of(process), "ann") == []


def test_a_process_that_holds_the_key_stops_when_it_looks_again(scene: Scene) -> None:
    running = scene.start()
    running.write("ann")
    with scene.shred(scene.start(), "ann") as shredding:
        shredding.begin()
    scene.now += WAIT
    with pytest.raises(OwnerErasedError):
        running.write("ann")
    assert list(errors_of(running, ["ann"])) == [OwnerErasedError]


def test_a_forged_tombstone_stops_writes_and_nothing_else(scene: Scene) -> None:
    running = scene.start()
    notes = [running.write("ann")]
    before = scene.dump()
    _insert(running, tombstone(ANN))
    scene.now += WAIT
    for process in (running, scene.start()):
        with pytest.raises(OwnerErasedError, match="If nobody erased it"):
            process.write("ann")
        assert process.read("ann") == notes
    scene.restore(before)
    scene.now += WAIT
    notes.append(running.write("ann"))
    assert scene.start().read("ann") == notes


FORGED = (0, -5, START - 10**6, START + 10**6, "soon", None)


def test_a_forged_tombstone_never_shortens_the_wait(small_scene: Scene) -> None:
    """Whatever moment it names: while a key was living until now, processes may have it."""
    process = small_scene.start()
    process.write("ann")
    before = small_scene.dump()
    for begun in FORGED:
        small_scene.restore(before)
        _insert(process, tombstone(ANN, Erased=begun))
        with small_scene.shred(process, "ann") as shredding:
            assert shredding.begin().until >= small_scene.now + WAIT
            with pytest.raises(UsageError, match="finish after that"):
                shredding.finish()


def test_a_key_that_is_back_when_the_erasure_is_finished_is_destroyed_and_waited_for(scene: Scene) -> None:
    process = scene.start()
    process.write("ann")
    keys = scene.dump()
    with scene.shred(process, "ann") as shredding:
        shredding.begin()
        stones = [row for row in scene.dump() if row[0].startswith("_XK_")]
        scene.restore([*keys, *stones])
        scene.now += WAIT + 1
        with pytest.raises(UsageError, match="finish after that"):
            shredding.finish()
        assert living_keys(keys_of(process), "ann") == []
        pending = shredding.pending()
        assert pending is not None
        assert pending.until >= scene.now + WAIT
        scene.now = pending.until
        assert shredding.finish().begun == pending.begun


def test_a_key_that_was_used_before_the_tombstone_was_committed_is_destroyed_at_once(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its maker looked for a tombstone when there was none, and the erasure for keys when that one was not there."""
    process = scene.start()
    process.write("bob")
    with scene.shred(scene.start(), "ann") as shredding:
        run: Callable[..., Any] = shredding._system_keys.metastore.run
        made: list[str] = []

        def erased_too_early(work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
            result = run(work, *arguments, **options)
            if not made:
                bare = [row for row in scene.dump() if not row[0].startswith("_XK_")]
                stones = [row for row in scene.dump() if row[0].startswith("_XK_")]
                scene.restore(bare)
                made.append(process.write("ann"))
                scene.restore([*scene.dump(), *stones])
            return result

        monkeypatch.setattr(shredding._system_keys.metastore, "run", erased_too_early)
        shredding.begin()
    assert made
    assert living_keys(keys_of(process), "ann") == []


def test_a_forged_tombstone_and_a_deleted_row_lose_no_more_than_the_deleted_row(scene: Scene) -> None:
    running = scene.start()
    notes = [running.write("ann")]
    before = scene.dump()
    scene.restore([row for row in before if row[0] != ANN])
    _insert(running, tombstone(ANN))
    scene.now += WAIT
    with pytest.raises(OwnerErasedError, match="If nobody erased it"):
        running.write("ann")
    assert [row for row in scene.dump() if row[0] == ANN] == []
    # What a backup has is good: no process put another record in its place.
    scene.restore(before)
    assert scene.start().read("ann") == notes


def test_a_removed_tombstone_brings_no_key_back_and_the_receipt_puts_it_again(scene: Scene) -> None:
    process = scene.start()
    process.write("ann")
    with scene.shred(process, "ann") as shredding:
        shredding.begin()
        scene.now += WAIT + 1
        receipt = shredding.finish()
    scene.restore([row for row in scene.dump() if not row[0].startswith("_XK_")])
    fresh = scene.start()
    assert list(errors_of(fresh, ["ann"])) == [KeyRecordError]  # what it was is not told, and nothing is read
    with scene.shred(process, "ann") as shredding, pytest.raises(UsageError, match="has not begun"):
        shredding.finish()
    replay(process.engine, process.asherah, [receipt])
    for one in (fresh, scene.start()):
        with pytest.raises(OwnerErasedError):
            one.write("ann")
    assert living_keys(keys_of(process), "ann") == []


def test_with_tombstone_and_records_removed_before_the_end_the_erasure_has_not_begun(scene: Scene) -> None:
    running = scene.start()
    running.write("ann")
    with scene.shred(scene.start(), "ann") as shredding:
        shredding.begin()
        scene.restore([row for row in scene.dump() if "_ann_" not in row[0]])
        running.write("ann")  # it holds the key, and puts it back as after any loss
        scene.now += WAIT + 1
        with pytest.raises(UsageError, match="has not begun"):
            shredding.finish()
        shredding.begin()
        scene.now += WAIT + 1
        shredding.finish()
    assert living_keys(keys_of(running), "ann") == []
    assert list(errors_of(running, ["ann"])) == [OwnerErasedError]


def _insert(process: Process, row: KeyRow) -> None:
    keys_of(process).metastore.run(lambda rows: rows.insert([row]), writing=True)


@pytest.mark.parametrize("step", range(1, 11))
def test_killed_at_any_step_it_is_taken_up_where_it_ended(small_scene: Scene, step: int) -> None:
    small_scene.start().write("ann")
    process = small_scene.start()
    calls = iter(range(1, 100))
    with small_scene.shred(process, "ann") as shredding:
        metastore = shredding._system_keys.metastore
        run: Callable[..., Any] = metastore.run

        def failing(work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
            late = next(calls) == step
            result = run(work, *arguments, **options)
            if late:
                raise MetastoreUnavailableError("killed here")
            return result

        metastore.run = failing  # type: ignore[method-assign]
        with pytest.raises(MetastoreUnavailableError):
            _all_steps(small_scene, shredding)
    with small_scene.shred(small_scene.start(), "ann") as shredding:
        receipt = _all_steps(small_scene, shredding)
    assert len(receipt.keys) == 1
    assert living_keys(keys_of(process), "ann") == []


def _all_steps(scene: Scene, shredding: OwnerShred) -> Receipt:
    shredding.begin()
    scene.now += WAIT + 1
    return shredding.finish(shredding.losses())


def test_begun_twice_it_ends_when_the_first_one_would(small_scene: Scene) -> None:
    process = small_scene.start()
    process.write("ann")
    with small_scene.shred(process, "ann") as shredding:
        first = shredding.begin()
        small_scene.now += 1_000
        assert shredding.begin() == first == shredding.pending()


def test_one_call_waits_and_gives_a_receipt(small_scene: Scene) -> None:
    process = small_scene.start()
    process.write("ann")

    def wait(seconds: float) -> None:
        small_scene.now += seconds

    receipt = shred(process.engine, process.asherah, "ann", Base.metadata, wait=wait)
    assert receipt.losses == (Loss("notes", "text", 1),)
    assert receipt.finished - receipt.begun >= WAIT
    assert Receipt.parse(receipt.json()) == receipt


def test_after_a_restore_the_receipts_erase_again(scene: Scene) -> None:
    process = scene.start()
    notes = [process.write("ann"), process.write("bob")]
    dump = scene.dump()
    with scene.shred(process, "ann") as shredding:
        shredding.begin()
        scene.now += WAIT + 1
        receipt = shredding.finish()
    scene.restore(dump)
    assert scene.start().read() == notes
    assert [(one.partition, one.keys) for one in replay(process.engine, process.asherah, [receipt])] == [("ann", 1)]
    assert list(errors_of(scene.start(), ["ann", "bob"])) == [OwnerErasedError, None]


def test_a_receipt_that_was_altered_is_refused_and_erases_nobody(small_scene: Scene) -> None:
    process = small_scene.start()
    notes = [process.write("ann"), process.write("bob")]
    with small_scene.shred(process, "ann") as shredding:
        shredding.begin()
        small_scene.now += WAIT + 1
        receipt = shredding.finish()
    some: list[dict[str, Any]] = [{"partition": "bob"}, {"system_key": 5}, {"mac": ""}, {"service": "other"}]
    for changes in some:
        forged = _altered(receipt, changes)
        with pytest.raises(UsageError):
            replay(process.engine, process.asherah, [receipt, forged])
    assert process.read("bob") == notes[1:]


def _altered(receipt: Receipt, changes: dict[str, Any]) -> Receipt:
    members: dict[str, Any] = {field.name: getattr(receipt, field.name) for field in dataclasses.fields(receipt)}
    return Receipt(**members | changes)


RECEIPT = Receipt("records", "clinic", "ann", (("_IK_ann_records_clinic", 7),), (Loss("notes", "text", 3),), 10, 20)
SYSTEM_KEY = Key(KeyRecord("_SK_records_clinic", 5, ""), "", Secret(range(32)))


@given(st.data())
def test_a_receipt_holds_as_it_was_written_and_not_with_any_change(data: st.DataObject) -> None:
    signed = RECEIPT.signed(SYSTEM_KEY)
    assert Receipt.parse(json.dumps(json.loads(signed.json()), indent=2)).holds(SYSTEM_KEY)
    name = data.draw(st.sampled_from([field.name for field in dataclasses.fields(Receipt)]))
    value = getattr(signed, name)
    other = data.draw(st.text() if isinstance(value, str) else st.integers() if isinstance(value, int) else st.just(()))
    if other != value:
        assert not _altered(signed, {name: other}).holds(SYSTEM_KEY)
    assert not signed.holds(Key(SYSTEM_KEY.record, "", Secret(range(1, 33))))


@given(st.text() | st.sampled_from(["{}", "[]", '{"keys":[],"losses":[]}', '{"keys":1}']))
def test_what_is_no_receipt_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no receipt"):
        Receipt.parse(text)


def test_with_peers_it_is_refused(small_scene: Scene) -> None:
    process = small_scene.start(peers=True)
    with pytest.raises(ConfigurationError, match="share this key table"):
        small_scene.shred(process, "ann")


def test_losses_follow_the_template_and_the_type_of_each_owner_column(small_scene: Scene) -> None:
    metadata = MetaData()
    users = Table(
        "users",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("name", Encrypted(String(), owner="id", partition="user-{}")),
        Column("mail", Encrypted(String(), owner="id", partition="user-{}")),
    )
    Table("logs", metadata, Column("id", Integer, primary_key=True), Column("line", Encrypted(String())))
    process = small_scene.start()
    metadata.create_all(process.engine)
    with process.engine.begin() as connection:
        connection.execute(insert(users), [{"id": 7, "name": "a", "mail": None}, {"id": 8, "name": "b", "mail": "c"}])
    for partition, expected in (("user-7", [Loss("users", "name", 1)]), ("7", []), ("user-07", []), ("user-x", [])):
        with OwnerShred(process.engine, process.asherah, partition, metadata) as shredding:
            assert shredding.losses() == [Loss("logs", "line", None), *expected]


def test_records_that_are_no_records_are_overwritten_too(small_scene: Scene) -> None:
    small_scene.start().write("ann")
    small_scene.restore([*small_scene.dump(), ("_IK_ann_records_clinic", "1999-01-01 00:00:00", "{")])
    small_scene.erase("ann")
    owners = [record for (key_id, _), record in small_scene.records().items() if "_ann_" in key_id]
    assert [record["Revoked"] for record in owners] == [True] * 3
