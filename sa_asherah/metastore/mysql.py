# SPDX-License-Identifier: Apache-2.0
"""The key table on MySQL and MariaDB: dates are UTC wall-clock texts, as all Asherah implementations send them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import (
    Executable,
    Text,
    and_,
    bindparam,
    cast,
    delete,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.exc import IntegrityError

from sa_asherah.core.ports import KeyRow
from sa_asherah.metastore.rows import ServerRows
from sa_asherah.metastore.table import encryption_key, seconds_of, text_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["MySQLRows"]

_CHUNK = 500

_key = encryption_key.c

_latest = (
    select(_key.id, func.max(_key.created).label("created"))
    .where(
        _key.id.in_(bindparam("ids", expanding=True)),
        _key.created <= bindparam("not_after", type_=Text()),
    )
    .group_by(_key.id)
    .subquery("latest")
)
_COLUMNS = (_key.id, cast(_key.created, mysql.CHAR()), cast(_key.key_record, mysql.CHAR()))
_NEWEST = select(*_COLUMNS).join(_latest, and_(_key.id == _latest.c.id, _key.created == _latest.c.created))
_VERSIONS = select(*_COLUMNS).where(_key.id == bindparam("id")).order_by(_key.created.desc())
_at_place = and_(_key.id == bindparam("row_id"), _key.created == bindparam("moment", type_=Text()))
_OVERWRITE = update(encryption_key).where(_at_place).values(key_record=bindparam("new", type_=Text()))
# As bytes: a collation may take other texts for equal, and ignores spaces at the end.
_REPLACE = _OVERWRITE.where(
    cast(cast(_key.key_record, mysql.CHAR()), mysql.BINARY())
    == cast(cast(bindparam("old", type_=Text()), mysql.CHAR()), mysql.BINARY())
)
_DELETE = delete(encryption_key).where(_at_place)
_LOCKED = select(cast(_key.key_record, mysql.CHAR())).where(_at_place)
_LOCK = _LOCKED.with_for_update(read=True)
_LOCK_TO_WRITE = _LOCKED.with_for_update()
# Not INSERT IGNORE, which also cuts off what is too long, nor ON DUPLICATE KEY UPDATE, for which MariaDB wants the
# right to update every column.
_INSERT = mysql.insert(encryption_key).values(
    id=bindparam("row_id"),
    created=bindparam("moment", type_=Text()),
    key_record=bindparam("text", type_=Text()),
)
_TAKEN = 1062


class MySQLRows(ServerRows):
    """Rows on MySQL and MariaDB."""

    def _prepare(self) -> None:
        """Do nothing: the connection is set up when it is made."""

    def _newest(self, ids: Sequence[str], not_after: int) -> Iterator[KeyRow]:
        for start in range(0, len(ids), _CHUNK):
            chunk = list(ids[start : start + _CHUNK])
            for row in self._rows(_NEWEST, {"ids": chunk, "not_after": text_of(not_after)}):
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
            yield from self._rows(select(*_COLUMNS).where(or_(*places)), parameters)

    def _versions(self, key_id: str) -> Iterator[KeyRow]:
        return (row for row in self._rows(_VERSIONS, {"id": key_id}) if row.id == key_id)

    def _replace(self, row: KeyRow, text: str) -> bool:
        values = _place(row) | {"old": row.text, "new": text}
        return bool(self._connection.execute(_REPLACE, values).rowcount)

    def _insert(self, rows: Sequence[KeyRow]) -> None:
        values = [_place(row) | {"text": row.text} for row in rows]
        if values and not self._is_inserted(values):
            # A refused statement inserts nothing; the transaction goes on.
            for one in values:
                self._is_inserted([one])

    def _is_inserted(self, values: list[dict[str, object]]) -> bool:
        try:
            self._connection.execute(_INSERT, values)
        except IntegrityError as error:
            if error.orig is None or error.orig.args[0] != _TAKEN:
                raise
            return False
        return True

    def _overwrite(self, row: KeyRow) -> None:
        self._connection.execute(_OVERWRITE, _place(row) | {"new": row.text})

    def _delete(self, row: KeyRow) -> None:
        self._connection.execute(_DELETE, _place(row))

    def _locked_text(self, row: KeyRow, *, write: bool = False) -> str | None:
        return self._connection.execute(_LOCK_TO_WRITE if write else _LOCK, _place(row)).scalar()

    def _rows(self, statement: Executable, parameters: Mapping[str, object]) -> list[KeyRow]:
        rows: list[KeyRow] = []
        for key_id, created, record in self._read(statement, parameters):
            seconds = seconds_of(created)
            if seconds is not None:
                rows.append(KeyRow(key_id, seconds, record))
        return rows


def _place(row: KeyRow) -> dict[str, object]:
    return {"row_id": row.id, "moment": text_of(row.created)}
