# SPDX-License-Identifier: Apache-2.0
"""`sa-asherah shred`: it says what will be lost, asks, destroys, and gives a receipt that repeats it."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

from sa_asherah import KmsCiphertextError, OwnerErasedError
from sa_asherah.shred import Receipt
from tests.cli.site import BASE, run
from tests.shred.scene import errors_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.site import Outcome
    from tests.shred.scene import Scene

MODELS = ("--models", "tests.integration.records:Base")


class Desk:
    """A scene by the real clock, as the command has it."""

    def __init__(self, scene: Scene, **environ: str) -> None:
        self.scene = scene
        self.environ = {**BASE, **scene.environ, "KMS": "vault", "ASHERAH_DATABASE_URL": scene.url, **environ}
        scene.now = time.time()
        self.process = scene.start()
        self.notes = [self.process.write("ann"), self.process.write("bob")]

    def shred(self, *arguments: str) -> Outcome:
        """Run the command."""
        return run(self.environ, "shred", *arguments)


@pytest.fixture
def desk(scene: Scene) -> Desk:
    """A desk on each database; processes re-check at once, so that there is nothing to wait for."""
    return Desk(scene, REVOKE_CHECK_INTERVAL_SECS="0", ASHERAH_MAX_STALE_SECS="0")


def test_a_dry_run_says_what_will_be_lost_and_changes_nothing(desk: Desk) -> None:
    before = desk.scene.records()
    outcome = desk.shred("--partition", "ann", *MODELS, "--dry-run", "--json")
    assert outcome.status == 0
    assert outcome.json == {
        "state": "dry run",
        "keys": 1,
        "losses": [{"table": "notes", "column": "text", "rows": 1}],
    }
    shown = desk.shred("--partition", "ann", *MODELS, "--dry-run")
    assert "notes" in shown.out
    assert "nothing was written" in shown.out
    assert desk.scene.records() == before


def test_without_a_yes_nothing_is_destroyed(desk: Desk) -> None:
    before = desk.scene.records()
    outcome = desk.shred("--partition", "ann", *MODELS)
    assert (outcome.status, "--yes" in outcome.err) == (2, True)
    assert desk.scene.records() == before


def test_begun_finished_and_after_a_restore_replayed(desk: Desk, tmp_path: Path) -> None:
    dump = desk.scene.dump()
    begun = desk.shred("--partition", "ann", *MODELS, "--yes", "--json")
    assert (begun.status, begun.json["state"], len(begun.json["keys"])) == (0, "begun", 1)
    file = tmp_path / "receipts.jsonl"
    finished = desk.shred("--partition", "ann", *MODELS, "--finish", "--receipt", str(file), "--json")
    assert finished.status == 0, finished
    assert Receipt.parse(finished.out).json() + "\n" == file.read_text(encoding="utf-8")
    assert list(errors_of(desk.scene.start(), ["ann", "bob"])) == [OwnerErasedError, None]
    desk.scene.restore(dump)
    assert desk.scene.start().read() == desk.notes
    refused = desk.shred("--replay", str(file))
    assert (refused.status, "keys of 1 owners" in refused.err, "--yes" in refused.err) == (2, True, True)
    assert desk.scene.start().read() == desk.notes
    replayed = desk.shred("--replay", str(file), "--yes", "--json")
    assert replayed.json == {"erased": [{"partition": "ann", "keys": 1}], "dry_run": False}
    assert list(errors_of(desk.scene.start(), ["ann", "bob"])) == [OwnerErasedError, None]


def test_with_wait_it_is_one_call(desk: Desk) -> None:
    outcome = desk.shred("--partition", "ann", *MODELS, "--yes", "--wait")
    assert outcome.status == 0
    assert Receipt.parse(outcome.out.splitlines()[-1]).partition == "ann"


def test_before_its_time_finishing_says_until_when_and_fails(small_scene: Scene) -> None:
    desk = Desk(small_scene)
    assert desk.shred("--partition", "ann", "--yes").status == 0
    early = desk.shred("--partition", "ann", "--finish", "--json")
    assert (early.status, early.json["state"], early.json["until"] - early.json["begun"]) == (1, "begun", 7_560)


def test_an_unknown_owner_is_no_success(small_scene: Scene) -> None:
    desk = Desk(small_scene)
    outcome = desk.shred("--partition", "zoe", *MODELS, "--yes")
    assert (outcome.status, "Nothing found" in outcome.out) == (3, True)
    assert not [key_id for key_id, _ in small_scene.records() if key_id.startswith("_XK_")]


@pytest.mark.parametrize(
    "arguments", [(), ("--partition", "ann", "--replay", "x"), ("--replay", "missing"), ("--replay", "x", "--finish")]
)
def test_contradictions_are_refused(small_scene: Scene, arguments: tuple[str, ...]) -> None:
    assert Desk(small_scene).shred(*arguments, "--json").status == 2


def test_a_receipt_that_was_altered_is_refused(small_scene: Scene, tmp_path: Path) -> None:
    desk = Desk(small_scene, REVOKE_CHECK_INTERVAL_SECS="0", ASHERAH_MAX_STALE_SECS="0")
    receipt = json.loads(desk.shred("--partition", "ann", "--yes", "--wait", "--json").out)
    file = tmp_path / "receipts.jsonl"
    file.write_text(json.dumps({**receipt, "partition": "bob"}), encoding="utf-8")
    outcome = desk.shred("--replay", str(file), "--yes")
    assert (outcome.status, "does not hold" in outcome.err) == (2, True)
    assert desk.process.read("bob") == desk.notes[1:]


def test_an_epoch_step_by_step(small_scene: Scene, tmp_path: Path) -> None:
    desk = Desk(small_scene, REVOKE_CHECK_INTERVAL_SECS="0", ASHERAH_MAX_STALE_SECS="0")
    key = small_scene.environ["VAULT_TRANSIT_KEY"]
    epoch = ("--epoch", "--exclusive-key", key, "--soak", "0", "--json")
    dump = small_scene.dump()
    assert desk.shred(*epoch, "--dry-run").status == 3
    assert (desk.shred(*epoch).status, desk.shred("--epoch", "--yes").status) == (2, 2)
    steps = [
        desk.shred(*epoch, *words).json["epoch"]["step"]
        for words in (("--yes",), ("--snapshot-taken",), ("--export", str(tmp_path / "second-place.jsonl")))
    ]
    assert steps == [2, 6, 8]
    assert desk.shred(*epoch, "--trim").status == 2
    assert desk.shred(*epoch, "--trim", "--yes").json["epoch"]["step"] == 9
    assert small_scene.start().read() == desk.notes
    small_scene.restore(dump)
    assert set(errors_of(small_scene.start(), ["ann", "bob"])) == {KmsCiphertextError}


def test_an_epoch_that_was_begun_by_mistake_is_cancelled(small_scene: Scene) -> None:
    desk = Desk(small_scene, REVOKE_CHECK_INTERVAL_SECS="0", ASHERAH_MAX_STALE_SECS="0")
    epoch = ("--epoch", "--exclusive-key", small_scene.environ["VAULT_TRANSIT_KEY"])
    dump = small_scene.dump()
    assert desk.shred(*epoch, "--cancel").status == 3
    assert "note it" in desk.shred(*epoch, "--yes").out
    assert desk.shred(*epoch, "--cancel", "--snapshot-taken").status == 2
    assert desk.shred(*epoch, "--snapshot-taken", "--json").json["epoch"]["step"] == 6
    assert "Step 6" in desk.shred(*epoch, "--cancel", "--dry-run").out
    cancelled = desk.shred(*epoch, "--cancel")
    assert (cancelled.status, "Cancelled" in cancelled.out) == (0, True)
    assert desk.shred(*epoch, "--cancel", "--json").json == {"epoch": None}
    small_scene.restore(dump)
    assert small_scene.start().read() == desk.notes
