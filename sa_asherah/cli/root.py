# SPDX-License-Identifier: Apache-2.0
"""The command line's root."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import click

from sa_asherah.cli.command import Group
from sa_asherah.cli.demonstration import demo
from sa_asherah.cli.doctor import doctor
from sa_asherah.cli.initial import init
from sa_asherah.cli.inventory import status
from sa_asherah.cli.keys import export_keys, import_keys
from sa_asherah.cli.kms import kms
from sa_asherah.cli.reencryption import reencrypt, verify
from sa_asherah.cli.revocation import revoke
from sa_asherah.cli.rotation import rotate
from sa_asherah.cli.shred import shred
from sa_asherah.cli.vault import rewrap, vault

__all__ = ["cli"]


def _version() -> str:
    try:
        return version("sa_asherah")
    except PackageNotFoundError:
        return "unknown: run from a checkout"


@click.group("sa-asherah", cls=Group)
@click.version_option(_version())
def cli() -> None:
    r"""Operate the keys of sa_asherah: per-owner encrypted columns for SQLAlchemy.

    Settings are those of the application, read from the environment: SERVICE_NAME, PRODUCT_ID, KMS and what the key
    service needs. The key table's database is --database or ASHERAH_DATABASE_URL. No command prints a key, a token or a
    password.

    \b
    Exit status:
      0  done
      1  something failed, or a check found an error
      2  wrong usage, or a setting is missing or unusable
      3  nothing found to work on

    \b
    Completion of commands and options in bash (also zsh, fish):
      eval "$(_SA_ASHERAH_COMPLETE=bash_source sa-asherah)"
    """


for _command in (
    demo,
    doctor,
    export_keys,
    import_keys,
    init,
    kms,
    reencrypt,
    revoke,
    rotate,
    shred,
    status,
    vault,
    verify,
):
    cli.add_command(_command)
cli.add_command(rewrap, "rewrap")  # also there, since it is an operation on keys like `rotate`
