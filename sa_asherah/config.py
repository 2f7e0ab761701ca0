# SPDX-License-Identifier: Apache-2.0
"""Settings from the environment or a mapping: strict, secret-free in every text, checked before anything is opened."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from datetime import timedelta
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, NoReturn

from sa_asherah.environ import read_count, read_flag, read_seconds, read_text, refuse_misfits
from sa_asherah.errors import ConfigurationError
from sa_asherah.mapping import json_name, to_environ

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sa_asherah.core.ports import ExternalMetastore, KeyManagementService

__all__ = ["STAGE_NAMES", "Settings"]

STAGE_NAMES = ("ASHERAH_ENV", "APP_ENV", "FLASK_ENV", "DJANGO_ENV", "ENVIRONMENT")
"""Variables that may say that this process runs in production."""

_KMS_NAMES = ("static", "aws", "secrets-manager", "vault", "vault-transit")
_METASTORE_NAMES = ("rdbms", "dynamodb")
_AWS_NAMES = (
    "AWS_DEFAULT_REGION",
    "AWS_REGION",
    "KMS_KEY_ID",
    "PREFERRED_REGION",
    "REGION_MAP",
    "SECRETS_MANAGER_SECRET_ID",
)
_FOREIGN_METASTORES = ("memory", "sqlite", "test-debug-memory", "test-debug-sqlite")


@dataclass(frozen=True)
class Settings:
    """What `Asherah.from_env` and `Asherah.from_mapping` need to know.

    It may hold secrets: its `repr` shows none and it cannot be pickled.

    Attributes:
        service: Name of the service, part of every key id.
        product: Name of the product, part of every key id.
        kms: Which key management service wraps the system keys: `static`, `aws`, `secrets-manager`, `vault` or
            `vault-transit` (the same).
        environ: The variables that the key management service reads: `VAULT_*`, `BAO_*`, KMS_KEY_ID, REGION_MAP,
            PREFERRED_REGION, SECRETS_MANAGER_SECRET_ID, AWS_REGION and `STAGE_NAMES`.
        kms_previous: The service that wrapped the system keys until now, while they move to `kms`.
        static_master_key_hex: The static master key, 64 hexadecimal digits.
        metastore: Where the key table is: `rdbms`, the engine's own database, or `dynamodb`.
        ddb_table: Name of the DynamoDB table.
        expire_after: Age at which a key encrypts no more.
        check_interval: How often a cached key is checked against the key table.
        precision: What the date of a new key is rounded down to.
        max_stale: How long past `check_interval` keys are used while the key table cannot be read.
        rotation_grace: How long past its expiry a key encrypts while its successor cannot be made.
        rotation_spread: Over how long the keys of owners give way after their system key expired.
        cache_size: How many keys of each level stay in memory.
        cache_system_keys: Whether system keys stay in memory.
        cache_intermediate_keys: Whether intermediate keys stay in memory.
        shared_intermediate_keys: Whether sessions share one cache of intermediate keys.
        session_cache: Whether what a session has of its own is kept for the next one of the same partition. Naming a
            size or a duration asks for it, too.
        session_cache_size: For how many partitions.
        session_cache_duration: How long each is kept after its last use.
        region_suffix: Suffix of the key ids of this region: REGION_SUFFIX, or the AWS region where DDB_REGION_SUFFIX
            (also ENABLE_REGION_SUFFIX) asks for it.
        read_suffixes: Suffixes of other regions whose keys are read, the empty one for ids without.
        peers: Whether other Asherah implementations use the same key table. With `dynamodb` true unless
            ASHERAH_PEERS says otherwise: a configuration taken over from another implementation comes with a table
            whose records have no `Bind`.
        create_system_keys: Whether this process may make system keys.
    """

    service: str
    product: str
    kms: str
    environ: Mapping[str, str] = field(repr=False, compare=False)
    kms_previous: str | None = None
    static_master_key_hex: str | None = field(default=None, repr=False)
    metastore: str = "rdbms"
    ddb_table: str = "EncryptionKey"
    expire_after: timedelta = timedelta(days=90)
    check_interval: timedelta = timedelta(minutes=60)
    precision: timedelta = timedelta(minutes=1)
    max_stale: timedelta = timedelta(hours=1)
    rotation_grace: timedelta = timedelta(hours=24)
    rotation_spread: timedelta = timedelta(days=7)
    cache_size: int = 1000
    cache_system_keys: bool = True
    cache_intermediate_keys: bool = True
    shared_intermediate_keys: bool = True
    session_cache: bool = False
    session_cache_size: int = 1000
    session_cache_duration: timedelta = timedelta(hours=2)
    region_suffix: str | None = None
    read_suffixes: tuple[str, ...] = ()
    peers: bool = False
    create_system_keys: bool = True

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Read the settings; an empty variable counts as missing.

        Args:
            environ: The environment. What it holds later does not change the settings.

        Returns:
            The settings, each of them checked by itself.

        Raises:
            ConfigurationError: A setting is missing or malformed; the text names it and the remedy.
        """
        refuse_misfits(environ)
        metastore = _metastore_name(environ)
        peers = read_flag(environ, "ASHERAH_PEERS")
        may_create = read_flag(environ, "ASHERAH_CREATE_SYSTEM_KEYS")
        return cls(
            service=_required(environ, "SERVICE_NAME", "the name of this service, e.g. records"),
            product=_required(environ, "PRODUCT_ID", "the name of the product it belongs to, e.g. clinic"),
            kms=_kms_name(environ),
            kms_previous=_previous_kms_name(environ),
            environ=MappingProxyType({name: environ[name] for name in environ if _is_for_kms(name)}),
            static_master_key_hex=read_text(environ, "STATIC_MASTER_KEY_HEX"),
            metastore=metastore,
            ddb_table=_table_name(environ),
            expire_after=read_seconds(environ, "EXPIRE_AFTER_SECS", cls.expire_after, least=1),
            check_interval=read_seconds(environ, "REVOKE_CHECK_INTERVAL_SECS", cls.check_interval, least=0),
            precision=read_seconds(environ, "CREATE_DATE_PRECISION_SECS", cls.precision, least=1),
            max_stale=read_seconds(environ, "ASHERAH_MAX_STALE_SECS", cls.max_stale, least=0),
            rotation_grace=read_seconds(environ, "ASHERAH_ROTATION_GRACE_SECS", cls.rotation_grace, least=0),
            rotation_spread=read_seconds(environ, "ASHERAH_ROTATION_SPREAD_SECS", cls.rotation_spread, least=0),
            cache_size=read_count(environ, "INTERMEDIATE_KEY_CACHE_MAX_SIZE", cls.cache_size),
            cache_system_keys=read_flag(environ, "CACHE_SYSTEM_KEYS") is not False,
            cache_intermediate_keys=read_flag(environ, "CACHE_INTERMEDIATE_KEYS") is not False,
            shared_intermediate_keys=read_flag(environ, "SHARED_INTERMEDIATE_KEY_CACHE") is not False,
            session_cache=_caches_sessions(environ),
            session_cache_size=read_count(environ, "SESSION_CACHE_MAX_SIZE", cls.session_cache_size),
            session_cache_duration=read_seconds(
                environ, "SESSION_CACHE_DURATION_SECS", cls.session_cache_duration, least=1
            ),
            region_suffix=_region_suffix(environ, metastore),
            read_suffixes=_read_suffixes(environ),
            peers=metastore == "dynamodb" if peers is None else peers,
            create_system_keys=may_create is None or may_create,
        )

    @classmethod
    def from_mapping(cls, config: Mapping[str, object], environ: Mapping[str, str] = os.environ) -> Settings:
        """Read the configuration of another Asherah implementation, by its JSON names.

        Args:
            config: `ServiceName`, `ProductID`, `KMS`, `ExpireAfter`, …; `None` counts as missing.
            environ: The environment, for what the configuration leaves out.

        Returns:
            The settings, each of them checked by itself.

        Raises:
            ConfigurationError: A setting is unknown, missing, malformed, without meaning here, or the environment
                contradicts it; the text names it and the remedy.
        """
        merged = to_environ(config, environ)
        try:
            return cls.from_env(merged)
        except ConfigurationError as error:
            text = json_name(str(error))
        raise ConfigurationError(text)

    def open_kms(self) -> KeyManagementService:
        """Make the key management service that the settings name. Nothing is asked of it yet.

        Returns:
            The service; whoever asked for it closes it.

        Raises:
            ConfigurationError: A setting of the service is missing, malformed or unsafe, or its extra is missing.
        """
        # By name: this module is below `sa_asherah.kms`, whose modules read their settings with its functions.
        service: KeyManagementService = import_module("sa_asherah.kms").open_kms(self)
        return service

    def open_metastore(self) -> ExternalMetastore | None:
        """Give access to the key table that the settings name. Nothing is asked of it yet.

        Returns:
            The key table; `None` where it is in the engine's own database.

        Raises:
            ConfigurationError: A setting is missing or malformed, or the extra `aws` is.
        """
        if self.metastore == "rdbms":
            return None
        region = import_module("sa_asherah.boto").read_region(self.environ)
        table: ExternalMetastore = import_module("sa_asherah.metastore.dynamodb").DynamoDBMetastore(
            region, self.ddb_table
        )
        return table

    def __reduce__(self) -> NoReturn:
        raise TypeError("Settings may hold secrets and cannot be pickled; call Settings.from_env() in each process")


