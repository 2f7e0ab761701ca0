# SPDX-License-Identifier: Apache-2.0
"""Cell format v1: one encrypted value. Frozen by `tests/vectors/cell/v1.json`.

| offset | bytes | field |
|---|---|---|
| 0 | 4 | magic `A5`, version `01`, suite `01`, flags |
| 4 | 8 | date of the intermediate key, seconds, big-endian |
| 12 | 16 | salt, shared by the cells that one statement writes under one key |
| 28 | 32 | commitment to the data row key |
| 60 | 12 | nonce |
| 72 | n | ciphertext |
| 72+n | 16 | tag |

The first 60 bytes, the head, are all that a data row key depends on besides the intermediate key.
"""

from __future__ import annotations

import base64
import hmac
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn

from sa_asherah.core import aead
from sa_asherah.core.encoding import lp
from sa_asherah.core.ids import MAX_CREATED
from sa_asherah.core.padding import pad, unpad
from sa_asherah.errors import DecryptionError, MalformedCellError, UnsupportedValueError, UsageError, WrongPlaceError

__all__ = [
    "FLAGS_AT",
    "HEAD_SIZE",
    "MARK",
    "MIN_SIZE",
    "NONCE_END",
    "PADDED",
    "ROW_BOUND",
    "TEXT_MARK",
    "Decrypt",
    "Header",
    "Request",
    "context",
    "derive_cell_key",
    "describe",
    "from_text",
    "is_marked",
    "open_",
    "opener",
    "pad",
    "parse",
    "seal",
    "to_text",
    "unpad",
]

ROW_BOUND = 1
"""Flag: the primary key of the row is part of the context."""
PADDED = 2
"""Flag: the plaintext is padded."""

FLAGS_AT = 3
"""The flags are `cell[FLAGS_AT]`."""
HEAD_SIZE = 60
"""The head of a cell is `cell[:HEAD_SIZE]`; equal heads mean equal data row keys."""
NONCE_END = 72
"""The nonce is `cell[HEAD_SIZE:NONCE_END]`, ciphertext and tag follow."""
MIN_SIZE = NONCE_END + 1 + aead.TAG_SIZE
"""The smallest cell: a type byte and no value. Anything shorter must not reach the cipher."""

MARK = b"\xa5\x01\x01"
"""What every cell begins with."""
_SALT_SIZE = 16
_CELL_KEY_SIZE = 64
_HEADER = struct.Struct(">3sBQ16s32s")
_TEXT_PREFIX = "sa1:"
TEXT_MARK = b"sa1:pQEB"
"""The same, of a cell that is stored as text."""

# One budget keeps both limits of a salt: at most 2^20 cells and at most 2^36 bytes of plaintext.
SALT_BUDGET = 2**36
CELL_COST = 2**16

Decrypt = Callable[[bytes, bytes, bytes], bytes]
"""Takes nonce, ciphertext with tag, and context; raises `aead.InvalidTag`."""
_Encrypt = Callable[[bytes, bytes, bytes], bytes]


