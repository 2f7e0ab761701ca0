# SPDX-License-Identifier: Apache-2.0
"""Key management services: who wraps the system keys. A service is imported when it is chosen, not before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sa_asherah.kms.static import StaticKMS

if TYPE_CHECKING:
    from sa_asherah.config import Settings
    from sa_asherah.core.ports import KeyManagementService

__all__ = ["StaticKMS", "open_kms"]


def open_kms(settings: Settings) -> KeyManagementService:
    """Make the key management service that the settings name. Nothing is asked of it yet.

    Args:
        settings: The settings.

    Returns:
        The service; whoever asked for it closes it.

    Raises:
        ConfigurationError: A setting of the service is missing, malformed or unsafe, or its extra is missing.
    """
    if settings.kms == "static":
        return StaticKMS.from_hex(settings.static_master_key_hex or "", settings.environ)
    from sa_asherah.kms.vault import VaultTransitKMS  # noqa: PLC0415 # hvac is an extra and takes 0.2 s to import

    return VaultTransitKMS.from_env(settings.environ)
