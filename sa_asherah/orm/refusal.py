# SPDX-License-Identifier: Apache-2.0
"""The walk over a compiled statement that refuses what ciphertext cannot do; done once for each statement shape.

The column's comparator stops `column == 'x'` where it is written. What it cannot see (functions, `literal == column`,
ORDER BY, GROUP BY, DISTINCT) is found here, before anything is sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy.schema import Column, Table
from sqlalchemy.sql import operators
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.dml import Insert, Update, UpdateBase
from sqlalchemy.sql.elements import BinaryExpression, ColumnElement, Null, TypeCoerce
from sqlalchemy.sql.elements import _textual_label_reference as TextualLabelReference  # noqa: N812
from sqlalchemy.sql.functions import FunctionElement, count
from sqlalchemy.sql.selectable import CompoundSelect, Exists, ScalarSelect, Select, SelectBase

from sa_asherah.errors import UnsupportedOperatorError, UsageError
from sa_asherah.orm.lineage import bare, origin
from sa_asherah.orm.nested import is_rewritten
from sa_asherah.orm.plan import plan_of
from sa_asherah.orm.types import Encrypted
from sa_asherah.orm.updates import STRICT_GUARD

__all__ = ["Shape", "shape_of"]


@dataclass(frozen=True, slots=True)
class Shape:
    """What is known of a compiled statement.

    Attributes:
        encrypted: Whether it reads or writes encrypted columns.
        guards: Names of parameters whose rows must all be matched.
    """

    encrypted: bool
    guards: tuple[str, ...]


def shape_of(compiled: SQLCompiler) -> Shape:
    """Check a compiled statement; the answer is kept on it, and so lives in SQLAlchemy's cache.

    Args:
        compiled: The compiled statement.

    Returns:
        What is known of it.

    Raises:
        UsageError: It does what ciphertext cannot do.
    """
    shape: Shape | None = compiled.__dict__.get("_sa_asherah_shape")
    if shape is None:
        walk = _Walk()
        final = getattr(compiled.compile_state, "statement", None)
        for statement in {id(each): each for each in (compiled.statement, final) if each is not None}.values():
            walk.visit(statement, top=True)
        guards = tuple(name for name in compiled.binds if name.startswith(STRICT_GUARD))
        shape = compiled.__dict__["_sa_asherah_shape"] = Shape(walk.encrypted or bool(guards), guards)
    return shape


def _is_encrypted(element: Any) -> bool:
    return isinstance(element, ColumnElement) and isinstance(element.type, Encrypted)


class _Walk:
    def __init__(self) -> None:
        self.encrypted = False
        self._seen: set[int] = set()
        self._kept: list[Any] = []

    def visit(self, element: Any, *, top: bool = False) -> None:
        """Visit an element that stands where an encrypted column may not."""
        if id(element) in self._seen:
            return
        self._seen.add(id(element))
        self._kept.append(element)  # a collected element's id could be used again
        if isinstance(element, UpdateBase):
            self._visit_dml(element, top=top)
        elif isinstance(element, CompoundSelect):
            self._visit_compound(element)
        elif isinstance(element, Select):
            self._visit_select(element)
        elif isinstance(element, BinaryExpression) and element.operator in {operators.is_, operators.is_not}:
            self._visit_null_test(element)
        elif isinstance(element, Exists):
            self.visit(element.element.element if isinstance(element.element, ScalarSelect) else element.element)
        elif isinstance(element, count):
            for argument in element.clauses:
                self._bare(argument)
        elif _is_encrypted(element) and not isinstance(element, SelectBase):
            self._refuse(element)
        elif not isinstance(element, Table):
            for child in element.get_children():
                self.visit(child)

    def _refuse(self, element: Any) -> None:
        raise UnsupportedOperatorError(
            f"the encrypted column {_name(element)} is used where ciphertext has no meaning (comparison, function, ORDER BY, "
            "GROUP BY, DISTINCT, join): it may be selected as it is, counted, and tested with IS NULL; compute in Python"
        )

    def _bare(self, element: Any) -> None:
        """Visit an element that stands where an encrypted column may, if it is nothing but the column."""
        if not _is_encrypted(element):
            self.visit(element)
            return
        self.encrypted = True
        inner = bare(element)
        if not origin(inner) and not isinstance(inner, TypeCoerce):
            self._refuse(element)

    def _visit_null_test(self, element: BinaryExpression[Any]) -> None:
        if isinstance(element.right, Null) and _is_encrypted(element.left):
            self._bare(element.left)
            return
        for child in element.get_children():
            self.visit(child)

    def _visit_select(self, select: Select[Any]) -> None:
        listed = [column for column in select._raw_columns if not _is_entity(column)]
        for column in listed:
            self._bare(column)
        for entity in select._raw_columns:
            if _is_entity(entity):
                self._visit_entity(entity)
        if select._distinct and not select._distinct_on:
            self._require_key(select, "DISTINCT")
        names = {column.name for column in listed if _is_encrypted(column) and hasattr(column, "name")}
        for clause in (*select._order_by_clauses, *select._group_by_clauses):
            if isinstance(clause, TextualLabelReference) and clause.element in names:
                self._refuse(clause)
        ids = {id(column) for column in select._raw_columns}
        for child in select.get_children():
            if id(child) not in ids:
                self.visit(child)

    def _visit_entity(self, entity: Any) -> None:
        if any(_is_encrypted(column) for column in entity.c):
            self.encrypted = True
        self.visit(entity)

    def _visit_compound(self, compound: CompoundSelect[Any]) -> None:
        if compound.keyword.name not in {"UNION_ALL"}:
            for select in compound.selects:
                if isinstance(select, Select):
                    self._require_key(select, compound.keyword.name)
        for child in compound.get_children():
            self.visit(child)

    def _require_key(self, select: Select[Any], what: str) -> None:
        """DISTINCT and UNION compare rows; with the primary key in the row, ciphertext does not matter."""
        columns = [leaf for column in select.selected_columns for leaf in origin(column)]
        for column in columns:
            if isinstance(column.type, Encrypted) and not all(key in columns for key in column.table.primary_key):
                raise UnsupportedOperatorError(
                    f"{what} over the encrypted column {column}: equal values have different ciphertexts, so nothing "
                    "would be merged; select the primary key too, or use UNION ALL or Python"
                )

    def _visit_dml(self, statement: UpdateBase, *, top: bool) -> None:
        if isinstance(statement, Insert | Update):
            self._visit_written(statement, top=top)
        for column in statement._returning:
            if _is_entity(column):
                self.encrypted = self.encrypted or any(_is_encrypted(each) for each in column.c)
            else:
                self._bare(column)
        for clause in getattr(statement, "_where_criteria", ()):
            self.visit(clause)
        for cte in statement._independent_ctes:
            self.visit(cte)
        if isinstance(statement, Insert) and statement.select is not None:
            self.visit(statement.select)

    def _visit_written(self, statement: Insert | Update, *, top: bool) -> None:
        """Values for plain columns must not be ciphertext; encrypted ones have been sealed if the statement was rewritten."""
        items = dict(statement._values or {}) | dict(getattr(statement, "_ordered_values", None) or ())
        items |= {key: None for rows in statement._multi_values for row in rows[:1] if isinstance(row, dict) for key in row}
        for key, value in items.items():
            plan = plan_of(statement.table if isinstance(key, str) else bare(key).table)
            if plan is None or (key if isinstance(key, str) else bare(key).key) not in plan.keys:
                if isinstance(value, ColumnElement):
                    self.visit(value)
            elif not top and not is_rewritten(statement):
                raise UsageError(
                    f"an INSERT or UPDATE deep inside another statement writes encrypted columns or owners of {plan.table}: "
                    "run it as a statement of its own, or attach it with add_cte() or select() from it directly"
                )
        self.encrypted = self.encrypted or plan_of(statement.table) is not None


def _is_entity(column: Any) -> bool:
    return not isinstance(column, ColumnElement) and hasattr(column, "c")


def _name(element: Any) -> str:
    inner = bare(element)
    if isinstance(inner, Column):
        return f"{inner.table}.{inner.name}"
    if isinstance(inner, FunctionElement):
        return f"in {getattr(inner, 'name', 'a function')}()"
    return str(getattr(inner, "name", None) or type(inner).__name__)
