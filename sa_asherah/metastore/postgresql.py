# SPDX-License-Identifier: Apache-2.0
"""The key table on PostgreSQL."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sqlalchemy import (
    TIMESTAMP,
    BigInteger,
    Function,
    Text,
    and_,
    bindparam,
    case,
    cast,
    delete,
    extract,
    func,
    select,
    true,
    update,
)
from sqlalchemy.dialects import postgresql

from sa_asherah.core.ids import MAX_CREATED
from sa_asherah.core.ports import KeyRow
from sa_asherah.metastore.rows import ServerRows
from sa_asherah.metastore.table import encryption_key

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["PostgreSQLRows"]

_EPOCH = datetime.fromtimestamp(0, UTC)
_LAST = datetime.fromtimestamp(MAX_CREATED, UTC)

_key = encryption_key.c
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
_NEWEST = select(_last).select_from(_wanted.join(_last, true()))

_pairs = (
    func.unnest(
        bindparam("ids", type_=postgresql.ARRAY(Text())),
        bindparam("moments", type_=postgresql.ARRAY(TIMESTAMP(timezone=True))),
    )
    .table_valued("id", "created", name="wanted")
    .render_derived()
)
_EXACT = select(_key.id, cast(extract("epoch", _key.created), BigInteger()), cast(_key.key_record, Text())).select_from(
    _pairs.join(encryption_key, and_(_key.id == _pairs.c.id, _key.created == _pairs.c.created))
)

_VERSIONS = (
    select(_key.id, cast(extract("epoch", _key.created), BigInteger()), cast(_key.key_record, Text()))
    .where(
        _key.id == bindparam("id", type_=Text()),
        _key.created.between(_EPOCH, _LAST),
        _key.created == func.date_trunc("second", _key.created),
    )
    .order_by(_key.created.desc())
)
_at_place = and_(
    _key.id == bindparam("row_id", type_=Text()),
    _key.created == bindparam("moment", type_=TIMESTAMP(timezone=True)),
)
_new_record = {"key_record": cast(bindparam("new", type_=Text()), postgresql.JSONB())}
_OVERWRITE = update(encryption_key).where(_at_place).values(_new_record)
_REPLACE = _OVERWRITE.where(cast(_key.key_record, Text()) == bindparam("old", type_=Text()))
_DELETE = delete(encryption_key).where(_at_place)
_LOCKED = select(cast(_key.key_record, Text())).where(_at_place)
_LOCK = _LOCKED.with_for_update(read=True)
_LOCK_TO_WRITE = _LOCKED.with_for_update()

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
_INSERT = (
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
_PREPARE = select(
    _local("lock_timeout", "5s"),
    _local("statement_timeout", "10s"),
    # Weaker modes lose acknowledged keys in a crash, and every value under them; a stronger one stays.
    _local("synchronous_commit", case((_commit_mode.in_(["off", "local", "remote_write"]), "on"), else_=_commit_mode)),
)


class PostgreSQLRows(ServerRows):
    """Rows on PostgreSQL."""

    def _prepare(self) -> None:
        self._connection.execute(_PREPARE)

    def _newest(self, ids: Sequence[str], not_after: int) -> Iterator[KeyRow]:
        found = self._read(_NEWEST, {"ids": list(ids), "not_after": _moment(not_after)})
        return (KeyRow(key_id, int(str(created)), record) for key_id, created, record in found)

    def _exact(self, pairs: Sequence[tuple[str, int]]) -> Iterator[KeyRow]:
        found = self._read(
            _EXACT, {"ids": [pair[0] for pair in pairs], "moments": [_moment(pair[1]) for pair in pairs]}
        )
        return (KeyRow(key_id, int(str(created)), record) for key_id, created, record in found)

    def _versions(self, key_id: str) -> Iterator[KeyRow]:
        found = self._read(_VERSIONS, {"id": key_id})
        return (KeyRow(row_id, int(str(created)), record) for row_id, created, record in found)

    def _replace(self, row: KeyRow, text: str) -> bool:
        values = _place(row) | {"old": row.text, "new": text}
        return bool(self._connection.execute(_REPLACE, values).rowcount)

    def _insert(self, rows: Sequence[KeyRow]) -> None:
        columns = {
            "ids": [row.id for row in rows],
            "moments": [_moment(row.created) for row in rows],
            "texts": [row.text for row in rows],
        }
        self._connection.execute(_INSERT, columns)

    def _overwrite(self, row: KeyRow) -> None:
        self._connection.execute(_OVERWRITE, _place(row) | {"new": row.text})

    def _delete(self, row: KeyRow) -> None:
        self._connection.execute(_DELETE, _place(row))

    def _locked_text(self, row: KeyRow, *, write: bool = False) -> str | None:
        return self._connection.execute(_LOCK_TO_WRITE if write else _LOCK, _place(row)).scalar()


def _place(row: KeyRow) -> dict[str, object]:
    return {"row_id": row.id, "moment": _moment(row.created)}


def _moment(created: int) -> datetime:
    return datetime.fromtimestamp(created, UTC)
