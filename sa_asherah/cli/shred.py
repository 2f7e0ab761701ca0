# SPDX-License-Identifier: Apache-2.0
"""`sa-asherah shred`."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from sqlalchemy import Table

from sa_asherah.cli.command import (
    Command,
    Status,
    confirm,
    database_option,
    dry_run_option,
    json_option,
    yes_option,
)
from sa_asherah.cli.deployment import Deployment, pass_deployment
from sa_asherah.cli.epoch import Answers, end_epoch
from sa_asherah.cli.output import date_text, print_json, print_line, print_table
from sa_asherah.cli.plans import tables_of
from sa_asherah.errors import UsageError
from sa_asherah.shred import OwnerShred, Receipt, replay

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Engine

    from sa_asherah.asherah import Asherah
    from sa_asherah.shred import Loss, Pending

__all__ = ["shred"]


@click.command(cls=Command)
@click.option(
    "--partition",
    metavar="TEXT",
    help='The owner: its id, in the column\'s template if it has one ("user-7").',
)
@click.option("--models", metavar="MODULE:NAME", help="A declarative base or MetaData: tells what becomes unreadable.")
@click.option("--finish", is_flag=True, help="Complete an erasure that has begun, when its time has come.")
@click.option("--wait", is_flag=True, help="Wait for that time and finish: two hours with the default settings.")
@click.option("--receipt", metavar="FILE", help="Append the receipt to this file, one line each.")
@click.option("--replay", "receipts", metavar="FILE", help="After a restore: erase again what these receipts name.")
@click.option("--unverified", is_flag=True, help="With --replay: take receipts whose system key is gone.")
@click.option("--epoch", is_flag=True, help="Make every older copy of the key table worthless (Transit only).")
@click.option("--exclusive-key", metavar="NAME", help="With --epoch: the Transit key, which nothing else may use.")
@click.option("--snapshot-taken", is_flag=True, help="With --epoch, step 2: a snapshot of Vault was taken.")
@click.option("--export", metavar="FILE", help="With --epoch, step 7: where to write an export of the keys.")
@click.option(
    "--soak",
    metavar="DAYS",
    type=click.FloatRange(min=0),
    default=7,
    show_default=True,
    help="With --epoch: see step 8.",
)
@click.option("--trim", is_flag=True, help="With --epoch, step 9: destroy the older versions in Vault.")
@click.option("--cancel", is_flag=True, help="With --epoch, before step 9: give it up and undo it.")
@database_option
@yes_option
@dry_run_option
@json_option
@click.pass_context
@pass_deployment
def shred(  # noqa: PLR0913, PLR0917 # click hands over the options
    deployment: Deployment,
    ctx: click.Context,
    partition: str | None,
    models: str | None,
    finish: bool,  # noqa: FBT001
    wait: bool,  # noqa: FBT001
    receipt: str | None,
    receipts: str | None,
    unverified: bool,  # noqa: FBT001
    epoch: bool,  # noqa: FBT001
    exclusive_key: str | None,
    snapshot_taken: bool,  # noqa: FBT001
    export: str | None,
    soak: float,
    trim: bool,  # noqa: FBT001
    cancel: bool,  # noqa: FBT001
    database: str | None,
    yes: bool,  # noqa: FBT001
    dry_run: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
) -> None:
    r"""Erase an owner by destroying its keys. It cannot be undone.

    \b
    1. Look: shred --partition 7 --models app.models:Base --dry-run
    2. Begin: the same without --dry-run. The keys are overwritten in the
       key table; processes that run may use copies for a while.
    3. Finish: shred --partition 7 --finish --receipt receipts.jsonl,
       after the time that step 2 printed; or begin with --wait.

    Keep the receipts outside of the database: a backup brings the keys back, and --replay erases them again. Where
    backups must not bring them back, --epoch ends that for all backups so far; call it again for each of its steps.
    """
    if sum((partition is not None, receipts is not None, epoch)) != 1:
        raise UsageError(
            "who is to be erased? Give one of --partition TEXT, --replay FILE (after a restore) and --epoch"
        )
    if partition is None and (finish or wait or receipt or models):
        raise UsageError("--finish, --wait, --receipt and --models go with --partition")
    if not epoch and (exclusive_key or snapshot_taken or export or trim or cancel):
        raise UsageError("--exclusive-key, --snapshot-taken, --export, --trim and --cancel go with --epoch")
    if cancel and (snapshot_taken or export or trim):
        raise UsageError("go on or give up? Give --cancel without --snapshot-taken, --export and --trim")
    with deployment.attached(database) as (asherah, engine):
        if epoch:
            answers = Answers(exclusive_key, snapshot_taken, export, trim, cancel, soak, yes, dry_run, as_json)
            ctx.exit(end_epoch(engine, asherah, answers))
        if receipts is not None:
            _replay(engine, asherah, receipts, unverified=unverified, yes=yes, dry_run=dry_run, as_json=as_json)
            return
        found = None if models is None else tables_of(models)
        metadata = found.metadata if isinstance(found, Table) else found
        with OwnerShred(engine, asherah, partition or "", metadata or ()) as shredding:
            work = _Work(shredding, receipt, dry_run=dry_run, as_json=as_json)
            ctx.exit(work.finish() if finish else work.begin(yes=yes, wait=wait))


class _Work:
    """The steps with what is printed."""

    def __init__(self, shredding: OwnerShred, receipt: str | None, *, dry_run: bool, as_json: bool) -> None:
        self._shredding = shredding
        self._receipt = receipt
        self._dry_run = dry_run
        self._as_json = as_json

    def begin(self, *, yes: bool, wait: bool) -> Status:
        keys, losses = self._shredding.keys(), self._shredding.losses()
        if not (keys or losses or self._shredding.pending()):
            self._tell({"state": "nothing found"}, "Nothing found: check the partition, the models and the database.")
            return Status.NOTHING_FOUND
        if not self._as_json:
            _print_losses(losses, len(keys))
        if self._dry_run:
            members = {"state": "dry run", "keys": len(keys), "losses": [dataclasses.asdict(loss) for loss in losses]}
            self._tell(members, "Dry run: nothing was written.")
            return Status.DONE
        confirm(f"{len(keys)} keys of {self._shredding.partition!r} will be destroyed.", yes=yes, as_json=self._as_json)
        pending = self._shredding.begin()
        if not wait:
            self._tell_pending(pending)
            return Status.DONE
        while (left := pending.until - self._shredding.now()) > 0:
            time.sleep(left)
            pending = self._shredding.begin()
        return self._finish(losses)

    def finish(self) -> Status:
        pending = self._shredding.pending()
        if pending is not None and not self._dry_run:
            pending = self._shredding.begin()
        if pending is not None and (self._dry_run or self._shredding.now() < pending.until):
            self._tell_pending(pending)
            return Status.DONE if self._dry_run else Status.FAILED
        return self._finish(())

    def _finish(self, losses: Sequence[Loss]) -> Status:
        receipt = self._shredding.finish(losses)
        if self._receipt is not None:
            _append(Path(self._receipt), receipt.json())
        if not self._as_json:
            print_line(
                f"Erased: {len(receipt.keys)} keys are destroyed, and no process has a copy. The receipt:", "green"
            )
        click.echo(receipt.json())
        return Status.DONE

    def _tell_pending(self, pending: Pending) -> None:
        members = {**dataclasses.asdict(pending), "state": "begun"}
        self._tell(
            members,
            f"Begun: {len(pending.keys)} keys are destroyed. Processes that run may use copies until "
            f"{date_text(pending.until)}; run it again with --finish then.",
        )

    def _tell(self, members: dict[str, Any], text: str) -> None:
        if self._as_json:
            print_json(members)
        else:
            print_line(text)


def _print_losses(losses: Sequence[Loss], keys: int) -> None:
    print_line(f"{keys} keys. What becomes unreadable, here and in every copy:")
    rows = [
        (loss.table, loss.column, "those written in its partition_scope" if loss.rows is None else str(loss.rows))
        for loss in losses
    ]
    if rows:
        print_table(("table", "column", "rows"), rows)
    else:
        print_line("(not counted: give --models)")


def _append(path: Path, line: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def _replay(
    engine: Engine, asherah: Asherah, file: str, *, unverified: bool, yes: bool, dry_run: bool, as_json: bool
) -> None:
    reason = ""
    lines: list[str] = []
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = type(error).__name__
    if reason:
        raise UsageError(f"the receipts cannot be read ({reason}); give the file that --receipt wrote")
    found = [Receipt.parse(line) for line in lines if line.strip()]
    if not dry_run:
        owners = len({receipt.partition for receipt in found})
        confirm(f"The keys of {owners} owners that {file} names will be destroyed.", yes=yes, as_json=as_json)
    done = replay(engine, asherah, found, unverified=unverified, dry_run=dry_run)
    if as_json:
        print_json({"erased": [dataclasses.asdict(one) for one in done], "dry_run": dry_run})
        return
    keys = sum(one.keys for one in done)
    print_line(f"{'Dry run, to erase again' if dry_run else 'Erased again'}: {len(done)} owners, {keys} keys.", "green")
