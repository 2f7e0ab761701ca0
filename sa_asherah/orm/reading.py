# SPDX-License-Identifier: Apache-2.0
"""Opening cells as rows are fetched: split off the place, find the data row key, decrypt, decode."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from sqlalchemy.types import UserDefinedType

from sa_asherah.core import cell
from sa_asherah.core.aead import InvalidTag
from sa_asherah.errors import (
    AsherahError,
    DecryptionError,
    MalformedCellError,
    NotAttachedError,
    OwnerRequiredError,
    WrongPlaceError,
)
from sa_asherah.orm.owner import OwnerKind, canonical_text
from sa_asherah.orm.records import NOT_ATTACHED, open_record, record_processor
from sa_asherah.orm.scope import current_scope, require_in_scope, sole_partition
from sa_asherah.orm.unreadable import Unreadable, is_marked
from sa_asherah.orm.windows import PLAINTEXT, form_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine.interfaces import Dialect

    from sa_asherah.core.key import Key
    from sa_asherah.orm.attachment import Attachment
    from sa_asherah.orm.types import Encrypted

__all__ = ["Packed"]

MAX_ROW_KEYS = 4096

Opened = tuple[str, cell.Decrypt, bytes]
"""Partition, decryption under the data row key, and context."""
T = TypeVar("T")


class Packed(UserDefinedType[Any]):
    """Result type of an encrypted column: `owner text, 0x00, cell`, or the cell alone where the owner is not in reach.

    Data row records instead of cells are opened by `records`.

    A row-bound column has `primary key text, 0x00` before that. The type is made for one place of one compiled
    statement, so it may know the label; the user's type never does.
    """

    cache_ok = True

    def __init__(
        self, column_type: Encrypted, kind: OwnerKind | None, label: str | None, row_kind: OwnerKind | None = None
    ) -> None:
        """Describe what will be read; SQLAlchemy copies the type by these argument names.

        Args:
            column_type: The column's type.
            kind: Kind of the owner column; `None` if the value comes without its owner.
            label: What the ciphertext is bound to, `None` if unknown.
            row_kind: Kind of the primary key that comes with a row-bound value.
        """
        self.column_type = column_type
        self.kind: OwnerKind | None = kind
        self.label = label
        self.row_kind: OwnerKind | None = row_kind

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[..., Any]:  # noqa: ARG002
        """Make the function that opens one value; SQLAlchemy memoizes it per dialect and type."""
        type_ = self.column_type
        if type_.format == "asherah" and not type_.windows:
            return record_processor(self, dialect)
        if self.kind is None or self.row_kind is not None or type_.storage == "text" or type_.windows:
            return self._any(dialect)
        return self._with_owner(dialect)

    def _with_owner(self, dialect: Any) -> Callable[[Any], Any]:  # noqa: C901 -- a call less for each value
        """Make the function for binary values that come with their owner: this is the hot path of every query."""
        decode = self.column_type.decode
        attachment: Attachment | None = None
        opened: dict[bytes, Opened] = {}

        def process(value: Any) -> Any:  # noqa: C901 -- the same
            nonlocal attachment, opened
            if value is None:
                return None
            if type(value) is not bytes:
                value = bytes(value)
            try:
                current = dialect._sa_asherah
            except AttributeError:
                raise NotAttachedError(NOT_ATTACHED) from None
            if current is not attachment:
                attachment, opened = current, current.row_keys(self._family)
            end = value.find(b"\0") + 61
            try:
                row = opened.get(value[:end])
                if row is None:
                    row = self.remember(opened, value[:end], self._open_row(current, value, end))
                partition, decrypt, context = row
                allowed = current_scope.get()
                if allowed is not None and partition not in allowed:
                    require_in_scope(partition)
                try:
                    plaintext = decrypt(value[end : end + 12], value[end + 12 :], context)
                except (InvalidTag, ValueError):
                    self._refuse()
                if current.audit is not None:
                    current.audit.count(partition, self.label)
                return decode(plaintext)
            except AsherahError as error:
                if not is_marked(error, current.owner):
                    raise
                return Unreadable(self.label, type(error))

        return process

    def _any(self, dialect: Any) -> Callable[[Any], Any]:
        """Make the function for all other values: row-bound, stored as text, without their owner, or with `reads=`."""

        def process(value: Any) -> Any:
            if value is None:
                return None
            try:
                attachment = dialect._sa_asherah
            except AttributeError:
                raise NotAttachedError(NOT_ATTACHED) from None
            # What the statement lacks is the program's mistake; what the row lacks is the value's.
            partition = self.sole_partition() if self.kind is None else None
            packed = value.encode() if isinstance(value, str) else bytes(value)
            try:
                return self._open_any(attachment, packed, partition)
            except AsherahError as error:
                if not is_marked(error, attachment.owner):
                    raise
                return Unreadable(self.label, type(error))

        return process

    def _open_any(self, attachment: Attachment, packed: bytes, partition: str | None) -> Any:
        """Open a value step by step.

        Args:
            attachment: The engine's Asherah.
            packed: What the database gave.
            partition: The partition, `None` where the value names its owner.

        Returns:
            The value.
        """
        row = b""
        if self.row_kind is not None:
            row, _, packed = packed.partition(b"\0")
        owner = b""
        if partition is None:
            owner, _, packed = packed.partition(b"\0")
            partition = self.partition_of(owner)
            require_in_scope(partition)
        text = "" if self.row_kind is None else canonical_text(self.row_kind, row.decode(errors="replace"))
        return self.open(attachment, partition, packed, owner, text)

    def open(self, attachment: Attachment, partition: str, stored: bytes, owner: bytes = b"", row: str = "") -> Any:
        """Open a stored value whose place is known, in any form that the column reads.

        Args:
            attachment: The engine's Asherah.
            partition: The partition, which the caller found to be in scope.
            stored: The value as the database holds it; text as UTF-8.
            owner: Text of the owner, where the column has one.
            row: Text of the primary key, where the column binds its rows.

        Returns:
            The value.

        Raises:
            AsherahError: It does not open, or is in a form that the column does not read.
        """
        type_ = self.column_type
        if type_.reads or type_.format != "cell":
            form = form_of(type_, stored)
            if form != "cell":
                return self._open_other(form, attachment, partition, stored)
        if type_.storage == "text":
            stored = cell.from_text(stored.decode(errors="replace"))
        decrypt = self._row_key(attachment, partition, owner + b"\0" + stored[: cell.HEAD_SIZE], stored)
        flags = stored[cell.FLAGS_AT]  # accepted before there was a key
        context = attachment.context(partition, cast("str", self.label), row if flags & cell.ROW_BOUND else "")
        try:
            plaintext = decrypt(stored[cell.HEAD_SIZE : cell.NONCE_END], stored[cell.NONCE_END :], context)
        except (InvalidTag, ValueError):
            self._refuse()
        if attachment.audit is not None:
            attachment.audit.count(partition, self.label)
        return self._decode(plaintext) if flags == self._flags else type_.decode_as(flags, plaintext)

    def _open_other(self, form: str, attachment: Attachment, partition: str, stored: bytes) -> Any:
        """Open a record, or what `reads=` lets in."""
        type_ = self.column_type
        if form != type_.format:
            type_.windows.enter(form, attachment.hierarchy, self.label)
        if form == PLAINTEXT:
            return type_.plain_codec.decode(stored)
        value = type_.plain_codec.decode(open_record(self, attachment, partition, stored))
        if attachment.audit is not None:
            attachment.audit.count(partition, self.label)
        return value

    @cached_property
    def _decode(self) -> Callable[[bytes], Any]:
        return self.column_type.decode

    @cached_property
    def _flags(self) -> int:
        return self.column_type.flags

    def sole_partition(self) -> str:
        """Give the partition of values whose owner is not in reach, if the statement tells all else that is needed.

        Raises:
            OwnerRequiredError: It does not, or the scope does not name one partition.
        """
        if self.label is None:
            raise OwnerRequiredError(
                "this statement does not tell which column the value belongs to: name it with "
                "type_coerce(expression, Encrypted(..., label='table.column')) or text(...).columns(...) likewise"
            )
        if self.row_kind is None and self.column_type.bind_row is not None:
            raise OwnerRequiredError(
                f"{self.label} is bound to its row, and this statement does not tell the primary key: select the "
                "mapped column instead"
            )
        return sole_partition(self.label)

    @property
    def _family(self) -> tuple[Any, ...]:
        """What the open data row keys of one label are kept under."""
        return self.column_type.partition, self.kind, self.label, self.column_type.flags

    def partition_of(self, owner: bytes) -> str:
        """Give the partition that an owner's text leads to.

        Args:
            owner: What the database gave before the zero byte.

        Raises:
            OwnerRequiredError: It is empty or not canonical.
        """
        try:
            text = owner.decode()
        except UnicodeDecodeError:
            raise OwnerRequiredError(f"the owner of {self.label} is not UTF-8 text") from None
        return self.column_type.partition.replace("{}", canonical_text(cast("OwnerKind", self.kind), text))

    def _open_row(self, attachment: Attachment, value: bytes, end: int) -> Opened:
        """Find the data row key of a cell by the owner of its row; the partition is checked before a key is fetched."""
        partition = self.partition_of(value[: end - 61])
        require_in_scope(partition)
        context = attachment.context(partition, cast("str", self.label))
        return partition, self._row_key(attachment, partition, value[:end], value[end - 60 :]), context

    def _row_key(self, attachment: Attachment, partition: str, prefix: bytes, stored: bytes) -> cell.Decrypt:
        """Find or derive the data row key of a cell, which the columns of a row share."""
        header = cell.parse(stored)
        if header.flags != self._flags:
            self._check_flags(attachment, header.flags)
        if self.kind is None:
            return self._opener(attachment, partition, header.created, stored)
        shared: dict[bytes, cell.Decrypt] = attachment.row_keys((self.column_type.partition, self.kind))
        decrypt = shared.get(prefix)
        if decrypt is None:
            decrypt = self.remember(shared, prefix, self._opener(attachment, partition, header.created, stored))
        return decrypt

    def _check_flags(self, attachment: Attachment, flags: int) -> None:
        """Accept other flags than the column's only if some are missing and `reads=` says so."""
        type_ = self.column_type
        missing = type_.flags & ~flags
        if flags & ~type_.flags or not type_.windows.enter_flags(missing, attachment.hierarchy, self.label):
            raise MalformedCellError(
                f"a cell of {self.label} is {cell.describe(flags)}, but the column declares "
                f"{cell.describe(type_.flags)}: it was moved here, or bind_row= or pad= was changed without "
                "re-encrypting the column"
            )

    @staticmethod
    def remember(known: dict[bytes, T], prefix: bytes, found: T) -> T:
        """Keep an open data row key, in a dictionary of bounded size.

        Args:
            known: The dictionary.
            prefix: What values under the key begin with.
            found: The key.

        Returns:
            The key.
        """
        if len(known) >= MAX_ROW_KEYS:
            known.clear()
        known[prefix] = found
        return found

    def _opener(self, attachment: Attachment, partition: str, created: int, stored: bytes) -> cell.Decrypt:
        """Derive the data row key of a cell; whoever remembers it does so after its commitment held."""

        def derive(key: Key) -> cell.Decrypt | None:
            try:
                return cell.opener(key.cell_key, stored[: cell.HEAD_SIZE])
            except DecryptionError:
                return None

        return attachment.unlock(partition, created, derive) or self._wrong_key()

    def _wrong_key(self) -> NoReturn:
        raise DecryptionError(
            f"a value of {self.label} was not encrypted for the owner of its row: it was moved here from another "
            "owner, or it is damaged"
        )

    def _refuse(self) -> NoReturn:
        raise WrongPlaceError(
            f"a value of {self.label} cannot be opened: it was encrypted for another column or table, or it is damaged"
        ) from None
