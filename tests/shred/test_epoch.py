# SPDX-License-Identifier: Apache-2.0
"""After an epoch a backup from before opens nothing, and today's key table everything but the erased owners."""

from __future__ import annotations

import dataclasses
import itertools
import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from sa_asherah import (
    ConfigurationError,
    KeyNotFoundError,
    KmsCiphertextError,
    KmsError,
    MetastoreError,
    MetastoreUnavailableError,
    UsageError,
)
from sa_asherah.core.erasure import changed, tombstone
from sa_asherah.core.ids import KeyIds
from sa_asherah.core.key_record import parse_key_record
from sa_asherah.core.ports import KeyRow
from sa_asherah.core.strict_json import base64_text
from sa_asherah.core.system_keys import SystemKeys, epoch_place
from sa_asherah.kms.vault import VaultTransitKMS
from sa_asherah.shred.epoch import Epoch, State
from tests.shred.scene import DAY, WAIT, errors_of, keys_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sa_asherah.core.ports import KeyRows
    from tests.integration.records import Process
    from tests.servers.openbao import OpenBao
    from tests.shred.scene import Scene

SOAK = 7 * DAY


def epoch(scene: Scene, process: Process) -> Epoch:
    return Epoch(process.engine, process.asherah, scene.environ["VAULT_TRANSIT_KEY"])


def go_on(scene: Scene, running: Epoch, tmp_path: Path) -> State:
    """Do what the state asks for."""
    state = running.state()
    if state is not None:
        scene.now = max(scene.now, state.until)
    return running.run(snapshot_taken=True, export=tmp_path / "second-place.jsonl", trim=True)


