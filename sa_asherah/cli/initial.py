# SPDX-License-Identifier: Apache-2.0
"""`sa-asherah init`."""

from __future__ import annotations

from datetime import timedelta

import click
from sqlalchemy import inspect

from sa_asherah.cli.command import Command, database_option, dry_run_option, json_option
from sa_asherah.cli.deployment import Deployment, pass_deployment
from sa_asherah.cli.output import date_text, print_json, print_line

__all__ = ["init"]


@click.command(cls=Command)
@database_option
@dry_run_option
@json_option
@pass_deployment
def init(deployment: Deployment, database: str | None, dry_run: bool, as_json: bool) -> None:  # noqa: FBT001
    """Create the key table if it is not there, and check the settings.

    Checks the settings, the database's encoding, isolation and collations, the columns of the key table, and that the
    key service opens the newest system key if there is one. No key is made: the first write makes it, or sa-asherah
    rotate.
    """
    with deployment.attached(database) as (asherah, engine):
        is_external = deployment.has_external_table
        with engine.connect() as connection:
            is_there = is_external or inspect(connection).has_table("encryption_key")
        if not dry_run:
            asherah.create_metastore(engine)
        found = None
        if is_there or not dry_run:
            with engine.connect() as connection:
                asherah.check(connection)
            with asherah.system_keys(engine) as system_keys:
                found = system_keys.rotate(ahead=timedelta(0), dry_run=True)
    created = None if found is None else found.created
    if as_json:
        table = "found" if is_there else "missing" if dry_run else "created"
        print_json({"key_table": table, "system_key": created, "dry_run": dry_run})
        return
    print_line(_TABLE[is_there, dry_run], "green" if is_there or not dry_run else "yellow")
    if created is None:
        print_line("There is no system key yet: the first write makes it, or sa-asherah rotate")
    else:
        print_line(f"The key service opens the newest system key, created {created} ({date_text(created)})", "green")


_TABLE = {
    (True, True): "The key table is there, and safe",
    (True, False): "The key table was there already, and is safe",
    (False, True): "Dry run: the key table is missing and would be created",
    (False, False): "The key table was created",
}
