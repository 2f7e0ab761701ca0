# SPDX-License-Identifier: Apache-2.0
"""`sa-asherah revoke`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

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
from sa_asherah.cli.keys import opened_export
from sa_asherah.cli.output import date_text, print_json, print_line
from sa_asherah.core.ids import MAX_CREATED
from sa_asherah.core.key_record import parse_key_record
from sa_asherah.errors import UsageError
from sa_asherah.revocation import Outcome
from sa_asherah.revocation import revoke as revoke_key

if TYPE_CHECKING:
    from sa_asherah.cli.deployment import KeyTable

__all__ = ["revoke"]

Place = tuple[str, int]
Outcomes = list[tuple[Place, Outcome]]


@click.command(cls=Command)
@click.option(
    "--partition",
    metavar="TEXT",
    help="Revoke the key of an owner: the owner's id, in the column's template if it has one (\"user-7\").",
)
@click.option("--system", is_flag=True, help="Revoke the system key, once its successor is made.")
@click.option("--replay", metavar="FILE", help="Revoke what an export of keys knows as revoked, after a restore.")
@click.option(
    "--created", metavar="SECONDS", type=click.IntRange(min=0), help="Which one, by its date. Default: the newest."
)
@database_option
@click.option("--no-successor", is_flag=True, help="With --system: make no new system key first.")
@yes_option
@dry_run_option
@json_option
@click.pass_context
@pass_deployment
def revoke(  # noqa: PLR0913, PLR0917 # click hands over the options
    deployment: Deployment,
    ctx: click.Context,
    partition: str | None,
    system: bool,  # noqa: FBT001
    replay: str | None,
    created: int | None,
    database: str | None,
    no_successor: bool,  # noqa: FBT001
    yes: bool,  # noqa: FBT001
    dry_run: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
) -> None:
    """Let a key encrypt no more: it may be known to others. It still decrypts what it encrypted.

    The next write of each owner concerned makes another key at once. Processes that run notice it within the check
    interval (REVOKE_CHECK_INTERVAL_SECS) or when they restart. Then bring the data to new keys: sa-asherah reencrypt.

    Revoking a system key has every owner's key replaced at its next write. Its successor is made first, so that
    processes that may not make system keys (ASHERAH_CREATE_SYSTEM_KEYS=0) can write on; the command needs the right to
    encrypt for it.
    """
    if sum((partition is not None, system, replay is not None)) != 1:
        raise UsageError("what is to be revoked? Give one of --partition TEXT, --system and --replay FILE")
    if replay is not None and created is not None:
        raise UsageError("--replay names its keys itself: leave out --created")
    with deployment.key_table(database) as keys:
        if replay is not None:
            places = _revoked_in(replay, keys)
        else:
            key_id = keys.ids.system_key_id() if partition is None else keys.ids.intermediate_key_id(partition)
            newest = _newest(keys, key_id)
            places = [place for place in [(key_id, created) if created is not None else newest] if place]
            if places and not dry_run:
                confirm(f"{key_id} created {places[0][1]} will encrypt no more.", yes=yes, as_json=as_json)
            if system and places and places[0] == newest and not (dry_run or no_successor):
                _make_successor(deployment, keys, database, places[0])
        outcomes: Outcomes = [(place, revoke_key(keys.metastore, place, dry_run=dry_run)) for place in places]
        interval = keys.policy.check_interval
    if as_json:
        print_json({"keys": [_members(*outcome) for outcome in outcomes], "dry_run": dry_run})
    else:
        _print(outcomes, interval, dry_run=dry_run)
    ctx.exit(_status(outcomes, replay=replay is not None))


def _newest(keys: KeyTable, key_id: str) -> Place | None:
    row = keys.metastore.run(lambda rows: rows.newest((key_id,), MAX_CREATED)).get(key_id)
    return None if row is None else (row.id, row.created)


def _make_successor(deployment: Deployment, keys: KeyTable, database: str | None, place: Place) -> None:
    row = keys.metastore.run(lambda rows: rows.exact((place,)))[place]
    if not parse_key_record(row).revoked:
        with deployment.system_keys(database) as system_keys:
            system_keys.rotate(force=True)


def _revoked_in(file: str, keys: KeyTable) -> list[Place]:
    with opened_export(file) as export:
        if (export.service, export.product) != (keys.ids.service, keys.ids.product):
            raise UsageError(f"the export is of service {export.service!r} and product {export.product!r}")
        ours = (row for row in export.rows if not row.id.startswith("_XK_"))
        return [(row.id, row.created) for row in ours if parse_key_record(row).revoked]


def _members(place: Place, outcome: Outcome) -> dict[str, object]:
    return {"id": place[0], "created": place[1], "outcome": outcome}


def _print(outcomes: Outcomes, interval: float, *, dry_run: bool) -> None:
    words = {"revoked": "to revoke" if dry_run else "revoked", "already": "revoked already", "missing": "no such key"}
    for (key_id, created), outcome in outcomes:
        print_line(f"{words[outcome]}: {key_id} created {created} ({date_text(created)})")
    if not outcomes:
        print_line(
            "Nothing found: check the name, SERVICE_NAME, PRODUCT_ID, REGION_SUFFIX and the database.", "bold red"
        )
    elif dry_run:
        print_line("Dry run: nothing was written.", "green")
    elif any(outcome == "revoked" for _, outcome in outcomes):
        print_line(
            f"Processes that run stop encrypting with it within {interval / 60:g} minutes, or when they restart. Then "
            "bring the data to new keys: sa-asherah reencrypt"
        )


def _status(outcomes: Outcomes, *, replay: bool) -> Status:
    if replay:
        return Status.DONE if outcomes else Status.NOTHING_FOUND
    return Status.NOTHING_FOUND if all(outcome == "missing" for _, outcome in outcomes) else Status.DONE
