# SPDX-License-Identifier: Apache-2.0
"""HashiCorp Vault and OpenBao: the Transit engine wraps the system keys. Needs `pip install 'sa_asherah[vault]'`."""

from __future__ import annotations

from importlib.util import find_spec

from sa_asherah.errors import ConfigurationError

if find_spec("hvac") is None:
    raise ConfigurationError("KMS=vault needs the package hvac: pip install 'sa_asherah[vault]'")

from sa_asherah.kms.vault.transit import VaultTransitKMS

__all__ = ["VaultTransitKMS"]
