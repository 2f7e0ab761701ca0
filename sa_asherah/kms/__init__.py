# SPDX-License-Identifier: Apache-2.0
"""Key management services: who wraps the system keys. A service is imported when it is chosen, not before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sa_asherah.kms.static import StaticKMS
from sa_asherah.kms.succession import Succession

if TYPE_CHECKING:
    from sa_asherah.config import Settings
    from sa_asherah.core.ports import KeyManagementService

__all__ = ["StaticKMS", "Succession", "open_kms"]


def open_kms(settings: Settings) -> KeyManagementService:
    """Make the key management service that the settings name, with its predecessor if they name one, too.

    Nothing is asked of either yet.

    Args:
        settings: The settings.

    Returns:
        The service; whoever asked for it closes it.

    Raises:
        ConfigurationError: A setting of a service is missing, malformed or unsafe, or its extra is missing.
    """
    current = _open(settings.kms, settings)
    if settings.kms_previous is None:
        return current
    return Succession(current, _open(settings.kms_previous, settings))


def _open(name: str, settings: Settings) -> KeyManagementService:
    match name:
        case "static":
            return StaticKMS.from_hex(settings.static_master_key_hex or "", settings.environ)
        case "aws":
            from sa_asherah.kms.aws import AwsKMS  # noqa: PLC0415 # boto3 is an extra and takes 0.2 s to import

            return AwsKMS.from_env(settings.environ)
        case "secrets-manager":
            from sa_asherah.kms.secrets_manager import SecretsManagerKMS  # noqa: PLC0415 # the same

            return SecretsManagerKMS.from_env(settings.environ)
        case _:
            from sa_asherah.kms.vault import VaultTransitKMS  # noqa: PLC0415 # hvac is an extra, as slow

            return VaultTransitKMS.from_env(settings.environ, service=settings.service, product=settings.product)
