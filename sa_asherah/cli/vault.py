# SPDX-License-Identifier: Apache-2.0
"""`sa-asherah vault`."""

from __future__ import annotations

import dataclasses
from contextlib import closing
from typing import TYPE_CHECKING

import click

from sa_asherah.cli.command import Command, Group, Status, database_option, dry_run_option, json_option
from sa_asherah.cli.deployment import Deployment, pass_deployment
from sa_asherah.cli.output import print_json, print_report, print_table, status_of
from sa_asherah.environ import read_flag
from sa_asherah.errors import ConfigurationError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["rewrap", "vault"]

_STYLES = {"error": "bold red", "warning": "yellow", "ok": "green"}


@click.group(cls=Group)
def vault() -> None:
    """HashiCorp Vault and OpenBao."""


@vault.command(cls=Command)
@json_option
@click.pass_context
@pass_deployment
def check(deployment: Deployment, ctx: click.Context, as_json: bool) -> None:  # noqa: FBT001
    """Look before the application starts: is Vault reachable, may the token do what it must and no more?

    Nothing is written and no key is made. Ends with status 1 if there is an error; warnings do not count.
    """
    from sa_asherah.kms.vault import VaultTransitKMS  # noqa: PLC0415 # hvac takes 0.2 s to import
    from sa_asherah.kms.vault.check import check as check_vault  # noqa: PLC0415 # the same

    creates = read_flag(deployment.environ, "ASHERAH_CREATE_SYSTEM_KEYS")
    with closing(VaultTransitKMS.from_env(deployment.environ)) as service:
        findings = check_vault(service, creates=creates is not False)
    if as_json:
        print_json({"findings": [dataclasses.asdict(finding) for finding in findings]})
    else:
        rows = [(finding.level, finding.subject, finding.text) for finding in findings]
        print_table(("", "subject", "finding"), rows, _STYLES)
    if any(finding.level == "error" for finding in findings):
        ctx.exit(Status.FAILED)


@vault.command(cls=Command)
@click.argument("job", required=False)
@click.option("--key", metavar="NAME", help="The Transit key. Default: VAULT_TRANSIT_KEY.")
@click.option("--mount", metavar="PATH", help="The Transit engine. Default: VAULT_TRANSIT_MOUNT, else transit.")
@json_option
@pass_deployment
def policy(deployment: Deployment, job: str | None, key: str | None, mount: str | None, as_json: bool) -> None:  # noqa: FBT001
    r"""Print the smallest policies, all of them or that of one JOB.

    \b
    sa-asherah vault policy officer | vault policy write asherah-officer -
    """
    texts = _policies(deployment.environ, key, mount)
    if job is not None and job not in texts:
        raise UsageError(f"there is no policy {job!r}; there are {', '.join(texts)}")
    chosen = texts if job is None else {job: texts[job]}
    if as_json:
        print_json({"policies": dict(chosen)})
    elif job is not None:
        click.echo(chosen[job], nl=False)
    else:
        click.echo("\n".join(f"# {name}\n{text}" for name, text in chosen.items()), nl=False)


def _policies(environ: Mapping[str, str], key: str | None, mount: str | None) -> Mapping[str, str]:
    # Their package imports hvac.
    from sa_asherah.kms.vault.environment import either, which  # noqa: PLC0415
    from sa_asherah.kms.vault.policy import policies  # noqa: PLC0415

    key = key or either(environ, "TRANSIT_KEY")
    if key is None:
        raise ConfigurationError("which Transit key? Set VAULT_TRANSIT_KEY, or give --key NAME")
    mount = mount or either(environ, "TRANSIT_MOUNT") or "transit"
    return policies(mount, key, bind_context=read_flag(environ, which(environ, "TRANSIT_AAD")) or False)


@vault.command(cls=Command)
@database_option
@dry_run_option
@json_option
@click.pass_context
@pass_deployment
def rewrap(
    deployment: Deployment,
    ctx: click.Context,
    database: str | None,
    dry_run: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
) -> None:
    """Bring the system keys to the newest version of the Transit key.

    Needed only before old versions are disabled (min_decryption_version): without it, new system keys use the newest
    version and old ones open. Processes that run notice nothing. Interrupted, start it again. The token needs the
    policy `rewrap` of `sa-asherah vault policy`; settings are read from the environment.
    """
    with deployment.system_keys(database) as system_keys:
        report = system_keys.rewrap(dry_run=dry_run)
    print_report(report, as_json=as_json)
    ctx.exit(status_of(report))
