# SPDX-License-Identifier: Apache-2.0
"""How a conversion is carried out: with which keys, on which connections, and when the migration must fail."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from alembic.operations import Operations
from sqlalchemy import AsyncAdaptedQueuePool, Engine, MetaData, QueuePool, Table, event, inspect, select, text
from sqlalchemy.exc import NoSuchTableError

from sa_asherah.alembic.conversion import Conversion
from sa_asherah.alembic.copying import CreateCopyTriggersOp, has_triggers, settle
from sa_asherah.alembic.errors import MigrationError
from sa_asherah.alembic.names import quoted
from sa_asherah.asherah import Asherah
from sa_asherah.errors import ConfigurationError
from sa_asherah.orm.types import Encrypted
from sa_asherah.reencrypt import Change, Job, Plan
from sa_asherah.reencrypt.database import Database
from sa_asherah.reencrypt.tables import asherah_job

if TYPE_CHECKING:
    from collections.abc import Generator

    from alembic.runtime.migration import MigrationContext
    from sqlalchemy import Connection, Pool

    from sa_asherah.reencrypt import Report

__all__ = ["described", "keys_of"]

_LISTED = 5


@Operations.implementation_for(Conversion)
def _convert(operations: Operations, conversion: Conversion) -> None:
    context = operations.get_context()
    if context.as_sql:
        raise MigrationError(
            f"op.{conversion.verb}_column changes data under keys that SQL does not have, so --sql cannot render it: "
            f"give --sql the revisions before and after this one, and run this one against the database"
        )
    if context._in_external_transaction:  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] # no public name
        raise ConfigurationError(
            f"op.{conversion.verb}_column commits what it does, and env.py gave Alembic a connection in a transaction: "
            "begin it by context.begin_transaction(), after context.configure()"
        )
    with context.autocommit_block():
        connection = operations.get_bind()
        table = described(connection, conversion)
        with _engine(context, connection) as engine, keys_of(context, engine) as asherah:
            is_copy = conversion.into is not None  # whose triggers see to it that nothing stale is in it
            change = Change(
                conversion.column, conversion.target, conversion.source, into=conversion.into, moved=is_copy
            )
            plan = Plan(table, [change], name=conversion.name)
            job = Job(engine, asherah, plan, batch=conversion.batch, rows_per_second=conversion.rows_per_second)
            if conversion.verb == "decrypt":
                _settle(engine, conversion, is_settled=False)
            report = job.run()
            if report.is_complete and conversion.verb != "decrypt":
                _settle(engine, conversion, is_settled=True)
        is_here = _is_here(connection, conversion.name)
    if not report.is_complete:
        raise MigrationError(_advice(conversion, report))
    if not is_here:
        raise ConfigurationError(
            f"op.{conversion.verb}_column did its work in another database than the one that Alembic migrates: correct "
            'config.attributes["asherah_engine"]'
        )


def _copy(conversion: Conversion) -> CreateCopyTriggersOp | None:
    """Tell which column is the encrypted copy of which."""
    if conversion.into is None:
        return None
    pair, cells = (conversion.column, conversion.into), conversion.target
    if conversion.verb == "decrypt":
        pair, cells = (conversion.into, conversion.column), conversion.source[0]
    bound_to = [place for place in (cells.owner, cells.bind_row) if place] if isinstance(cells, Encrypted) else []
    return CreateCopyTriggersOp(conversion.table, *pair, bound_to, schema=conversion.schema)


def _settle(engine: Engine, conversion: Conversion, *, is_settled: bool) -> None:
    copy = _copy(conversion)

    def work(connection: Connection) -> None:
        if copy is not None and has_triggers(connection, copy):
            settle(connection, copy, is_settled=is_settled)

    Database(engine).write(work)


def _is_here(connection: Connection, name: str) -> bool:
    """Tell whether a job is known to the database that Alembic migrates."""
    if not inspect(connection).has_table(asherah_job.name):
        return False
    return connection.scalar(select(asherah_job.c.name).where(asherah_job.c.name == name)) is not None


def described(connection: Connection, conversion: Conversion) -> Table:
    """Describe the table as the database has it, before anything is changed.

    Args:
        connection: A connection.
        conversion: What will be done to it.

    Returns:
        The table, reflected, with the types that the conversion says besides.

    Raises:
        MigrationError: Table or column are missing, the server fills the column, or nothing keeps the copy up to date.
    """
    where = f"op.{conversion.verb}_column({conversion.table!r}, {conversion.column!r})"
    try:
        table = Table(
            conversion.table, MetaData(), schema=conversion.schema, autoload_with=connection, resolve_fks=False
        )
    except NoSuchTableError:
        table = None
    if table is None:
        raise MigrationError(f"{where}: there is no table {conversion.table!r}")
    for name in (conversion.column, conversion.into, *conversion.types):
        if name is not None and name not in table.c:
            raise MigrationError(f"{where}: the table has no column {name!r}")
    for name, type_ in conversion.types.items():
        table.c[name].type = type_
    written = table.c[conversion.into or conversion.column]
    if conversion.verb != "decrypt" and written.server_default is not None:
        raise MigrationError(
            f"{where}: the server's default would go on to store plaintext in {written.name!r}; remove it in an "
            "earlier revision"
        )
    copy = _copy(conversion)
    if copy is not None and conversion.verb != "decrypt" and not has_triggers(connection, copy):
        raise MigrationError(
            f"{where}: nothing would tell when the application changes {conversion.column!r} after it was copied. Call "
            f"op.create_copy_triggers({conversion.table!r}, {conversion.column!r}, {conversion.into!r}, ...) in an "
            "earlier revision; SQLite loses triggers when a batch_alter_table rebuilds the table: then call it again"
        )
    return table


@contextmanager
def _engine(context: MigrationContext, connection: Connection) -> Generator[Engine]:
    """Make connections for the work, besides the one that Alembic holds: to the same place, and kept meanwhile."""
    engine = _attribute(context, "asherah_engine") or connection.engine
    if not isinstance(engine, Engine):
        raise ConfigurationError('config.attributes["asherah_engine"] is to be an engine of create_engine()')
    if engine.dialect.name == "sqlite" and engine.url.database in {None, "", ":memory:"}:
        raise ConfigurationError(
            "a database in memory has one connection, which Alembic holds: use a file, for tests too"
        )
    if connection.get_execution_options().get("schema_translate_map"):
        raise ConfigurationError(
            "the migration runs under a schema_translate_map, which triggers and reflection do not follow: give "
            "schema=, or set search_path on Alembic's connection"
        )
    # An env.py says NullPool, which would connect for every transaction.
    creator = engine.pool._creator  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    kind = AsyncAdaptedQueuePool if engine.dialect.is_async else QueuePool
    pool = kind(creator, pool_size=1, dialect=engine.dialect, _dispatch=engine.pool.dispatch)
    _follow(connection, pool)
    own = Engine(pool, engine.dialect, engine.url, hide_parameters=True)
    try:
        yield own
    finally:
        own.dispose()


def _follow(connection: Connection, pool: Pool) -> None:
    """Let new connections find the tables that Alembic's finds: an `env.py` may have set search_path, or said USE."""
    dialect = connection.dialect
    if dialect.name == "sqlite":
        return
    if dialect.name == "postgresql":
        path = connection.scalar(text("SELECT quote_literal(current_setting('search_path'))"))
        statement = f"SELECT set_config('search_path', {path}, false)"
    else:
        place = connection.scalar(text("SELECT database()"))
        if place is None:
            return
        statement = f"USE {quoted(dialect, place)}"

    @event.listens_for(pool, "connect")
    def follow(raw: Any, _: object) -> None:
        cursor = raw.cursor()
        cursor.execute(statement)
        cursor.close()
        raw.commit()


