# SPDX-License-Identifier: Apache-2.0
"""Environment variables, read strictly: an empty one counts as missing, a malformed or unknown one is an error."""

from __future__ import annotations

import difflib
import re
from datetime import timedelta
from typing import TYPE_CHECKING

from sa_asherah.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["read_count", "read_flag", "read_seconds", "read_text", "refuse_misfits"]

_FLAGS = {"1": True, "true": True, "0": False, "false": False}
_OWN_NAMES = (
    "ASHERAH_CREATE_SYSTEM_KEYS",
    "ASHERAH_DATABASE_URL",
    "ASHERAH_ENV",
    "ASHERAH_MAX_STALE_SECS",
    "ASHERAH_PEERS",
    "ASHERAH_ROTATION_GRACE_SECS",
    "ASHERAH_ROTATION_SPREAD_SECS",
)
_OTHERS_NAMES = ("ASHERAH_POOL_", "ASHERAH_CONFIG_DRIFT_")
"""How the other implementations reach and guard their key table: an environment may serve them, too."""
_SWITCHES = {
    "SESSION_CACHE": ("SESSION_CACHE_MAX_SIZE", "SESSION_CACHE_DURATION_SECS"),
    "CACHE_INTERMEDIATE_KEYS": ("INTERMEDIATE_KEY_CACHE_MAX_SIZE", "SHARED_INTERMEDIATE_KEY_CACHE", "SESSION_CACHE"),
}
_UNSUPPORTED = {
    "SELF_HEAL_RECOVERED_KEYS": "keys are read where they are and never copied: remove it",
    "REPLICA_READ_CONSISTENCY": (
        "keys are read from the primary: remove it, and call attach(engine, metastore=primary)"
    ),
}


def read_text(environ: Mapping[str, str], name: str) -> str | None:
    """Read a text setting.

    Args:
        environ: The environment.
        name: The variable.

    Returns:
        The value without surrounding white space; `None` where it is missing or empty.
    """
    return environ.get(name, "").strip() or None


def read_flag(environ: Mapping[str, str], name: str) -> bool | None:
    """Read a boolean setting: `1`, `0`, `true` or `false`.

    Args:
        environ: The environment.
        name: The variable.

    Returns:
        The value, `None` where it is missing or empty.

    Raises:
        ConfigurationError: The value is none of these words.
    """
    value = read_text(environ, name)
    if value is None:
        return None
    if value.lower() not in _FLAGS:
        raise ConfigurationError(f"{name} must be true or false; got {value!r}")
    return _FLAGS[value.lower()]


def read_seconds(environ: Mapping[str, str], name: str, default: timedelta, least: int) -> timedelta:
    """Read a time as a whole number of seconds.

    Args:
        environ: The environment.
        name: The variable.
        default: The value where it is missing or empty.
        least: The smallest number allowed.

    Returns:
        The time.

    Raises:
        ConfigurationError: The value is not such a number.
    """
    value = read_text(environ, name)
    if value is None:
        return default
    # Ten digits are 300 years: more would overflow the dates of keys.
    if not re.fullmatch("[0-9]{1,10}", value) or int(value) < least:
        raise ConfigurationError(f"{name} must be a whole number of seconds, {least} or more; got {value!r}")
    return timedelta(seconds=int(value))


def read_count(environ: Mapping[str, str], name: str, default: int) -> int:
    """Read how many of something there may be.

    Args:
        environ: The environment.
        name: The variable.
        default: The value where it is missing or empty.

    Returns:
        The number.

    Raises:
        ConfigurationError: The value is not a whole number of at least 1.
    """
    value = read_text(environ, name)
    if value is None:
        return default
    if not re.fullmatch("[0-9]{1,10}", value) or int(value) < 1:
        raise ConfigurationError(f"{name} must be a whole number, 1 or more; got {value!r}")
    return int(value)


def refuse_misfits(environ: Mapping[str, str]) -> None:
    """Refuse variables that look like ours and are not, contradict each other, or ask for what is never done here.

    Args:
        environ: The environment.

    Raises:
        ConfigurationError: There is such a variable; the text names it and the remedy.
    """
    _refuse_unknown(environ)
    _refuse_contradictions(environ)


def _refuse_unknown(environ: Mapping[str, str]) -> None:
    """Refuse a variable that looks like ours and is not."""
    for name in environ:
        is_strange = name.startswith("ASHERAH_") and name not in _OWN_NAMES and not name.startswith(_OTHERS_NAMES)
        if is_strange and read_text(environ, name):
            near = difflib.get_close_matches(name, _OWN_NAMES, n=1, cutoff=0.8)
            hint = f"did you mean {near[0]}?" if near else f"remove it; known are {', '.join(_OWN_NAMES)}"
            raise ConfigurationError(f"the variable {name} is not known; {hint}")


def _refuse_contradictions(environ: Mapping[str, str]) -> None:
    """Refuse settings of something that is switched off, and what other implementations do and this one never does."""
    for switch, others in _SWITCHES.items():
        if read_flag(environ, switch) is False:
            for other in others:
                if (read_text(environ, other) or "0").lower() not in {"0", "false"}:
                    raise ConfigurationError(f"{switch} is off and {other} is set; remove one of them")
    for name, advice in _UNSUPPORTED.items():
        if (read_text(environ, name) or "0").lower() not in {"0", "false"}:
            raise ConfigurationError(f"{name} is not supported: {advice}")
