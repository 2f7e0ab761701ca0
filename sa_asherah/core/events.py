# SPDX-License-Identifier: Apache-2.0
"""What happened to keys and how long it took, told to whoever listens: audit log, telemetry, the application."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Protocol

__all__ = ["Events", "Listener", "Meter", "write_audit_log"]

Listener = Callable[[str, Mapping[str, object]], None]

_audit = logging.getLogger("sa_asherah.audit")
_logger = logging.getLogger("sa_asherah.events")
_NOTHING: AbstractContextManager[None] = nullcontext()
_LEVELS = {
    "key_loaded": logging.DEBUG,  # thousands of them when a process starts
    # What somebody has to look at, or may have to.
    "key_refused": logging.WARNING,
    "key_revoked": logging.WARNING,
    "owner_erased": logging.WARNING,
    "system_key_appeared": logging.WARNING,
}


class Meter(Protocol):
    """Takes measurements; `sa_asherah.telemetry` has the one for OpenTelemetry."""

    def measure(self, name: str, attributes: Mapping[str, str]) -> AbstractContextManager[None]:
        """Measure a block.

        Args:
            name: What it does, in the reference implementation's words, e.g. `kms.static.decryptkey`.
            attributes: With whom; `partition` among them is the owner's, and nobody's business by default.

        Returns:
            A context manager around the block.
        """
        ...

    def count(self, name: str, number: int, attributes: Mapping[str, str]) -> None:
        """Count.

        Args:
            name: What.
            number: How many.
            attributes: Of which kind.
        """
        ...


class Events:
    """A list of listeners. Each gets the event's name and its attributes, none of which is ever a secret.

    A listener runs in the thread of the work that it hears of, often inside a transaction: it must be quick, must not
    use the engine, and must not wait. An exception of a listener is logged and changes nothing for the work.

    Attributes:
        meter: Takes measurements, if there is one.
    """

    __slots__ = ("_all", "_decrypts", "meter")

    def __init__(self, *listeners: Listener) -> None:
        """Start with some listeners.

        Args:
            *listeners: Listeners to everything but `values_decrypted`.
        """
        # Lists are changed in place and copied to be read: no lock that a fork could leave held.
        self._all: list[Listener] = list(listeners)
        self._decrypts: list[Listener] = []
        self.meter: Meter | None = None

    @property
    def decrypts(self) -> bool:
        """Whether anyone asked for `values_decrypted`; who reads values looks here before it counts them."""
        return bool(self._decrypts)

    def listen(self, listener: Listener, *, decrypts: bool = False) -> None:
        """Add a listener; adding it again only changes `decrypts`.

        Args:
            listener: Called with the name and the attributes of each event.
            decrypts: Whether it gets `values_decrypted`, too: one event for each statement that read values.
        """
        for listeners, wanted in ((self._all, True), (self._decrypts, decrypts)):
            if wanted and listener not in listeners:
                listeners.append(listener)
            elif not wanted and listener in listeners:
                listeners.remove(listener)

    def ignore(self, listener: Listener) -> None:
        """Remove a listener; harmless if it is not there.

        Args:
            listener: What was given to `listen`.
        """
        for listeners in (self._all, self._decrypts):
            with suppress(ValueError):
                listeners.remove(listener)

    def emit(self, name: str, /, **attributes: object) -> None:
        """Tell the listeners.

        Args:
            name: What happened: `key_created`, `key_loaded`, `key_rotated`, `key_revoked`, `key_refused`,
                `owner_erased`, `system_key_appeared`, `system_key_rewrapped` or `values_decrypted`.
            **attributes: Where and when: `id` and `created` of a key, `partition`, counts. Never a value, key, token or
                ciphertext.
        """
        for listener in tuple(self._decrypts if name == "values_decrypted" else self._all):
            try:
                listener(name, attributes)
            except Exception as error:  # noqa: BLE001 -- a listener does not decide whether data can be read
                _logger.warning("a listener failed on %s with %s", name, type(error).__name__)

    def measure(self, name: str, /, **attributes: str) -> AbstractContextManager[None]:
        """Measure a block, if there is a meter.

        Args:
            name: What it does.
            **attributes: With whom.

        Returns:
            A context manager around the block.
        """
        meter = self.meter
        return _NOTHING if meter is None else meter.measure(name, attributes)

    def count(self, name: str, number: int = 1, /, **attributes: str) -> None:
        """Count, if there is a meter.

        Args:
            name: What.
            number: How many.
            **attributes: Of which kind.
        """
        meter = self.meter
        if meter is not None:
            meter.count(name, number, attributes)


def write_audit_log(name: str, attributes: Mapping[str, object]) -> None:
    """Write an event to the logger `sa_asherah.audit`, as text and as the record's attributes `event` and `asherah`.

    Every `Asherah` begins with this listener. `values_decrypted` comes only after
    `asherah.events.listen(write_audit_log, decrypts=True)`.

    Args:
        name: What happened.
        attributes: Where and when.
    """
    level = _LEVELS.get(name, logging.INFO)
    if _audit.isEnabledFor(level):
        rest = dict(attributes)
        told = [f"{rest.pop('id')} created {rest.pop('created')}"] if {"id", "created"} <= rest.keys() else []
        told += [f"{key} {value}" for key, value in rest.items()]
        _audit.log(level, "%s: %s", name, ", ".join(told), extra={"event": name, "asherah": dict(attributes)})
