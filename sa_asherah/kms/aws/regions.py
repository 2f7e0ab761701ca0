# SPDX-License-Identifier: Apache-2.0
"""Which KMS key is asked in which region, and in which order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sa_asherah.boto import check_region, read_region
from sa_asherah.core.strict_json import StrictJsonError, load_object, text_member
from sa_asherah.environ import read_text
from sa_asherah.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ordered", "read_keys"]

_MAX_LENGTH = 64 * 1024
_ARN_PARTS = 6


def read_keys(environ: Mapping[str, str]) -> dict[str, str]:
    """Read the KMS keys from environment variables.

    Args:
        environ: REGION_MAP, or KMS_KEY_ID and AWS_REGION.

    Returns:
        The KMS key of each region.

    Raises:
        ConfigurationError: A variable is missing, malformed or contradictory.
    """
    region_map, key_id = read_text(environ, "REGION_MAP"), read_text(environ, "KMS_KEY_ID")
    if region_map and key_id:
        raise ConfigurationError("REGION_MAP (several regions) and KMS_KEY_ID (one key) are both set; remove one")
    if region_map:
        return _parsed(region_map)
    if key_id is None:
        raise ConfigurationError("KMS=aws needs REGION_MAP, or KMS_KEY_ID and AWS_REGION")
    return {read_region(environ): key_id}


def ordered(keys: Mapping[str, str], preferred: str | None) -> dict[str, str]:
    """Check the keys and put the preferred region first.

    Args:
        keys: The KMS key of each region: ARN, id or `alias/...`.
        preferred: The region to ask first; may be left out if there is only one.

    Returns:
        The keys in the order in which to ask.

    Raises:
        ConfigurationError: A region or key is missing, malformed or contradictory.
    """
    if not keys:
        raise ConfigurationError("REGION_MAP names no region")
    known = ", ".join(sorted(keys))
    if preferred is None and len(keys) > 1:
        raise ConfigurationError(f"PREFERRED_REGION is required where there are several regions: one of {known}")
    if preferred is not None and preferred not in keys:
        raise ConfigurationError(f"PREFERRED_REGION is {preferred!r} and must be one of {known}")
    for region, key_id in keys.items():
        check_region(region, "a region in REGION_MAP")
        parts = key_id.split(":")
        if not key_id or (parts[0] == "arn" and (len(parts) != _ARN_PARTS or parts[2:4] != ["kms", region])):
            raise ConfigurationError(f"{key_id!r} is no key of AWS KMS in {region}; check REGION_MAP or KMS_KEY_ID")
    return dict(sorted(keys.items(), key=lambda item: (item[0] != preferred, item[0])))


def _parsed(text: str) -> dict[str, str]:
    keys: dict[str, str] = {}
    reason = ""
    try:
        members = load_object(text, _MAX_LENGTH)
        keys = {region: text_member(members, region).strip() for region in members}
    except StrictJsonError as error:
        reason = str(error)
    if reason:
        raise ConfigurationError(
            f'REGION_MAP must be a JSON object like {{"us-west-2": "arn:aws:kms:us-west-2:..."}}: {reason}'
        )
    return keys