def _required(environ: Mapping[str, str], name: str, meaning: str) -> str:
    value = read_text(environ, name)
    if value is None:
        raise ConfigurationError(f"{name} is required: {meaning}")
    return value


def _kms_name(environ: Mapping[str, str]) -> str:
    name = _required(environ, "KMS", f"one of {', '.join(_KMS_NAMES)}; there is no default")
    if name not in _KMS_NAMES:
        raise ConfigurationError(f"KMS must be one of {', '.join(_KMS_NAMES)}; got {name!r}")
    return name


def _previous_kms_name(environ: Mapping[str, str]) -> str | None:
    name = read_text(environ, "KMS_PREVIOUS")
    if name is None:
        return None
    if name not in _KMS_NAMES:
        raise ConfigurationError(f"KMS_PREVIOUS must be one of {', '.join(_KMS_NAMES)}; got {name!r}")
    current = _kms_name(environ)
    if name.removesuffix("-transit") == current.removesuffix("-transit"):
        raise ConfigurationError(f"KMS_PREVIOUS names the same service as KMS ({current!r}); remove KMS_PREVIOUS")
    return name


def _metastore_name(environ: Mapping[str, str]) -> str:
    given, other = read_text(environ, "Metastore"), read_text(environ, "METASTORE")
    if given and other and given.lower() != other.lower():
        raise ConfigurationError("Metastore and METASTORE are both set and differ; remove one of them")
    given = given or other
    name = (given or "rdbms").lower()
    if name in _FOREIGN_METASTORES:
        raise ConfigurationError(
            f"Metastore={given} is not offered: the key table is in the database of the engine that you attach, of "
            "whatever kind; set Metastore=rdbms, or remove it"
        )
    if name not in _METASTORE_NAMES:
        raise ConfigurationError(f"Metastore must be one of {', '.join(_METASTORE_NAMES)}; got {given!r}")
    if given is None and read_text(environ, "DDB_TABLE") is not None:
        raise ConfigurationError("DDB_TABLE is set and Metastore is not; set Metastore=dynamodb, or remove DDB_TABLE")
    return name


