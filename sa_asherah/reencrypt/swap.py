# SPDX-License-Identifier: Apache-2.0
"""Compare-and-swap: a value is replaced only while the row holds exactly the bytes that were read, of the same owner.

What is compared are bytes, on every database: collations find 'abc' in 'ABC ', JSON has no equality, floats round.
A cell is compared by its header and nonce, which no other cell has, and its length; a long plaintext by length and
SHA-256, so that it does not travel twice.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    Float,
    Integer,
    Text,
    and_,
    bindparam,
    case,
    cast,
    func,
    literal,
    literal_column,
    null,
    or_,
    update,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.types import BINARY, CHAR, VARBINARY, Enum, LargeBinary, String

from sa_asherah.orm.windows import innermost

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sqlalchemy import BindParameter, ColumnElement, Connection, Update
    from sqlalchemy.engine import Dialect
    from sqlalchemy.types import TypeEngine

    from sa_asherah.reencrypt.pages import Pages, Position

__all__ = ["LONGEST", "NOTHING", "Old", "Stored", "Swap", "Swapper", "old_of"]

LONGEST: Final = 8192
"""Up to so many bytes plaintext is compared byte by byte."""
_TOGETHER: Final = 50
"""Rows of one statement on MySQL and MariaDB, whose drivers send one after the other and wait for each."""
_TOGETHER_BYTES: Final = 2**18
"""Their bytes, or they go one by one: a server refuses what is longer than its max_allowed_packet."""
_BINARY_HEAD: Final = 72
_TEXT_HEAD: Final = 100
"""`sa1:` and the 96 characters of 72 bytes."""
_BINARY: Final = LargeBinary()
_HOLD_BYTES: Final = (LargeBinary, BINARY, VARBINARY, mysql.TINYBLOB, mysql.MEDIUMBLOB, mysql.LONGBLOB)


@dataclass(frozen=True, slots=True)
class Old:
    """What must still be in the row.

    Attributes:
        size: Length in bytes; -1 says NULL.
        taken: How many bytes from the beginning are compared; 0 says that the digest is.
        token: These bytes, or the digest.
    """

    size: int
    taken: int
    token: bytes


NOTHING: Final = Old(-1, 1, b"")
"""NULL."""


@dataclass(frozen=True, slots=True)
class Swap:
    """A row to be changed.

    Attributes:
        position: Its primary key.
        old: What must still be there, by column name; owners too.
        new: What to write, by column name.
    """

    position: Position
    old: Mapping[str, Old]
    new: Mapping[str, Any]


class Stored:
    """The bytes of one column, as the server computes them and as the driver tells them."""

    def __init__(self, column: ColumnElement[Any], type_: TypeEngine[Any], dialect: Dialect) -> None:
        """Choose by what the database stores.

        Args:
            column: The column, without a type.
            type_: Its type.
            dialect: The engine's dialect.
        """
        stored = innermost(type_.dialect_impl(dialect))
        self.column = column
        self._kind = "mysql" if dialect.name == "mariadb" else dialect.name
        self._bytes: ColumnElement[Any] = self._expression(stored)
        # A driver's CHAR may be one type with its String.
        padded = any(isinstance(each, BINARY | CHAR | Enum) for each in (innermost(type_), stored))
        self.is_exact = self._kind != "sqlite" and isinstance(stored, (*_HOLD_BYTES, String)) and not padded
        """Whether what the driver gives is byte by byte what is stored; if not, the server is asked."""

    @property
    def selected(self) -> list[ColumnElement[Any]]:
        """What `value` and `old` need: the value itself, or also size and token by the server."""
        if self._kind == "sqlite":
            # Text that is not UTF-8, which the driver refuses to read, is in the token.
            is_text = func.typeof(self.column) == literal_column("'text'")
            return [case((is_text, null()), else_=self.column), self._size, self._token]
        return [self.column] if self.is_exact else [self.column, self._size, self._token]

    @property
    def text(self) -> ColumnElement[bytes]:
        """The bytes alone, for what is short: owners and primary keys."""
        return self._bytes

    def value(self, row: Sequence[Any]) -> Any:
        """Give the value.

        Args:
            row: What the database gave for `selected`.

        Returns:
            What the driver makes of it; bytes where it is text that is not UTF-8.
        """
        if self._kind != "sqlite" or row[0] is not None or row[1] < 0:
            return row[0]
        stored = bytes(row[2])
        try:
            return stored.decode()
        except UnicodeDecodeError:
            return stored

    def old(self, row: Sequence[Any], *, is_cell: bool) -> Old:
        """Tell what must still be there when the value is replaced.

        Args:
            row: What the database gave for `selected`.
            is_cell: Whether the value was opened as a cell, so that its header and nonce stand for all of it.

        Returns:
            Size and token.
        """
        value = self.value(row)
        if value is None:
            return NOTHING
        if self.is_exact or is_cell:
            return old_of(value, is_cell=is_cell)
        size, token = int(row[1]), bytes(row[2])
        return Old(size, max(size, 1) if len(token) == size else 0, token)

    def begins(self, mark: bytes) -> ColumnElement[bool]:
        """Tell whether the bytes begin with a mark; those of NULL do not.

        Args:
            mark: The mark.

        Returns:
            The condition.
        """
        head = func.substr(self._bytes, literal_column("1"), literal_column(str(len(mark))), type_=_BINARY)
        return func.coalesce(head, literal(b"", _BINARY)) == literal(mark, _BINARY)

    def unchanged(self, number: str) -> ColumnElement[bool]:
        """Compare with an `Old`.

        Args:
            number: Number of its parameters, `sa_asherah_<size, taken, token>_<number>`.

        Returns:
            The condition.
        """
        taken = bindparam(f"sa_asherah_taken_{number}", type_=Integer())
        head: ColumnElement[Any] = func.substr(self._bytes, literal_column("1"), taken, type_=_BINARY)
        if self._kind != "sqlite":
            head = case((taken == 0, self._digest), else_=head)
        size = self._size == bindparam(f"sa_asherah_size_{number}", type_=Integer())
        nothing = literal(b"", _BINARY)
        return size & (func.coalesce(head, nothing) == bindparam(f"sa_asherah_token_{number}", type_=_BINARY))

    def _expression(self, type_: TypeEngine[Any]) -> ColumnElement[Any]:
        if self._kind == "sqlite":
            # A cast would round a floating point number.
            exact = func.printf("%!.17g", self.column)
            return cast(case((func.typeof(self.column) == "real", exact), else_=self.column), _BINARY)
        if isinstance(type_, _HOLD_BYTES):
            return self.column
        if self._kind == "postgresql":
            return func.convert_to(cast(self.column, Text()), literal_column("'UTF8'"), type_=_BINARY)
        # FLOAT shows six digits of what it holds.
        shown = self.column.op("+")(literal_column("0e0")) if isinstance(type_, Float) else self.column
        return cast(func.convert(shown.op("USING")(literal_column("utf8mb4"))), _BINARY)

    @property
    def _length(self) -> ColumnElement[int]:
        name = func.length if self._kind == "sqlite" else func.octet_length
        return name(self._bytes, type_=Integer())

    @property
    def _size(self) -> ColumnElement[int]:
        return func.coalesce(self._length, literal_column("-1"), type_=Integer())

    @property
    def _digest(self) -> ColumnElement[Any]:
        if self._kind == "postgresql":
            return func.sha256(self._bytes, type_=_BINARY)
        return func.unhex(func.sha2(self._bytes, literal_column("256")), type_=_BINARY)

    @property
    def _token(self) -> ColumnElement[Any]:
        if self._kind == "sqlite":
            return self._bytes
        return case((self._length > literal_column(str(LONGEST)), self._digest), else_=self._bytes)


def old_of(raw: Any, *, is_cell: bool = False) -> Old:
    """Tell what must still be there, from the value itself.

    Args:
        raw: What the driver gave.
        is_cell: Whether it was opened as a cell.

    Returns:
        Size and token.
    """
    stored = raw.encode() if isinstance(raw, str) else bytes(raw)
    if is_cell:
        head = _TEXT_HEAD if isinstance(raw, str) else _BINARY_HEAD
        return Old(len(stored), head, stored[:head])
    if len(stored) > LONGEST:
        return Old(len(stored), 0, hashlib.sha256(stored).digest())
    return Old(len(stored), max(len(stored), 1), stored)


class Swapper:
    """Replaces values in one table."""

    def __init__(self, pages: Pages, stored: Mapping[str, Stored]) -> None:
        """Prepare.

        Args:
            pages: The table.
            stored: Every column that is compared, by name.
        """
        self._pages = pages
        self._stored = stored
        self._statements: dict[tuple[_Names, int], Update] = {}

    def execute(self, connection: Connection, swaps: Sequence[Swap]) -> int:
        """Replace what is still as it was read.

        Args:
            connection: A connection with an open transaction.
            swaps: The rows.

        Returns:
            How many rows were; the others are as somebody else left them.
        """
        groups: dict[_Names, list[Swap]] = {}
        for swap in swaps:
            groups.setdefault((tuple(sorted(swap.old)), tuple(sorted(swap.new))), []).append(swap)
        return sum(self._run(connection, names, group) for names, group in groups.items())

    def _run(self, connection: Connection, names: _Names, group: list[Swap]) -> int:
        is_slow = connection.dialect.name in {"mysql", "mariadb"}
        chunks, alone = _together(group) if is_slow else ([], group)
        changed = 0
        for chunk in chunks:
            parameters = {name: value for row, swap in enumerate(chunk) for name, value in _parameters(swap, f"{row}_")}
            changed += connection.execute(self._statement(names, _TOGETHER), parameters).rowcount
        if alone:
            statement, each = self._statement(names, 1), [dict(_parameters(swap)) for swap in alone]
            if connection.dialect.supports_sane_multi_rowcount:
                return changed + connection.execute(statement, each).rowcount
            changed += sum(connection.execute(statement, one).rowcount for one in each)
        return changed

    def _statement(self, names: _Names, rows: int) -> Update:
        if (names, rows) not in self._statements:
            self._statements[names, rows] = self._update_one(names) if rows == 1 else self._update_many(names, rows)
        return self._statements[names, rows]

    def _update_one(self, names: _Names) -> Update:
        new: dict[str, BindParameter[Any]] = {
            name: bindparam(f"sa_asherah_new_{number}") for number, name in enumerate(names[1])
        }
        return update(self._pages.source).where(self._pages.at("sa_asherah_pk"), *self._unchanged(names)).values(new)

    def _update_many(self, names: _Names, rows: int) -> Update:
        """Replace many rows in one statement: each under its own condition, with its own values."""
        source = self._pages.source
        here = [self._pages.at(f"sa_asherah_pk_{row}") for row in range(rows)]
        conditions = [and_(here[row], *self._unchanged(names, f"{row}_")) for row in range(rows)]
        new = {name: self._chosen(name, number, here) for number, name in enumerate(names[1])}
        return update(source).where(or_(*conditions)).values(new)

    def _chosen(self, name: str, number: int, here: Sequence[ColumnElement[bool]]) -> ColumnElement[Any]:
        values: list[BindParameter[Any]] = [bindparam(f"sa_asherah_new_{row}_{number}") for row in range(len(here))]
        return case(*zip(here, values, strict=True), else_=self._pages.source.c[name])

    def _unchanged(self, names: _Names, prefix: str = "") -> list[ColumnElement[bool]]:
        return [self._stored[name].unchanged(f"{prefix}{number}") for number, name in enumerate(names[0])]


_Names = tuple[tuple[str, ...], tuple[str, ...]]
"""Columns that are compared, and columns that are changed."""


def _together(swaps: Sequence[Swap]) -> tuple[list[Sequence[Swap]], list[Swap]]:
    """Divide rows into those that one statement changes, and those that have one each."""
    chunks: list[Sequence[Swap]] = []
    alone: list[Swap] = []
    for start in range(0, len(swaps), _TOGETHER):
        chunk = swaps[start : start + _TOGETHER]
        if len(chunk) == _TOGETHER and _fits(chunk):
            chunks.append(chunk)
        else:
            alone += chunk
    return chunks, alone


def _fits(chunk: Sequence[Swap]) -> bool:
    news = [value for swap in chunk for value in swap.new.values()]
    tokens = sum(len(old.token) for swap in chunk for old in swap.old.values())
    # Numbers have statements of their own: a CASE of different ones might round them.
    return all(isinstance(new, str | bytes) for new in news) and tokens + sum(map(len, news)) <= _TOGETHER_BYTES


def _parameters(swap: Swap, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for number, value in enumerate(swap.position):
        yield f"sa_asherah_pk_{prefix}{number}", value
    for number, name in enumerate(sorted(swap.old)):
        old = swap.old[name]
        yield f"sa_asherah_size_{prefix}{number}", old.size
        yield f"sa_asherah_taken_{prefix}{number}", old.taken
        yield f"sa_asherah_token_{prefix}{number}", old.token
    for number, name in enumerate(sorted(swap.new)):
        yield f"sa_asherah_new_{prefix}{number}", swap.new[name]
