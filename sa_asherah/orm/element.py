# SPDX-License-Identifier: Apache-2.0
"""The SQL element that reads an encrypted column: owner text, a zero byte, ciphertext, as one binary value.

A row-bound column is preceded by its primary key in the same way. Text and JSON are packed as the bytes of their text.

`CASE WHEN c IS NOT NULL THEN COALESCE(owner text, '') … c END`: without it a row whose owner is NULL would read as
None, since NULL || c is NULL. An engine of another family needs one more rendering here and a table variant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.elements import ColumnElement, TypeCoerce

from sa_asherah.errors import OwnerRequiredError, UnsupportedOperatorError
from sa_asherah.orm.lineage import bare, label_of, neighbour, origin
from sa_asherah.orm.owner import owner_kind
from sa_asherah.orm.plan import plan_of
from sa_asherah.orm.reading import Packed
from sa_asherah.orm.types import Encrypted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.sql.compiler import SQLCompiler

__all__ = ["SUPPORTED_DIALECTS", "PackedColumn", "pack"]

SUPPORTED_DIALECTS = ("sqlite", "postgresql", "mysql", "mariadb")


class PackedColumn(ColumnElement[Any]):
    """An encrypted column as it stands in a column list or RETURNING."""

    __visit_name__ = "sa_asherah_packed_column"
    inherit_cache = False

    def __init__(self, cell: ColumnElement[Any], places: Sequence[ColumnElement[Any]], type_: Packed) -> None:
        """Join the column with what names its place.

        Args:
            cell: The encrypted column.
            places: The primary key of a row-bound column, then the owner where it is in reach.
            type_: How the result is opened.
        """
        self.cell = cell
        self.places = places
        self.packed = self.type = type_


def pack(column: ColumnElement[Any], type_: Encrypted) -> ColumnElement[Any]:
    """Choose how a selected encrypted column is read.

    Args:
        column: What the statement selects.
        type_: Its type.

    Returns:
        The element to render in its place.

    Raises:
        UnsupportedOperatorError: The element is a function, an aggregate or another expression over ciphertext.
    """
    element = bare(column)
    tables = origin(element)
    for leaf in tables:
        plan_of(leaf.table)  # refuses what a Core table cannot declare
    labels = {label_of(leaf) for leaf in tables if isinstance(leaf.type, Encrypted)}
    if len(labels) == 1 and all(isinstance(leaf.type, Encrypted) for leaf in tables):
        owner, row = neighbour(element, tables, "owner"), neighbour(element, tables, "bind_row")
        if type_.bind_row is not None and row is None:
            raise OwnerRequiredError(
                f"{column} is bound to its row, and the primary key is not in reach of this statement: select "
                f"{type_.bind_row} beside it in the same subquery"
            )
        source = tables[0].table.c
        kind = None if owner is None or type_.owner is None else owner_kind(source[type_.owner])
        row_kind = None if type_.bind_row is None else owner_kind(source[type_.bind_row])
        places = [place for place in (row, owner) if place is not None]
        return PackedColumn(column, places, Packed(type_, kind, labels.pop(), row_kind))
    if not labels and type_.label is not None and isinstance(element, TypeCoerce):
        return PackedColumn(column, (), Packed(type_, None, type_.label))
    raise UnsupportedOperatorError(
        "an encrypted column can only be selected as it is: functions, aggregates, CASE, scalar subqueries and unions "
        "of different encrypted columns over it work on ciphertext; select the column and compute in Python"
    )


class _Templates(NamedTuple):
    """How a dialect writes it: the whole, what names the place, text or JSON as bytes, and JSON alone as text."""

    packed: str
    place: str
    text: str = "{}"
    json: str = "{}"


def _render(element: PackedColumn, compiler: SQLCompiler, dialect: _Templates, kw: dict[str, Any]) -> str:
    inner = {name: kw[name] for name in ("include_table", "literal_binds", "from_linter") if name in kw}
    cell = compiler.process(element.cell, **inner)
    storage = element.packed.column_type.storage
    if not element.places:
        return dialect.json.format(cell) if storage == "json" else cell
    places = "".join(dialect.place.format(compiler.process(each, **inner)) for each in element.places)
    is_text = storage != "binary"
    return dialect.packed.format(cell=cell, places=places, bytes=dialect.text.format(cell) if is_text else cell)


_GENERIC = _Templates(
    "CASE WHEN {cell} IS NOT NULL THEN {places}{bytes} END", "COALESCE(CAST({} AS VARCHAR), '') || x'00' || "
)
_SQLITE = _Templates(
    "CASE WHEN {cell} IS NOT NULL THEN CAST({places}{bytes} AS BLOB) END", "COALESCE(CAST({} AS TEXT), '') || x'00' || "
)
_POSTGRESQL = _Templates(
    "CASE WHEN {cell} IS NOT NULL THEN {places}{bytes} END",
    "convert_to(COALESCE(CAST({} AS TEXT), ''), 'UTF8') || decode('00', 'hex') || ",
    "convert_to(CAST({} AS TEXT), 'UTF8')",
    "CAST({} AS TEXT)",
)
# CONCAT gives NULL beyond max_allowed_packet: COALESCE makes that an empty owner, a typed error.
_MYSQL = _Templates(
    "CASE WHEN {cell} IS NOT NULL THEN COALESCE(CONCAT({places}{bytes}), 0x00) END",
    "COALESCE(CAST(CONVERT({} USING utf8mb4) AS BINARY), ''), 0x00, ",
    "CAST(CONVERT({} USING utf8mb4) AS BINARY)",
)


@compiles(PackedColumn)
def _render_generic(element: PackedColumn, compiler: SQLCompiler, **kw: Any) -> str:
    return _render(element, compiler, _GENERIC, kw)


@compiles(PackedColumn, "sqlite")
def _render_sqlite(element: PackedColumn, compiler: SQLCompiler, **kw: Any) -> str:
    return _render(element, compiler, _SQLITE, kw)


@compiles(PackedColumn, "postgresql")
def _render_postgresql(element: PackedColumn, compiler: SQLCompiler, **kw: Any) -> str:
    return _render(element, compiler, _POSTGRESQL, kw)


@compiles(PackedColumn, "mysql", "mariadb")
def _render_mysql(element: PackedColumn, compiler: SQLCompiler, **kw: Any) -> str:
    return _render(element, compiler, _MYSQL, kw)