class Request(NamedTuple):
    """One value to seal.

    Attributes:
        cell_key: From `derive_cell_key`, of the intermediate key.
        created: Date of the intermediate key in seconds.
        flags: `ROW_BOUND`, `PADDED`, both or 0.
        aad: From `context`.
        plaintext: Type byte and value; already padded if the flags say so.
    """

    cell_key: bytes | bytearray
    created: int
    flags: int
    aad: bytes
    plaintext: bytes

    def __repr__(self) -> str:
        """Show nothing: a request holds a key and a plaintext."""
        return "<Request>"

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied.

        Raises:
            TypeError: Always.
        """
        raise TypeError("a Request holds a key and a plaintext and cannot be pickled")


@dataclass(frozen=True, slots=True)
class Header:
    """What a cell says about itself; nothing of it is authentic before `opener` has accepted the head.

    Attributes:
        created: Date of the intermediate key in seconds.
        flags: `ROW_BOUND`, `PADDED`, both or 0.
        salt: Salt of the data row key.
        commitment: Commitment to the data row key.
    """

    created: int
    flags: int
    salt: bytes = field(repr=False)
    commitment: bytes = field(repr=False)


def derive_cell_key(secret: bytes | bytearray) -> bytes:
    """Derive the key of all cells from an intermediate key, which itself also wraps keys of the JSON format.

    Args:
        secret: The intermediate key, 32 bytes.

    Returns:
        64 bytes.
    """
    return hmac.digest(secret, b"sa_asherah/cell-key/1", "sha512")


def context(service: str, product: str, partition: str, label: str, primary_key: str = "") -> bytes:
    """Encode the place of a value, which its cell authenticates. Constant for a partition and column.

    Args:
        service: Name of the service.
        product: Name of the product.
        partition: The partition.
        label: Label of the column, by default `table.column`.
        primary_key: Text of the row's primary key where the column binds its rows, else empty.

    Returns:
        The associated data of the cell.
    """
    return lp("sa_asherah/ctx/1", service, product, partition, label, primary_key)


def _row_key(cell_key: bytes | bytearray, header: bytes) -> tuple[bytes, bytes]:
    """Derive a data row key and its commitment from the first 28 bytes of a cell."""
    okm = hmac.digest(cell_key, b"sa_asherah/row/1" + header, "sha512")
    return okm[:32], okm[32:]


def _start_group(cell_key: bytes | bytearray, created: int, flags: int, salt: bytes) -> tuple[bytes, _Encrypt]:
    """Make the head and the cipher of the cells that share a salt."""
    if len(cell_key) != _CELL_KEY_SIZE or not 0 <= created <= MAX_CREATED or flags & ~(ROW_BOUND | PADDED):
        raise UsageError(
            "a value was to be sealed with a cell key, a key date or flags that the cell format does not know"
        )
    header = _HEADER.pack(MARK, flags, created, salt, b"")[:28]
    key, commitment = _row_key(cell_key, header)
    return header + commitment, aead.cipher(key).encrypt


def seal(requests: Sequence[Request]) -> list[bytes]:
    """Encrypt all values of one statement; the only function that makes cells.

    Values with the same key, date and flags share a salt and so a data row key, up to 2^20 values or 2^36 bytes. All
    salts and nonces come from one call of the operating system's generator.

    Args:
        requests: The values. Plain tuples of the same shape are cheaper to make and do as well.

    Returns:
        The cells in the same order.

    Raises:
        UsageError: A request breaks the format: no type byte, flag set but not padded, unknown flags.
        UnsupportedValueError: A value is too long for the cipher.
    """
    count = len(requests)
    noise = memoryview(os.urandom((aead.NONCE_SIZE + _SALT_SIZE) * count))
    nonces = struct.iter_unpack("12s", noise[: aead.NONCE_SIZE * count])
    salts = struct.iter_unpack("16s", noise[aead.NONCE_SIZE * count :])
    groups: dict[tuple[bytes | bytearray, int, int], tuple[bytes, _Encrypt]] = {}
    cells: list[bytes] = []
    budget = SALT_BUDGET
    for (cell_key, created, flags, aad, plaintext), (nonce,) in zip(requests, nonces, strict=True):
        if not plaintext or flags & PADDED:
            _check_plaintext(flags, plaintext)
        budget -= len(plaintext) + CELL_COST
        if budget < 0:
            groups.clear()
            budget = SALT_BUDGET - len(plaintext) - CELL_COST
        coordinates = (cell_key, created, flags)
        group = groups.get(coordinates)
        if group is None:
            groups[coordinates] = group = _start_group(cell_key, created, flags, next(salts)[0])
        head, encrypt = group
        try:
            cells.append(head + nonce + encrypt(nonce, plaintext, aad))
        except OverflowError:
            raise UnsupportedValueError(
                "a value is longer than the 2^31 - 1 bytes that the cipher takes; store it in parts"
            ) from None
    return cells


def _check_plaintext(flags: int, plaintext: bytes) -> None:
    """Refuse what no reader would take back."""
    try:
        if flags & PADDED:
            plaintext = unpad(plaintext)
    except MalformedCellError:
        plaintext = b""
    if not plaintext:
        raise UsageError("a value was to be sealed without its type byte, or without padding although its flags say so")


def parse(cell: bytes) -> Header:
    """Read the header of a cell.

    Args:
        cell: The stored bytes.

    Returns:
        The header.

    Raises:
        MalformedCellError: The bytes are not a cell of this version.
    """
    if len(cell) < MIN_SIZE:
        raise MalformedCellError(
            f"the value has {len(cell)} bytes, a cell has at least {MIN_SIZE}: it is truncated or was never encrypted"
        )
    mark, flags, created, salt, commitment = _HEADER.unpack_from(cell)
    if mark != MARK:
        raise MalformedCellError(
            "the value is not a cell of version 1: it was never encrypted, is damaged, or is of a later version"
        )
    if flags & ~(ROW_BOUND | PADDED) or created > MAX_CREATED or (flags & PADDED and len(cell) == MIN_SIZE):
        raise MalformedCellError(
            "the cell has flags, a key date or a length that version 1 does not know: it is damaged"
        )
    return Header(created, flags, salt, commitment)


def is_marked(stored: bytes, *, text: bool) -> bool:
    """Tell whether a stored value begins as every cell does: then it is a cell, or a damaged one, and nothing else.

    Args:
        stored: The value; text as UTF-8.
        text: Whether it is stored as text.

    Returns:
        Whether it has the first 3 bytes of a cell.
    """
    return stored.startswith(TEXT_MARK if text else MARK)


def opener(cell_key: bytes | bytearray, head: bytes) -> Decrypt:
    """Derive the data row key of all cells with the same head, for `decrypt(nonce, ciphertext with tag, context)`.

    Args:
        cell_key: From `derive_cell_key`, of the intermediate key that was looked up.
        head: `cell[:HEAD_SIZE]` of a cell that `parse` accepts.

    Returns:
        The decryption function. The caller checks `MIN_SIZE` and the flags of each cell, and takes
        `aead.InvalidTag` as `WrongPlaceError`.

    Raises:
        DecryptionError: The commitment does not hold; no cipher was made.
    """
    key, commitment = _row_key(cell_key, head[:28])
    if not hmac.compare_digest(commitment, head[28:]):
        raise DecryptionError(
            "the key does not match the value: it was encrypted under another key (another owner, service or "
            "environment), or its first 60 bytes are damaged. Compare the row's owner, then restore the value"
        )
    return aead.cipher(key).decrypt


def open_(cell_key: bytes | bytearray, cell: bytes, aad: bytes, flags: int) -> bytes:
    """Open one cell.

    Args:
        cell_key: From `derive_cell_key`, of the intermediate key dated as `parse` says.
        cell: The stored bytes.
        aad: From `context`, of the place where the cell was found.
        flags: The flags that the column declares.

    Returns:
        The plaintext as it was sealed: type byte and value, padded if the flags say so.

    Raises:
        MalformedCellError: The bytes are not a cell, or its flags differ from those declared.
        WrongPlaceError: It was sealed for another place, or is damaged behind the head.
        DecryptionError: It was sealed under another key, or its head is damaged.
    """
    header = parse(cell)
    if header.flags != flags:
        raise MalformedCellError(
            f"the column declares {describe(flags)}, but the cell was written {describe(header.flags)}"
        )
    decrypt = opener(cell_key, cell[:HEAD_SIZE])
    try:
        return decrypt(cell[HEAD_SIZE:NONCE_END], cell[NONCE_END:], aad)
    except aead.InvalidTag:
        raise WrongPlaceError(
            "the value was encrypted for another owner, table, column or row than the one it is in, or is damaged"
        ) from None


def describe(flags: int) -> str:
    """Say in words what the flags of a cell mean.

    Args:
        flags: `ROW_BOUND`, `PADDED`, both or 0.

    Returns:
        Words for an error text.
    """
    row = "row-bound" if flags & ROW_BOUND else "not row-bound"
    return f"{row} and {'padded' if flags & PADDED else 'unpadded'}"


def to_text(cell: bytes) -> str:
    """Write a cell for a text column.

    Args:
        cell: The cell.

    Returns:
        `sa1:` and base64url without padding.
    """
    return _TEXT_PREFIX + base64.urlsafe_b64encode(cell).rstrip(b"=").decode("ascii")


def from_text(text: str) -> bytes:
    """Read a cell from a text column.

    Args:
        text: The stored text.

    Returns:
        The cell, not parsed yet.

    Raises:
        MalformedCellError: It is not the one text of some bytes.
    """
    body = text.removeprefix(_TEXT_PREFIX)
    try:
        cell = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
    except ValueError:
        cell = b""
    if to_text(cell) != text:
        raise MalformedCellError(
            "the text is not a cell: it must be 'sa1:' and canonical base64url. It is damaged or was never encrypted"
        )
    return cell
