# SPDX-License-Identifier: Apache-2.0
"""`vault rewrap` and `kms migrate` on real databases and a real Vault: what is encrypted opens at every point."""

from __future__ import annotations

import base64
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

import sa_asherah
from sa_asherah.core.ports import KeyRow
from sa_asherah.core.rewrap import Rewrap
from tests.cli.site import BASE, DAY, Outcome, Site
from tests.integration.records import Note, Process
from tests.servers.openbao import OpenBao

MOVE = ("kms", "migrate", "--from", "static", "--to", "vault")
BACK = ("kms", "migrate", "--from", "vault", "--to", "static")


def counts(report: dict[str, Any]) -> tuple[int, int, int, int, int]:
    return report["found"], report["already"], report["moved"], len(report["failed"]), len(report["late"])


def test_records_open_after_rotation_after_rewrap_and_after_the_move_there_and_back(
    site: Site, openbao: OpenBao
) -> None:
    site.live("vault")
    mount, key = site.environ["VAULT_TRANSIT_MOUNT"], site.environ["VAULT_TRANSIT_KEY"]
    openbao.root.adapter.post(f"/v1/{mount}/keys/{key}/rotate")
    assert site.reads_all("vault")
    before, owners = site.rows("_SK_"), site.rows("_IK_")
    looked = site.run("vault", "rewrap", "--dry-run", "--json", KMS="vault")
    assert (looked.status, counts(looked.json), looked.json["dry_run"]) == (0, (3, 0, 3, 0, 0), True)
    assert site.rows("_SK_") == before
    assert counts(site.run("vault", "rewrap", "--json", KMS="vault").json) == (3, 0, 3, 0, 0)
    openbao.root.adapter.post(f"/v1/{mount}/keys/{key}/config", json={"min_decryption_version": 2})
    assert site.reads_all("vault")
    assert counts(site.run("vault", "rewrap", "--json", KMS="vault").json) == (3, 3, 0, 0, 0)
    for direction, name in ((BACK, "static"), (MOVE, "vault")):
        assert site.reads_all("static", "vault")
        outcome = site.run(*direction, "--json")
        assert (outcome.status, counts(outcome.json), outcome.json["complete"]) == (0, (3, 0, 3, 0, 0), True)
        assert site.reads_all(name)
        assert site.reads_all("vault", "static")
        assert counts(site.run(*direction, "--json").json) == (3, 3, 0, 0, 0)
    assert site.rows("_IK_") == owners
    assert set(site.rows("_SK_")) == set(before)


def test_without_the_right_to_rewrap_it_decrypts_and_encrypts(small_site: Site, openbao: OpenBao) -> None:
    small_site.live("vault")
    mount, key = small_site.environ["VAULT_TRANSIT_MOUNT"], small_site.environ["VAULT_TRANSIT_KEY"]
    openbao.root.adapter.post(f"/v1/{mount}/keys/{key}/rotate")
    outcome = small_site.run("vault", "rewrap", KMS="vault", VAULT_TOKEN=openbao.transit_token(mount, key))
    assert (outcome.status, "3 wrapped anew" in outcome.out) == (0, True)
    openbao.root.adapter.post(f"/v1/{mount}/keys/{key}/config", json={"min_decryption_version": 2})
    assert small_site.reads_all("vault")


def test_keys_bound_to_service_and_product_are_brought_to_the_newest_version(
    small_site: Site, openbao: OpenBao
) -> None:
    small_site.environ["VAULT_TRANSIT_AAD"] = "1"
    small_site.live("vault")
    mount, key = small_site.environ["VAULT_TRANSIT_MOUNT"], small_site.environ["VAULT_TRANSIT_KEY"]
    openbao.root.adapter.post(f"/v1/{mount}/keys/{key}/rotate")
    assert counts(small_site.run("vault", "rewrap", "--json", KMS="vault").json) == (3, 0, 3, 0, 0)
    openbao.root.adapter.post(f"/v1/{mount}/keys/{key}/config", json={"min_decryption_version": 2})
    assert small_site.reads_all("vault")
    assert small_site.run("vault", "rewrap", KMS="vault", VAULT_TRANSIT_AAD="0").status == 1


class Crowd:
    """Processes of an application that go on creating owners and reading the oldest notes."""

    def __init__(self, processes: Sequence[Process], oldest: Sequence[str]) -> None:
        self.errors: list[BaseException] = []
        self.written: list[str] = []
        self._progress: queue.Queue[Process] = queue.Queue()
        self._stop = threading.Event()
        self._processes = processes
        self._oldest = oldest
        self._threads = [threading.Thread(target=self._work, args=(process,)) for process in processes]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        for process in self._processes:
            process.close()

    def go_on(self) -> None:
        """Wait until each process has written and read, or one has failed."""
        while self._progress.qsize():
            self._progress.get()
        seen: set[Process] = set()
        while len(seen) < len(self._processes) and not self._stop.is_set():
            seen.add(self._progress.get(timeout=60))

    def _work(self, process: Process) -> None:
        while not self._stop.is_set():
            try:
                self.written.append(process.write())
                with Session(process.engine) as session:
                    notes = select(Note.text).order_by(Note.id).limit(len(self._oldest))
                    assert session.scalars(notes).all() == self._oldest
            except BaseException as error:  # noqa: BLE001 # whatever it is, the test shows it
                self.errors.append(error)
                self._stop.set()
            self._progress.put(process)