def _attribute(context: MigrationContext, name: str) -> Any:
    return None if context.config is None else context.config.attributes.get(name)


@contextmanager
def keys_of(context: MigrationContext, engine: Engine) -> Generator[Asherah]:
    """Find the keys: those that the engine has, those that `env.py` gives, those that the environment names.

    Args:
        context: Alembic's.
        engine: The engine to which they are attached for the time of the block.

    Yields:
        The `Asherah`.

    Raises:
        ConfigurationError: Nothing says which.
    """
    attachment = getattr(engine.dialect, "_sa_asherah", None)
    if attachment is not None:
        yield attachment.owner
        return
    bind = context.connection
    attachment = None if bind is None else getattr(bind.dialect, "_sa_asherah", None)
    given = _attribute(context, "asherah") or (attachment and attachment.owner)
    asherah = given or _from_env()
    asherah.attach(engine)
    try:
        yield asherah
    finally:
        asherah.detach(engine)
        if asherah is not given:
            asherah.close()


def _from_env() -> Asherah:
    try:
        return Asherah.from_env()
    except ConfigurationError as error:
        reason = str(error)
    raise ConfigurationError(
        f"this migration needs the keys of the application. Its environment does not say which ({reason}), and "
        'config.attributes["asherah"] is not set: do either'
    )


def _advice(conversion: Conversion, report: Report) -> str:
    """Say what is not done and what to do about it; primary keys are named, values never."""
    said = [f"op.{conversion.verb}_column({conversion.table!r}, {conversion.column!r}) is not finished:"]
    if report.left:
        said.append(
            f"{report.left} values are left, probably since the application still writes the old form. Let only code "
            "run that writes the new one, then run the migration again: it goes on where it stopped."
        )
    if report.quarantined:
        keys = ", ".join(f"{row.primary_key} ({row.reason})" for row in report.quarantined[:_LISTED])
        more = f" and {len(report.quarantined) - _LISTED} more" if len(report.quarantined) > _LISTED else ""
        said.append(
            f"{len(report.quarantined)} values cannot be read as any source and were left as they are, at primary key "
            f"{keys}{more}; see the table asherah_quarantine. Correct them, or name the type that reads them as a "
            "further source, and run the migration again."
        )
    if not report.left and not report.quarantined:
        said.append(
            f"{report.found} values were found and {report.converted} converted, which cannot be all: check that table "
            "and column are the ones meant."
        )
    return " ".join(said)
