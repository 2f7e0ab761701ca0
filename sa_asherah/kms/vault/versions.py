# SPDX-License-Identifier: Apache-2.0
"""The versions of a Transit key: making one, and giving up older ones. For who administers Vault."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sa_asherah.errors import KmsError
from sa_asherah.kms.vault.refusal import members, not_from_vault, refusal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sa_asherah.kms.vault.transit import VaultTransitKMS

__all__ = ["Versions", "version_of"]

_OK, _NO_CONTENT = 200, 204


def version_of(blob: bytes) -> int:
    """Tell which version wrapped a system key.

    Args:
        blob: What `VaultTransitKMS.encrypt_key` returned.

    Returns:
        The version; 0 for a blob of another service.
    """
    found = re.match(rb"vault:v([0-9]+):", blob)
    return int(found[1]) if found else 0


class Versions:
    """The versions of one Transit key. The token needs `read` and `update` on `<mount>/keys/<key>` and below."""

    def __init__(self, service: VaultTransitKMS) -> None:
        """Use a service's address, token and key.

        Args:
            service: The service.
        """
        self._service = service
        self._path = f"{service.settings.mount}/keys/{service.settings.key}"

    def newest(self) -> int:
        """Read the newest version.

        Returns:
            Its number.

        Raises:
            KmsError: Vault failed, or the token may not read the key.
        """
        return self._number("latest_version")

    def oldest(self) -> int:
        """Read the oldest version that opens.

        Returns:
            Its number.

        Raises:
            KmsError: Vault failed, or the token may not read the key.
        """
        return self._number("min_decryption_version")

    def rotate(self) -> None:
        """Make a version.

        Raises:
            KmsError: Vault failed, or the token may not rotate the key.
        """
        self._asked("/rotate", {})

    def open_from(self, version: int) -> None:
        """Let Vault open nothing that an older version wrapped. It can be undone until `trim`.

        Args:
            version: The oldest version that opens, and wraps.

        Raises:
            KmsError: Vault failed, or the token may not configure the key.
        """
        self._asked("/config", {"min_decryption_version": version, "min_encryption_version": version})

    def reopen(self, version: int) -> None:
        """Undo `open_from`.

        Args:
            version: The oldest version that opens again.

        Raises:
            KmsError: Vault failed, has no such version any more, or the token may not configure the key.
        """
        self._asked("/config", {"min_decryption_version": version})

    def trim(self, version: int) -> None:
        """Destroy all older versions. Only a backup of Vault has them then.

        Args:
            version: The oldest version to keep.

        Raises:
            KmsError: Vault failed, or the token may not trim the key.
        """
        self._asked("/trim", {"min_available_version": version})

    def _number(self, name: str) -> int:
        number = members(self._asked("").get("data")).get(name)
        if type(number) is not int:
            raise not_from_vault("check", _OK)
        return number

    def _asked(self, path: str, question: Mapping[str, object] | None = None) -> Mapping[str, object]:
        answer = self._service.look(self._path + path, question)
        if answer.status not in {_OK, _NO_CONTENT}:
            error = refusal(answer, "check", self._service.settings, self._service.advice)
            raise error if isinstance(error, KmsError) else KmsError(str(error), operation="check")
        return members(answer.body)