@pytest.mark.long
def test_owners_are_created_and_read_while_the_keys_move(site: Site) -> None:
    site.live("static")
    reports: list[Outcome] = []
    # With room for 2 keys of each level, each read asks the key service for system keys.
    with Crowd([site.start("vault", "static", cache_size=2) for _ in range(2)], site.notes) as crowd:
        for direction in (MOVE, MOVE):
            crowd.go_on()
            reports.append(site.run(*direction, "--json"))
        crowd.go_on()
    assert not crowd.errors
    assert [outcome.status for outcome in reports] == [0, 0]
    assert reports[-1].json["already"] == reports[-1].json["found"] >= 3
    process = site.start("vault")
    assert sorted(str(note) for note in process.read()) == sorted(site.notes + crowd.written)
    process.close()


PROGRAM = """
import os, signal, sys
from sa_asherah.cli import main
from sa_asherah.core.rewrap import Rewrap

real = Rewrap._replace
done = []

def replace(self, row, text):
    if done:
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(row)
    return real(self, row, text)

Rewrap._replace = replace
main()
"""


def test_killed_between_two_records_it_is_started_again_and_ends(site: Site, tmp_path: Path) -> None:
    site.live("static")
    killed = subprocess.run(
        [sys.executable, "-c", PROGRAM, *MOVE],
        env={**site.environ, "PYTHONPATH": str(Path(sa_asherah.__file__).parents[1]), "HOME": str(tmp_path)},
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert site.reads_all("vault", "static")
    forms = [base64.b64decode(record["Key"]).startswith(b"vault:") for record in site.rows("_SK_").values()]
    assert sorted(forms) == [False, False, True]
    outcome = site.run(*MOVE, "--json")
    assert (outcome.status, counts(outcome.json)) == (0, (3, 1, 2, 0, 0))
    assert site.reads_all("vault")


def test_the_wrong_target_key_moves_nothing_that_has_moved(small_site: Site, openbao: OpenBao) -> None:
    small_site.live("static")
    assert small_site.run(*MOVE).status == 0
    rows = small_site.rows()
    mount = small_site.environ["VAULT_TRANSIT_MOUNT"]
    openbao.root.adapter.post(f"/v1/{mount}/keys/other", json={})
    token = openbao.transit_token(mount, "other")
    outcome = small_site.run(*MOVE, VAULT_TRANSIT_KEY="other", VAULT_TOKEN=token)
    assert (outcome.status, small_site.rows()) == (1, rows)
    assert outcome.out.count("failed: _SK_records_clinic created") == 3
    assert "3 failed" in outcome.out
    assert token not in outcome.out + outcome.err
    assert small_site.reads_all("vault")


def test_a_system_key_that_appears_under_the_old_service_ends_with_advice(
    small_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_site.live("static")
    real = Rewrap._replace
    late: list[str] = []

    def replace(self: Rewrap, row: KeyRow, text: str) -> bool:
        if not late:
            small_site.now += 91 * DAY
            old = small_site.start("static")
            late.append(old.write())
            old.close()
        return real(self, row, text)

    monkeypatch.setattr(Rewrap, "_replace", replace)
    outcome = small_site.run(*MOVE)
    assert outcome.status == 1
    assert "appeared: _SK_records_clinic created" in outcome.out
    assert "deploy KMS=vault with KMS_PREVIOUS=static first" in outcome.out
    monkeypatch.undo()
    again = small_site.run(*MOVE, "--json")
    assert (again.status, counts(again.json)) == (0, (4, 3, 1, 0, 0))
    small_site.notes += late
    assert small_site.reads_all("vault")


@pytest.mark.parametrize("arguments", [MOVE, BACK, ("vault", "rewrap")])
def test_nothing_found_is_not_done(small_site: Site, arguments: tuple[str, ...]) -> None:
    small_site.live("vault", 1)
    outcome = small_site.run(*arguments, KMS="vault", SERVICE_NAME="record")
    assert (outcome.status, "Nothing found" in outcome.out, "Done" in outcome.out) == (3, True, False)
    as_json = small_site.run(*arguments, "--json", KMS="vault", SERVICE_NAME="record")
    assert (as_json.status, as_json.json["found"], as_json.json["complete"]) == (3, 0, False)


def test_no_command_prints_a_key(small_site: Site) -> None:
    small_site.live("static")
    outcomes = [small_site.run(*MOVE, *more) for more in ((), ("--dry-run",), ("--json",))]
    outcomes += [small_site.run("rotate", "--json", KMS="vault"), small_site.run("vault", "rewrap", KMS="vault")]
    shown = "".join(outcome.out + outcome.err for outcome in outcomes)
    keys = [record["Key"] for record in small_site.rows().values()]
    for secret in (BASE["STATIC_MASTER_KEY_HEX"], small_site.environ["VAULT_TOKEN"], *keys):
        assert secret not in shown


def test_one_service_cannot_be_both(static_site: Site) -> None:
    for names in (("static", "static"), ("vault", "vault-transit")):
        outcome = static_site.run("kms", "migrate", "--from", names[0], "--to", names[1])
        assert (outcome.status, "same service" in outcome.err) == (2, True)


def test_the_order_of_the_move_is_in_the_help(static_site: Site) -> None:
    text = static_site.run("kms", "migrate", "--help").out
    steps = [text.index(step) for step in ("KMS_PREVIOUS=old", "--dry-run first", "Once more", "without KMS_PREVIOUS")]
    assert steps == sorted(steps)
