# SPDX-License-Identifier: Apache-2.0
"""What the commands work on: the settings of the environment, and the database of the key table."""

from __future__ import annotations

import os
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click
from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import ArgumentError

from sa_asherah.asherah import Asherah
from sa_asherah.config import Settings
from sa_asherah.environ import read_text
from sa_asherah.errors import ConfigurationError, StaticKeyWarning

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from sa_asherah.core.ports import KeyManagementService
    from sa_asherah.core.system_keys import SystemKeys

__all__ = ["Deployment", "pass_deployment"]

_DATABASE = "ASHERAH_DATABASE_URL"
_DEFAULTS = {"VAULT_RETRY_DEADLINE": "30"}
"""A command may wait longer for Vault's next leader than an application's request."""


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
            engine = self._engine or self._made_engine(database)
            try:
                with asherah.system_keys(engine) as system_keys:
                    yield system_keys
            finally:
                if self._engine is None:
                    engine.dispose()

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

    def _settings(self, variables: Mapping[str, str]) -> Mapping[str, str]:
        return {**_DEFAULTS, **self.environ, **variables}

    def _made_engine(self, database: str | None) -> Engine:
        url = database or read_text(self.environ, _DATABASE)
        if not url:
            raise ConfigurationError(f"which database holds the key table? Set {_DATABASE}, or give --database URL")
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
def _named_static_key() -> Generator[None]:
    """Leave out the warning about a static key: whoever runs a command named it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StaticKeyWarning)
        yield


pass_deployment = click.make_pass_decorator(Deployment, ensure=True)
"""Hands a command the `Deployment` in click's context, made from the environment if there is none."""
