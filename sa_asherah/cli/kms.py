# SPDX-License-Identifier: Apache-2.0
"""`sa-asherah kms`."""

from __future__ import annotations

import click

from sa_asherah.cli.command import Command, Group, database_option, dry_run_option, json_option
from sa_asherah.cli.deployment import Deployment, pass_deployment
from sa_asherah.cli.output import print_line, print_report, status_of
from sa_asherah.errors import UsageError

__all__ = ["kms"]


@click.group(cls=Group)
def kms() -> None:
    """Key services."""


@kms.command(cls=Command)
@click.option("--from", "old", metavar="NAME", required=True, help="The service that wraps the system keys now.")
@click.option("--to", "new", metavar="NAME", required=True, help="The service that is to wrap them.")
@database_option
@dry_run_option
@json_option
@click.pass_context
@pass_deployment
def migrate(  # noqa: PLR0917 # click hands over the options
    deployment: Deployment,
    ctx: click.Context,
    old: str,
    new: str,
    database: str | None,
    dry_run: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
) -> None:
    r"""Move the system keys from one key service to another.

    Keys of owners and data are not touched. Names are those of KMS; the settings of both services are read from the
    environment. The order:

    \b
    1. Deploy every process with KMS=new and KMS_PREVIOUS=old: it opens
       what either wraps, and makes new system keys under the new one.
    2. Migrate, with --dry-run first. Interrupted, start it again.
    3. Once more: "already as wanted" for all.
    4. Deploy without KMS_PREVIOUS. Keep the old master key as long as
       there are older backups of the key table.

    A process that knows only the old service cannot open what has moved. If a system key appears under the old service
    meanwhile, the command says so and ends with status 1: return to step 1.
    """
    if _canonical(old) == _canonical(new):
        raise UsageError(
            "--from and --to name the same service, whose settings the environment holds once; use "
            "asherah.system_keys(engine).migrate(old) in Python"
        )
    with (
        deployment.key_service(KMS=old, KMS_PREVIOUS="") as previous,
        deployment.system_keys(database, KMS=new, KMS_PREVIOUS="") as system_keys,
    ):
        report = system_keys.migrate(previous, dry_run=dry_run)
    print_report(report, as_json=as_json)
    if report.late and not as_json:
        print_line(
            f"Processes still run with the old configuration: deploy KMS={new} with KMS_PREVIOUS={old} first, then "
            "start again.",
            "bold red",
        )
    ctx.exit(status_of(report))


def _canonical(name: str) -> str:
    return name.strip().removesuffix("-transit")
