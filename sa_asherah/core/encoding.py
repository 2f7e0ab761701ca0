# SPDX-License-Identifier: Apache-2.0
"""The one encoding of several values into the bytes that a MAC or a cipher authenticates."""

from __future__ import annotations

from sa_asherah.errors import UsageError

__all__ = ["has_utf8", "lp"]


def lp(*parts: str | bytes | int) -> bytes:
    """Join parts so that different parts never give the same bytes.

    Each part is written as bytes (text UTF-8, integers 8 bytes big-endian), preceded by its length as 4 bytes
    big-endian. The kind of a part is not written: a format fixes it by position.

    Args:
        *parts: Text, bytes or integers from 0 to 2^64 - 1.

    Returns:
        The encoded parts.

    Raises:
        UsageError: A text holds a lone surrogate, which has no UTF-8 form.
        OverflowError: An integer is out of range.
    """
    encoded: list[bytes] = []
    for part in parts:
        raw = part if isinstance(part, bytes) else part.to_bytes(8, "big") if isinstance(part, int) else _utf8(part)
        encoded.append(len(raw).to_bytes(4, "big"))
        encoded.append(raw)
    return b"".join(encoded)


def has_utf8(text: str) -> bool:
    """Tell whether a text can be encoded; the codec's own error would carry the whole text along.

    Args:
        text: Any text.

    Returns:
        False if it holds a lone surrogate.
    """
    return text.isascii() or text.encode("utf-8", "replace").decode() == text


def _utf8(text: str) -> bytes:
    if not has_utf8(text):
        raise UsageError("a name or key text holds a lone surrogate and has no UTF-8 form; pass valid Unicode text")
    return text.encode()
