# SPDX-License-Identifier: Apache-2.0
"""Ciphertext as a column stores it: cells and data row records, and what other libraries wrote."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from sa_asherah.core import cell, row_record
from sa_asherah.errors import MalformedCellError, NotAttachedError, OwnerRequiredError, UsageError
from sa_asherah.orm.lineage import label_of
from sa_asherah.orm.owner import OwnerKind, canonical_text, owner_kind
from sa_asherah.orm.plan import EncryptedColumn, owner_of, row_of
from sa_asherah.orm.reading import Packed
from sa_asherah.orm.records import NOT_ATTACHED, open_record
from sa_asherah.orm.scope import require_in_scope, sole_partition
from sa_asherah.orm.sealing import Batch
from sa_asherah.orm.types import Encrypted, Sealed
from sa_asherah.reencrypt.form import Form, Text, bytes_of, each

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.engine import Connection, Dialect
    from sqlalchemy.schema import Column

    from sa_asherah.orm.attachment import Attachment
    from sa_asherah.reencrypt.foreign.written import Foreign

__all__ = ["EncryptedForm", "ForeignForm"]


class ForeignForm(Form):
    """What another library wrote."""

    type: Foreign

    def recognises(self, raw: Any) -> bool:
        """Look at the value's form."""
        return self.type.recognises(raw)

    def _open(self, raw: Any, owner: Text, row: Text) -> Any:  # noqa: ARG002
        return self.type.open(raw)


class EncryptedForm(Form):
    """Cells or data row records of one declaration, and nothing that `reads=` lets in besides."""

    type: Encrypted

    def __init__(self, column: Column[Any], type_: Encrypted, dialect: Dialect) -> None:
        """Find owner and primary key.

        Args:
            column: The column of the plan's table.
            type_: The type.
            dialect: The engine's dialect.
        """
        super().__init__(column, type_.variant(), dialect)
        owner, row = owner_of(column, type_), row_of(column, type_)
        self.owner, self.row = (None if place is None else place.key for place in (owner, row))
        self.is_cell = type_.format == "cell"
        self.label = label_of(column, type_)
        self._packed = Packed(self.type, _kind(owner), self.label, _kind(row))
        self._bind = self.type.bind_processor(dialect)
        self._sealed = EncryptedColumn(column, self.label, self.type.encode, self.type.flags, not self.is_cell)

    @property
    def attachment(self) -> Attachment:
        """The engine's Asherah.

        Raises:
            NotAttachedError: There is none.
        """
        found: Attachment | None = getattr(self.dialect, "_sa_asherah", None)
        if found is None:
            raise NotAttachedError(NOT_ATTACHED)
        return found

    def recognises(self, raw: Any) -> bool:
        """Look at the value's first bytes, or members."""
        if isinstance(raw, Mapping):
            return not self.is_cell
        stored = bytes_of(raw)
        if self.is_cell:
            return cell.is_marked(stored, text=self.type.storage == "text")
        return row_record.is_marked(stored)

    def seal(
        self,
        values: Sequence[Any],
        owners: Sequence[Text] = (),
        rows: Sequence[Text] = (),
        connection: Connection | None = None,
    ) -> list[Any]:
        """Seal with one look-up of keys and one draw of randomness."""
        partitions: list[str | None] = []
        texts: list[str] = []
        known: dict[Text, str] = {}
        for value, owner, row in zip(values, each(owners, values), each(rows, values), strict=True):
            if value is not None and owner not in known:
                known[owner] = self.partition(owner)
            partitions.append(None if value is None else known[owner])
            texts.append("" if value is None else self._row_text(row))
        place = _Sealed()
        batch = Batch(self.attachment)
        batch.add(place, self._sealed, list(values), partitions, texts)
        batch.seal(connection)
        return [self._bind(each) if isinstance(each, Sealed) else each for each in place.values]

    def coordinates(self, raw: Any, owner: Text = None) -> tuple[str | None, int] | None:
        """Read the key's date, and its id in a record, or make that of its owner."""
        try:
            if not self.is_cell:
                if not isinstance(raw, Mapping):
                    raw = bytes_of(raw).decode(errors="surrogateescape")
                return row_record.parse_data_row_record(cast("str | Mapping[str, object]", raw)).parent
            stored = bytes_of(raw)
            if self.type.storage == "text":
                stored = cell.from_text(stored.decode(errors="replace"))
            created = cell.parse(stored).created
        except MalformedCellError:
            return None
        if owner is None and self.owner is not None:
            return None, created
        return self.attachment.hierarchy.ids.intermediate_key_id(self.partition(owner)), created

    def is_newest(
        self, raws: Sequence[Any], owners: Sequence[Text] = (), connection: Connection | None = None
    ) -> list[bool]:
        """Tell which values are under the key that would encrypt for their owner now; makes no key.

        Args:
            raws: What the driver gave, each of which opened in this form.
            owners: Texts of the column `owner`, one for each value.
            connection: A connection, for a SQLite database in memory.

        Returns:
            One answer for each value; false also where a new key would be made.

        Raises:
            AsherahError: The key table cannot be read.
        """
        partitions = [self.partition(owner) for owner in each(owners, raws)]
        newest = self.attachment.hierarchy.newest_keys(set(partitions), connection)
        pairs = zip(map(self.coordinates, raws, each(owners, raws)), partitions, strict=True)
        return [partition in newest and coordinates == newest[partition] for coordinates, partition in pairs]

    def partition(self, owner: Text) -> str:
        """Give the partition of an owner; without an owner column, that of the scope.

        Args:
            owner: Text of the column `owner`.

        Raises:
            OwnerRequiredError: It is missing or not canonical.
            UsageError: There is no owner column, and no scope of one partition: the program's mistake, not the row's.
            WrongPartitionError: It is out of the current `partition_scope`.
        """
        if self.owner is None:
            with suppress(OwnerRequiredError):
                return sole_partition(self.label)
            raise UsageError(
                f"the type for {self.label} has no owner=: run the job inside partition_scope('<partition>') with "
                "exactly one partition, whose rows these are"
            )
        partition = self._packed.partition_of(bytes_of(owner))
        require_in_scope(partition)
        return partition

    def refusal(self, owner: Text) -> OwnerRequiredError | None:
        """Tell why nothing can be sealed for an owner, `None` if it can.

        Args:
            owner: Text of the column `owner`.

        Raises:
            AsherahError: It is the program's fault, as in `partition`.
        """
        try:
            self.partition(owner)
        except OwnerRequiredError as error:
            return error.with_traceback(None)
        return None

    def _open(self, raw: Any, owner: Text, row: Text) -> Any:
        attachment = self.attachment
        attachment.hierarchy.before_reading()
        partition = self.partition(owner)
        if isinstance(raw, Mapping):
            return self.type.decode(open_record(self._packed, attachment, partition, raw))
        text = b"" if self.owner is None else bytes_of(owner)
        return self._packed.open(attachment, partition, bytes_of(raw), text, self._row_text(row))

    def _row_text(self, row: Text) -> str:
        """Give the text of a primary key that a value is bound to; empty if it is not."""
        kind = self._packed.row_kind
        return "" if kind is None else canonical_text(kind, bytes_of(row).decode(errors="replace"))


class _Sealed:
    """Where a batch puts sealed values."""

    def __init__(self) -> None:
        self.values: Sequence[Any] = ()

    def put(self, key: str, values: Sequence[Any]) -> None:  # noqa: ARG002 -- there is one column
        self.values = values


def _kind(place: Column[Any] | None) -> OwnerKind | None:
    return None if place is None else owner_kind(place)
