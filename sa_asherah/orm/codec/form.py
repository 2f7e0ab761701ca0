# SPDX-License-Identifier: Apache-2.0
"""What a codec is, and how it refuses.

A refusal is raised outside `except` blocks: the errors of Python's own decoders carry the value, and would stay
reachable as its context.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sa_asherah.errors import MalformedCellError, UnsupportedValueError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Codec", "foreign", "not_canonical", "unfit"]


@dataclass(frozen=True, slots=True)
class Codec:
    """How the values of one inner type become plaintext bytes.

    Attributes:
        encode: Value to plaintext, the type byte first. Raises `UnsupportedValueError`.
        decode: Plaintext to value. Raises `MalformedCellError` for anything that `encode` does not write.
    """

    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]


def unfit(value: Any, wanted: str) -> UnsupportedValueError:
    """Make the error for a value that the inner type does not hold.

    Args:
        value: The value; only its class is named.
        wanted: What the inner type holds, and what to do.
    """
    return UnsupportedValueError(f"a {type(value).__name__} does not fit an encrypted column that holds {wanted}")


def foreign(plaintext: bytes) -> MalformedCellError:
    """Make the error for an opened value with the type code or the length of another inner type.

    Args:
        plaintext: The opened value; only its code is named.
    """
    return MalformedCellError(
        f"the opened value has type code {plaintext[0] if plaintext else 'none'}, which this column's inner type "
        "does not write: the inner type was changed without re-encrypting the column"
    )


def not_canonical(what: str) -> MalformedCellError:
    """Make the error for an opened value of the right code that is not in the one form of its value.

    Args:
        what: What the column holds.
    """
    return MalformedCellError(
        f"the opened value is not {what} in the form that this column writes: it was written by another program, or "
        "the inner type was changed without re-encrypting the column"
    )
