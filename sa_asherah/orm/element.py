# SPDX-License-Identifier: Apache-2.0
"""The SQL element that reads an encrypted column: owner text, a zero byte, ciphertext, as one binary value.

`CASE WHEN c IS NOT NULL THEN COALESCE(owner text, '') … c END`: without it a row whose owner is NULL would read as
None, since NULL || c is NULL. An engine of another family needs one more rendering here and a table variant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.elements import ColumnElement, TypeCoerce

from sa_asherah.errors import UnsupportedOperatorError
from sa_asherah.orm.lineage import bare, label_of, origin, owner_of
from sa_asherah.orm.owner import owner_kind
from sa_asherah.orm.reading import Packed
from sa_asherah.orm.types import Encrypted

if TYPE_CHECKING:
    from sqlalchemy.sql.compiler import SQLCompiler

__all__ = ["SUPPORTED_DIALECTS", "PackedColumn", "pack"]

SUPPORTED_DIALECTS = ("sqlite", "postgresql", "mysql", "mariadb")


class PackedColumn(ColumnElement[Any]):
    """An encrypted column as it stands in a column list or RETURNING."""

    __visit_name__ = "sa_asherah_packed_column"
    inherit_cache = False

    def __init__(self, cell: ColumnElement[Any], owner: ColumnElement[Any] | None, type_: Packed) -> None:
        """Join the column with its owner.

        Args:
            cell: The encrypted column.
            owner: The owner column beside it, `None` where it is not in reach.
            type_: How the result is opened.
        """
        self.cell = cell
        self.owner = owner
        self.type = type_


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
    labels = {label_of(leaf) for leaf in tables if isinstance(leaf.type, Encrypted)}
    if len(labels) == 1 and all(isinstance(leaf.type, Encrypted) for leaf in tables):
        owner = owner_of(element, tables)
        source = tables[0].table.c[type_.owner] if owner is not None and type_.owner is not None else None
        kind = None if source is None else owner_kind(source)
        return PackedColumn(column, owner, Packed(type_, kind, labels.pop()))
    if not labels and type_.label is not None and isinstance(element, TypeCoerce):
        return PackedColumn(column, None, Packed(type_, None, type_.label))
    raise UnsupportedOperatorError(
        "an encrypted column can only be selected as it is: functions, aggregates, CASE, scalar subqueries and unions "
        "of different encrypted columns over it work on ciphertext; select the column and compute in Python"
    )


def _render(element: PackedColumn, compiler: SQLCompiler, packed: str, owner: str, kw: dict[str, Any]) -> str:
    inner = {name: kw[name] for name in ("include_table", "literal_binds", "from_linter") if name in kw}
    cell = compiler.process(element.cell, **inner)
    if element.owner is None:
        return cell
    text = owner.format(compiler.process(element.owner, **inner))
    return packed.format(cell=cell, owner=text)


@compiles(PackedColumn)
def _render_generic(element: PackedColumn, compiler: SQLCompiler, **kw: Any) -> str:
    packed = "CASE WHEN {cell} IS NOT NULL THEN COALESCE({owner}, '') || x'00' || {cell} END"
    return _render(element, compiler, packed, "CAST({} AS VARCHAR)", kw)


@compiles(PackedColumn, "sqlite")
def _render_sqlite(element: PackedColumn, compiler: SQLCompiler, **kw: Any) -> str:
    packed = "CASE WHEN {cell} IS NOT NULL THEN CAST(COALESCE({owner}, '') || x'00' || {cell} AS BLOB) END"
    return _render(element, compiler, packed, "CAST({} AS TEXT)", kw)


@compiles(PackedColumn, "postgresql")
def _render_postgresql(element: PackedColumn, compiler: SQLCompiler, **kw: Any) -> str:
    text = "convert_to(COALESCE({owner}, ''), 'UTF8')"
    packed = "CASE WHEN {cell} IS NOT NULL THEN " + text + " || decode('00', 'hex') || {cell} END"
    return _render(element, compiler, packed, "CAST({} AS TEXT)", kw)


@compiles(PackedColumn, "mysql", "mariadb")
def _render_mysql(element: PackedColumn, compiler: SQLCompiler, **kw: Any) -> str:
    # CONCAT gives NULL beyond max_allowed_packet: the second COALESCE makes that an empty owner, a typed error.
    packed = "CASE WHEN {cell} IS NOT NULL THEN COALESCE(CONCAT(COALESCE({owner}, ''), 0x00, {cell}), 0x00) END"
    return _render(element, compiler, packed, "CAST(CONVERT({} USING utf8mb4) AS BINARY)", kw)
