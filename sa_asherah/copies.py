# SPDX-License-Identifier: Apache-2.0
"""Copies of the key table: written to a file and read back line by line, however many owners there are.

All keys in them are still wrapped.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Final

from sa_asherah.core.ports import KeyRow
from sa_asherah.core.strict_json import StrictJsonError, load_object
from sa_asherah.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import TextIO

    from sa_asherah.core.ids import KeyIds

__all__ = ["Export", "export_lines", "partition_of", "read_export"]

FORMAT: Final = "sa_asherah/keys/1"
_OF_OWNERS: Final = frozenset(("_IK_", "_IX_", "_XK_"))
_LONGEST_LINE: Final = 1 << 20


def partition_of(key_id: str, regions: Iterable[KeyIds]) -> str | None:
    """Tell whose key it is.

    Args:
        key_id: Id of a key of an owner, or of an erased owner's mark.
        regions: The ids of the regions that count.

    Returns:
        The partition; `None` for a key of another service, product or region.
    """
    for ids in regions:
        if key_id.endswith(ids.tail) and len(key_id) > len(ids.tail) + 4:
            return key_id[4 : -len(ids.tail)]
    return None


class Export:
    """A whole export of key records, in a file that stays open as long as this is used."""

    def __init__(self, file: TextIO) -> None:
        """Read the file once, to see whether it is whole; nothing of it is kept.

        Args:
            file: The file, which can be read again from its start.

        Raises:
            ConfigurationError: It is no export, not the whole of one, or cannot be read.
        """
        self._file = file
        self._head: Mapping[str, object] = {}
        self._count = 0
        digest, pending = hashlib.sha256(), ""
        for number, line in enumerate(self._lines()):
            if number == 1:
                self._head = _loaded(pending)
            elif number > 1:
                _row(pending)
                self._count += 1
            digest.update(pending.encode())
            pending = line
        if self._head.get("format") != FORMAT:
            raise ConfigurationError(f"this is no export of keys ({FORMAT}); make one with sa-asherah export-keys")
        if _loaded(pending) != {"records": self._count, "sha256": digest.hexdigest()}:
            raise ConfigurationError("the export was cut off or changed after it was written; take another copy of it")

    def __len__(self) -> int:
        """Tell how many records it has."""
        return self._count

    @property
    def service(self) -> str:
        """Name of the service."""
        return str(self._head.get("service"))

    @property
    def product(self) -> str:
        """Name of the product."""
        return str(self._head.get("product"))

    @property
    def rows(self) -> Iterator[KeyRow]:
        """The key records, in any order, read from the file anew each time."""
        for number, line in enumerate(self._lines()):
            if 0 < number <= self._count:
                yield _row(line)

    def _lines(self) -> Iterator[str]:
        self._file.seek(0)
        try:
            while line := self._file.readline(_LONGEST_LINE):
                yield line
        except (OSError, UnicodeDecodeError):
            pass
        else:
            return
        # Not from within `except`: the cause holds what could not be decoded.
        raise ConfigurationError("the export cannot be read, or is no text; take another copy of it")


def read_export(file: TextIO) -> Export:
    """Read an export; one that was cut off or changed on the way is refused.

    Args:
        file: The file, which stays open as long as the export is used.

    Returns:
        What it says.

    Raises:
        ConfigurationError: It is no export, not the whole of one, or cannot be read.
    """
    return Export(file)


def export_lines(ids: KeyIds, regions: Sequence[KeyIds], rows: Iterable[KeyRow]) -> Iterator[str]:
    """Write an export: one JSON object a line, the last one with a digest of the others.

    Args:
        ids: Service and product.
        regions: The ids of the regions to export.
        rows: The key table.

    Yields:
        Lines, each with its end. Keys are in them as the table holds them: wrapped.
    """
    system_ids = {one.system_key_id() for one in regions}
    digest = hashlib.sha256()
    count = 0
    line = _line({"format": FORMAT, "service": ids.service, "product": ids.product})
    digest.update(line.encode())
    yield line
    for row in rows:
        if row.id in system_ids or (row.id[:4] in _OF_OWNERS and partition_of(row.id, regions) is not None):
            # The record as text, so that not one byte of it changes on the way.
            line = _line({"id": row.id, "created": row.created, "key_record": row.text})
            digest.update(line.encode())
            count += 1
            yield line
    yield _line({"records": count, "sha256": digest.hexdigest()})


def _line(members: Mapping[str, object]) -> str:
    return json.dumps(members, ensure_ascii=False, separators=(",", ":")) + "\n"


def _loaded(line: str) -> Mapping[str, object]:
    try:
        return load_object(line, len(line))
    except StrictJsonError:
        return {}


def _row(line: str) -> KeyRow:
    match _loaded(line):
        case {"id": str(key_id), "created": int(created), "key_record": str(text)}:
            return KeyRow(key_id, created, text)
        case _:
            raise ConfigurationError("the export has a line that is no key record; take another copy of it")
