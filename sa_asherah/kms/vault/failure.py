# SPDX-License-Identifier: Apache-2.0
"""Why there was no answer: from exceptions of the HTTP library to errors of ours, without the token they carry."""

from __future__ import annotations

import os
import re
import socket
import ssl
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from requests.exceptions import ConnectTimeout, ProxyError, RequestException, SSLError
from requests.utils import get_environ_proxies, select_proxy

from sa_asherah.errors import AsherahError, ConfigurationError, KmsUnavailableError

if TYPE_CHECKING:
    from sa_asherah.kms.vault.settings import VaultSettings

__all__ = ["unreachable"]


def unreachable(error: Exception, operation: str, settings: VaultSettings) -> tuple[AsherahError, OSError | None]:
    """Explain a request that got no answer.

    Args:
        error: What the HTTP library raised; it holds the request, so it must not be kept.
        operation: What was asked of Vault.
        settings: How it was asked.

    Returns:
        The error to raise and its cause, a bare copy of the operating system's error.
    """
    cause = _system_error(error)
    reason, is_setting = _reason(error, cause, settings)
    message = f"Vault Transit {operation} request failed: {reason} (VAULT_ADDR={settings.addr})"
    if is_setting:
        return ConfigurationError(message), _bare(cause)
    return KmsUnavailableError(message, retryable=True, operation=operation), _bare(cause)


def _reason(error: Exception, cause: OSError | None, settings: VaultSettings) -> tuple[str, bool]:
    """Return the reason, and whether a setting is to blame, so that repeating the call cannot help."""
    # ProxyError and SSLError are connection errors too, hence first.
    if isinstance(error, ProxyError):
        return _proxy_reason(cause, settings), False
    if isinstance(error, SSLError) and isinstance(cause, ssl.SSLError) and not _is_cut(cause):
        return f"TLS verification failed: {_tls_reason(cause)}; check VAULT_CACERT", True
    # Certificates that vanished after construction: requests raises a plain OSError, or TLS fails for another one.
    if cause is error or (isinstance(error, SSLError) and not isinstance(cause, ssl.SSLError)):
        return f"cannot read the certificates in {settings.verify!r}; check VAULT_CACERT", True
    if isinstance(error, ValueError):
        return f"the address or a proxy setting cannot be used ({type(error).__name__})", True
    return _network_reason(error, cause, settings), False


def _network_reason(error: Exception, cause: OSError | None, settings: VaultSettings) -> str:
    connect, read = settings.timeouts
    match cause:
        case socket.gaierror():
            return f"cannot resolve host {urlsplit(settings.addr).hostname!r}"
        case TimeoutError():
            return f"timed out after {connect if isinstance(error, ConnectTimeout) else read:g} s"
        case ConnectionRefusedError():
            return "connection refused"
        case ConnectionError() | ssl.SSLError():
            hint = "" if settings.is_encrypted else "; does it want https?"
            return f"the server closed the connection{hint}"
        case OSError(errno=int(number)):
            return os.strerror(number).lower()
        case _:
            return f"no usable answer ({type(error).__name__})"


def _proxy_reason(cause: OSError | None, settings: VaultSettings) -> str:
    parts = urlsplit(select_proxy(settings.addr, get_environ_proxies(settings.addr)) or "")
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


def _system_error(error: Exception) -> OSError | None:
    """Return the innermost error of the operating system or of TLS."""
    found: OSError | None = None
    current: BaseException | None = error
    while current:
        if isinstance(current, OSError) and not isinstance(current, RequestException):
            found = current
        current = current.__cause__ or current.__context__
    return found


def _bare(cause: OSError | None) -> OSError | None:
    # A copy, since the original leads by its traceback to frames that hold the request with the token.
    for kind in (ssl.SSLError, socket.gaierror, TimeoutError, ConnectionResetError, OSError):
        if isinstance(cause, kind):
            return kind(*cause.args)  # OSError becomes ConnectionRefusedError and the like by its number
    return None
