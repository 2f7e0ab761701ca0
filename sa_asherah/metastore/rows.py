# SPDX-License-Identifier: Apache-2.0
"""The key table on a server, through a connection of our own; every call is one short, committed transaction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    TIMESTAMP,
    BigInteger,
    Connection,
    CursorResult,
    Executable,
    Function,
    Text,
    and_,
    bindparam,
    case,
    cast,
    extract,
    func,
    literal_column,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.exc import DBAPIError

from sa_asherah.core.ids import MAX_CREATED
from sa_asherah.core.ports import KeyRow
from sa_asherah.metastore import failure
from sa_asherah.metastore.table import encryption_key, seconds_of, text_of

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence

__all__ = ["MySQLRows", "PostgreSQLRows", "ServerRows"]

_CHUNK = 500
_EPOCH = datetime.fromtimestamp(0, UTC)
_LAST = datetime.fromtimestamp(MAX_CREATED, UTC)

_key = encryption_key.c


class ServerRows(ABC):
    """Rows of the key table; between two calls no transaction is open, so the KMS may take its time."""

    def __init__(self, connection: Connection) -> None:
        """Use a connection on which nothing is going on.

        Args:
            connection: The connection.
        """
        self._connection = connection

    def newest(self, ids: Sequence[str], not_after: int) -> Mapping[str, KeyRow]:
        """Read the newest row of each id.

        Args:
            ids: Exact key ids.
            not_after: Rows with a later `created` (seconds) do not count.

        Returns:
            The rows found, by id.

        Raises:
            MetastoreError: The table cannot be read.
        """
        return {row.id: row for row in self._newest(ids, not_after)}

    def exact(self, pairs: Sequence[tuple[str, int]]) -> Mapping[tuple[str, int], KeyRow]:
        """Read rows by exact id and `created`.

        Args:
            pairs: (id, created in seconds).

        Returns:
            The rows found, by pair.

        Raises:
            MetastoreError: The table cannot be read.
        """
        return {(row.id, row.created): row for row in self._exact(pairs)}

    def versions(self, key_id: str) -> Sequence[KeyRow]:
        """Read all rows of one id.

        Args:
            key_id: Exact key id.

        Returns:
            The rows, newest first.

        Raises:
            MetastoreError: The table cannot be read.
        """
        return list(self._versions(key_id))

    def replace(self, row: KeyRow, text: str) -> bool:
        """Put another record in the place of one, if it is still exactly the one that was read, and commit.

        Args:
            row: The row as it was read.
            text: The new record, JSON.

        Returns:
            Whether it was.

        Raises:
            MetastoreError: The table cannot be written.
        """
        with self._transaction():
            return bool(self._replace(row, text).rowcount)

    def insert(self, rows: Sequence[KeyRow]) -> None:
        """Insert the rows whose (id, created) is not taken, and commit.

        Args:
            rows: The rows.

        Raises:
            MetastoreError: The table cannot be written.
        """
        # In one order everywhere, so that two writers wait for each other and do not deadlock.
        ordered = sorted(rows, key=lambda row: (row.id, row.created))
        with self._transaction():
            self._insert(ordered)

    @abstractmethod
    def _newest(self, ids: Sequence[str], not_after: int) -> Iterator[KeyRow]: ...

    @abstractmethod
    def _exact(self, pairs: Sequence[tuple[str, int]]) -> Iterator[KeyRow]: ...

    @abstractmethod
    def _versions(self, key_id: str) -> Iterator[KeyRow]: ...

    @abstractmethod
    def _replace(self, row: KeyRow, text: str) -> CursorResult[Any]: ...

    @abstractmethod
    def _insert(self, rows: Sequence[KeyRow]) -> None: ...

    @abstractmethod
    def _prepare(self) -> None:
        """Set what holds for one transaction."""

    @contextmanager
    def _transaction(self) -> Generator[None]:
        try:
            with self._connection.begin():
                self._prepare()
                yield
        except (DBAPIError, OSError) as error:
            raise failure.of_server(error, self._connection.dialect) from error

    def _read(self, statement: Executable, parameters: Mapping[str, object]) -> list[tuple[str, object, str]]:
        with self._transaction():
            return [(row[0], row[1], row[2]) for row in self._connection.execute(statement, parameters)]


# PostgreSQL

_wanted = (
    func.unnest(bindparam("ids", type_=postgresql.ARRAY(Text()))).table_valued("id", name="wanted").render_derived()
)
_last = (
    select(_key.id, cast(extract("epoch", _key.created), BigInteger()), cast(_key.key_record, Text()))
    .where(
        _key.id == _wanted.c.id,
        # Rows of other programs: infinity, fractions of a second.
        _key.created.between(_EPOCH, bindparam("not_after", type_=TIMESTAMP(timezone=True))),
        _key.created == func.date_trunc("second", _key.created),
    )
    .order_by(_key.created.desc())
    .limit(1)
    .lateral("last")
)
_PG_NEWEST = select(_last).select_from(_wanted.join(_last, true()))

_pairs = (
    func.unnest(
        bindparam("ids", type_=postgresql.ARRAY(Text())),
        bindparam("moments", type_=postgresql.ARRAY(TIMESTAMP(timezone=True))),
    )
    .table_valued("id", "created", name="wanted")
    .render_derived()
)
_PG_EXACT = select(
    _key.id, cast(extract("epoch", _key.created), BigInteger()), cast(_key.key_record, Text())
).select_from(_pairs.join(encryption_key, and_(_key.id == _pairs.c.id, _key.created == _pairs.c.created)))

_PG_VERSIONS = (
    select(_key.id, cast(extract("epoch", _key.created), BigInteger()), cast(_key.key_record, Text()))
    .where(
        _key.id == bindparam("id", type_=Text()),
        _key.created.between(_EPOCH, _LAST),
        _key.created == func.date_trunc("second", _key.created),
    )
    .order_by(_key.created.desc())
)
_PG_REPLACE = (
    update(encryption_key)
    .where(
        _key.id == bindparam("row_id", type_=Text()),
        _key.created == bindparam("moment", type_=TIMESTAMP(timezone=True)),
        cast(_key.key_record, Text()) == bindparam("old", type_=Text()),
    )
    .values(key_record=cast(bindparam("new", type_=Text()), postgresql.JSONB()))
)

_new = (
    func.unnest(
        bindparam("ids", type_=postgresql.ARRAY(Text())),
        bindparam("moments", type_=postgresql.ARRAY(TIMESTAMP(timezone=True))),
        bindparam("texts", type_=postgresql.ARRAY(Text())),
    )
    .table_valued("id", "created", "key_record", name="new")
    .render_derived()
)
# The texts travel as text: the application's own JSON serializer takes no part.
_PG_INSERT = (
    postgresql.insert(encryption_key)
    .from_select(
        ["id", "created", "key_record"],
        select(_new.c.id, _new.c.created, cast(_new.c.key_record, postgresql.JSONB())),
    )
    .on_conflict_do_nothing(index_elements=["id", "created"])
)


def _local(name: str, value: object) -> Function[str]:
    return func.set_config(name, value, true(), type_=Text())


_commit_mode = func.current_setting("synchronous_commit")
_PG_PREPARE = select(
    _local("lock_timeout", "5s"),
    _local("statement_timeout", "10s"),
    # Weaker modes lose acknowledged keys in a crash, and every value under them; a stronger one stays.
    _local("synchronous_commit", case((_commit_mode.in_(["off", "local", "remote_write"]), "on"), else_=_commit_mode)),
)


class PostgreSQLRows(ServerRows):
    """Rows on PostgreSQL."""

    def _prepare(self) -> None:
        self._connection.execute(_PG_PREPARE)

    def _newest(self, ids: Sequence[str], not_after: int) -> Iterator[KeyRow]:
        found = self._read(_PG_NEWEST, {"ids": list(ids), "not_after": _moment(not_after)})
        return (KeyRow(key_id, int(str(created)), record) for key_id, created, record in found)

    def _exact(self, pairs: Sequence[tuple[str, int]]) -> Iterator[KeyRow]:
        found = self._read(
            _PG_EXACT, {"ids": [pair[0] for pair in pairs], "moments": [_moment(pair[1]) for pair in pairs]}
        )
        return (KeyRow(key_id, int(str(created)), record) for key_id, created, record in found)

    def _versions(self, key_id: str) -> Iterator[KeyRow]:
        found = self._read(_PG_VERSIONS, {"id": key_id})
        return (KeyRow(row_id, int(str(created)), record) for row_id, created, record in found)

    def _replace(self, row: KeyRow, text: str) -> CursorResult[Any]:
        values = {"row_id": row.id, "moment": _moment(row.created), "old": row.text, "new": text}
        return self._connection.execute(_PG_REPLACE, values)

    def _insert(self, rows: Sequence[KeyRow]) -> None:
        columns = {
            "ids": [row.id for row in rows],
            "moments": [_moment(row.created) for row in rows],
            "texts": [row.text for row in rows],
        }
        self._connection.execute(_PG_INSERT, columns)


# MySQL and MariaDB: dates are UTC wall-clock texts, as all Asherah implementations send them.

_latest = (
    select(_key.id, func.max(_key.created).label("created"))
    .where(
        _key.id.in_(bindparam("ids", expanding=True)),
        _key.created <= bindparam("not_after", type_=Text()),
    )
    .group_by(_key.id)
    .subquery("latest")
)
_MY_COLUMNS = (_key.id, cast(_key.created, mysql.CHAR()), cast(_key.key_record, mysql.CHAR()))
_MY_NEWEST = select(*_MY_COLUMNS).join(_latest, and_(_key.id == _latest.c.id, _key.created == _latest.c.created))
_MY_VERSIONS = select(*_MY_COLUMNS).where(_key.id == bindparam("id")).order_by(_key.created.desc())
# As bytes: a collation may take other texts for equal, and ignores spaces at the end.
_MY_REPLACE = (
    update(encryption_key)
    .where(
        _key.id == bindparam("row_id"),
        _key.created == bindparam("moment", type_=Text()),
        cast(cast(_key.key_record, mysql.CHAR()), mysql.BINARY())
        == cast(cast(bindparam("old", type_=Text()), mysql.CHAR()), mysql.BINARY()),
    )
    .values(key_record=bindparam("new", type_=Text()))
)
# Not INSERT IGNORE, which also cuts off what is too long.
_MY_INSERT = (
    mysql.insert(encryption_key)
    .values(
        id=bindparam("row_id"),
        created=bindparam("moment", type_=Text()),
        key_record=bindparam("text", type_=Text()),
    )
    .on_duplicate_key_update(id=literal_column("id"))
)


class MySQLRows(ServerRows):
    """Rows on MySQL and MariaDB."""

    def _prepare(self) -> None:
        """Do nothing: the connection is set up when it is made."""

    def _newest(self, ids: Sequence[str], not_after: int) -> Iterator[KeyRow]:
        for start in range(0, len(ids), _CHUNK):
            chunk = list(ids[start : start + _CHUNK])
            for row in self._rows(_MY_NEWEST, {"ids": chunk, "not_after": text_of(not_after)}):
                # Under a collation that takes several ids for one, only the exact id is ours.
                if row.id in chunk:
                    yield row

    def _exact(self, pairs: Sequence[tuple[str, int]]) -> Iterator[KeyRow]:
        for start in range(0, len(pairs), _CHUNK):
            chunk = pairs[start : start + _CHUNK]
            # Not (id, created) IN (...): MariaDB reads the whole table for it.
            places = [
                and_(_key.id == bindparam(f"id_{n}"), _key.created == bindparam(f"created_{n}", type_=Text()))
                for n in range(len(chunk))
            ]
            parameters = {f"id_{n}": pair[0] for n, pair in enumerate(chunk)}
            parameters |= {f"created_{n}": text_of(pair[1]) for n, pair in enumerate(chunk)}
            yield from self._rows(select(*_MY_COLUMNS).where(or_(*places)), parameters)

    def _versions(self, key_id: str) -> Iterator[KeyRow]:
        return (row for row in self._rows(_MY_VERSIONS, {"id": key_id}) if row.id == key_id)

    def _replace(self, row: KeyRow, text: str) -> CursorResult[Any]:
        values = {"row_id": row.id, "moment": text_of(row.created), "old": row.text, "new": text}
        return self._connection.execute(_MY_REPLACE, values)

    def _insert(self, rows: Sequence[KeyRow]) -> None:
        values = [{"row_id": row.id, "moment": text_of(row.created), "text": row.text} for row in rows]
        self._connection.execute(_MY_INSERT, values)

    def _rows(self, statement: Executable, parameters: Mapping[str, object]) -> list[KeyRow]:
        rows: list[KeyRow] = []
        for key_id, created, record in self._read(statement, parameters):
            seconds = seconds_of(created)
            if seconds is not None:
                rows.append(KeyRow(key_id, seconds, record))
        return rows


def _moment(created: int) -> datetime:
    return datetime.fromtimestamp(created, UTC)
