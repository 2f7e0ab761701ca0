# SPDX-License-Identifier: Apache-2.0
"""Variables of the environment that the two command line tools, `vault` and `bao`, name differently."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sa_asherah.environ import read_text
from sa_asherah.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["either", "which"]


def which(environ: Mapping[str, str], name: str) -> str:
    """Find the variable that is set, `VAULT_<name>` or `BAO_<name>`.

    Args:
        environ: The environment; an empty variable counts as missing.
        name: The name without prefix.

    Returns:
        The variable; `VAULT_<name>` if none is set.

    Raises:
        ConfigurationError: Both are set and differ.
    """
    vault, bao = read_text(environ, f"VAULT_{name}"), read_text(environ, f"BAO_{name}")
    if vault and bao and vault != bao:
        raise ConfigurationError(f"VAULT_{name} and BAO_{name} are both set and differ; remove one of them")
    return f"BAO_{name}" if bao else f"VAULT_{name}"


def either(environ: Mapping[str, str], name: str) -> str | None:
    """Read `VAULT_<name>` or `BAO_<name>`.

    Args:
        environ: The environment; an empty variable counts as missing.
        name: The name without prefix.

    Returns:
        The value, `None` if none is set.

    Raises:
        ConfigurationError: Both are set and differ.
    """
    return read_text(environ, which(environ, name))
