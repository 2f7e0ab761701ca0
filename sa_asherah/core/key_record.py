# SPDX-License-Identifier: Apache-2.0
"""Key records: the JSON of the `encryption_key` table, and the MAC that binds a record to its place (`Bind`)."""

from __future__ import annotations

import hmac
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from sa_asherah.core.aead import KEY_SIZE
from sa_asherah.core.encoding import lp
from sa_asherah.core.strict_json import (
    StrictJsonError,
    base64_bytes,
    base64_text,
    created_member,
    load_object,
    object_member,
    text_member,
)
from sa_asherah.errors import KeyRecordError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sa_asherah.core.ids import KeyIds
    from sa_asherah.core.ports import KeyRow

__all__ = ["KeyRecord", "Level", "bind", "check_bind", "dump_key_record", "parse_key_record"]

Level = Literal["SK", "IK", "IX"]

_MAX_LENGTH = 64 * 1024
_BIND_SIZE = 32
_REMEDY = "Restore this row of encryption_key from a backup; what the key encrypted cannot be read until then"


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """One wrapped key with what is known about it.

    Attributes:
        id: Key id.
        created: Date of the key in seconds.
        key: The wrapped key, its exact base64 text: it tells two records with the same id and date apart.
        parent: Id and date of the key that wraps it; `None` for a system key, which the KMS wraps.
        revoked: Whether the key may encrypt no more.
        retired: Of a system key: whether it wraps no more new keys; those that it wraps stay valid.
        bind: Base64 of the MAC over the record's place; `None` in records of other implementations.
    """

    id: str
    created: int
    key: str = field(repr=False)
    parent: tuple[str, int] | None = None
    revoked: bool = False
    bind: str | None = field(default=None, repr=False)
    retired: bool = False

    @property
    def wrapped(self) -> bytes:
        """The wrapped key as bytes."""
        return base64_bytes({"Key": self.key}, "Key")


def parse_key_record(row: KeyRow) -> KeyRecord:
    """Read a row of the key table strictly; members that are not known are ignored.

    Args:
        row: The row.

    Returns:
        The record. Its `Bind` is well-formed but not checked: that needs the unwrapped key, see `check_bind`.

    Raises:
        KeyRecordError: The row is not a key record, or does not fit its id or date.
    """
    try:
        return _parse(row)
    except StrictJsonError as error:
        raise _refusal(row.id, row.created, f"{error}. {_REMEDY}") from None


def _parse(row: KeyRow) -> KeyRecord:
    members = load_object(row.text, _MAX_LENGTH)
    created = created_member(members)
    if created != row.created:
        raise StrictJsonError("its member Created differs from the column created")
    base64_bytes(members, "Key")
    return KeyRecord(
        id=row.id,
        created=created,
        key=text_member(members, "Key"),
        parent=_parent(members, row.id),
        revoked=_revoked(members),
        bind=_bind(members),
        retired="Retired" in members,
    )


def _parent(members: Mapping[str, object], key_id: str) -> tuple[str, int] | None:
    parent: tuple[str, int] | None = None
    if members.get("ParentKeyMeta") is not None:
        meta = object_member(members, "ParentKeyMeta")
        parent = (text_member(meta, "KeyId"), created_member(meta))
    if key_id.startswith("_SK_") and parent is not None:
        raise StrictJsonError("it is a system key and yet has a ParentKeyMeta")
    if key_id.startswith("_IK_") and parent is None:
        raise StrictJsonError("it is an intermediate key and yet has no ParentKeyMeta")
    return parent


def _revoked(members: Mapping[str, object]) -> bool:
    value = members.get("Revoked")
    if value is not None and type(value) is not bool:
        raise StrictJsonError("its member Revoked is neither true nor false")
    return value is True


def _bind(members: Mapping[str, object]) -> str | None:
    if "Bind" not in members:
        return None
    if len(base64_bytes(members, "Bind")) != _BIND_SIZE:
        raise StrictJsonError(f"its member Bind does not have {_BIND_SIZE} bytes")
    return text_member(members, "Bind")


def dump_key_record(record: KeyRecord) -> str:
    """Write a record as the other implementations read it: compact, not escaped, no `null`.

    Args:
        record: The record.

    Returns:
        The JSON text for the column `key_record`.
    """
    members: dict[str, object] = {"Revoked": True} if record.revoked else {}
    members["Created"] = record.created
    members["Key"] = record.key
    if record.parent is not None:
        members["ParentKeyMeta"] = {"KeyId": record.parent[0], "Created": record.parent[1]}
    if record.bind is not None:
        members["Bind"] = record.bind
    return json.dumps(members, ensure_ascii=False, separators=(",", ":"))


def bind(  # noqa: PLR0917 # in the order in which the MAC takes them
    level: Level,
    ids: KeyIds,
    partition: str | None,
    id: str,
    created: int,
    parent: tuple[str, int] | None,
    secret: bytes | bytearray,
) -> str:
    """Compute the MAC that binds a key to its place; it is made with the very key that the record holds.

    Args:
        level: `SK`, `IK` or `IX` (index key).
        ids: Service, product and suffix.
        partition: The partition of an intermediate or index key, `None` for a system key.
        id: Key id.
        created: Date of the key in seconds.
        parent: Id and date of the wrapping key, `None` for a system key.
        secret: The unwrapped key, 32 bytes.

    Returns:
        The text of the member `Bind`.
    """
    parent_id, parent_created = parent or ("", 0)
    place = lp(
        "sa_asherah/bind/1",
        level,
        ids.service,
        ids.product,
        ids.suffix,
        partition or "",
        id,
        created,
        parent_id,
        parent_created,
    )
    bind_key = hmac.digest(secret, b"sa_asherah/bind-key/1", "sha512")[:32]
    return base64_text(hmac.digest(bind_key, place, "sha256"))


def check_bind(record: KeyRecord, level: Level, ids: KeyIds, partition: str | None, secret: bytes | bytearray) -> None:
    """Make sure that an unwrapped key belongs where it was found; call it before the key enters a cache.

    Args:
        record: The record as it was read.
        level: What the reader looked for.
        ids: The reader's service, product and suffix. With `peers` a record without `Bind` passes.
        partition: The partition the reader looked for, `None` for a system key.
        secret: The unwrapped key.

    Raises:
        KeyRecordError: The key does not have 32 bytes, `Bind` is missing or does not hold.
    """
    if len(secret) != KEY_SIZE:
        reason = f"the unwrapped key does not have {KEY_SIZE} bytes. {_REMEDY}"
        raise _refusal(record.id, record.created, reason)
    if record.bind is None:
        if ids.peers:
            return
        reason = (
            "it has no Bind, so it was written by another Asherah implementation or was tampered with. If others share "
            f"this key table, set peers=True (ASHERAH_PEERS=1). If not: {_REMEDY}"
        )
        raise _refusal(record.id, record.created, reason)
    expected = bind(level, ids, partition, record.id, record.created, record.parent, secret)
    if not hmac.compare_digest(expected.encode(), record.bind.encode()):
        reason = (
            "its Bind does not hold: the record was moved, re-dated or altered after it was written. Find out who "
            f"writes to the key table. {_REMEDY}"
        )
        raise _refusal(record.id, record.created, reason)


def _refusal(key_id: str, created: int, reason: str) -> KeyRecordError:
    return KeyRecordError(f"key record {key_id!r} created {created} is refused: {reason}")
