# SPDX-License-Identifier: Apache-2.0
"""Other schemas and other engines beside an application's own."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, StaticPool, create_engine, event
from sqlalchemy.ext.asyncio import create_async_engine

from tests.orm.app import App
from tests.orm.models import Base
from tests.servers.database import async_url

SCHEMA = "matrix_other"


@contextmanager
def other_schema(app: App) -> Generator[str]:
    """Have an empty schema beside the default one; on SQLite an attached file, on MariaDB a database."""
    if app.dialect == "sqlite":
        yield from _attached(app)
        return
    create, drop = ("SCHEMA", "SCHEMA {} CASCADE") if app.dialect == "postgresql" else ("DATABASE", "DATABASE {}")
    with app.engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE {create} {SCHEMA}")
    try:
        yield SCHEMA
    finally:
        with app.engine.begin() as connection:
            connection.exec_driver_sql(f"DROP {drop.format(SCHEMA)}")


def _attached(app: App) -> Generator[str]:
    def attach(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        cursor.execute(f"ATTACH DATABASE '' AS {SCHEMA}")
        cursor.close()

    app.engine.dispose()
    event.listen(app.engine, "connect", attach)
    try:
        yield SCHEMA
    finally:
        event.remove(app.engine, "connect", attach)
        app.engine.dispose()


@contextmanager
def again(app: App) -> Generator[Engine]:
    """Have another engine for the same database, with no `Asherah`."""
    engine = create_async_engine(async_url(app.url)).sync_engine if app.is_async else create_engine(app.url)
    try:
        yield engine
    finally:
        engine.dispose()


@contextmanager
def elsewhere(app: App) -> Generator[Engine]:
    """Have an engine of another database, with tables and keys of its own."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    asherah = app.asherah
    asherah.attach(engine)
    asherah.create_metastore(engine)
    Base.metadata.create_all(engine)
    try:
        yield engine
    finally:
        asherah.detach(engine)
        engine.dispose()
