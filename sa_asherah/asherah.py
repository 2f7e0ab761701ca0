# SPDX-License-Identifier: Apache-2.0
"""The class `Asherah`: settings, key service and policy, and the engines that use them."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, Self
from weakref import WeakSet

from sa_asherah import metastore as key_table
from sa_asherah.config import Settings
from sa_asherah.core.hierarchy import Hierarchy
from sa_asherah.core.ids import KeyIds
from sa_asherah.core.policy import CryptoPolicy
from sa_asherah.core.session import Session
from sa_asherah.errors import ConfigurationError, NotAttachedError, UsageError
from sa_asherah.orm.attachment import Attachment
from sa_asherah.orm.unreadable import unreadable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from sqlalchemy.engine import Connection, Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

    from sa_asherah.core.ports import KeyManagementService

__all__ = ["Asherah"]


class Asherah:
    """Keys for one service and product, given to engines by `attach`. Safe to share between threads and forks.

    An engine owns the `Asherah` attached to it; the `Asherah` holds engines weakly. Each attached engine has a
    hierarchy of its own, since a cached key belongs to one key table; the key service is shared.
    """

    def __init__(  # noqa: PLR0913 -- the settings of a deployment, by keyword
        self,
        service: str,
        product: str,
        kms: KeyManagementService,
        *,
        expire_after: timedelta = timedelta(days=90),
        check_interval: timedelta = timedelta(minutes=60),
        precision: timedelta = timedelta(minutes=1),
        max_stale: timedelta = timedelta(hours=1),
        rotation_grace: timedelta = timedelta(hours=24),
        cache_size: int = 1000,
        region_suffix: str | None = None,
        peers: bool = False,
        create_system_keys: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Configure; nothing is connected yet.

        Args:
            service: Name of the service, part of every key id.
            product: Name of the product, part of every key id.
            kms: Wraps system keys; closed by `close`.
            expire_after: Age at which a key encrypts no more; it decrypts for ever.
            check_interval: How long a key is used before its record is read again; zero: at every use.
            precision: What the date of a new key is rounded down to.
            max_stale: How long past `check_interval` keys are used while the key table cannot be read.
            rotation_grace: How long past its expiry a key may encrypt while its successor cannot be made.
            cache_size: How many unwrapped keys are kept in memory for each engine.
            region_suffix: Suffix of the key ids of this region.
            peers: Whether other Asherah implementations share the key table: records without `Bind` are accepted.
            create_system_keys: Whether this process may make system keys.
            clock: Seconds since 1970-01-01 UTC.

        Raises:
            ConfigurationError: A setting is unusable.
        """
        self._ids = KeyIds(service, product, region_suffix or "", peers)
        self._kms = kms
        self._policy = CryptoPolicy(
            expire_after=expire_after.total_seconds(),
            check_interval=check_interval.total_seconds(),
            precision=precision.total_seconds(),
            max_stale=max_stale.total_seconds(),
            rotation_grace=rotation_grace.total_seconds(),
            cache_size=cache_size,
            create_system_keys=create_system_keys,
            clock=clock,
        )
        self._engines: WeakSet[Engine] = WeakSet()

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Configure from environment variables.

        Args:
            environ: SERVICE_NAME, PRODUCT_ID, KMS (`static` or `vault`), STATIC_MASTER_KEY_HEX or VAULT_ADDR,
                VAULT_TOKEN, VAULT_TRANSIT_KEY, VAULT_TRANSIT_MOUNT, and the optional EXPIRE_AFTER_SECS,
                REVOKE_CHECK_INTERVAL_SECS, CREATE_DATE_PRECISION_SECS, REGION_SUFFIX, ASHERAH_PEERS.

        Returns:
            The configured object.

        Raises:
            ConfigurationError: A variable is missing, malformed or contradictory.
        """
        settings = Settings.from_env(environ)
        return cls(
            settings.service,
            settings.product,
            settings.open_kms(),
            expire_after=settings.expire_after,
            check_interval=settings.check_interval,
            precision=settings.precision,
            region_suffix=settings.region_suffix,
            peers=settings.peers,
        )

    def __repr__(self) -> str:
        """Name the service and the product."""
        return f"<Asherah of {self._ids.system_key_id()!r}>"

    def __enter__(self) -> Self:
        """Use as a context manager that closes at the end."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close."""
        self.close()

    def attach(self, engine: Engine | AsyncEngine, *, metastore: Engine | AsyncEngine | None = None) -> None:
        """Let an engine read and write encrypted columns. Opens no connection; repeating it is harmless.

        Args:
            engine: The application's engine.
            metastore: Another engine whose database holds the key table, e.g. the primary for an engine that reads a
                replica. Left out, the key table is in the engine's own database.

        Raises:
            ConfigurationError: The database is not supported, or another `Asherah` is attached.
        """
        root = key_table.root_engine(engine)
        current: Attachment | None = getattr(root.dialect, "_sa_asherah", None)
        if current is not None:
            if current.owner is self:
                return
            raise ConfigurationError("another Asherah is attached to this engine: detach it first")
        keys = root if metastore is None else key_table.root_engine(metastore)
        hierarchy = Hierarchy(
            self._ids, self._policy, self._kms, key_table.open_metastore(keys, separate=metastore is not None)
        )
        Attachment(root, hierarchy, self, key_engine=None if keys is root else keys).install(root)
        self._engines.add(root)

    def detach(self, engine: Engine | AsyncEngine) -> None:
        """Take this `Asherah` off an engine and forget the engine's keys; harmless if it is not attached.

        Args:
            engine: The engine.
        """
        root = key_table.root_engine(engine)
        current: Attachment | None = getattr(root.dialect, "_sa_asherah", None)
        if current is not None and current.owner is self:
            current.remove()
        self._engines.discard(root)

    def create_metastore(self, bind: Engine | Connection) -> None:
        """Create the key table `encryption_key` if it does not exist.

        With an `AsyncConnection`: `await connection.run_sync(asherah.create_metastore)`.

        Args:
            bind: The engine or connection of the database that holds the data. On a connection of PostgreSQL, MySQL
                or MariaDB, commit before the first encrypted value is written.
        """
        key_table.create(bind)

    def check(self, connection: Connection) -> None:
        """Check now what is otherwise checked before the first statement with encrypted columns.

        Args:
            connection: A connection of an attached engine.

        Raises:
            AsherahError: The key table is missing, a column type is unsafe, or the database's encoding is.
        """
        self._attachment(connection.engine).check_now(connection)

    def unreadable(self, mode: Literal["mark", "raise"]) -> AbstractContextManager[None]:
        """Let values that cannot be opened be marked, so that one bad cell does not stop a page.

        Inside the block a value that is damaged, moved, of an unknown key or without a valid owner is read as an
        `Unreadable`, which names the reason and cannot be written back. An unreachable key service or database, and
        a partition outside the `partition_scope`, still raise. Threads and tasks inherit it as context variables do.

        Args:
            mode: `"mark"`, or `"raise"` to end it for a part of the block.

        Returns:
            A context manager.

        Raises:
            UsageError: The mode is neither.
        """
        return unreadable(self, mode)

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
        """
        if engine is None and connection is not None:
            engine = connection.engine
        if engine is None:
            engines = list(self._engines)
            if not engines:
                raise NotAttachedError("no engine is attached: call asherah.attach(engine) first")
            if len(engines) > 1:
                raise UsageError(
                    "several engines are attached: say which key table with session(partition, engine=...)"
                )
            engine = engines[0]
        return Session(self._attachment(engine).hierarchy, partition, connection)

    def close(self) -> None:
        """Detach all engines, wipe the keys in memory and close the key service. Calling it twice is harmless."""
        for engine in list(self._engines):
            self.detach(engine)
        self._kms.close()

    def _attachment(self, engine: Engine | AsyncEngine) -> Attachment:
        attachment: Any = getattr(key_table.root_engine(engine).dialect, "_sa_asherah", None)
        if attachment is None or attachment.owner is not self:
            raise NotAttachedError("this Asherah is not attached to that engine: call asherah.attach(engine) first")
        return attachment  # type: ignore[no-any-return]
