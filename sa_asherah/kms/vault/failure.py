# SPDX-License-Identifier: Apache-2.0
"""Why there was no answer: from exceptions of the HTTP library to errors of ours, without the token they carry."""

from __future__ import annotations

import os
import re
import socket
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from requests.exceptions import ConnectTimeout, ProxyError, RequestException, SSLError
from requests.utils import get_environ_proxies, select_proxy
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

from sa_asherah.errors import AsherahError, ConfigurationError, KmsUnavailableError

if TYPE_CHECKING:
    from sa_asherah.kms.vault.settings import VaultSettings

__all__ = ["TRANSIT", "Failure", "subject", "unreachable"]

TRANSIT = frozenset({"encrypt", "decrypt", "rewrap"})
"""The operations of the Transit key."""

_UNSENT = (ConnectTimeout, ConnectTimeoutError, NewConnectionError)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there was no answer.

    Attributes:
        error: The error to raise.
        cause: Its cause, a bare copy of the operating system's error.
        was_sent: Whether the request may have reached Vault.
    """

    error: AsherahError
    cause: OSError | None = None
    was_sent: bool = False


def subject(operation: str) -> str:
    """Name an operation as an error does.

    Args:
        operation: The operation.

    Returns:
        The beginning of the error's text.
    """
    return f"Vault Transit {operation}" if operation in TRANSIT else f"Vault {operation}"


def unreachable(
    error: Exception, operation: str, settings: VaultSettings, node: str, timeouts: tuple[float, float]
) -> Failure:
    """Explain a request that got no answer.

    Args:
        error: What the HTTP library raised; it holds the request, so it must not be kept.
        operation: What was asked of Vault.
        settings: How it was asked.
        node: Which node.
        timeouts: Seconds that it was given to connect and to answer.

    Returns:
        The failure.
    """
    chain = _chain(error)
    # The innermost error of the operating system or of TLS.
    system = [link for link in chain if isinstance(link, OSError) and not isinstance(link, RequestException)]
    cause = system[-1] if system else None
    reason, is_setting = _reason(error, cause, settings, node, timeouts)
    message = f"{subject(operation)} request failed: {reason} (VAULT_ADDR={node})"
    if is_setting:
        return Failure(ConfigurationError(message), _bare(cause))
    was_sent = not isinstance(error, ProxyError) and not any(isinstance(link, _UNSENT) for link in chain)
    return Failure(KmsUnavailableError(message, retryable=True, operation=operation), _bare(cause), was_sent)


def _reason(
    error: Exception, cause: OSError | None, settings: VaultSettings, node: str, timeouts: tuple[float, float]
) -> tuple[str, bool]:
    """Return the reason, and whether a setting is to blame, so that repeating the call cannot help."""
    # ProxyError and SSLError are connection errors too, hence first.
    if isinstance(error, ProxyError):
        return _proxy_reason(cause, node), False
    if isinstance(error, SSLError) and isinstance(cause, ssl.SSLError) and not _is_cut(cause):
        return f"TLS verification failed: {_tls_reason(cause)}; check {_variables(settings)}", True
    # Certificates that vanished after construction: requests raises a plain OSError, or TLS fails for another one.
    if cause is error or (isinstance(error, SSLError) and not isinstance(cause, ssl.SSLError)):
        return f"cannot read the certificates in {_files(settings)}; check {_variables(settings)}", True
    if isinstance(error, ValueError):
        return f"the address or a proxy setting cannot be used ({type(error).__name__})", True
    return _network_reason(error, cause, node, timeouts), False


def _network_reason(error: Exception, cause: OSError | None, node: str, timeouts: tuple[float, float]) -> str:
    connect, read = timeouts
    match cause:
        case socket.gaierror():
            return f"cannot resolve host {urlsplit(node).hostname!r}"
        case TimeoutError():
            return f"timed out after {connect if isinstance(error, ConnectTimeout) else read:.3g} s"
        case ConnectionRefusedError():
            return "connection refused"
        case ConnectionError() | ssl.SSLError():
            hint = "" if node.startswith("https:") else "; does it want https?"
            return f"the server closed the connection{hint}"
        case OSError(errno=int(number)):
            return os.strerror(number).lower()
        case _:
            return f"no usable answer ({type(error).__name__})"


def _proxy_reason(cause: OSError | None, node: str) -> str:
    parts = urlsplit(select_proxy(node, get_environ_proxies(node)) or "")
    proxy = f"proxy {parts.hostname}"  # neither its user nor its password
    if isinstance(cause, ConnectionRefusedError):
        return f"{proxy} refused the connection"
    answered = re.match(r"Tunnel connection failed: ([0-9]{3})\b", str(cause))
    return f"{proxy} answered {answered[1]}" if answered else f"{proxy} cannot be used"


def _tls_reason(cause: ssl.SSLError) -> str:
    if isinstance(cause, ssl.SSLCertVerificationError):
        return cause.verify_message
    if cause.reason == "WRONG_VERSION_NUMBER":
        return "the server does not speak TLS on this port"
    return (cause.reason or "handshake failed").lower().replace("_", " ")


def _is_cut(cause: ssl.SSLError) -> bool:
    return isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError | ssl.SSLSyscallError)


def _chain(error: Exception) -> list[BaseException]:
    found: list[BaseException] = []
    current: BaseException | None = error
    while current:
        found.append(current)
        current = current.__cause__ or current.__context__
    return found


def _files(settings: VaultSettings) -> str:
    files = (settings.ca_cert, *(settings.credentials.client_pair or ()))
    return " or ".join(repr(str(file)) for file in files if file) or repr(settings.verify)


def _variables(settings: VaultSettings) -> str:
    return "VAULT_CACERT" + (", VAULT_CLIENT_CERT and VAULT_CLIENT_KEY" if settings.credentials.client_pair else "")


def _bare(cause: OSError | None) -> OSError | None:
    # A copy, since the original leads by its traceback to frames that hold the request with the token.
    for kind in (ssl.SSLError, socket.gaierror, TimeoutError, ConnectionResetError, OSError):
        if isinstance(cause, kind):
            return kind(*cause.args)  # OSError becomes ConnectionRefusedError and the like by its number
    return None
