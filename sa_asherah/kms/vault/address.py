# SPDX-License-Identifier: Apache-2.0
"""Addresses of Vault's nodes: which are safe to send a system key to, and which of them a redirect means."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from sa_asherah.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from urllib.parse import SplitResult

__all__ = ["checked_nodes", "named_node"]

_PORTS = {"https": 443, "http": 80}


def checked_nodes(addr: str, *, allow_http: bool) -> tuple[str, ...]:
    """Split a list of addresses and bring each into its canonical form.

    Args:
        addr: Addresses, separated by commas.
        allow_http: Take plain `http` for other machines too.

    Returns:
        The addresses, each of them once.

    Raises:
        ConfigurationError: There is none, or one is malformed or unsafe.
    """
    if not addr:
        raise ConfigurationError("Vault Transit KMS: VAULT_ADDR is required, e.g. https://vault.example.com:8200")
    listed = re.sub(r"\s*,\s*", ",", addr)
    if re.search(r"[^!-~]|[@?#\\]", listed):  # not quoted: it may be a password
        raise ConfigurationError(
            "VAULT_ADDR must be a plain address, e.g. https://vault.example.com:8200, without user, password, query, "
            "spaces or characters outside ASCII"
        )
    nodes = tuple(dict.fromkeys(_checked(node, allow_http=allow_http) for node in listed.split(",")))
    if len({node.startswith("https:") for node in nodes}) > 1:
        raise ConfigurationError("the addresses in VAULT_ADDR must be all https:// or all http://")
    return nodes


def named_node(location: str, nodes: Sequence[str]) -> str | None:
    """Find the node that a redirect points to.

    Args:
        location: Where it points to.
        nodes: The configured nodes.

    Returns:
        The node with this scheme, host and port; `None` if there is none.
    """
    target = _origin(location)
    return next((node for node in nodes if target and _origin(node) == target), None)


def _origin(address: str) -> tuple[str, str | None, int | None] | None:
    parts = _split(address)
    # A user name in front of the host is how one host is made to look like another.
    if parts is None or parts.username is not None or parts.scheme not in _PORTS:
        return None
    return parts.scheme, parts.hostname, parts.port or _PORTS[parts.scheme]


def _checked(addr: str, *, allow_http: bool) -> str:
    parts = _split(addr)
    path = parts.path.rstrip("/") if parts else ""
    if parts is None or parts.scheme not in _PORTS or re.search("^/v1/|/v1$", path):
        raise ConfigurationError(
            f"VAULT_ADDR must start with https:// (or http:// for development) and carry no /v1 path; got {addr!r}"
        )
    if parts.scheme == "http" and not (allow_http or _is_loopback(parts.hostname or "")):
        raise ConfigurationError(
            "VAULT_ADDR uses http:// for a remote host; the system key would travel in clear text. "
            "Use https or set VAULT_ALLOW_HTTP=1"
        )
    return f"{parts.scheme}://{parts.netloc}{path}"


def _split(addr: str) -> SplitResult | None:
    """Split the address; None if host or port cannot be used."""
    try:
        parts = urlsplit(addr)
        (parts.hostname or "").encode("idna")
        usable = parts.hostname and parts.port != 0
    except ValueError:
        return None
    return parts if usable else None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False
