# SPDX-License-Identifier: Apache-2.0
"""The awaitable twin of a session: the event loop never waits for keys or ciphers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NoReturn, Self, TypeVar

from sqlalchemy.util import greenlet_spawn

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from types import TracebackType

    from sa_asherah.core.session import Session

__all__ = ["SessionAsync"]

A = TypeVar("A")
K = TypeVar("K")
T = TypeVar("T")


class SessionAsync:
    """Encrypts and decrypts for one partition, as `Session` does, with methods to be awaited.

    The work is done in a thread, whatever the engine, the key table and the key service are. Only where a connection
    is given do key records go through it, in SQLAlchemy's greenlet; key service and ciphers stay in a thread.
    """

    def __init__(self, session: Session, *, in_greenlet: bool = False) -> None:
        """Wrap a session.

        Args:
            session: The session.
            in_greenlet: Whether it uses a connection of an asynchronous engine, and so needs SQLAlchemy's greenlet.
        """
        self._session = session
        self._in_greenlet = in_greenlet

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} holds keys and cannot be pickled or copied; make another one")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} around {self._session!r}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the session; it refuses to work from now on."""
        self._session.close()

    async def encrypt(self, data: bytes) -> str:
        """Encrypt bytes under a key of their own.

        Args:
            data: What to encrypt.

        Returns:
            A data row record as JSON.

        Raises:
            AsherahError: As `Session.encrypt` does.
        """
        return await self._run(self._session.encrypt, data)

    async def decrypt(self, record: str | Mapping[str, object]) -> bytes:
        """Decrypt what `encrypt` or another Asherah implementation wrote for this partition.

        Args:
            record: A data row record, as JSON or as an object with the same members.

        Returns:
            The data.

        Raises:
            AsherahError: As `Session.decrypt` does.
        """
        return await self._run(self._session.decrypt, record)

    async def store(self, data: bytes, storer: Callable[[str], Awaitable[T]]) -> T:
        """Encrypt bytes and pass the record on.

        Args:
            data: What to encrypt.
            storer: Stores the record; awaited.

        Returns:
            What `storer` returned.

        Raises:
            AsherahError: As `Session.encrypt` does; `storer` was not called then.
        """
        return await storer(await self.encrypt(data))

    async def load(self, key: K, loader: Callable[[K], Awaitable[str | None]]) -> bytes | None:
        """Fetch a record and decrypt it.

        Args:
            key: The key under which the record is stored.
            loader: Fetches the record, or `None`; awaited.

        Returns:
            The data; `None` if there is no record.

        Raises:
            AsherahError: As `Session.decrypt` does.
        """
        self._session.require_open()
        record = await loader(key)
        return None if record is None else await self.decrypt(record)

    async def _run(self, method: Callable[[A], T], argument: A) -> T:
        if self._in_greenlet:
            return await greenlet_spawn(method, argument)
        return await asyncio.to_thread(method, argument)
