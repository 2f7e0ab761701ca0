# SPDX-License-Identifier: Apache-2.0
"""Opening cells as rows are fetched: split off the owner, find the data row key, decrypt, decode."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

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
    from sqlalchemy.engine.interfaces import Dialect

    from sa_asherah.orm.attachment import Attachment
    from sa_asherah.orm.types import Encrypted

__all__ = ["Packed"]

MAX_ROW_KEYS = 4096

Opened = tuple[str, Callable[[bytes, bytes, bytes], bytes]]


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
        decode, family = self.column_type.codec.decode, (self.column_type.partition, self.kind)
        slow_owner = 0 if self.kind is None else 1
        attachment: Attachment | None = None
        opened: dict[bytes, Opened] = {}
        contexts: dict[str, bytes] = {}

        def process(value: Any) -> Any:
            nonlocal attachment, opened, contexts
            if value is None:
                return None
            if type(value) is not bytes:
                value = bytes(value)
            current = getattr(dialect, "_sa_asherah", None)
            if current is not attachment or current is None:
                attachment, opened, contexts = self._bind(current, family)
            end = value.find(b"\0") + 61 if slow_owner else 60
            row = opened.get(value[:end]) if slow_owner else None
            if row is None:
                row = self._open_row(attachment, value, end, opened)  # type: ignore[arg-type]
            partition, decrypt = row
            allowed = current_scope.get()
            if allowed is not None and partition not in allowed:
                require_in_scope(partition)
            context = contexts.get(partition)
            if context is None:
                context = self._context(attachment, partition, contexts)  # type: ignore[arg-type]
            try:
                plaintext = decrypt(value[end : end + 12], value[end + 12 :], context)
            except (InvalidTag, ValueError):
                self._refuse()
            return decode(plaintext)

        return process

    def _bind(
        self, attachment: Attachment | None, family: Any
    ) -> tuple[Attachment, dict[bytes, Opened], dict[str, bytes]]:
        if attachment is None:
            raise NotAttachedError("no Asherah is attached to this engine: call asherah.attach(engine) first")
        return attachment, attachment.row_keys(family), {}

    def _context(self, attachment: Attachment, partition: str, contexts: dict[str, bytes]) -> bytes:
        if self.label is None:
            raise OwnerRequiredError(
                "this statement does not tell which column the value belongs to: name it with "
                "type_coerce(expression, Encrypted(..., label='table.column')) or text(...).columns(...) likewise"
            )
        if len(contexts) >= MAX_ROW_KEYS:
            contexts.clear()
        contexts[partition] = context = attachment.context(partition, self.label)
        return context

    def _open_row(self, attachment: Attachment, value: bytes, end: int, opened: dict[bytes, Opened]) -> Opened:
        """Find the key of a cell's row and remember it once its commitment held."""
        partition = sole_partition(self.label) if self.kind is None else self._partition(self.kind, value[: end - 61])
        require_in_scope(partition)
        head = value[end - 60 : end]
        header = self._parse(value[end - 60 :])
        key = attachment.decryption_key(partition, header.created)
        try:
            decrypt = cell.opener(key.cell_key, head)
        except DecryptionError:
            reloaded = attachment.reload(key)
            if reloaded is key:
                self._wrong_key()
            decrypt = cell.opener(reloaded.cell_key, head)
        if self.kind is not None:
            if len(opened) >= MAX_ROW_KEYS:
                opened.clear()
            opened[value[:end]] = (partition, decrypt)
        return partition, decrypt

    def _partition(self, kind: OwnerKind, owner: bytes) -> str:
        try:
            text = owner.decode()
        except UnicodeDecodeError:
            raise OwnerRequiredError(f"the owner of {self.label} is not UTF-8 text") from None
        return self.column_type.partition.replace("{}", canonical_text(kind, text))

    def _parse(self, stored: bytes) -> cell.Header:
        header = cell.parse(stored)
        if header.flags:
            raise MalformedCellError(
                f"the cell of {self.label} is padded or row-bound, which the column does not declare"
            )
        return header

    def _wrong_key(self) -> NoReturn:
        raise DecryptionError(
            f"a value of {self.label} was not encrypted for the owner of its row: it was moved here from another "
            "owner, or it is damaged"
        ) from None

    def _refuse(self) -> NoReturn:
        raise WrongPlaceError(
            f"a value of {self.label} cannot be opened: it was encrypted for another column or table, or it is damaged"
        ) from None
