# SPDX-License-Identifier: Apache-2.0
"""What the commands work on: the settings of the environment, and the database of the key table."""

from __future__ import annotations

import os
import warnings
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from sa_asherah.asherah import Asherah
from sa_asherah.config import Settings
from sa_asherah.core.ids import KeyIds
from sa_asherah.core.policy import CryptoPolicy
from sa_asherah.environ import read_text
from sa_asherah.errors import (
    AsherahError,
    ConfigurationError,
    MetastoreError,
    MetastoreUnavailableError,
    StaticKeyWarning,
    UsageError,
)
from sa_asherah.metastore import failure, open_metastore, root_engine

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from sa_asherah.core.ports import KeyManagementService, Metastore
    from sa_asherah.core.system_keys import SystemKeys

__all__ = ["Deployment", "KeyTable", "pass_deployment"]

_DATABASE = "ASHERAH_DATABASE_URL"
_DEFAULTS = {"VAULT_RETRY_DEADLINE": "30"}
"""A command may wait longer for Vault's next leader than an application's request."""


@dataclass(frozen=True)
class KeyTable:
    """The key table of a deployment, without a key service: what is stored, and what the settings say of it.

    Attributes:
        ids: The ids of the keys of this service and product.
        read_suffixes: Suffixes of other regions whose keys are read.
        policy: When keys expire.
        metastore: Reads and replaces single records; what it writes is committed at once.
        database: The engine of the database that holds the key table; `None` if it is in none.
    """

    ids: KeyIds
    read_suffixes: tuple[str, ...]
    policy: CryptoPolicy
    metastore: Metastore
    database: Engine | None

    @property
    def engine(self) -> Engine:
        """The engine, for what reads the whole key table.

        Raises:
            UsageError: The key table is in no database.
        """
        if self.database is None:
            raise UsageError(
                "this command reads the whole key table, which is not in a database (Metastore=dynamodb): list and "
                "copy it with DynamoDB's own tools"
            )
        return self.database

    @property
    def regions(self) -> tuple[KeyIds, ...]:
        """The ids of all regions whose keys may be read, this one's first."""
        return self.ids.regions(self.read_suffixes)


