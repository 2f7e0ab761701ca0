# SPDX-License-Identifier: Apache-2.0
"""The HTTP side of Vault Transit: one request, one answer; nothing is followed, repeated or interpreted."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from hvac.adapters import RawAdapter
from requests import Session
from urllib3.exceptions import HTTPError

from sa_asherah.kms.vault.failure import unreachable

if TYPE_CHECKING:
    from requests import Response

    from sa_asherah.kms.vault.settings import VaultSettings

__all__ = ["Answer", "Connection", "Operation"]

Operation: TypeAlias = Literal["encrypt", "decrypt"]

_ARGUMENT = {"encrypt": "plaintext", "decrypt": "ciphertext"}
_NOT_INITIALISED = 501


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; only the status is shown, since the rest is for others to fill.

    Attributes:
        status: The HTTP status.
        body: The parsed JSON, `None` where there is none.
        location: Where a redirect points to.
    """

    status: int
    body: object = field(repr=False)
    location: str = field(repr=False)


class Connection:
    """Connections to one Vault, kept alive and shared by all threads of a process.

    Args:
        settings: Where Vault is and who asks.
    """

    def __init__(self, settings: VaultSettings) -> None:
        self._settings = settings
        self._opened: tuple[int, RawAdapter] | None = None

    def ask(self, operation: Operation, text: str) -> Answer:
        """Send one request to the Transit key.

        Args:
            operation: What to do.
            text: The plaintext in base64, or the ciphertext.

        Returns:
            The answer, whatever its status.

        Raises:
            KmsUnavailableError: There was no answer.
            ConfigurationError: Certificate, address or proxy settings cannot work.
        """
        path = f"/v1/{self._settings.mount}/{operation}/{self._settings.key}"
        try:
            response = self._adapter().post(path, json={_ARGUMENT[operation]: text})
        except (OSError, HTTPError, ValueError) as exc:
            failure, cause = unreachable(exc, operation, self._settings)
        else:
            return Answer(response.status_code, _json(response), response.headers.get("Location", ""))
        # Not in the `except` block: the exception there carries the request, and with it the token.
        raise failure from cause

    def is_initialised(self) -> bool:
        """Ask a Vault that calls itself sealed whether it was ever initialised.

        Returns:
            False if it says that it was not; True also where it does not answer.
        """
        adapter = self._adapter()
        try:
            # Without token and namespace: inside a namespace this path does not exist.
            response = adapter.session.get(
                f"{self._settings.addr}/v1/sys/health",
                timeout=self._settings.timeouts,
                verify=self._settings.verify,
                allow_redirects=False,
            )
        except (OSError, HTTPError):
            return True
        return response.status_code != _NOT_INITIALISED

    def close(self) -> None:
        """Close the connections; the next request opens new ones."""
        opened, self._opened = self._opened, None
        if opened:
            opened[1].close()

    def _adapter(self) -> RawAdapter:
        # After a fork the connections belong to the parent: sharing them mixes up answers. Compared at use and without
        # a lock, so that no lock can be held by a thread that the fork did not copy; two threads that both
        # find nothing make two adapters, of which one is soon closed.
        opened = self._opened
        if opened is None or opened[0] != os.getpid():
            opened = self._opened = (os.getpid(), self._open())
        return opened[1]

    def _open(self) -> RawAdapter:
        session = _Session()
        session.verify = self._settings.verify
        # Proxies of the environment are for TLS only: through them plain HTTP to this machine would leave it.
        session.trust_env = self._settings.is_encrypted
        # All given, so that hvac takes nothing from the environment; its type stubs know neither CA paths nor pairs
        # of timeouts. `ignore_exceptions`: its exceptions lose the status and some bodies crash its parser.
        options: dict[str, Any] = {
            "base_uri": self._settings.addr,
            "token": self._settings.token,
            "namespace": self._settings.namespace,
            "verify": self._settings.verify,
            "timeout": self._settings.timeouts,
            "session": session,
            "allow_redirects": False,
            "ignore_exceptions": True,
        }
        return RawAdapter(**options)


class _Session(Session):
    """Does not even look where a redirect points to: a malformed address there would raise an error of its own."""

    def get_redirect_target(self, resp: Response) -> str | None:  # noqa: ARG002 # the overridden signature
        return None


def _json(response: Response) -> object:
    # Whatever the content type says: proxies change it. A nest of brackets ends in RecursionError.
    try:
        body: object = response.json()
    except (ValueError, LookupError, RecursionError):
        return None
    return body
