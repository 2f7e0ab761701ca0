# SPDX-License-Identifier: Apache-2.0
"""The HTTP side of Vault: one request to one node, one answer; nothing is followed, repeated or interpreted."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from hvac.adapters import RawAdapter
from requests import Session
from urllib3.exceptions import HTTPError

from sa_asherah.core.fork import ForkAware
from sa_asherah.kms.vault.failure import Failure, unreachable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from requests import Response

    from sa_asherah.kms.vault.settings import VaultSettings

__all__ = ["Answer", "Connection", "Request"]

# Of what is sent, these are names; everything else is not repeated, should an answer quote it.
_NAMES = frozenset({"role", "name", "paths"})


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked; only the path is shown, since the rest is secret.

    Attributes:
        path: The path below `/v1/`.
        body: The body, JSON.
        token: The token, if any.
        operation: What to call it in an error.
        get: Whether it is a GET.
        is_global: Whether the path exists outside of namespaces only.
    """

    path: str
    body: Mapping[str, object] | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    operation: str = ""
    get: bool = False
    is_global: bool = False

    @property
    def secrets(self) -> tuple[str, ...]:
        """What no error may repeat."""
        return (*([self.token] if self.token else []), *_texts(self.body or {}))


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; only status and node are shown, since the rest is for others to fill.

    Attributes:
        status: The HTTP status.
        body: The parsed JSON, `None` where there is none.
        location: Where a redirect points to.
        retry_after: Seconds that the node wants to be left alone.
        node: The address of the node that was asked.
        secrets: What no error may repeat, should the answer quote it.
    """

    status: int
    body: object = field(repr=False)
    location: str = field(default="", repr=False)
    retry_after: float = 0.0
    node: str = ""
    secrets: tuple[str, ...] = field(default=(), repr=False)


class Connection(ForkAware):
    """Connections to the nodes of one Vault, kept alive and shared by all threads of a process.

    After a fork the connections belong to the parent, since sharing them mixes up answers: the child opens its own.

    Args:
        settings: Where Vault is.
    """

    def __init__(self, settings: VaultSettings) -> None:
        self._settings = settings
        super().__init__()

    def reset_after_fork(self) -> None:
        """Forget the connections of the parent without closing them."""
        self._opened: dict[str, RawAdapter] = {}

    def send(self, node: str, request: Request, timeouts: tuple[float, float]) -> Answer | Failure:
        """Send one request to one node.

        Args:
            node: The node's address.
            request: What is asked.
            timeouts: Seconds to wait for a connection and for an answer.

        Returns:
            The answer, whatever its status, or why there is none.
        """
        headers = {"X-Vault-Token": request.token} if request.token else {}
        if self._settings.namespace and not request.is_global:
            headers["X-Vault-Namespace"] = self._settings.namespace
        options: dict[str, Any] = {"headers": headers, "timeout": timeouts}
        if request.body is not None:
            options["json"] = request.body
        try:
            method = "get" if request.get else "post"
            response = self._adapter(node).request(method, f"/v1/{request.path}", **options)
        except (OSError, HTTPError, ValueError) as exc:
            # Returned instead of raised: the exception carries the request, and with it the token.
            return unreachable(exc, request.operation, self._settings, node, timeouts)
        location = response.headers.get("Location", "")
        return Answer(response.status_code, _json(response), location, _retry_after(response), node, request.secrets)

    def close(self) -> None:
        """Close the connections; the next request opens new ones."""
        opened, self._opened = self._opened, {}
        for adapter in opened.values():
            adapter.close()

    def _adapter(self, node: str) -> RawAdapter:
        # Without a lock: of two threads that both find none, the second takes what the first has put there.
        return self._opened.get(node) or self._opened.setdefault(node, self._open(node))

    def _open(self, node: str) -> RawAdapter:
        session = _Session()
        session.verify = self._settings.verify
        session.cert = self._settings.credentials.client_pair
        # Proxies of the environment are for TLS only: through them plain HTTP to this machine would leave it.
        session.trust_env = self._settings.is_encrypted
        # All given, so that hvac takes nothing from the environment; its type stubs know neither CA paths nor pairs
        # of files. `ignore_exceptions`: its exceptions lose the status and some bodies crash its parser.
        options: dict[str, Any] = {
            "base_uri": node,
            "token": None,
            "namespace": None,
            "cert": session.cert,
            "verify": session.verify,
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


def _retry_after(response: Response) -> float:
    seconds = response.headers.get("Retry-After", "")
    return float(seconds) if re.fullmatch("[0-9]{1,6}", seconds) else 0.0


def _texts(body: object) -> Iterator[str]:
    if isinstance(body, str) and body:
        yield body
    elif isinstance(body, dict):
        for name, value in cast("Mapping[str, object]", body).items():
            if name not in _NAMES:
                yield from _texts(value)
    elif isinstance(body, list):
        for value in cast("list[object]", body):
            yield from _texts(value)