class Deployment:
    """Settings and database of an application. A web framework that mounts the commands makes one with its own.

    Attributes:
        environ: The settings, as `Asherah.from_env` reads them.
    """

    def __init__(self, environ: Mapping[str, str] | None = None, engine: Engine | None = None) -> None:
        """Take what is known.

        Args:
            environ: The settings; default: the environment of the process.
            engine: The engine of the database that holds the key table; default: made from `--database`.
        """
        self.environ = os.environ if environ is None else environ
        self._engine = engine

    @property
    def has_external_table(self) -> bool:
        """Whether the key table is outside of the databases (`Metastore=dynamodb`)."""
        return Settings.from_env(self._settings({})).metastore != "rdbms"

    @contextmanager
    def system_keys(self, database: str | None, **variables: str) -> Generator[SystemKeys]:
        """Open the system keys.

        Args:
            database: What `--database` says; not used where the key table is in no database (`Metastore=dynamodb`).
            **variables: Settings that win over the environment.

        Yields:
            The operations on them.

        Raises:
            AsherahError: A setting is missing or unusable.
        """
        environ = self._settings(variables)
        with _named_static_key(), Asherah.from_env(environ) as asherah:
            if Settings.from_env(environ).metastore != "rdbms":
                with asherah.system_keys() as system_keys:
                    yield system_keys
                return
            with self._opened(database) as engine, asherah.system_keys(engine) as system_keys:
                yield system_keys

    @contextmanager
    def attached(self, database: str | None, **variables: str) -> Generator[tuple[Asherah, Engine]]:
        """Open the database with its keys, to read and write what is encrypted.

        Args:
            database: What `--database` says.
            **variables: Settings that win over the environment.

        Yields:
            The `Asherah`, and the engine that it is attached to.

        Raises:
            AsherahError: A setting is missing or unusable, or the database cannot be used.
        """
        with self._opened(database) as engine, _readable_errors(engine):
            current = getattr(root_engine(engine).dialect, "_sa_asherah", None)
            if current is not None:
                # The web application's own engine, with its own keys.
                yield current.owner, engine
                return
            with _named_static_key(), Asherah.from_env(self._settings(variables)) as asherah:
                asherah.attach(engine)
                yield asherah, engine

    @contextmanager
    def key_table(self, database: str | None) -> Generator[KeyTable]:
        """Open the key table without a key service: enough to list, copy and revoke records.

        Args:
            database: What `--database` says; not used where the key table is in no database (`Metastore=dynamodb`).

        Yields:
            The key table.

        Raises:
            AsherahError: A setting is missing or unusable, or the database cannot be used.
        """
        settings = Settings.from_env(self._settings({}))
        ids = KeyIds(settings.service, settings.product, settings.region_suffix or "", settings.peers)
        policy = CryptoPolicy(
            expire_after=settings.expire_after.total_seconds(),
            check_interval=settings.check_interval.total_seconds(),
            precision=settings.precision.total_seconds(),
            max_stale=settings.max_stale.total_seconds(),
            rotation_spread=settings.rotation_spread.total_seconds(),
            early_rotation=0,
        )
        external = settings.open_metastore()
        if external is not None:
            with closing(external):
                yield KeyTable(ids, settings.read_suffixes, policy, external, None)
            return
        with self._opened(database) as engine, _readable_errors(engine):
            _require_file(engine)
            yield KeyTable(ids, settings.read_suffixes, policy, open_metastore(engine, separate=True), engine)

    @contextmanager
    def key_service(self, **variables: str) -> Generator[KeyManagementService]:
        """Open a key service.

        Args:
            **variables: Settings that win over the environment.

        Yields:
            The service.

        Raises:
            ConfigurationError: A setting is missing or unusable.
        """
        with _named_static_key():
            service = Settings.from_env(self._settings(variables)).open_kms()
        try:
            yield service
        finally:
            service.close()

    @contextmanager
    def _opened(self, database: str | None) -> Generator[Engine]:
        if self._engine is not None:
            yield self._engine
            return
        engine = self._made_engine(database)
        try:
            yield engine
        finally:
            engine.dispose()

    def _settings(self, variables: Mapping[str, str]) -> Mapping[str, str]:
        return {**_DEFAULTS, **self.environ, **variables}

    def _made_engine(self, database: str | None) -> Engine:
        url = database or read_text(self.environ, _DATABASE)
        if not url:
            raise ConfigurationError(
                f"which database? Set {_DATABASE}, or give --database URL: that of the data, which holds the key table "
                "unless Metastore=dynamodb"
            )
        reason = ""
        try:
            return create_engine(url, hide_parameters=True)
        except ArgumentError:
            reason = "it is no SQLAlchemy URL, or no driver has its name"
        except ImportError as error:
            reason = f"its driver is not installed: {error.name}"
        # Not from within `except`: SQLAlchemy's errors may quote the URL, and with it the password.
        raise ConfigurationError(f"{_DATABASE} or --database cannot be used: {reason}")


@contextmanager
def _readable_errors(engine: Engine) -> Generator[None]:
    """Turn what the driver raises into one line of this package's, which quotes no parameters."""
    found: AsherahError | None = None
    try:
        yield
    except SQLAlchemyError as error:
        found = _readable(error, engine)
    # Not from within `except`: SQLAlchemy's error holds the statement's parameters.
    if found is not None:
        raise found


def _readable(error: SQLAlchemyError, engine: Engine) -> AsherahError:
    if not isinstance(error, DBAPIError):
        return UsageError(f"SQLAlchemy refused it ({type(error).__name__}); check the tables and columns named")
    cause = error.orig
    if engine.dialect.name == "sqlite" and isinstance(cause, Exception):
        found = failure.of_sqlite(cause)
    else:
        found = failure.of_server(error, engine.dialect)
    if isinstance(found, MetastoreUnavailableError):
        return MetastoreUnavailableError("the database cannot be reached or used now; check that it runs, and the URL")
    if str(found) == failure.NO_TABLE:
        return MetastoreError(
            "a table does not exist; make the key table with sa-asherah init, check the others' names"
        )
    code = getattr(cause, "sqlite_errorname", None) or getattr(cause, "sqlstate", None) or type(cause).__name__
    return MetastoreError(
        f"the database refused a statement ({code}); check that its tables and columns are those named, and the rights "
        "of the user"
    )


def _require_file(engine: Engine) -> None:
    """Refuse a SQLite file that is not there, which connecting would create."""
    name = engine.url.database or ":memory:"
    if engine.dialect.name != "sqlite" or name.startswith((":memory:", "file:")):
        return
    if not Path(name).exists():
        raise ConfigurationError("there is no such database file; check the URL, or make it with sa-asherah init")


@contextmanager
def _named_static_key() -> Generator[None]:
    """Leave out the warning about a static key: whoever runs a command named it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StaticKeyWarning)
        yield


pass_deployment = click.make_pass_decorator(Deployment, ensure=True)
"""Hands a command the `Deployment` in click's context, made from the environment if there is none."""
