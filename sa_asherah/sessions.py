# SPDX-License-Identifier: Apache-2.0
"""What an `Asherah` offers beside the ORM: sessions for single values, and a look at what happens to keys."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import Connection, Engine

from sa_asherah.core.events import Events, write_audit_log
from sa_asherah.core.logs import redact_all
from sa_asherah.core.session import Session
from sa_asherah.core.session_cache import Lease, SessionCache
from sa_asherah.errors import NotAttachedError, UsageError
from sa_asherah.metastore import root_engine
from sa_asherah.metastore.loader import off_loop
from sa_asherah.orm.scope import require_in_scope
from sa_asherah.session_async import SessionAsync

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from sa_asherah.core.hierarchy import Hierarchy
    from sa_asherah.core.ids import KeyIds
    from sa_asherah.core.policy import CryptoPolicy
    from sa_asherah.orm.attachment import Attachment

__all__ = ["Sessions"]

redact_all()


class Sessions:
    """Base of `Asherah`.

    Attributes:
        service: Name of the service.
        product: Name of the product.
        events: Who is told what happens to keys; `events.listen(function)` adds a listener.
    """

    def __init__(self, ids: KeyIds, policy: CryptoPolicy) -> None:
        """Start with no engine attached.

        Args:
            ids: Service and product.
            policy: How many sessions keep their keys, and how long.
        """
        self.service = ids.service
        self.product = ids.product
        self._policy = policy
        self.events = Events(write_audit_log)
        self._engines: WeakSet[Engine] = WeakSet()
        self._caches: WeakKeyDictionary[Hierarchy, SessionCache] = WeakKeyDictionary()

    def session(
        self, partition: str, *, engine: Engine | AsyncEngine | None = None, connection: Connection | None = None
    ) -> Session:
        """Encrypt and decrypt bytes for one partition beside the ORM, as records that other implementations read.

        Args:
            partition: The owner.
            engine: The attached engine whose key table is used; may be left out if there is one.
            connection: On SQLite, the connection whose transaction is open.

        Returns:
            A session, usable as a context manager.

        Raises:
            UsageError: It is not clear which engine is meant.
            NotAttachedError: No engine is attached.
            OwnerRequiredError: The partition is unusable.
        """
        if engine is None and connection is not None:
            engine = connection.engine
        return Session(self._lease(engine, partition), partition, connection, guard=require_in_scope)

    def session_async(
        self, partition: str, *, engine: Engine | AsyncEngine | None = None, connection: AsyncConnection | None = None
    ) -> SessionAsync:
        """Encrypt and decrypt bytes as `session` does, with methods to be awaited that never stop the event loop.

        Args:
            partition: The owner.
            engine: The attached engine, synchronous or asynchronous, whose key table is used; may be left out if
                there is one.
            connection: On SQLite, the connection whose transaction is open.

        Returns:
            A session, usable as an asynchronous context manager.

        Raises:
            UsageError: It is not clear which engine is meant, or the connection is a synchronous one.
            NotAttachedError: No engine is attached.
            OwnerRequiredError: The partition is unusable.
        """
        if isinstance(connection, Connection):
            raise UsageError("session_async() takes an AsyncConnection; with a Connection use session()")
        if connection is None:
            return SessionAsync(Session(self._lease(engine, partition), partition, guard=require_in_scope))
        lease = self._lease(engine or connection.engine, partition)
        inner = connection.sync_connection
        session = Session(lease, partition, inner, guard=require_in_scope, compute=off_loop)
        return SessionAsync(session, in_greenlet=True)

    def seconds_until_writes_stop(self) -> float:
        """Tell how long writing would go on if neither a key table nor the key service answered from now on.

        Returns:
            Seconds until the first owner cannot be written for, of those whose keys are in memory; infinity if there
            are none.
        """
        attached = [self._attachment(engine).hierarchy for engine in self._engines]
        return min((each.seconds_until_writes_stop() for each in attached), default=math.inf)

    def _expect(self, hierarchy: Hierarchy) -> None:
        """Get ready for sessions with the keys of a hierarchy."""
        self._caches[hierarchy] = SessionCache(self._policy)

    def _dismiss(self, hierarchy: Hierarchy) -> None:
        """Forget the keys that sessions had of a hierarchy."""
        self._caches[hierarchy].clear()

    def _lease(self, engine: Engine | AsyncEngine | None, partition: str) -> Lease:
        if engine is None:
            engines = list(self._engines)
            if not engines:
                raise NotAttachedError("no engine is attached: call asherah.attach(engine) first")
            if len(engines) > 1:
                raise UsageError(
                    "several engines are attached: say which key table with session(partition, engine=...)"
                )
            engine = engines[0]
        if not isinstance(partition, str):
            raise UsageError(f"a partition is text, not {type(partition).__name__}; give the owner's text")
        hierarchy = self._attachment(engine).hierarchy
        hierarchy.ids.intermediate_key_id(partition)  # refuses what cannot be one
        return self._caches[hierarchy].lend(hierarchy, partition)

    def _attachment(self, engine: Engine | AsyncEngine) -> Attachment:
        attachment: Any = getattr(root_engine(engine).dialect, "_sa_asherah", None)
        if attachment is None or attachment.owner is not self:
            raise NotAttachedError("this Asherah is not attached to that engine: call asherah.attach(engine) first")
        return attachment  # type: ignore[no-any-return]
