# SPDX-License-Identifier: Apache-2.0
"""Opening cells as rows are fetched: split off the owner, find the data row key, decrypt, decode."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from sqlalchemy.types import UserDefinedType

from sa_asherah.core import cell
from sa_asherah.core.aead import InvalidTag
from sa_asherah.errors import (
    DecryptionError,
    MalformedCellError,
    NotAttachedError,
    OwnerRequiredError,
    WrongPlaceError,
)
from sa_asherah.orm.owner import OwnerKind, canonical_text
from sa_asherah.orm.scope import current_scope, require_in_scope, sole_partition

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine.interfaces import Dialect

    from sa_asherah.orm.attachment import Attachment
    from sa_asherah.orm.types import Encrypted

__all__ = ["Packed"]

MAX_ROW_KEYS = 4096

Opened = tuple[str, cell.Decrypt, bytes]
"""Partition, decryption under the data row key, and context."""
T = TypeVar("T")

_NOT_ATTACHED = "no Asherah is attached to this engine: call asherah.attach(engine) first"


class Packed(UserDefinedType[Any]):
    """Result type of an encrypted column: `owner text, 0x00, cell`, or the cell alone where the owner is not in reach.

    It is made for one place of one compiled statement, so it may know the label; the user's type never does.
    """

    cache_ok = True

    def __init__(self, column_type: Encrypted, kind: OwnerKind | None, label: str | None) -> None:
        """Describe what will be read; SQLAlchemy copies the type by these argument names.

        Args:
            column_type: The column's type.
            kind: Kind of the owner column; `None` if the value comes without its owner.
            label: What the ciphertext is bound to, `None` if unknown.
        """
        self.column_type = column_type
        self.kind: OwnerKind | None = kind
        self.label = label

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[..., Any]:  # noqa: ARG002
        """Make the function that opens one value; SQLAlchemy memoizes it per dialect and type."""
        return self._alone(dialect) if self.kind is None else self._with_owner(dialect)

    def _with_owner(self, dialect: Any) -> Callable[[Any], Any]:
        """Make the function for values that come with their owner: this is the hot path of every query."""
        decode = self.column_type.codec.decode
        attachment: Attachment | None = None
        opened: dict[bytes, Opened] = {}

        def process(value: Any) -> Any:
            nonlocal attachment, opened
            if value is None:
                return None
            if type(value) is not bytes:
                value = bytes(value)
            try:
                current = dialect._sa_asherah
            except AttributeError:
                raise NotAttachedError(_NOT_ATTACHED) from None
            if current is not attachment:
                attachment, opened = current, current.row_keys((self.column_type.partition, self.kind, self.label))
            end = value.find(b"\0") + 61
            row = opened.get(value[:end])
            if row is None:
                row = self._remember(opened, value[:end], self._open_row(current, value, end))
            partition, decrypt, context = row
            allowed = current_scope.get()
            if allowed is not None and partition not in allowed:
                require_in_scope(partition)
            try:
                plaintext = decrypt(value[end : end + 12], value[end + 12 :], context)
            except (InvalidTag, ValueError):
                self._refuse()
            return decode(plaintext)

        return process

    def _alone(self, dialect: Any) -> Callable[[Any], Any]:
        """Make the function for values whose owner is not in reach: the scope names it."""

        def process(value: Any) -> Any:
            if value is None:
                return None
            try:
                attachment = dialect._sa_asherah
            except AttributeError:
                raise NotAttachedError(_NOT_ATTACHED) from None
            return self._open_alone(attachment, bytes(value))

        return process

    def _open_alone(self, attachment: Attachment, stored: bytes) -> Any:
        partition = sole_partition(self.label)
        context = self._context(attachment, partition)
        decrypt = self._opener(attachment, partition, stored)
        try:
            return self.column_type.codec.decode(decrypt(stored[60:72], stored[72:], context))
        except (InvalidTag, ValueError):
            self._refuse()

    def _context(self, attachment: Attachment, partition: str) -> bytes:
        if self.label is None:
            raise OwnerRequiredError(
                "this statement does not tell which column the value belongs to: name it with "
                "type_coerce(expression, Encrypted(..., label='table.column')) or text(...).columns(...) likewise"
            )
        return attachment.context(partition, self.label)

    def _open_row(self, attachment: Attachment, value: bytes, end: int) -> Opened:
        """Find the data row key of a cell by the owner of its row; the partition is checked before a key is fetched."""
        try:
            text = value[: end - 61].decode()
        except UnicodeDecodeError:
            raise OwnerRequiredError(f"the owner of {self.label} is not UTF-8 text") from None
        partition = self.column_type.partition.replace("{}", canonical_text(cast("OwnerKind", self.kind), text))
        require_in_scope(partition)
        context = self._context(attachment, partition)
        # The columns of a row share the data row key: derive it once.
        shared = attachment.row_keys((self.column_type.partition, self.kind))
        decrypt = shared.get(value[:end])
        if decrypt is None:
            decrypt = self._remember(shared, value[:end], self._opener(attachment, partition, value[end - 60 :]))
        return partition, decrypt, context

    @staticmethod
    def _remember(known: dict[bytes, T], prefix: bytes, found: T) -> T:
        if len(known) >= MAX_ROW_KEYS:
            known.clear()
        known[prefix] = found
        return found

    def _opener(self, attachment: Attachment, partition: str, stored: bytes) -> cell.Decrypt:
        """Derive the data row key of a cell; whoever remembers it does so after its commitment held."""
        header = cell.parse(stored)
        if header.flags:
            raise MalformedCellError(
                f"the cell of {self.label} is padded or row-bound, which the column does not declare"
            )
        key = attachment.decryption_key(partition, header.created)
        try:
            return cell.opener(key.cell_key, stored[:60])
        except DecryptionError:
            reloaded = attachment.reload(key)
            if reloaded is key:
                self._wrong_key()
            return cell.opener(reloaded.cell_key, stored[:60])

    def _wrong_key(self) -> NoReturn:
        raise DecryptionError(
            f"a value of {self.label} was not encrypted for the owner of its row: it was moved here from another "
            "owner, or it is damaged"
        ) from None

    def _refuse(self) -> NoReturn:
        raise WrongPlaceError(
            f"a value of {self.label} cannot be opened: it was encrypted for another column or table, or it is damaged"
        ) from None
