# SPDX-License-Identifier: Apache-2.0
"""The coordinates of a key: its id, made of service, product, region suffix and partition, and its date."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING

from sa_asherah.core.encoding import has_utf8
from sa_asherah.errors import ConfigurationError, OwnerRequiredError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["MAX_CREATED", "MAX_ID_LENGTH", "TOMBSTONE_DATE", "KeyIds", "tombstone_of"]

MAX_CREATED = 253_402_300_799
"""The last second of the year 9999: no database stores a later one."""

MAX_ID_LENGTH = 255
"""Characters of the `id` column. A database may cut a longer id silently, and its data would be lost."""


TOMBSTONE_DATE = 86_400
"""The date of every tombstone: known to all, in nobody's future, and within MySQL's TIMESTAMP in every time zone."""


def tombstone_of(key_id: str) -> tuple[str, int]:
    """Name the place of the tombstone that says that the keys of an id were destroyed.

    Args:
        key_id: Id of an intermediate key.

    Returns:
        Id, as long as the key's, and date.
    """
    return "_XK_" + key_id[4:], TOMBSTONE_DATE


@dataclass(frozen=True, slots=True)
class KeyIds:
    """Builds the key ids of one service and product.

    Asherah joins the parts of an id with `_` and does not escape it, so service `a_b` with partition `u` and service
    `b` with partition `u_a` share an id. Hence `_` is refused in the names, or, in a table that is shared with other
    implementations and their names (`peers`), in the partitions.

    Attributes:
        service: Name of the service.
        product: Name of the product.
        suffix: Region suffix, empty for none.
        peers: Whether other Asherah implementations use the same key table.
    """

    service: str
    product: str
    suffix: str = ""
    peers: bool = False

    def __post_init__(self) -> None:
        """Refuse names that make ids ambiguous or unreadable for other implementations.

        Raises:
            ConfigurationError: A name is unusable.
        """
        self._check("service", self.service)
        self._check("product", self.product)
        if self.suffix:
            self._check("region suffix", self.suffix)
        if len(self.system_key_id()) > MAX_ID_LENGTH:
            raise ConfigurationError(
                f"service, product and suffix make a key id longer than {MAX_ID_LENGTH} characters; shorten one"
            )

    def _check(self, what: str, name: str) -> None:
        if not name:
            raise ConfigurationError(
                f"the {what} name is empty; set it to the name that all processes of this application use"
            )
        if "_" in name and not self.peers:
            raise ConfigurationError(
                f"the {what} name {name!r} contains '_', which makes key ids ambiguous; use '-', or set peers=True "
                "(ASHERAH_PEERS=1) if other Asherah implementations already use this name"
            )
        # MySQL compares ids with trailing spaces as equal; the Rust peers do not unescape JSON in key records.
        if name != name.strip() or not name.isprintable() or '"' in name or "\\" in name:
            raise ConfigurationError(
                f"the {what} name {name!r} has surrounding spaces, quotes, backslashes or unprintable characters"
            )

    def regions(self, read_suffixes: Iterable[str]) -> tuple[KeyIds, ...]:
        """Name the regions whose keys may be read: this one, then others by their suffixes, in their order.

        A key id of one of them is never an id of another one, whatever the partition.

        Args:
            read_suffixes: The other regions' suffixes, the empty one for ids without; this one's own does not count.

        Returns:
            The ids of each region, each once.

        Raises:
            ConfigurationError: A suffix is unusable, or makes ids ambiguous.
        """
        suffixes = dict.fromkeys((self.suffix, *read_suffixes))
        found = tuple(dataclasses.replace(self, suffix=suffix) for suffix in suffixes)
        for one, other in permutations(found, 2):
            if one.tail.endswith(other.tail):
                raise ConfigurationError(
                    f"the region suffixes {one.suffix!r} and {other.suffix!r} make key ids ambiguous: with the service "
                    f"and product, an id that ends with {one.tail!r} may be of either; use other suffixes"
                )
        return found

    @property
    def tail(self) -> str:
        """What every intermediate key id ends with."""
        return "_" + self._joined()

    def _joined(self, *parts: str) -> str:
        suffix = (self.suffix,) if self.suffix else ()
        return "_".join((*parts, self.service, self.product, *suffix))

    def system_key_id(self) -> str:
        """Name the system key of this service and product.

        Returns:
            The key id.
        """
        return self._joined("_SK")

    def intermediate_key_id(self, partition: str) -> str:
        """Name the intermediate key of a partition.

        Args:
            partition: The partition, as it is.

        Returns:
            The key id.

        Raises:
            OwnerRequiredError: The partition is empty, no valid text, too long or ambiguous.
        """
        return self._owned("_IK", partition)

    def index_key_id(self, partition: str) -> str:
        """Name the index key of a partition.

        Args:
            partition: The partition, as it is.

        Returns:
            The key id.

        Raises:
            OwnerRequiredError: The partition is empty, no valid text, too long or ambiguous.
        """
        return self._owned("_IX", partition)

    def _owned(self, kind: str, partition: str) -> str:
        if not partition:
            raise OwnerRequiredError("the partition is empty; give the row an owner before it is encrypted")
        if "\x00" in partition or not has_utf8(partition):
            raise OwnerRequiredError(
                "the partition contains a NUL character or a lone surrogate; use valid Unicode text as owner"
            )
        if "_" in partition and "_" in self.service + self.product + self.suffix:
            raise OwnerRequiredError(
                "the partition contains '_', and so does the service, product or region suffix: the key id would be "
                "ambiguous. Use owners without '_', or names without '_'"
            )
        key_id = self._joined(kind, partition)
        excess = len(key_id) - MAX_ID_LENGTH
        if excess > 0:
            raise OwnerRequiredError(f"the partition makes the key id {excess} characters too long; shorten the owner")
        return key_id
