# SPDX-License-Identifier: Apache-2.0
"""Whose keys are examined: names, regions, and the key service if its keys may be opened."""

from __future__ import annotations

from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from time import time
from typing import TYPE_CHECKING, NamedTuple

from sa_asherah.asherah import Asherah
from sa_asherah.core.ids import KeyIds
from sa_asherah.errors import OwnerRequiredError
from sa_asherah.kms.static import StaticKMS

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from sa_asherah.config import Settings
    from sa_asherah.core.ports import ExternalMetastore, KeyManagementService

__all__ = ["Identity", "Subject", "subject_of"]

_LEVELS = ("SK", "IK", "IX", "XK")
_KNOWN = 10_000


class Identity(NamedTuple):
    """What the id of a key says.

    Attributes:
        level: `SK`, `IK`, `IX` (index key) or `XK` (tombstone).
        ids: The names of its region.
        partition: Its partition, `None` for a system key.
    """

    level: str
    ids: KeyIds
    partition: str | None


@dataclass(frozen=True, slots=True)
class Subject:
    """The names in the settings.

    Attributes:
        regions: The names of every region that is read, this one's first.
        kms: The key service; `None` if no key may be opened.
        creates: Whether the application makes system keys.
        clock: The time in seconds.
        table: The key table, if it is outside of the databases: then it can be asked for single keys only.
    """

    regions: tuple[KeyIds, ...]
    kms: KeyManagementService | None
    creates: bool
    clock: Callable[[], float]
    table: ExternalMetastore | None
    _key_ids: dict[str, tuple[str, ...]] = field(default_factory=dict[str, "tuple[str, ...]"])

    @property
    def ids(self) -> KeyIds:
        """Service, product and this region's suffix."""
        return self.regions[0]

    def identify(self, key_id: str) -> Identity | None:
        """Tell what a key is by its id.

        Args:
            key_id: An id in the key table.

        Returns:
            What it is; `None` if it belongs to others.
        """
        for ids in self.regions:
            if key_id == ids.system_key_id():
                return Identity("SK", ids, None)
            level, partition = key_id[1:3], key_id[4 : -len(ids.tail)]
            if key_id == f"_{level}_{partition}{ids.tail}" and level in _LEVELS[1:] and partition:
                return Identity(level, ids, partition)
        return None

    def key_ids(self, partition: str) -> tuple[str, ...]:
        """Name the intermediate keys of a partition in every region.

        Args:
            partition: The partition.

        Returns:
            Key ids; none if the partition can have no keys.
        """
        found = self._key_ids.get(partition)
        if found is None:
            if len(self._key_ids) >= _KNOWN:
                self._key_ids.clear()
            try:
                found = tuple(ids.intermediate_key_id(partition) for ids in self.regions)
            except OwnerRequiredError:
                found = ()
            self._key_ids[partition] = found
        return found


@contextmanager
def subject_of(given: Asherah | Settings, *, online: bool) -> Generator[Subject]:
    """Take from an `Asherah` or from settings what is needed.

    A static master key is here already, so its keys are opened in any case; every other service is asked only `online`.

    Args:
        given: Either.
        online: Whether the key service may be asked.

    Yields:
        The subject.

    Raises:
        ConfigurationError: A setting is unusable.
    """
    if isinstance(given, Asherah):
        regions, policy, service, table = given.parts
        kms = service if online or isinstance(service, StaticKMS) else None
        yield Subject(regions, kms, policy.create_system_keys, policy.clock, table)
        return
    ids = KeyIds(given.service, given.product, given.region_suffix or "", given.peers)
    is_local = given.kms == "static" and given.kms_previous is None
    with ExitStack() as stack:
        kms = stack.enter_context(closing(given.open_kms())) if online or is_local else None
        table = given.open_metastore()
        if table is not None:
            stack.enter_context(closing(table))
        yield Subject(ids.regions(given.read_suffixes), kms, given.create_system_keys, time, table)
