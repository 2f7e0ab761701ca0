# SPDX-License-Identifier: Apache-2.0
"""A database with the application's tables, engines on it, and what must hold at the end of every test."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, StaticPool, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session

from sa_asherah.metastore.mysql import MySQLRows
from sa_asherah.metastore.postgresql import PostgreSQLRows
from sa_asherah.metastore.sqlite import SQLiteRows
from tests.transactions.programs.notes import Base, asherah, note, read_all

if TYPE_CHECKING:
    from sa_asherah import Asherah
    from sa_asherah.core.hierarchy import Hierarchy
    from sa_asherah.core.key import Key
    from sa_asherah.core.ports import KeyRows

_PATIENCE = 20.0
_OPEN = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE datname = :name",
    "mariadb": "SELECT count(*) FROM information_schema.processlist WHERE db = :name",
}
KILL = {
    "postgresql": "SELECT pg_terminate_backend(:number)",
    "mariadb": "KILL CONNECTION :number",
}
OWN_NUMBER = {"postgresql": "SELECT pg_backend_pid()", "mariadb": "SELECT connection_id()"}


@dataclass
class App:
    """One engine and its Asherah: a process of the application."""

    engine: Engine
    asherah: Asherah

    @property
    def hierarchy(self) -> Hierarchy:
        """The engine's keys."""
        return self.asherah._attachment(self.engine).hierarchy

    def write(self, tenant: str, *texts: str) -> None:
        """Write notes in a transaction of their own."""
        with Session(self.engine) as session:
            session.add_all(note(tenant, each) for each in texts)
            session.commit()


@dataclass
class Site:
    """A database; `journal` and `begins` say how SQLite is used, `memory` that it is not a file."""

    url: str
    journal: str = "delete"
    begins: bool = False
    memory: bool = False
    _engines: list[Engine] = field(default_factory=list[Engine])
    _running: list[Asherah] = field(default_factory=list["Asherah"])

    @property
    def kind(self) -> str:
        """Name of the database family."""
        return make_url(self.url).get_backend_name()

    @property
    def undoes_savepoints(self) -> bool:
        """Whether an outer transaction holds what a savepoint released: not with the sqlite3 module's own BEGIN."""
        return self.kind != "sqlite" or self.begins

    def create(self) -> Site:
        """Create the tables."""
        app = self.start()
        app.asherah.create_metastore(app.engine)
        Base.metadata.create_all(app.engine)
        return self

    def start(self, **options: Any) -> App:
        """Start a process: a new Asherah on a new engine; in memory, on the only engine there is."""
        settings = {name: options.pop(name) for name in ("clock", "check_interval", "expire_after") if name in options}
        if self.memory and self._engines:
            engine = self._engines[0]
            self._running.pop().detach(engine)
        else:
            engine = self._engine(**options)
        app = App(engine, asherah(**settings))
        app.asherah.attach(engine)
        self._running.append(app.asherah)
        return app

    def engine(self, **options: Any) -> Engine:
        """Make an engine without an Asherah."""
        return self._engine(**options)

    def restart_and_read(self) -> list[str]:
        """Read all notes as a process that has seen no key."""
        return read_all(self.start().engine)

    def sql(self, statement: str, **parameters: Any) -> list[Any]:
        """Run SQL as an administrator, committed."""
        if self.memory:
            with self._engines[0].begin() as connection:
                return _rows(connection, statement, parameters)
        # SQLite is not fair: beside busy writers the lock may be long in coming.
        engine = create_engine(self.url, connect_args={"timeout": 60} if self.kind == "sqlite" else {})
        try:
            with engine.begin() as connection:
                return _rows(connection, statement, parameters)
        finally:
            engine.dispose()

    def close(self) -> None:
        """Close the pools and see that nothing else is connected; then end the Asherahs."""
        for engine in self._engines:
            engine.dispose()
        if self.kind in _OPEN:
            self._await_silence()
        for each in self._running:
            each.close()

    def _engine(self, **options: Any) -> Engine:
        if self.memory:
            options |= {"poolclass": StaticPool, "connect_args": {"check_same_thread": False}}
        engine = create_engine(self.url, **options)
        if self.kind == "sqlite":
            _set_up_sqlite(engine, self.journal, begins=self.begins)
        self._engines.append(engine)
        return engine

    def _await_silence(self) -> None:
        name = make_url(self.url).database
        elsewhere = {"postgresql": "postgres", "mariadb": ""}[self.kind]
        engine = create_engine(make_url(self.url).set(database=elsewhere), isolation_level="AUTOCOMMIT")
        try:
            with engine.connect() as connection:
                deadline = time.monotonic() + _PATIENCE
                while still_open := connection.scalar(text(_OPEN[self.kind]), {"name": name}):
                    assert time.monotonic() < deadline, f"{still_open} connections are left open"
                    time.sleep(0.01)
        finally:
            engine.dispose()


def assert_cached_keys_are_stored(app: App) -> None:
    """Every key that may encrypt is in the table, with the very bytes of its record."""
    keyring = app.hierarchy._keyring
    cached = [*keyring.intermediate._newest.values(), *keyring.system._newest.values()]
    assert cached
    with app.engine.connect() as connection:
        stored = _key_rows(connection).exact([(key.id, key.created) for key in cached])
    assert {_place(key): key.text for key in cached} == {place: row.text for place, row in stored.items()}


def own_number(connection: Connection) -> int:
    """Return the server's number of a connection, for `Site.kill`."""
    found: int = connection.exec_driver_sql(OWN_NUMBER[connection.dialect.name]).scalar_one()
    return found


def _place(key: Key) -> tuple[str, int]:
    return key.id, key.created


def _key_rows(connection: Connection) -> KeyRows:
    if connection.dialect.name == "sqlite":
        return SQLiteRows(connection.connection)
    return PostgreSQLRows(connection) if connection.dialect.name == "postgresql" else MySQLRows(connection)


def _rows(connection: Connection, statement: str, parameters: dict[str, Any]) -> list[Any]:
    result = connection.execute(text(statement), parameters)
    return list(result) if result.returns_rows else []


def _set_up_sqlite(engine: Engine, journal: str, *, begins: bool) -> None:
    @event.listens_for(engine, "connect")
    def connected(connection: Any, _record: object) -> None:
        if begins:
            connection.isolation_level = None
        connection.execute(f"PRAGMA journal_mode = {journal}")
        connection.execute("PRAGMA foreign_keys = ON")

    if begins:

        @event.listens_for(engine, "begin")
        def begun(connection: Connection) -> None:
            connection.exec_driver_sql("BEGIN")
