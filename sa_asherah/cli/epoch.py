# SPDX-License-Identifier: Apache-2.0
"""`sa-asherah shred --epoch`."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from sa_asherah.cli.command import Status, confirm
from sa_asherah.cli.output import date_text, print_json, print_line
from sa_asherah.errors import UsageError
from sa_asherah.shred.epoch import Epoch, State

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from sa_asherah.asherah import Asherah

__all__ = ["Answers", "end_epoch"]

_NEXT = {
    0: "Being cancelled: give --cancel again.",
    2: "Transit has version {version}, note it. Take a snapshot of Vault now, then give --snapshot-taken.",
    5: "Owners' keys are wrapped by the new system key. Come back after {until}, when no process has an old view.",
    6: "Nothing is left under the old ones. Give --export FILE, in a second place: all is opened, here and there.",
    8: "Vault opens older versions no more. If anything fails, lower min_decryption_version; after {until}, --trim.",
    9: "Done: Vault has no version before {version} any more (see for yourself: min_available_version). What older "
    "copies of the key table hold cannot be opened by anybody, but for backups of Vault itself.",
}
_ALL = (
    "What becomes unreadable with it: every older backup, dump, export and replica of the key table, of living owners "
    "too. Keep today's key table, and restore data tables only."
)


@dataclasses.dataclass(frozen=True, slots=True)
class Answers:
    """What the operator said.

    Attributes:
        exclusive_key: The Transit key, once more.
        snapshot_taken: Whether a snapshot of Vault was taken.
        export: Where to export keys to.
        trim: Whether to destroy the old versions.
        cancel: Whether to give the epoch up.
        soak: Days before that.
        yes: Whether not to ask.
        dry_run: Whether to look only.
        as_json: Whether the output is JSON.
    """

    exclusive_key: str | None
    snapshot_taken: bool
    export: str | None
    trim: bool
    cancel: bool
    soak: float
    yes: bool
    dry_run: bool
    as_json: bool


def end_epoch(engine: Engine, asherah: Asherah, answers: Answers) -> Status:
    """Go on with an epoch, or begin one.

    Args:
        engine: The engine of the key table's database.
        asherah: The keys.
        answers: What the operator said.

    Returns:
        The exit status.

    Raises:
        UsageError: The Transit key is not named, or nobody can be asked.
        AsherahError: A step failed.
    """
    if answers.exclusive_key is None:
        raise UsageError("--epoch needs --exclusive-key NAME: a Transit key that nothing else uses")
    epoch = Epoch(engine, asherah, answers.exclusive_key, soak=timedelta(days=answers.soak))
    state = epoch.state()
    if answers.dry_run:
        _tell(state, as_json=answers.as_json)
        return Status.DONE if state is not None else Status.NOTHING_FOUND
    if answers.cancel:
        return _cancel(epoch, as_json=answers.as_json)
    if state is None:
        question = f"No other service, product or database uses the Transit key {answers.exclusive_key!r}?"
        confirm(question, yes=answers.yes, as_json=answers.as_json)
    if answers.trim and state is not None:
        for question in (_ALL, "Older versions of the Transit key will be destroyed."):
            confirm(question, yes=answers.yes, as_json=answers.as_json)
    export = None if answers.export is None else Path(answers.export)
    _tell(epoch.run(snapshot_taken=answers.snapshot_taken, export=export, trim=answers.trim), as_json=answers.as_json)
    return Status.DONE


def _cancel(epoch: Epoch, *, as_json: bool) -> Status:
    was_running = epoch.cancel()
    if was_running and not as_json:
        print_line("Cancelled: Vault opens what it did before, and the system keys are in use again.")
    else:
        _tell(None, as_json=as_json)
    return Status.DONE if was_running else Status.NOTHING_FOUND


def _tell(state: State | None, *, as_json: bool) -> None:
    if as_json:
        print_json({"epoch": None if state is None else dataclasses.asdict(state)})
    elif state is None:
        print_line("No epoch is being ended.")
    else:
        text = _NEXT.get(state.step, "Interrupted: start it again.")
        print_line(f"Step {state.step} of 9. {text.format(until=date_text(state.until), version=state.version)}")
