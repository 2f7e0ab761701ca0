# SPDX-License-Identifier: Apache-2.0
"""A CHECK of a table of SQLite, which cannot alter one: the table is built anew as its own SQL says.

`batch_alter_table` would build it from what SQLAlchemy reflects, and lose triggers, collations, AUTOINCREMENT, indexes
of expressions and CHECKs without a name.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import sqlalchemy as sa

from sa_asherah.alembic.errors import MigrationError
from sa_asherah.alembic.names import quoted

if TYPE_CHECKING:
    from alembic.operations import Operations
    from sqlalchemy import Connection
    from sqlalchemy.engine import Dialect

__all__ = ["rebuild", "with_check", "without_check"]

_TOKEN = re.compile(
    r"""'(?:[^']|'')*' | "(?:[^"]|"")*" | `(?:[^`]|``)*` | \[[^]]*] | --[^\n]* | /\*.*?\*/ | \w+ | \s+ | .""",
    re.DOTALL | re.VERBOSE,
)
_NAME = 2
"""Which word of CREATE TABLE is the name; SQLite keeps the statement without the schema."""


def rebuild(operations: Operations, table: str, schema: str | None, name: str, condition: str | None) -> None:
    """Give a table a CHECK, or take it away; all at once or not at all.

    Args:
        operations: Alembic's.
        table: The table.
        schema: Its schema.
        name: The constraint's name.
        condition: What it demands; `None` takes it away.

    Raises:
        MigrationError: There is no such table or CHECK, `--sql` is given, or rows that refer to the table would be
            deleted.
    """
    if operations.get_context().as_sql:
        raise MigrationError(
            f"SQLite cannot alter the table {table!r}: it is built anew from what it is, at which --sql cannot look. "
            "Run this revision against the database"
        )
    connection = operations.get_bind()
    _require_no_deletion(connection, table, schema)
    was = connection.exec_driver_sql("PRAGMA legacy_alter_table").scalar_one()
    connection.exec_driver_sql("SAVEPOINT asherah_rebuild")
    try:
        connection.exec_driver_sql("PRAGMA legacy_alter_table = ON")  # views name a table that is gone for a moment
        _rebuild(connection, table, schema or "main", name, condition)
    except BaseException:
        connection.exec_driver_sql("ROLLBACK TO asherah_rebuild")
        raise
    finally:
        connection.exec_driver_sql("RELEASE asherah_rebuild")
        connection.exec_driver_sql(f"PRAGMA legacy_alter_table = {was}")


def _rebuild(connection: Connection, table: str, schema: str, name: str, condition: str | None) -> None:
    dialect, temporary = connection.dialect, f"_asherah_tmp_{table}"
    place = quoted(dialect, schema)
    old, new = quoted(dialect, schema, table), quoted(dialect, schema, temporary)
    query = f"SELECT type, sql FROM {place}.sqlite_master WHERE tbl_name = :table COLLATE NOCASE AND sql IS NOT NULL"  # noqa: S608 -- names are quoted here and below
    made = [(str(kind), str(sql)) for kind, sql in connection.execute(sa.text(query), {"table": table})]
    words, statement = _changed(dict(made).get("table", ""), table, name, condition, dialect)
    columns = connection.exec_driver_sql(f"PRAGMA {place}.table_xinfo({quoted(dialect, table)})")
    names = ", ".join(quoted(dialect, column.name) for column in columns if not column.hidden)  # not generated ones
    connection.exec_driver_sql(f"CREATE TABLE {new}{statement[words[_NAME].end() :]}")
    connection.exec_driver_sql(f"INSERT INTO {new} ({names}) SELECT {names} FROM {old}")  # noqa: S608
    if any(word.group().upper() == "AUTOINCREMENT" for word in words):
        given = {"old": table, "new": temporary}
        connection.execute(sa.text(f"DELETE FROM {place}.sqlite_sequence WHERE name = :new"), {"new": temporary})  # noqa: S608
        connection.execute(sa.text(f"UPDATE {place}.sqlite_sequence SET name = :new WHERE name = :old"), given)  # noqa: S608
    connection.exec_driver_sql(f"DROP TABLE {old}")
    connection.exec_driver_sql(f"ALTER TABLE {new} RENAME TO {quoted(dialect, table)}")
    for kind, sql in made:
        if kind != "table":
            words = _words(sql)
            start = words[_NAME + (words[1].group().upper() == "UNIQUE")].start()
            connection.exec_driver_sql(f"{sql[:start]}{place}.{sql[start:]}")


def _changed(
    statement: str, table: str, name: str, condition: str | None, dialect: Dialect
) -> tuple[list[re.Match[str]], str]:
    if not statement:
        raise MigrationError(f"there is no table {table!r}")
    without = without_check(statement, name)
    if (condition is None) == (without is None):
        raise MigrationError(f"the table {table!r} has {'no' if without is None else 'a'} CHECK {name!r}")
    changed = with_check(statement, quoted(dialect, name), condition) if condition is not None else str(without)
    return _words(changed), changed


def _require_no_deletion(connection: Connection, table: str, schema: str | None) -> None:
    if not connection.exec_driver_sql("PRAGMA foreign_keys").scalar_one():
        return
    keys = sa.inspect(connection).get_multi_foreign_keys(schema=schema)
    if any(key["referred_table"] == table for found in keys.values() for key in found):
        raise MigrationError(
            f"SQLite would delete the rows that refer to {table!r} when it is built anew: let Alembic's connection say "
            "PRAGMA foreign_keys = OFF before its transaction begins"
        )


def _words(statement: str) -> list[re.Match[str]]:
    """Give the words and marks of a statement, without space and comments."""
    found = _TOKEN.finditer(statement)
    return [word for word in found if not word.group().isspace() and not word.group().startswith(("--", "/*"))]


def _closing(words: list[re.Match[str]], start: int) -> int:
    """Tell which word closes the first parenthesis from a word on."""
    depth = 0
    for number, word in enumerate(words[start:], start=start):
        depth += {"(": 1, ")": -1}.get(word.group(), 0)
        if depth == 0 and word.group() == ")":
            return number
    raise MigrationError("SQLite keeps a CREATE TABLE whose parentheses do not match")


def with_check(statement: str, name: str, condition: str) -> str:
    """Add a CHECK to a CREATE TABLE.

    Args:
        statement: The statement.
        name: The constraint's name, quoted.
        condition: What it demands.

    Returns:
        The statement with it.
    """
    words = _words(statement)
    end = words[_closing(words, 0)].start()
    # On a line of its own: the last one may end with a comment.
    return f"{statement[:end]}\n, CONSTRAINT {name} CHECK ({condition}){statement[end:]}"


def without_check(statement: str, name: str) -> str | None:
    """Take a CHECK out of a CREATE TABLE.

    Args:
        statement: The statement.
        name: The constraint's name.

    Returns:
        The statement without it; `None` if it is not there.
    """
    words = _words(statement)
    texts = [word.group() for word in words]
    for number, text in enumerate(texts[:-_NAME]):
        is_named = texts[number + 1].strip('"`[]') == name.replace('"', '""')
        if text.upper() == "CONSTRAINT" and is_named and texts[number + 2].upper() == "CHECK":
            first = number - (texts[number - 1] == ",")
            return statement[: words[first].start()].rstrip() + statement[words[_closing(words, number)].end() :]
    return None
