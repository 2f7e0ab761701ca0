# SPDX-License-Identifier: Apache-2.0
"""Whether a key may wrap or encrypt at a moment: the policy's dates, revocation, retirement and wear together."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sa_asherah.core.key_record import KeyRecord
    from sa_asherah.core.keyring import Keyring
    from sa_asherah.core.policy import CryptoPolicy

__all__ = ["Validity"]


class Validity:
    """What keys may do at one moment.

    Attributes:
        now: The moment, in seconds.
    """

    def __init__(self, policy: CryptoPolicy, keyring: Keyring) -> None:
        """Take the present.

        Args:
            policy: Expiry and grace.
            keyring: Knows which keys are worn.
        """
        self._policy = policy
        self._keyring = keyring
        self.now = policy.clock()

    def wraps(self, record: KeyRecord) -> bool:
        """Tell whether a system key may wrap new keys.

        Args:
            record: Its record.

        Returns:
            Whether it may.
        """
        return self.now <= self._policy.wraps_until(record.id, record.created) and not (
            record.revoked or record.retired or self._is_worn(record)
        )

    def encrypts(self, record: KeyRecord, parent: KeyRecord) -> bool:
        """Tell whether an intermediate key may encrypt.

        Args:
            record: Its record.
            parent: Its system key's.

        Returns:
            Whether it may.
        """
        return self.now <= self._policy.encrypts_until(record.id, record.created, parent.created) and not (
            record.revoked or parent.revoked or self._is_worn(record)
        )

    def wraps_in_grace(self, record: KeyRecord) -> bool:
        """Tell whether a system key may wrap new keys while no successor can be made.

        Args:
            record: Its record.

        Returns:
            Whether it may.
        """
        end = self._policy.wraps_in_grace_until(record.created)
        return self.now <= end and not (record.revoked or record.retired)

    def encrypts_in_grace(self, record: KeyRecord, parent: KeyRecord) -> bool:
        """Tell whether an intermediate key may encrypt while no successor can be made.

        Args:
            record: Its record.
            parent: Its system key's.

        Returns:
            Whether it may.
        """
        end = self._policy.encrypts_in_grace_until(record.id, record.created, parent.created)
        return self.now <= end and not (record.revoked or parent.revoked)

    def _is_worn(self, record: KeyRecord) -> bool:
        return self._keyring.is_worn((record.id, record.created))
