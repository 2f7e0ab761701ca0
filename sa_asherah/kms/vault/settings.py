# SPDX-License-Identifier: Apache-2.0
"""Settings of the Vault Transit service: where they come from, and every check that needs no network."""

from __future__ import annotations

import contextlib
import ipaddress
import math
import os
import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypedDict
from urllib.parse import SplitResult, urlsplit

from sa_asherah.config import read_flag, read_text
from sa_asherah.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["VaultOptions", "VaultSettings", "read_options"]

_CONNECT_SECONDS = 2.0
_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
_ADDRESS_FORM = "VAULT_ADDR must start with https:// (or http:// for development) and carry no /v1 path; got {!r}"


class VaultOptions(TypedDict, total=False):
    """Arguments of `VaultTransitKMS`; `VaultSettings` says what each means."""

    addr: str
    key: str
    token: str
    mount: str
    namespace: str | None
    allow_http: bool
    ca_cert: str | os.PathLike[str] | None
    skip_verify: bool
    timeout: float


@dataclass(frozen=True, slots=True, kw_only=True)
class VaultSettings:
    """How to reach one Transit key. The token shows in no `repr`, and the settings cannot be pickled.

    Attributes:
        addr: Address of Vault, `https://host:port`, perhaps with a path before `/v1`. Plain `http` is taken for this
            machine only, and never sent through a proxy.
        key: Name of the Transit key. It must exist: it is never created here.
        token: The token; it needs `update` on `<mount>/encrypt/<key>` and `<mount>/decrypt/<key>`, nothing else.
        mount: Where the Transit engine is mounted.
        namespace: Namespace of the engine.
        allow_http: Take plain `http` for other machines too: the system key then travels in clear text.
        ca_cert: PEM file, or directory prepared by `openssl rehash`, of the authorities to trust instead of the
            system's.
        skip_verify: Do not verify Vault's certificate: anyone on the network can then read the system key.
        timeout: Seconds to wait for an answer; a connection gets the same, at most 2.
    """

    addr: str = ""
    key: str = ""
    token: str = field(default="", repr=False)
    mount: str = "transit"
    namespace: str | None = None
    allow_http: bool = False
    ca_cert: str | os.PathLike[str] | None = None
    skip_verify: bool = False
    timeout: float = 5.0

    def __post_init__(self) -> None:
        """Bring the values into their canonical form and check them.

        Raises:
            ConfigurationError: A value is missing, malformed or unsafe.
        """
        canonical = {
            "addr": _checked_addr(self.addr.strip(), allow_http=self.allow_http),
            "key": _checked_key(self.key.strip()),
            "token": _checked_token(self.token.strip()),
            "mount": _checked_mount(self.mount.strip().strip("/")),
            "namespace": _checked_namespace((self.namespace or "").strip()),
            "ca_cert": _checked_ca(os.fspath(self.ca_cert or "").strip()),
            "timeout": _checked_timeout(self.timeout),
        }
        for name, value in canonical.items():
            object.__setattr__(self, name, value)

    @property
    def verify(self) -> bool | str:
        """What `requests` calls `verify`."""
        return False if self.skip_verify else str(self.ca_cert or "") or True

    @property
    def timeouts(self) -> tuple[float, float]:
        """Seconds to wait for a connection and for an answer."""
        return min(_CONNECT_SECONDS, self.timeout), self.timeout

    @property
    def is_encrypted(self) -> bool:
        """Whether the connection is TLS."""
        return self.addr.startswith("https:")

    def __reduce__(self) -> NoReturn:
        raise TypeError("VaultSettings hold a token and cannot be pickled")


def read_options(environ: Mapping[str, str], explicit: VaultOptions) -> VaultOptions:
    """Take each option from the explicit arguments, else from `VAULT_*`, else from the `BAO_*` that means the same.

    Args:
        environ: The environment; an empty variable counts as missing.
        explicit: Arguments that win; `None` and empty text count as missing.

    Returns:
        The options that are set anywhere.

    Raises:
        ConfigurationError: `VAULT_*` and `BAO_*` contradict each other, a flag or number is malformed, or another
            authentication method is asked for.
    """
    method = read_text(environ, "VAULT_AUTH_METHOD") or "token"
    if method != "token":
        raise ConfigurationError(f"VAULT_AUTH_METHOD must be token, the only method of this version; got {method!r}")
    options = VaultOptions()
    readers: dict[str, Callable[[], object]] = {
        "addr": lambda: _either(environ, "ADDR"),
        "key": lambda: read_text(environ, "VAULT_TRANSIT_KEY"),
        "token": lambda: _either(environ, "TOKEN"),
        "mount": lambda: read_text(environ, "VAULT_TRANSIT_MOUNT"),
        "namespace": lambda: _either(environ, "NAMESPACE"),
        "allow_http": lambda: read_flag(environ, "VAULT_ALLOW_HTTP"),
        "ca_cert": lambda: _either(environ, "CACERT") or _either(environ, "CAPATH"),
        "skip_verify": lambda: read_flag(environ, _which(environ, "SKIP_VERIFY")),
        "timeout": lambda: _seconds(_either(environ, "CLIENT_TIMEOUT")),
    }
    for name, read in readers.items():
        value = explicit.get(name)
        if value is None or value == "":
            value = read()
        if value is not None:
            options[name] = value  # type: ignore[literal-required]
    return options


