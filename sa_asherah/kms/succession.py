# SPDX-License-Identifier: Apache-2.0
"""Two key management services while system keys move from one to the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from sa_asherah.core.ports import KeyManagementService
from sa_asherah.errors import KmsCiphertextError, KmsError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Succession"]


class Succession(KeyManagementService):
    """Wraps system keys with one service and opens those of its predecessor, too.

    Every process runs with it before `sa-asherah kms migrate` moves the system keys, and until none is left to move.

    Attributes:
        current: The service that wraps new system keys.
        previous: The service that wrapped them so far.
    """

    def __init__(self, current: KeyManagementService, previous: KeyManagementService) -> None:
        """Take both services; `close` closes them.

        Args:
            current: The service that wraps new system keys.
            previous: The service that wrapped them so far.
        """
        self.current = current
        self.previous = previous
        self.batch_size = max(current.batch_size, previous.batch_size)

    def encrypt_key(self, key: bytes) -> bytes:
        """Wrap a system key with the current service.

        Args:
            key: 32 bytes.

        Returns:
            The wrapped key.

        Raises:
            KmsError: The service failed.
        """
        return self.current.encrypt_key(key)

    def decrypt_key(self, blob: bytes) -> bytes:
        """Unwrap a system key with the service it belongs to.

        Args:
            blob: The wrapped key.

        Returns:
            The system key.

        Raises:
            KmsCiphertextError: It belongs to neither.
            KmsError: The service failed.
        """
        if self._is_foreign(blob):
            return self.previous.decrypt_key(blob)
        # Not raised from within `except`: the error that comes out would carry the other one along.
        refusal: KmsCiphertextError
        try:
            return self.current.decrypt_key(blob)
        except KmsCiphertextError as error:
            refusal = error
        if not self.previous.recognises(blob):
            raise refusal
        second: KmsCiphertextError
        try:
            return self.previous.decrypt_key(blob)
        except KmsCiphertextError as error:
            second = error
        raise _neither(refusal, second)

    def decrypt_keys(self, blobs: Sequence[bytes]) -> list[bytes | KmsError]:
        """Unwrap several system keys, each with the service it belongs to.

        Args:
            blobs: The wrapped keys.

        Returns:
            For each blob its key, or the error that says why it does not open.
        """
        ours = [n for n, blob in enumerate(blobs) if not self._is_foreign(blob)]
        opened: dict[int, bytes | KmsError] = _opened(self.current, blobs, ours)
        theirs = [
            n
            for n, blob in enumerate(blobs)
            if n not in opened or (isinstance(opened[n], KmsCiphertextError) and self.previous.recognises(blob))
        ]
        for n, key in _opened(self.previous, blobs, theirs).items():
            refusal = opened.get(n)
            if isinstance(refusal, KmsCiphertextError) and isinstance(key, KmsCiphertextError):
                opened[n] = _neither(refusal, key)
            else:
                opened[n] = key
        return [opened[n] for n in range(len(blobs))]

    def recognises(self, blob: bytes) -> bool:
        """Tell by its form whether one of the services may have wrapped a blob; asks nobody.

        Args:
            blob: A wrapped system key.

        Returns:
            Whether one may.
        """
        return self.current.recognises(blob) or self.previous.recognises(blob)

    def close(self) -> None:
        """Close both services."""
        try:
            self.current.close()
        finally:
            self.previous.close()

    def _is_foreign(self, blob: bytes) -> bool:
        """Tell whether a blob has the previous service's form, and not the current one's."""
        return self.previous.recognises(blob) and not self.current.recognises(blob)

    def __repr__(self) -> str:
        return f"Succession({self.current!r}, {self.previous!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Succession holds key services and cannot be pickled; make one in each process")


def _opened(
    service: KeyManagementService, blobs: Sequence[bytes], numbers: Sequence[int]
) -> dict[int, bytes | KmsError]:
    if not numbers:
        return {}
    return dict(zip(numbers, service.decrypt_keys([blobs[n] for n in numbers]), strict=True))


def _neither(current: KmsCiphertextError, previous: KmsCiphertextError) -> KmsCiphertextError:
    return KmsCiphertextError(
        f"neither of the two key services opens the system key. KMS: {current}. KMS_PREVIOUS: {previous}",
        operation="decrypt",
    )
