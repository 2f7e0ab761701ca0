# SPDX-License-Identifier: Apache-2.0
"""`sa-asherah status`."""

from __future__ import annotations

import dataclasses
from itertools import groupby
from typing import TYPE_CHECKING

import click

from sa_asherah.cli.command import Command, Status, database_option, json_option
from sa_asherah.cli.deployment import Deployment, pass_deployment
from sa_asherah.cli.output import date_text, print_bars, print_json, print_line, print_table
from sa_asherah.inventory import take
from sa_asherah.metastore.stored import stored_rows

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sa_asherah.inventory import Age, Inventory, SystemKey

__all__ = ["status"]

_DAY = 86_400
_STYLES = {"encrypts": "green", "revoked": "red", "expired": "yellow"}


@click.command(cls=Command)
@database_option
@json_option
@click.pass_context
@pass_deployment
def status(deployment: Deployment, ctx: click.Context, database: str | None, as_json: bool) -> None:  # noqa: FBT001
    """List the keys by level and age, what each is used for, and when the next ones are due.

    Reads the key table once and asks no key service.
    """
    with deployment.key_table(database) as keys, keys.engine.connect() as connection:
        found = take(stored_rows(connection), keys.regions, keys.policy)
        now = keys.policy.clock()
    if as_json:
        print_json(dataclasses.asdict(found))
    else:
        _print(found, now)
    if not found.system_keys and not found.owner_keys:
        ctx.exit(Status.NOTHING_FOUND)


def _print(found: Inventory, now: float) -> None:
    for key_id, keys in groupby(found.system_keys, key=lambda key: key.id):
        print_line(f"System key {key_id}:")
        print_table(("state", "created", "date", "age", "encrypts until", "keys under it"), _rows(keys, now), _STYLES)
    print_line(
        f"\n{found.owners} owners with {found.owner_keys} keys: {found.due} get another one at their next write, "
        f"{found.revoked} keys are revoked, {found.erased} owners were erased"
    )
    if found.owner_keys:
        print_line("\nKeys of owners by age in days:")
        print_bars([(_days(age), age.encrypting, age.decrypting) for age in found.ages], ("encrypt", "only decrypt"))
    _print_outlook(found)


def _rows(keys: Iterable[SystemKey], now: float) -> list[tuple[str, ...]]:
    return [
        (
            key.state,
            str(key.created),
            _date(key.created),
            f"{max(0, now - key.created) / _DAY:.0f} d",
            _date(key.expires),
            str(key.owner_keys),
        )
        for key in keys
    ]


def _date(seconds: float) -> str:
    return (date_text(seconds) or "")[:10]


def _print_outlook(found: Inventory) -> None:
    if not found.system_keys and not found.owner_keys:
        print_line("Nothing found: check SERVICE_NAME, PRODUCT_ID, REGION_SUFFIX and the database.", "bold red")
        return
    next_one = date_text(found.next_rotation) or "at the next write or sa-asherah rotate: none may encrypt now"
    print_line(f"\nNext system key: {next_one}")
    print_line(f"Next keys of owners, if they write: {date_text(found.next_owner_rotation) or 'at their next write'}")
    if found.damaged:
        print_line(f"{found.damaged} rows are no key records: run sa-asherah doctor", "bold red")
    if found.others:
        print_line(f"{found.others} rows are of other services, products or regions")


def _days(age: Age) -> str:
    return f"{age.days:.3g} and more" if age.until is None else f"{age.days:.3g} - {age.until:.3g}"
