# SPDX-License-Identifier: Apache-2.0
"""The class `Asherah`: settings, key service and policy, and the engines that use them."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

from sqlalchemy import Engine

from sa_asherah import metastore as key_table
from sa_asherah.config import Settings
from sa_asherah.core.hierarchy import Hierarchy
from sa_asherah.core.ids import KeyIds
from sa_asherah.core.metering import MeteredKMS, MeteredMetastore
from sa_asherah.core.policy import CryptoPolicy
from sa_asherah.core.system_keys import SystemKeys
from sa_asherah.errors import ConfigurationError, UsageError
from sa_asherah.kms.succession import Succession
from sa_asherah.orm.attachment import Attachment
from sa_asherah.orm.unreadable import unreadable
from sa_asherah.sessions import Sessions

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from contextlib import AbstractContextManager

    from sqlalchemy.engine import Connection
    from sqlalchemy.ext.asyncio import AsyncEngine

    from sa_asherah.core.ports import ExternalMetastore, KeyManagementService, Metastore

__all__ = ["Asherah"]

_SETTINGS = (
    "expire_after",
    "check_interval",
    "precision",
    "max_stale",
    "rotation_grace",
    "rotation_spread",
    "cache_size",
    "cache_system_keys",
    "cache_intermediate_keys",
    "shared_intermediate_keys",
    "session_cache",
    "session_cache_size",
    "session_cache_duration",
    "region_suffix",
    "read_suffixes",
    "peers",
    "create_system_keys",
)
"""Arguments of `Asherah` that `Settings` has by the same names."""


class Parts(NamedTuple):
    """What an `Asherah` is made of, for the modules of this package that look at keys by themselves.

    Attributes:
        regions: The ids of all regions whose keys may be read, this one's first.
        policy: How long keys are used.
        kms: Wraps system keys.
        metastore: The key table, if it is outside of the databases.
    """

    regions: tuple[KeyIds, ...]
    policy: CryptoPolicy
    kms: KeyManagementService
    metastore: ExternalMetastore | None


class Asherah(Sessions):
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
        rotation_spread: timedelta = timedelta(days=7),
        early_rotation: float = 0.02,
        max_wraps: int = 1 << 22,
        cache_size: int = 1000,
        cache_eviction: str = "lru",
        cache_system_keys: bool = True,
        cache_intermediate_keys: bool = True,
        shared_intermediate_keys: bool = True,
        session_cache: bool = False,
        session_cache_size: int = 1000,
        session_cache_duration: timedelta = timedelta(hours=2),
        region_suffix: str | None = None,
        read_suffixes: Collection[str] = (),
        peers: bool = False,
        create_system_keys: bool = True,
        metastore: ExternalMetastore | None = None,
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
            max_stale: How long past `check_interval` keys are used, to encrypt and to decrypt, while the key table
                cannot be read.
            rotation_grace: How long past its expiry a key may encrypt while its successor cannot be made; never a
                revoked one.
            rotation_spread: Over how long the keys of owners give way after their system key expired, each at its own
                time; zero for all at once.
            early_rotation: By which part of its life, at most, a process replaces a key early: drawn for each process
                and key, so that not all replace it at once.
            max_wraps: How many keys one process wraps with one key before it makes a new one.
            cache_size: How many unwrapped keys of each level are kept in memory for each engine.
            cache_eviction: `lru`, or `simple` to keep all.
            cache_system_keys: Whether system keys are kept. One that wraps a key that is kept stays anyway.
            cache_intermediate_keys: Whether intermediate keys are kept.
            shared_intermediate_keys: Whether sessions share one cache of intermediate keys, or have one each.
            session_cache: Whether what a session has of its own is kept for the next one of the same partition.
            session_cache_size: For how many partitions.
            session_cache_duration: How long each is kept after its last use.
            region_suffix: Suffix of the key ids of this region.
            read_suffixes: Suffixes of other regions whose keys are read, never written with; the empty one for ids
                without.
            peers: Whether other Asherah implementations share the key table: records without `Bind` are accepted.
            create_system_keys: Whether this process may make system keys.
            metastore: A key table for all engines, e.g. a `DynamoDBMetastore`; closed by `close`. Left out, the key
                table is in a database, see `attach`.
            clock: Seconds since 1970-01-01 UTC.

        Raises:
            ConfigurationError: A setting is unusable.
        """
        self._ids = KeyIds(service, product, region_suffix or "", peers)
        if isinstance(read_suffixes, str):
            raise ConfigurationError("read_suffixes is one text; give a tuple of region suffixes")
        self._ids.regions(read_suffixes)
        self._read_suffixes = tuple(read_suffixes)
        self._kms = kms
        self._metastore = metastore
        self._policy = CryptoPolicy(
            expire_after=expire_after.total_seconds(),
            check_interval=check_interval.total_seconds(),
            precision=precision.total_seconds(),
            max_stale=max_stale.total_seconds(),
            rotation_grace=rotation_grace.total_seconds(),
            rotation_spread=rotation_spread.total_seconds(),
            early_rotation=early_rotation,
            max_wraps=max_wraps,
            cache_size=cache_size,
            cache_eviction=cache_eviction,
            cache_system_keys=cache_system_keys,
            cache_intermediate_keys=cache_intermediate_keys,
            shared_intermediate_keys=shared_intermediate_keys,
            session_cache=session_cache,
            session_cache_size=session_cache_size,
            session_cache_duration=session_cache_duration.total_seconds(),
            create_system_keys=create_system_keys,
            clock=clock,
        )
        super().__init__(self._ids, self._policy)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Configure from environment variables.

        Args:
            environ: SERVICE_NAME and PRODUCT_ID; KMS (`static`, `aws`, `secrets-manager`, `vault` or `vault-transit`)
                with the settings of that service (STATIC_MASTER_KEY_HEX; REGION_MAP and PREFERRED_REGION, or
                KMS_KEY_ID and AWS_REGION; SECRETS_MANAGER_SECRET_ID and AWS_REGION; VAULT_*), and KMS_PREVIOUS while
                system keys move from another one; Metastore (`rdbms`, or `dynamodb` with DDB_TABLE, AWS_REGION and
                DDB_REGION_SUFFIX); and the optional EXPIRE_AFTER_SECS, REVOKE_CHECK_INTERVAL_SECS,
                CREATE_DATE_PRECISION_SECS, ASHERAH_MAX_STALE_SECS, ASHERAH_ROTATION_GRACE_SECS,
                ASHERAH_ROTATION_SPREAD_SECS, INTERMEDIATE_KEY_CACHE_MAX_SIZE, CACHE_SYSTEM_KEYS,
                CACHE_INTERMEDIATE_KEYS, SHARED_INTERMEDIATE_KEY_CACHE, SESSION_CACHE, SESSION_CACHE_MAX_SIZE,
                SESSION_CACHE_DURATION_SECS, REGION_SUFFIX, RECOVERY_REGION_SUFFIXES (a comma list, an empty element
                for ids without suffix), ASHERAH_CREATE_SYSTEM_KEYS and ASHERAH_PEERS, which with
                `Metastore=dynamodb` is 1 unless it is set: the other implementations write no `Bind`.

        Returns:
            The configured object.

        Raises:
            ConfigurationError: A variable is missing, malformed or contradictory.
        """
        return cls._from_settings(Settings.from_env(environ))

    @classmethod
    def from_mapping(cls, config: Mapping[str, object], environ: Mapping[str, str] = os.environ) -> Self:
        """Configure from the configuration of another Asherah implementation, by its JSON names.

        Args:
            config: `ServiceName`, `ProductID`, `KMS`, `ExpireAfter`, `CheckInterval`, `Metastore`, `RegionMap`, …
            environ: The environment, for what the configuration leaves out; to contradict it is an error.

        Returns:
            The configured object.

        Raises:
            ConfigurationError: A setting is unknown, missing, malformed, contradictory, or has no meaning here.
        """
        return cls._from_settings(Settings.from_mapping(config, environ))

    @classmethod
    def _from_settings(cls, settings: Settings) -> Self:
        return cls(
            settings.service,
            settings.product,
            settings.open_kms(),
            metastore=settings.open_metastore(),
            **{name: getattr(settings, name) for name in _SETTINGS},
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
            ConfigurationError: The database is not supported, another `Asherah` is attached, or there are two key
                tables, one here and one in the settings.
        """
        root = key_table.root_engine(engine)
        current: Attachment | None = getattr(root.dialect, "_sa_asherah", None)
        if current is not None:
            if current.owner is self:
                return
            raise ConfigurationError("another Asherah is attached to this engine: detach it first")
        if metastore is not None and self._metastore is not None:
            raise ConfigurationError(
                "attach() names another key table than Asherah(metastore=...) or Metastore=dynamodb; remove one of them"
            )
        keys = self._metastore or (root if metastore is None else key_table.root_engine(metastore))
        opened = key_table.open_metastore(keys, separate=metastore is not None) if isinstance(keys, Engine) else keys
        kind = "sql" if isinstance(keys, Engine) else type(keys).__name__.lower().removesuffix("metastore")
        hierarchy = Hierarchy(
            self._ids,
            self._policy,
            MeteredKMS(self._kms, self.events),
            MeteredMetastore(opened, kind, self.events),
            self.events,
            read_suffixes=self._read_suffixes,
        )
        self._expect(hierarchy)
        Attachment(root, hierarchy, self, keys=None if keys is root else keys).install(root)
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
            self._dismiss(current.hierarchy)
        self._engines.discard(root)

    def create_metastore(self, bind: Engine | Connection | None = None) -> None:
        """Create the key table if it does not exist.

        With an `AsyncConnection`: `await connection.run_sync(asherah.create_metastore)`.

        Args:
            bind: The engine or connection of the database that holds the data. On a connection of PostgreSQL, MySQL
                or MariaDB, commit before the first encrypted value is written. With a key table outside of the
                databases (DynamoDB) it is not used and may be left out.

        Raises:
            UsageError: `bind` is left out and the key table is in a database.
            MetastoreError: The key table outside of the databases cannot be created.
        """
        if self._metastore is not None:
            self._metastore.create()
        elif bind is None:
            raise UsageError("say in which database to create the key table: asherah.create_metastore(engine)")
        else:
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

    def system_keys(self, engine: Engine | AsyncEngine | None = None) -> SystemKeys:
        """Give what an operator does with system keys: rotate, rewrap, migrate.

        Its calls block, and commit at once: make them outside of transactions and event loops.

        Args:
            engine: The engine of the database that holds the key table; it need not be attached. Not used with a key
                table outside of the databases (DynamoDB).

        Returns:
            The operations, with this object's key service and policy.

        Raises:
            UsageError: `engine` is left out and the key table is in a database.
            ConfigurationError: The database is not supported, or in memory.
        """
        rows: Metastore
        if self._metastore is not None:
            rows = self._metastore
        elif engine is None:
            raise UsageError("say which database holds the key table: asherah.system_keys(engine)")
        else:
            rows = key_table.open_metastore(key_table.root_engine(engine), separate=True)
        current = self._kms.current if isinstance(self._kms, Succession) else None
        return SystemKeys(
            self._ids,
            self._policy,
            self._kms,
            rows,
            current=current,
            events=self.events,
            read_suffixes=self._read_suffixes,
        )

    @property
    def parts(self) -> Parts:
        """What this object is made of."""
        return Parts(self._ids.regions(self._read_suffixes), self._policy, self._kms, self._metastore)

    def close(self) -> None:
        """Detach all engines, wipe the keys in memory and close the key service. Calling it twice is harmless."""
        for engine in list(self._engines):
            self.detach(engine)
        if self._metastore is not None:
            self._metastore.close()
        self._kms.close()
