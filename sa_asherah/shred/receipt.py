# SPDX-License-Identifier: Apache-2.0
"""What remains to prove, and to repeat after a restore, that an owner was erased."""

from __future__ import annotations

import dataclasses
import hmac
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from sa_asherah.core.strict_json import StrictJsonError, base64_text, load_object
from sa_asherah.errors import UsageError
from sa_asherah.shred.loss import Loss

if TYPE_CHECKING:
    from sa_asherah.core.key import Key

__all__ = ["Receipt"]

_LABEL = b"sa_asherah/receipt/1"
_MAX_LENGTH = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Receipt:
    """An erasure that is complete, authenticated by a system key of the deployment.

    It holds the owner's id, which is needed to repeat the erasure in a restored database, and no key.

    Attributes:
        service: Name of the service.
        product: Name of the product.
        partition: The owner, in the columns' template if they have one.
        keys: Id and date of every key that was destroyed.
        losses: What became unreadable, as counted before.
        begun: When the keys were destroyed, in seconds.
        finished: When no process had one of them any more, in seconds.
        system_key: Date of the system key that authenticates the receipt.
        mac: HMAC-SHA-256 over all this, base64.
    """

    service: str
    product: str
    partition: str
    keys: tuple[tuple[str, int], ...]
    losses: tuple[Loss, ...]
    begun: int
    finished: int
    system_key: int = 0
    mac: str = ""

    def signed(self, key: Key) -> Self:
        """Authenticate the receipt.

        Args:
            key: A system key.

        Returns:
            The receipt with its MAC.
        """
        named = dataclasses.replace(self, system_key=key.created, mac="")
        return dataclasses.replace(named, mac=_mac(named, key))

    def holds(self, key: Key) -> bool:
        """Tell whether the receipt is as it was written.

        Args:
            key: The system key of its date.

        Returns:
            Whether its MAC holds.
        """
        return hmac.compare_digest(_mac(self, key).encode(), self.mac.encode())

    def json(self) -> str:
        """Write the receipt.

        Returns:
            Canonical JSON: sorted members, no spaces, one line.
        """
        return _canonical(dataclasses.asdict(self))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a receipt.

        Args:
            text: What `json` gave, however it is spaced.

        Returns:
            The receipt; whether it holds is another question.

        Raises:
            UsageError: The text is no receipt.
        """
        try:
            members: dict[str, Any] = dict(load_object(text, _MAX_LENGTH))
            members["keys"] = tuple((str(key_id), int(created)) for key_id, created in members["keys"])
            members["losses"] = tuple(Loss(**loss) for loss in members["losses"])
            receipt = cls(**members)
        except (StrictJsonError, KeyError, TypeError, ValueError):
            receipt = None
        if receipt is None or not all(type(getattr(receipt, name)) is kind for name, kind in _KINDS.items()):
            raise UsageError("this is no receipt of an erasure; give what sa-asherah shred printed with --json")
        return receipt


_KINDS = {
    "service": str,
    "product": str,
    "partition": str,
    "begun": int,
    "finished": int,
    "system_key": int,
    "mac": str,
}


def _canonical(members: dict[str, Any]) -> str:
    return json.dumps(members, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _mac(receipt: Receipt, key: Key) -> str:
    members = dataclasses.asdict(receipt)
    del members["mac"]
    receipt_key = hmac.digest(key.secret, _LABEL, "sha512")[:32]
    return base64_text(hmac.digest(receipt_key, _canonical(members).encode(), "sha256"))