class Life:
    """Processes that write for old and new owners, and one that holds its keys for long."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.notes: dict[str, list[str | None]] = {}
        self.numbers = itertools.count()
        self.holding = scene.start()
        self.write(self.holding, "old")
        self.scene.now += 91 * DAY
        self.write(self.holding, "bob")

    def write(self, process: Process, tenant: str) -> None:
        """Write a note."""
        self.notes.setdefault(tenant, []).append(process.write(tenant))

    def goes_on(self) -> None:
        """Write for known owners and for new ones, from processes old and new."""
        number = next(self.numbers)
        self.write(self.holding, "bob")
        self.write(self.holding, f"new-{number}")
        self.write(self.scene.start(), f"newer-{number}")

    def is_whole(self) -> bool:
        """Tell whether a process that just started reads it all."""
        process = self.scene.start()
        return {tenant: process.read(tenant) for tenant in self.notes} == self.notes


@pytest.mark.long
@pytest.mark.parametrize("step", range(1, 21))
def test_killed_anywhere_it_is_taken_up_where_it_ended(small_scene: Scene, tmp_path: Path, step: int) -> None:
    life = Life(small_scene)
    running = epoch(small_scene, life.holding)
    calls = itertools.count(1)
    for target, name in ((running._metastore, "run"), (running._versions, "_asked")):
        setattr(target, name, _failing(getattr(target, name), calls, step))
    with pytest.raises(MetastoreUnavailableError):
        _to_the_end(small_scene, running, tmp_path)
    life.goes_on()
    _to_the_end(small_scene, epoch(small_scene, small_scene.start()), tmp_path)
    small_scene.now += WAIT
    life.goes_on()
    assert life.is_whole()


def _failing(call: Callable[..., Any], calls: itertools.count[int], step: int) -> Callable[..., Any]:
    def failing(*arguments: Any, **options: Any) -> Any:
        result = call(*arguments, **options)
        if next(calls) == step:
            raise MetastoreUnavailableError("killed here")
        return result

    return failing


def _to_the_end(scene: Scene, running: Epoch, tmp_path: Path) -> None:
    while go_on(scene, running, tmp_path).step < 9:
        pass


def test_it_waits_for_the_operator_and_for_time(small_scene: Scene, tmp_path: Path) -> None:
    process = small_scene.start()
    process.write("bob")
    running = epoch(small_scene, process)
    assert running.run().step == running.run().step == 2
    state = running.run(snapshot_taken=True)
    assert (state.step, state.until) == (5, small_scene.now + WAIT)
    small_scene.now += WAIT
    assert running.run(snapshot_taken=True).step == 6
    state = running.run(export=tmp_path / "export")
    assert (state.step, state.until) == (8, small_scene.now + SOAK)
    assert running.run(trim=True).step == 8
    small_scene.now += SOAK
    assert running.run().step == 8
    assert running.run(trim=True).step == 9


def _opens_as_before(scene: Scene, running: Epoch, before: list[Any]) -> None:
    """Make sure that nothing is left of an epoch, and that a backup from before opens what it held."""
    assert running.state() is None
    assert running._versions.oldest() == 1
    assert not [record for record in scene.records().values() if "Retired" in record]
    now = scene.dump()
    scene.restore(before)
    assert list(errors_of(scene.start(), ["old"])) == [None]
    scene.restore(now)


@pytest.mark.parametrize("steps", range(1, 5))
def test_cancelled_it_leaves_all_as_it_was(small_scene: Scene, tmp_path: Path, steps: int) -> None:
    life = Life(small_scene)
    before = small_scene.dump()
    running = epoch(small_scene, life.holding)
    words: list[dict[str, Any]] = [{}, {"snapshot_taken": True}, {}, {"export": tmp_path / "export"}]
    reached: list[int] = []
    for given in words[:steps]:
        reached.append(running.run(**given).step)
        small_scene.now += WAIT
        life.goes_on()
    assert reached == [2, 5, 6, 8][:steps]
    assert epoch(small_scene, small_scene.start()).cancel()
    assert not running.cancel()
    _opens_as_before(small_scene, running, before)
    life.goes_on()
    assert life.is_whole()
    keys_of(life.holding).rewrap()
    _to_the_end(small_scene, running, tmp_path)
    assert life.is_whole()
    small_scene.restore(before)
    assert set(errors_of(small_scene.start(), ["bob", "old"])) == {KmsCiphertextError}


@pytest.mark.parametrize(
    "call", ["_versions.rotate", "_system_keys.make_key", "_mark", "_moved", "_versions.open_from", "_save"]
)
def test_a_run_that_is_at_work_when_it_is_cancelled_undoes_what_it_did(
    small_scene: Scene, tmp_path: Path, call: str
) -> None:
    life = Life(small_scene)
    before = small_scene.dump()
    running = epoch(small_scene, life.holding)
    target: Any = running
    *path, name = call.split(".")
    for member in path:
        target = getattr(target, member)
    original = getattr(target, name)
    calls = itertools.count()

    def cancelled(*arguments: Any) -> Any:
        if not next(calls):
            assert epoch(small_scene, small_scene.start()).cancel()
        return original(*arguments)

    setattr(target, name, cancelled)
    with pytest.raises(UsageError, match="cancelled meanwhile"):
        _to_the_end(small_scene, running, tmp_path)
    _opens_as_before(small_scene, running, before)
    life.goes_on()
    assert life.is_whole()


def test_cancelled_just_before_it_destroys_it_destroys_nothing(small_scene: Scene, tmp_path: Path) -> None:
    life = Life(small_scene)
    before = small_scene.dump()
    running = epoch(small_scene, life.holding)
    save: Any = running._save

    def cancelled(row: KeyRow, state: State) -> None:
        if state.final:
            assert epoch(small_scene, small_scene.start()).cancel()
        save(row, state)

    running._save = cancelled  # type: ignore[method-assign]
    with pytest.raises(UsageError, match="cancelled meanwhile"):
        _to_the_end(small_scene, running, tmp_path)
    _opens_as_before(small_scene, running, before)
    assert life.is_whole()


@pytest.mark.parametrize("step", range(1, 8))
def test_killed_while_it_is_cancelled_it_is_cancelled_again_and_does_not_go_on(
    small_scene: Scene, tmp_path: Path, step: int
) -> None:
    life = Life(small_scene)
    before = small_scene.dump()
    running = epoch(small_scene, life.holding)
    while go_on(small_scene, running, tmp_path).step < 8:
        pass
    dying = epoch(small_scene, life.holding)
    calls = itertools.count(0)  # reading the state is the first one, and changes nothing
    for target, name in ((dying._metastore, "run"), (dying._versions, "_asked")):
        setattr(target, name, _failing(getattr(target, name), calls, step))
    with pytest.raises(MetastoreUnavailableError):
        dying.cancel()
    with pytest.raises(UsageError, match="being cancelled"):
        running.run(trim=True)
    assert running.cancel()
    _opens_as_before(small_scene, running, before)
    assert life.is_whole()


def test_when_the_last_step_has_begun_it_cannot_be_cancelled(small_scene: Scene, tmp_path: Path) -> None:
    life = Life(small_scene)
    running = epoch(small_scene, life.holding)
    trim = running._versions.trim
    running._versions.trim = _failing(lambda _: None, itertools.count(1), 1)  # type: ignore[method-assign]
    with pytest.raises(MetastoreUnavailableError):
        _to_the_end(small_scene, running, tmp_path)
    with pytest.raises(UsageError, match="step 9 has begun"):
        running.cancel()
    running._versions.trim = trim  # type: ignore[method-assign]
    _to_the_end(small_scene, running, tmp_path)
    assert life.is_whole()


def test_while_it_runs_system_keys_are_left_alone(small_scene: Scene) -> None:
    process = small_scene.start()
    process.write("bob")
    epoch(small_scene, process).run()
    system_keys = keys_of(process)
    for work in (system_keys.rewrap, lambda: system_keys.rotate(force=True), lambda: system_keys.migrate(process.kms)):
        with pytest.raises(UsageError, match="an epoch is being ended"):
            work()


def test_a_forged_tombstone_gives_no_living_owner_up(small_scene: Scene, tmp_path: Path) -> None:
    life = Life(small_scene)
    forged = tombstone("_IK_bob_records_clinic")
    keys_of(life.holding).metastore.run(lambda rows: rows.insert([forged]), writing=True)
    running = epoch(small_scene, life.holding)
    with pytest.raises(MetastoreError, match="although its owner has a tombstone"):
        _to_the_end(small_scene, running, tmp_path)
    assert life.is_whole()
    small_scene.restore([row for row in small_scene.dump() if row[0] != forged.id])
    _to_the_end(small_scene, running, tmp_path)
    assert life.is_whole()


def test_a_system_key_that_was_wrapped_anew_in_between_does_not_outlive_its_epoch(
    small_scene: Scene, tmp_path: Path
) -> None:
    life = Life(small_scene)
    running = epoch(small_scene, life.holding)
    running.run()
    (row, *_) = keys_of(life.holding).metastore.run(lambda rows: rows.versions("_SK_records_clinic"))
    kms: Any = life.holding.kms
    renewed = base64_text(kms.rewrap_key(parse_key_record(row).wrapped))
    keys_of(life.holding).metastore.run(lambda rows: rows.replace(row, changed(row.text, Key=renewed)), writing=True)
    within = small_scene.dump()
    _to_the_end(small_scene, running, tmp_path)
    assert life.is_whole()
    small_scene.restore(within)
    assert set(errors_of(small_scene.start(), ["bob", "old"])) == {KmsCiphertextError}


def test_it_needs_transit_its_exclusive_key_and_no_peers(small_scene: Scene) -> None:
    process = small_scene.start()
    with pytest.raises(ConfigurationError, match="named as exclusive"):
        Epoch(process.engine, process.asherah, "another")
    peers = small_scene.start(peers=True, check_interval=timedelta(0))
    with pytest.raises(ConfigurationError, match="peers=True"):
        epoch(small_scene, peers)


@pytest.mark.parametrize(
    "ids", [KeyIds("records", "clinic", "eu"), KeyIds("billing", "clinic")], ids=lambda ids: str(ids.tail)
)
def test_it_is_refused_while_the_transit_key_wraps_keys_of_another_region_or_service(
    small_scene: Scene, tmp_path: Path, ids: KeyIds
) -> None:
    process = small_scene.start()
    process.write("bob")
    ours = keys_of(process)
    others = SystemKeys(ids, ours.policy, process.kms, ours.metastore)
    made = others.make_key()
    before = small_scene.records()
    running = epoch(small_scene, process)
    with pytest.raises(ConfigurationError, match=f"also wraps the system key '{ids.system_key_id()}'"):
        running.run()
    assert small_scene.records() == before
    ours.metastore.run(lambda rows: rows.remove(made.row), writing=True)
    assert [running.run().step, running.run(snapshot_taken=True).step] == [2, 5]
    small_scene.now += WAIT
    assert running.run().step == 6
    # One that came meanwhile, wrapped by a version that is given up.
    ours.metastore.run(lambda rows: rows.insert([made.row]), writing=True)
    with pytest.raises(ConfigurationError, match="also wraps"):
        _to_the_end(small_scene, running, tmp_path)
    assert others.key(made.created).has_same_secret(made)


def test_keys_of_others_under_another_transit_key_are_no_obstacle(
    small_scene: Scene, openbao: OpenBao, tmp_path: Path
) -> None:
    process = small_scene.start()
    process.write("bob")
    mount, key = openbao.new_transit()
    rights = f'path "{mount}/*" {{ capabilities = ["read", "update"] }}'
    ours = keys_of(process)
    settings = {"VAULT_ADDR": openbao.addr, "VAULT_TOKEN": openbao.token(rights)}
    kms = VaultTransitKMS.from_env({**settings, "VAULT_TRANSIT_KEY": key, "VAULT_TRANSIT_MOUNT": mount})
    others = SystemKeys(KeyIds("records", "clinic", "eu"), ours.policy, kms, ours.metastore)
    made = others.make_key()
    _to_the_end(small_scene, epoch(small_scene, process), tmp_path)
    assert others.key(made.created).has_same_secret(made)
    kms.close()


def _set_state(process: Process, state: dict[str, Any]) -> None:
    """Write the state of the epoch as one can who writes to the key table."""
    place = epoch_place(keys_of(process).ids)
    text = json.dumps({"Created": place[1], "Epoch": state})

    def work(rows: KeyRows) -> None:
        for row in rows.exact([place]).values():
            rows.remove(row)
        rows.insert([KeyRow(*place, text)])

    keys_of(process).metastore.run(work, writing=True)


def test_a_forged_state_destroys_nothing_that_the_forger_could_not(small_scene: Scene, tmp_path: Path) -> None:
    life = Life(small_scene)
    running = epoch(small_scene, life.holding)
    true = dataclasses.asdict(running.run())
    dates = [row.created for row in running._rows()]
    new = keys_of(life.holding).make_key().created
    forgeries: list[dict[str, Any]] = [
        {"step": 8, "old": dates, "new": dates[0]},  # give up the key that everything goes to
        {"step": 8, "old": [], "new": dates[0]},  # destroy versions that are in use
        {"step": 8, "old": dates, "new": 0},
        {"step": 7, "old": dates, "new": new},  # without having retired them: keys could come under them meanwhile
        {"step": 8, "old": dates, "new": new, "final": True},
        {"version": "2"},
        {"old": ["1"]},
        {"until": 10**30},
        {"opens": -1},
        {"final": 1},
        {"step": 9},
        {"step": "8"},
        {"old": None},
        {"more": 1},
    ]
    for members in forgeries:
        _set_state(life.holding, true | members)
        with pytest.raises((MetastoreError, KmsError, KeyNotFoundError)):
            go_on(small_scene, epoch(small_scene, life.holding), tmp_path)
        assert {*dates} <= {row.created for row in running._rows()}
        assert life.is_whole()
    _set_state(life.holding, true)
    _to_the_end(small_scene, running, tmp_path)
    assert life.is_whole()
