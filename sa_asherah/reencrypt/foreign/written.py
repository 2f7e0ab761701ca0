# SPDX-License-Identifier: Apache-2.0
"""What all types have in common that read another library's ciphertext, and how they keep its keys to themselves."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from sqlalchemy.types import LargeBinary, String, Text, TypeDecorator, TypeEngine

from sa_asherah.errors import ConfigurationError, DecryptionError, UsageError
from sa_asherah.orm.codec import plain_codec_for

if TYPE_CHECKING:
    from sqlalchemy.engine.interfaces import Dialect

__all__ = ["Foreign", "KeyMaterial", "Keys", "standard_base64", "stored_bytes"]

_BINARY: tuple[type[Any], ...] = (bytes, bytearray, memoryview)

KeyMaterial = str | bytes | Callable[[], str | bytes]
"""A key, or what gives one each time it is needed."""


class Keys:
    """Keys that show nothing of themselves and leave the process in no pickle."""

    __slots__ = ("_keys",)

    def __init__(self, keys: tuple[KeyMaterial, ...]) -> None:
        """Keep keys.

        Args:
            keys: At least one.

        Raises:
            ConfigurationError: There is none, or something else.
        """
        if not keys or not all((isinstance(key, str | bytes) and key) or callable(key) for key in keys):
            raise ConfigurationError("give the other library's key: a text, bytes, or a function that returns it")
        self._keys = keys

    def get(self) -> list[bytes]:
        """Give the keys as bytes, text as UTF-8."""
        found = [key() if callable(key) else key for key in self._keys]
        return [key.encode() if isinstance(key, str) else key for key in found]

    def __repr__(self) -> str:
        return f"<{len(self._keys)} keys>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a type that reads another library's ciphertext holds its key and cannot be pickled")


class Foreign(TypeDecorator[Any]):
    """Reads values that another library encrypted; writing raises. It is not bound to an owner and needs no `Asherah`.

    Statements with such a type are not cached by SQLAlchemy, since a cache key would have to tell keys apart: each
    class says `cache_ok = False`, which is not inherited.
    """

    impl = Text
    cache_ok = False

    def __init__(
        self,
        keys: tuple[KeyMaterial, ...],
        inner: TypeEngine[Any] | type[TypeEngine[Any]] = String,
        storage: Literal["text", "binary"] = "text",
    ) -> None:
        """Keep what is needed for reading.

        Args:
            keys: The library's keys.
            inner: The type of the plaintext.
            storage: Whether the column is a text or a binary one.

        Raises:
            ConfigurationError: An argument is unusable.
        """
        if storage not in {"text", "binary"}:
            raise ConfigurationError("storage= is 'text' or 'binary': the type of the column")
        self.inner = inner() if isinstance(inner, type) else inner
        self.storage = storage
        self._secret = Keys(keys)
        self._codec = plain_codec_for(self.inner)
        super().__init__()

    def recognises(self, raw: Any) -> bool:
        """Tell by its looks whether a stored value is the library's: then it must open, and is never plaintext.

        Args:
            raw: What the driver gave.
        """
        stored = stored_bytes(raw)
        return stored is not None and self._has_form(stored)

    def open(self, raw: Any) -> Any:
        """Open a stored value.

        Args:
            raw: What the driver gave.

        Returns:
            The value.

        Raises:
            DecryptionError: It does not open.
        """
        stored = stored_bytes(raw)
        plaintext = self._decrypt(stored) if stored is not None and self._has_form(stored) else None
        if plaintext is None:
            raise DecryptionError(
                f"a value does not open as {type(self).__name__}: it was encrypted with another key or in another way, "
                "is damaged, or is no ciphertext"
            )
        return self._codec.decode(plaintext)

    def _has_form(self, stored: bytes) -> bool:
        raise NotImplementedError  # each library's type says it; a TypeDecorator is no abstract class

    def _decrypt(self, stored: bytes) -> bytes | None:
        raise NotImplementedError  # as above

    def __repr__(self) -> str:
        """Name everything but the key."""
        return f"{type(self).__name__}(..., {self.inner!r}, {self.storage!r})"

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Choose the type of the column."""
        return dialect.type_descriptor(LargeBinary()) if self.storage == "binary" else Text()

    def process_bind_param(self, value: Any, dialect: Dialect) -> None:  # noqa: ARG002
        """Refuse to write."""
        if value is not None:
            raise UsageError(f"{type(self).__name__} only reads: write the column with Encrypted(...)")

    def process_literal_param(self, value: Any, dialect: Dialect) -> str:  # noqa: ARG002
        """Refuse to write."""
        raise UsageError(f"{type(self).__name__} only reads: write the column with Encrypted(...)")

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:  # noqa: ARG002
        """Open a value as it is read."""
        return None if value is None else self.open(value)


def stored_bytes(raw: Any) -> bytes | None:
    """Give the bytes of what a driver gave; a surrogate, which no database stores, as what no form accepts.

    Args:
        raw: Text or bytes.

    Returns:
        The bytes, text as UTF-8; `None` if it is neither.
    """
    if isinstance(raw, str):
        return raw.encode(errors="surrogatepass")
    return bytes(raw) if isinstance(raw, _BINARY) else None


def standard_base64(stored: bytes) -> bytes | None:
    """Read base64 in its one form.

    Args:
        stored: The text.

    Returns:
        The bytes, `None` if it is not base64.
    """
    try:
        found = b64decode(stored, validate=True)
    except ValueError:
        return None
    return found if b64encode(found) == stored else None
