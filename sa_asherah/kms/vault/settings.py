# SPDX-License-Identifier: Apache-2.0
"""Settings of the Vault Transit service: where they come from, and every check that needs no network."""

from __future__ import annotations

import base64
import json
import math
import os
import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self, cast

from sa_asherah.environ import read_flag, read_text
from sa_asherah.errors import ConfigurationError
from sa_asherah.kms.vault.address import checked_nodes
from sa_asherah.kms.vault.credentials import CredentialOptions, Credentials, read_credentials
from sa_asherah.kms.vault.environment import either, which

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["VaultOptions", "VaultSettings", "checked_key", "checked_mount", "read_options"]

_CONNECT_SECONDS = 2.0
_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"


class VaultOptions(CredentialOptions, total=False):
    """Arguments of `VaultTransitKMS`; `VaultSettings` and `Credentials` say what each means."""

    addr: str
    key: str
    mount: str
    namespace: str | None
    allow_http: bool
    ca_cert: str | os.PathLike[str] | None
    skip_verify: bool
    timeout: float
    deadline: float
    bind_context: bool
    service: str | None
    product: str | None
    startup_jitter: float


@dataclass(frozen=True, slots=True, kw_only=True)
class VaultSettings:
    """How to reach one Transit key. No secret shows in a `repr`, and the settings cannot be pickled.

    Attributes:
        credentials: Who asks.
        addr: Address of Vault, `https://host:port`, perhaps with a path before `/v1`; or those of several nodes of one
            cluster, separated by commas. Plain `http` is taken for this machine only, and never sent through a proxy.
        key: Name of the Transit key. It must exist: it is never created here.
        mount: Where the Transit engine is mounted.
        namespace: Namespace of the engine.
        allow_http: Take plain `http` for other machines too: the system key then travels in clear text.
        ca_cert: PEM file, or directory prepared by `openssl rehash`, of the authorities to trust instead of the
            system's.
        skip_verify: Do not verify Vault's certificate: anyone on the network can then read the system key.
        timeout: Seconds to wait for an answer; a connection gets the same, at most 2.
        deadline: Seconds that one call may take, logging in and repeating it included.
        bind_context: Bind each wrapped key to service and product: Vault then opens it with the same names only. A
            setting for good, since a key wrapped with it does not open without it, nor the other way round.
        service: Name of the service, for `bind_context`.
        product: Name of the product, for `bind_context`.
        startup_jitter: The first login waits a random number of seconds up to this one.
    """

    credentials: Credentials
    addr: str = ""
    key: str = ""
    mount: str = "transit"
    namespace: str | None = None
    allow_http: bool = False
    ca_cert: str | os.PathLike[str] | None = None
    skip_verify: bool = False
    timeout: float = 5.0
    deadline: float = 20.0
    bind_context: bool = False
    service: str | None = None
    product: str | None = None
    startup_jitter: float = 0.0

    @classmethod
    def of(cls, options: VaultOptions) -> Self:
        """Make settings of the options.

        Args:
            options: The options; those of authentication become `credentials`.

        Returns:
            The settings.

        Raises:
            ConfigurationError: A value is missing, malformed or unsafe.
        """
        asking = {name: value for name, value in options.items() if name in CredentialOptions.__annotations__}
        others = {name: value for name, value in options.items() if name not in asking}
        return cls(credentials=Credentials(**cast("CredentialOptions", asking)), **cast("Any", others))

    def __post_init__(self) -> None:
        """Bring the values into their canonical form and check them.

        Raises:
            ConfigurationError: A value is missing, malformed or unsafe.
        """
        canonical = {
            "addr": ",".join(checked_nodes(self.addr.strip(), allow_http=self.allow_http)),
            "key": checked_key(self.key.strip()),
            "mount": checked_mount(self.mount.strip().strip("/")),
            "namespace": _checked_namespace((self.namespace or "").strip()),
            "ca_cert": _checked_ca(os.fspath(self.ca_cert or "").strip()),
            "timeout": _checked_seconds("VAULT_CLIENT_TIMEOUT", self.timeout),
            "deadline": _checked_seconds("VAULT_RETRY_DEADLINE", self.deadline),
            "startup_jitter": _checked_seconds("VAULT_STARTUP_JITTER", self.startup_jitter, or_zero=True),
        }
        for name, value in canonical.items():
            object.__setattr__(self, name, value)
        self.credentials.check_transport(is_encrypted=self.is_encrypted)
        if self.bind_context and not (self.service and self.product):
            raise ConfigurationError(
                "VAULT_TRANSIT_AAD=1 needs the names that wrapped keys are bound to: service and product "
                "(SERVICE_NAME, PRODUCT_ID)"
            )

    @property
    def nodes(self) -> tuple[str, ...]:
        """The addresses, one of each node."""
        return tuple(self.addr.split(","))

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
        """Whether the connections are TLS."""
        return self.addr.startswith("https:")

    @property
    def context(self) -> str | None:
        """What wrapped keys are bound to: canonical JSON of service and product in base64, `None` unless asked for."""
        if not self.bind_context:
            return None
        names = {"product": self.product, "service": self.service}
        text = json.dumps(names, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
        return base64.b64encode(text.encode()).decode()

    def __reduce__(self) -> NoReturn:
        raise TypeError("VaultSettings hold secrets and cannot be pickled")


def read_options(environ: Mapping[str, str], explicit: VaultOptions) -> VaultOptions:
    """Take each option from the explicit arguments, else from `VAULT_*`, else from the `BAO_*` that means the same.

    Args:
        environ: The environment; an empty variable counts as missing.
        explicit: Arguments that win; `None` and empty text count as missing.

    Returns:
        The options that are set anywhere.

    Raises:
        ConfigurationError: `VAULT_*` and `BAO_*` contradict each other, or a flag or number is malformed.
    """
    options = cast("VaultOptions", {**read_credentials(environ, explicit)})
    readers: dict[str, Callable[[], object]] = {
        "addr": lambda: either(environ, "ADDR"),
        "key": lambda: either(environ, "TRANSIT_KEY"),
        "mount": lambda: either(environ, "TRANSIT_MOUNT"),
        "namespace": lambda: either(environ, "NAMESPACE"),
        "allow_http": lambda: read_flag(environ, which(environ, "ALLOW_HTTP")),
        "ca_cert": lambda: either(environ, "CACERT") or either(environ, "CAPATH"),
        "skip_verify": lambda: read_flag(environ, which(environ, "SKIP_VERIFY")),
        "timeout": lambda: _seconds(either(environ, "CLIENT_TIMEOUT")),
        "deadline": lambda: _seconds(either(environ, "RETRY_DEADLINE")),
        "bind_context": lambda: read_flag(environ, which(environ, "TRANSIT_AAD")),
        "service": lambda: read_text(environ, "SERVICE_NAME"),
        "product": lambda: read_text(environ, "PRODUCT_ID"),
        "startup_jitter": lambda: _seconds(either(environ, "STARTUP_JITTER")),
    }
    for name, read in readers.items():
        value = explicit.get(name)
        if value is None or value == "":
            value = read()
        if value is not None:
            options[name] = value  # type: ignore[literal-required]
    return options


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    return float(text) if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) else math.nan


def checked_key(key: str) -> str:
    """Check the name of a Transit key: a single part of a path.

    Args:
        key: The name.

    Returns:
        The same.

    Raises:
        ConfigurationError: It is missing or no such name.
    """
    if not key:
        raise ConfigurationError("VAULT_TRANSIT_KEY is required, e.g. asherah-master")
    if not re.fullmatch(_NAME, key):
        raise ConfigurationError(f"VAULT_TRANSIT_KEY {key!r} is not a valid Transit key name")
    return key


def checked_mount(mount: str) -> str:
    """Check where a Transit engine is mounted.

    Args:
        mount: The path, without slashes around it.

    Returns:
        The same.

    Raises:
        ConfigurationError: It is no such path.
    """
    if not all(re.fullmatch(_NAME, part) for part in mount.split("/")):
        raise ConfigurationError(f"VAULT_TRANSIT_MOUNT {mount!r} is not a valid mount path, e.g. transit")
    return mount


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


def _checked_seconds(name: str, seconds: float, *, or_zero: bool = False) -> float:
    if not (math.isfinite(seconds) and (seconds > 0 or (or_zero and seconds == 0))):
        raise ConfigurationError(f"{name} must be a positive number of seconds{', or 0' if or_zero else ''}")
    return float(seconds)
