# SPDX-License-Identifier: Apache-2.0
"""An `Asherah` for tests, and attaching it to engines for the time of a test."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any, overload

from sqlalchemy import Engine

from sa_asherah.asherah import Asherah
from sa_asherah.errors import StaticKeyWarning
from sa_asherah.kms import StaticKMS

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["AttachEngines", "static_asherah"]


def static_asherah(service: str = "tests", product: str = "tests") -> Asherah:
    """Make an `Asherah` under a random static master key, which is gone with the process.

    It does not warn, since a test means what it does. What it encrypted cannot be read by another test run: let a
    database server start with an empty key table.

    Args:
        service: Name of the service.
        product: Name of the product.

    Returns:
        The `Asherah`; whoever asked for it closes it.

    Raises:
        ConfigurationError: The environment says `production`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StaticKeyWarning)
        kms = StaticKMS(os.urandom(32))
    return Asherah(service, product, kms)


class AttachEngines:
    """Attaches one `Asherah` to engines and takes it off them at the end. For one thread.

    Args:
        asherah: What to attach.
    """

    def __init__(self, asherah: Asherah) -> None:
        self._asherah = asherah
        self._attached: list[Engine | AsyncEngine] = []

    @overload
    def __call__(self, engine: Engine) -> Engine: ...

    @overload
    def __call__(self, engine: AsyncEngine) -> Coroutine[Any, Any, AsyncEngine]: ...

    def __call__(self, engine: Engine | AsyncEngine) -> Engine | Coroutine[Any, Any, AsyncEngine]:
        """Attach to an engine and create the key table if it is not there.

        Args:
            engine: The application's engine. If this `Asherah` is attached to it already, it stays so at the end.

        Returns:
            The engine; for an `AsyncEngine` something to await, which gives it.

        Raises:
            ConfigurationError: The database is not supported, or another `Asherah` is attached.
        """
        synchronous: Engine = engine if isinstance(engine, Engine) else engine.sync_engine
        known = hasattr(synchronous.dialect, "_sa_asherah")
        self._asherah.attach(engine)
        if not known:
            self._attached.append(engine)
        if not isinstance(engine, Engine):
            return self._create_key_table(engine)
        self._asherah.create_metastore(engine)
        return engine

    async def _create_key_table(self, engine: AsyncEngine) -> AsyncEngine:
        async with engine.begin() as connection:
            await connection.run_sync(self._asherah.create_metastore)
        return engine

    def close(self) -> None:
        """Detach from every engine that was attached here."""
        while self._attached:
            self._asherah.detach(self._attached.pop())