def _which(environ: Mapping[str, str], name: str) -> str:
    """Return the variable of the two command line tools that is set; VAULT_* if none is."""
    vault, bao = read_text(environ, f"VAULT_{name}"), read_text(environ, f"BAO_{name}")
    if vault and bao and vault != bao:
        raise ConfigurationError(f"VAULT_{name} and BAO_{name} are both set and differ; remove one of them")
    return f"BAO_{name}" if bao else f"VAULT_{name}"


def _either(environ: Mapping[str, str], name: str) -> str | None:
    return read_text(environ, _which(environ, name))


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    return float(text) if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) else math.nan


def _checked_addr(addr: str, *, allow_http: bool) -> str:
    if not addr:
        raise ConfigurationError("Vault Transit KMS: VAULT_ADDR is required, e.g. https://vault.example.com:8200")
    if "," in addr:
        raise ConfigurationError("VAULT_ADDR must be one address; for several nodes name their load balancer")
    if re.search(r"[^!-~]|[@?#\\]", addr):  # not quoted: it may be a password
        raise ConfigurationError(
            "VAULT_ADDR must be a plain address, e.g. https://vault.example.com:8200, without user, password, query, "
            "spaces or characters outside ASCII"
        )
    parts = _split(addr)
    path = parts.path.rstrip("/") if parts else ""
    if parts is None or parts.scheme not in {"https", "http"} or re.search("^/v1/|/v1$", path):
        raise ConfigurationError(_ADDRESS_FORM.format(addr))
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


def _checked_key(key: str) -> str:
    if not key:
        raise ConfigurationError("VAULT_TRANSIT_KEY is required, e.g. asherah-master")
    if not re.fullmatch(_NAME, key):
        raise ConfigurationError(f"VAULT_TRANSIT_KEY {key!r} is not a valid Transit key name")
    return key


def _checked_mount(mount: str) -> str:
    if not all(re.fullmatch(_NAME, part) for part in mount.split("/")):
        raise ConfigurationError(f"VAULT_TRANSIT_MOUNT {mount!r} is not a valid mount path, e.g. transit")
    return mount


def _checked_token(token: str) -> str:
    if not token:
        raise ConfigurationError("VAULT_AUTH_METHOD=token needs VAULT_TOKEN")
    # Otherwise the HTTP library would raise an error that holds the token.
    if not re.fullmatch("[!-~]+", token):
        raise ConfigurationError("VAULT_TOKEN contains control characters, spaces or characters outside ASCII")
    return token


def _checked_namespace(namespace: str) -> str | None:
    if not re.fullmatch("[!-~]*", namespace):
        raise ConfigurationError("VAULT_NAMESPACE contains control characters, spaces or characters outside ASCII")
    return namespace or None


def _checked_ca(name: str) -> str | None:
    if not name:
        return None
    path = Path(name)
    if not path.exists():
        raise ConfigurationError(f"VAULT_CACERT {name!r} does not exist")
    try:
        if path.is_dir():
            usable = any(re.fullmatch(r"[0-9a-f]{8}\.[0-9]+", entry.name) for entry in path.iterdir())
        else:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(name)
            usable = True
    except ssl.SSLError:
        usable = False
    except OSError as error:
        raise ConfigurationError(f"cannot read VAULT_CACERT {name!r}: {error.strerror}") from error
    if not usable:
        raise ConfigurationError(
            f"VAULT_CACERT {name!r} must be a PEM file of certificates, or a directory of such files "
            "prepared by: openssl rehash"
        )
    return name


def _checked_timeout(timeout: float) -> float:
    if not (math.isfinite(timeout) and timeout > 0):
        raise ConfigurationError("VAULT_CLIENT_TIMEOUT must be a positive number of seconds")
    return float(timeout)
