# SPDX-License-Identifier: Apache-2.0
"""Padding, which hides how long a value is: part of the cell format, frozen with it."""

from __future__ import annotations

from sa_asherah.errors import MalformedCellError

__all__ = ["pad", "unpad"]


def pad(data: bytes, block: int) -> bytes:
    """Hide the length of a value: append `80` and zeros up to a multiple of the block.

    Args:
        data: Type byte and value.
        block: The block in bytes, at least 1.

    Returns:
        The padded plaintext, longer than the data.
    """
    return data + b"\x80" + bytes(-(len(data) + 1) % block)


def unpad(data: bytes) -> bytes:
    """Undo `pad`, whatever the block was.

    Args:
        data: A padded plaintext.

    Returns:
        Type byte and value.

    Raises:
        MalformedCellError: It is not padded, or nothing is left.
    """
    end = len(data.rstrip(b"\x00")) - 1
    if end < 1 or data[end] != 0x80:  # noqa: PLR2004
        raise MalformedCellError(
            "the decrypted value is not padded although its cell says so; its writer broke the cell format"
        )
    return data[:end]
