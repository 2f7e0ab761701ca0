# SPDX-License-Identifier: Apache-2.0
"""What AWS KMS leaves of a system key: the JSON that every Asherah implementation writes for one region or several."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from sa_asherah.core import aead
from sa_asherah.core.strict_json import StrictJsonError, base64_bytes, base64_text, load_object, text_member

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["Envelope", "RegionalKey", "dump_envelope", "parse_envelope"]

_MAX_LENGTH = 32 * 1024
_MAX_REGIONS = 50
_SEALED_SIZE = aead.KEY_SIZE + aead.TAG_SIZE + aead.NONCE_SIZE


@dataclass(frozen=True, slots=True)
class RegionalKey:
    """The data key as one region's KMS key wrapped it.

    Attributes:
        region: The region.
        arn: The KMS key, as AWS names it.
        wrapped: The wrapped data key.
    """

    region: str
    arn: str
    wrapped: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Envelope:
    """A wrapped system key.

    Attributes:
        sealed: The system key, sealed with the data key.
        keys: The wrapped data key by region.
    """

    sealed: bytes = field(repr=False)
    keys: Mapping[str, RegionalKey]


def dump_envelope(sealed: bytes, keys: Sequence[RegionalKey]) -> bytes:
    """Write an envelope.

    Args:
        sealed: The system key, sealed with the data key.
        keys: The wrapped data keys.

    Returns:
        The JSON as UTF-8.
    """
    members = {
        "encryptedKey": base64_text(sealed),
        "kmsKeks": [{"region": key.region, "arn": key.arn, "encryptedKek": base64_text(key.wrapped)} for key in keys],
    }
    return json.dumps(members, ensure_ascii=False, separators=(",", ":")).encode()


def parse_envelope(blob: bytes) -> Envelope:
    """Read an envelope strictly; members that are not known are ignored.

    Args:
        blob: The JSON.

    Returns:
        The envelope.

    Raises:
        StrictJsonError: It is none.
    """
    if len(blob) > _MAX_LENGTH:
        raise StrictJsonError(f"it is longer than {_MAX_LENGTH} bytes")
    members = load_object(blob.decode("utf-8", "replace"), _MAX_LENGTH)
    sealed = base64_bytes(members, "encryptedKey")
    if len(sealed) != _SEALED_SIZE:
        raise StrictJsonError(f"its member encryptedKey does not have {_SEALED_SIZE} bytes")
    keys: dict[str, RegionalKey] = {}
    for key in _regional_keys(members.get("kmsKeks")):
        if key.region in keys:
            raise StrictJsonError("its member kmsKeks names a region twice")
        keys[key.region] = key
    return Envelope(sealed, keys)


def _regional_keys(value: object) -> Iterator[RegionalKey]:
    entries = cast("list[object]", value) if isinstance(value, list) else []
    if not 1 <= len(entries) <= _MAX_REGIONS:
        raise StrictJsonError(f"its member kmsKeks is missing or is not a list of 1 to {_MAX_REGIONS} regions")
    for entry in entries:
        if not isinstance(entry, dict):
            raise StrictJsonError("its member kmsKeks has an element that is not an object")
        members = cast("dict[str, object]", entry)
        yield RegionalKey(
            text_member(members, "region"), text_member(members, "arn"), base64_bytes(members, "encryptedKek")
        )