def _table_name(environ: Mapping[str, str]) -> str:
    name = read_text(environ, "DDB_TABLE") or Settings.ddb_table
    if not re.fullmatch("[a-zA-Z0-9_.-]{3,255}", name):
        raise ConfigurationError(f"DDB_TABLE must have 3 to 255 letters, digits, '_', '.' or '-'; got {name!r}")
    return name


def _caches_sessions(environ: Mapping[str, str]) -> bool:
    wanted = read_flag(environ, "SESSION_CACHE")
    if wanted is None:
        return any(read_text(environ, name) for name in ("SESSION_CACHE_MAX_SIZE", "SESSION_CACHE_DURATION_SECS"))
    return wanted


def _read_suffixes(environ: Mapping[str, str]) -> tuple[str, ...]:
    value = read_text(environ, "RECOVERY_REGION_SUFFIXES")
    return () if value is None else tuple(dict.fromkeys(part.strip() for part in value.split(",")))


def _region_suffix(environ: Mapping[str, str], metastore: str) -> str | None:
    suffix = read_text(environ, "REGION_SUFFIX")
    flags = {read_flag(environ, name) for name in ("DDB_REGION_SUFFIX", "ENABLE_REGION_SUFFIX")} - {None}
    if len(flags) > 1:
        raise ConfigurationError("DDB_REGION_SUFFIX and ENABLE_REGION_SUFFIX contradict each other; remove one of them")
    if metastore != "dynamodb" or True not in flags:
        return suffix
    region = read_text(environ, "AWS_REGION") or read_text(environ, "AWS_DEFAULT_REGION")
    if region is None:
        raise ConfigurationError("DDB_REGION_SUFFIX needs AWS_REGION: the region becomes the suffix of the key ids")
    if suffix is not None and suffix != region:
        raise ConfigurationError(
            f"DDB_REGION_SUFFIX makes {region!r} the suffix of the key ids and REGION_SUFFIX is {suffix!r}; remove one"
        )
    return region


def _is_for_kms(name: str) -> bool:
    return name.startswith(("VAULT_", "BAO_")) or name in STAGE_NAMES or name in _AWS_NAMES
