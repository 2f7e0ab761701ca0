# SPDX-License-Identifier: Apache-2.0
"""The walk over a compiled statement that refuses what ciphertext cannot do; done once for each statement shape.

The column's comparator stops `column == 'x'` where it is written. What it cannot see (functions, `literal == column`,
ORDER BY, GROUP BY, DISTINCT) is found here, before anything is sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy.orm.context import FromStatement
from sqlalchemy.schema import Column, Table
from sqlalchemy.sql import operators
from sqlalchemy.sql.dml import Insert, Update, UpdateBase
from sqlalchemy.sql.elements import BinaryExpression, ColumnElement, Null, TypeCoerce
from sqlalchemy.sql.elements import _textual_label_reference as TextualLabelReference  # noqa: N812
from sqlalchemy.sql.functions import FunctionElement, count
from sqlalchemy.sql.selectable import CompoundSelect, Exists, ScalarSelect, Select, TextualSelect

from sa_asherah.errors import UnsupportedOperatorError, UsageError
from sa_asherah.orm.lineage import bare, origin
from sa_asherah.orm.nested import is_rewritten
from sa_asherah.orm.plan import plan_of
from sa_asherah.orm.types import Encrypted
from sa_asherah.orm.updates import STRICT_GUARD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sqlalchemy.sql.compiler import SQLCompiler

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
        # The ORM compiles another statement than it was given: with criteria, joins and ordering of its own.
        final = getattr(compiled.compile_state, "statement", None)
        walk = _Walk(statement for statement in (compiled.statement, final) if statement is not None)
        guards = tuple(name for name in compiled.binds if name.startswith(STRICT_GUARD))
        shape = compiled.__dict__["_sa_asherah_shape"] = Shape(walk.encrypted or bool(guards), guards)
    return shape


def _is_encrypted(element: Any) -> bool:
    return isinstance(element, ColumnElement) and isinstance(element.type, Encrypted)


class _Walk:
    """One walk; `visit` is for places where an encrypted column may not stand, `_bare` for those where it may."""

    def __init__(self, statements: Iterable[Any]) -> None:
        self.encrypted = False
        self._seen: dict[int, Any] = {}  # the elements are kept: the id of a collected one could be used again
        self._top = list(statements)
        for statement in self._top:
            self.visit(statement)

    def visit(self, element: Any) -> None:
        if id(element) in self._seen:
            return
        self._seen[id(element)] = element
        for kind, handle in _HANDLERS:
            if isinstance(element, kind):
                handle(self, element)
                return
        if _is_encrypted(element):
            self._refuse(element)
        self._children(element)

    def _children(self, element: Any) -> None:
        for child in element.get_children():
            self.visit(child)

    def _refuse(self, element: Any) -> None:
        raise UnsupportedOperatorError(
            f"the encrypted column {_name(element)} is used where ciphertext has no meaning (comparison, function, "
            "ORDER BY, GROUP BY, DISTINCT, join): it may be selected as it is, counted, and tested with IS NULL; "
            "compute in Python"
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

    def _visit_nothing(self, element: Any) -> None:
        """Stop: a table's columns are its own affair."""

    def _visit_comparison(self, element: BinaryExpression[Any]) -> None:
        is_null_test = element.operator in {operators.is_, operators.is_not} and isinstance(element.right, Null)
        if is_null_test and _is_encrypted(element.left):
            self._bare(element.left)
        elif _is_encrypted(element):
            self._refuse(element)
        else:
            self._children(element)

    def _visit_exists(self, element: Exists) -> None:
        inner = element.element
        self.visit(inner.element if isinstance(inner, ScalarSelect) else inner)

    def _visit_count(self, element: count) -> None:
        for argument in element.clauses:
            self._bare(argument)

    def _visit_text(self, element: TextualSelect) -> None:
        self.encrypted = self.encrypted or any(_is_encrypted(column) for column in element.column_args)

    def _visit_select(self, select: Select[Any]) -> None:
        listed = self._visit_listed(select._raw_columns)
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

    def _visit_listed(self, listed: Iterable[Any]) -> list[Any]:
        """Visit a column list, and give its columns without the entities."""
        columns: list[Any] = []
        for element in listed:
            if "bundle" in element._annotations:
                columns += self._visit_listed(element.clauses)
            elif not isinstance(element, ColumnElement) and hasattr(element, "c"):
                self.encrypted = self.encrypted or any(_is_encrypted(column) for column in element.c)
                self.visit(element)
            else:
                columns.append(element)
                self._bare(element)
        return columns

    def _visit_from_statement(self, element: FromStatement[Any]) -> None:
        self._visit_listed(element._raw_columns)
        self.visit(element.element)

    def _visit_compound(self, compound: CompoundSelect[Any]) -> None:
        if compound.keyword.name != "UNION_ALL":
            for select in compound.selects:
                if isinstance(select, Select):
                    self._require_key(select, compound.keyword.name)
        self._children(compound)

    def _require_key(self, select: Select[Any], what: str) -> None:
        """DISTINCT and UNION compare rows; with the primary key in the row, ciphertext does not matter."""
        columns = [leaf for column in select.selected_columns for leaf in origin(column)]
        for column in columns:
            if isinstance(column.type, Encrypted) and not all(key in columns for key in column.table.primary_key):
                raise UnsupportedOperatorError(
                    f"{what} over the encrypted column {column}: equal values have different ciphertexts, so nothing "
                    "would be merged; select the primary key too, or use UNION ALL or Python"
                )

    def _visit_dml(self, statement: UpdateBase) -> None:
        if isinstance(statement, Insert | Update):
            self._visit_written(statement)
        self._visit_listed(statement._returning)
        for clause in getattr(statement, "_where_criteria", ()):
            self.visit(clause)
        for cte in statement._independent_ctes:
            self.visit(cte)
        if isinstance(statement, Insert) and statement.select is not None:
            self._visit_source(statement.select, [statement.table.c[name] for name in statement._select_names or ()])
            self.visit(statement.select)

    def _visit_source(self, select: Any, targets: list[Any]) -> None:
        """Refuse that INSERT FROM SELECT stores ciphertext in a plain column."""
        if isinstance(select, CompoundSelect):
            for branch in select.selects:
                self._visit_source(branch, targets)
        elif isinstance(select, Select):
            for target, column in zip(targets, select.selected_columns, strict=False):
                if _is_encrypted(column) and not _is_encrypted(target):
                    self._refuse(column)

    def _visit_written(self, statement: Insert | Update) -> None:
        """Values of plain columns must not be ciphertext; those of encrypted ones were sealed in a known statement."""
        seen = is_rewritten(statement) or any(statement is top for top in self._top)
        items = dict(statement._values or {}) | dict(getattr(statement, "_ordered_values", None) or ())
        items |= {
            key: None for rows in statement._multi_values for row in rows[:1] if isinstance(row, dict) for key in row
        }
        for key, value in items.items():
            plan = plan_of(statement.table if isinstance(key, str) else bare(key).table)
            if plan is None or (key if isinstance(key, str) else bare(key).key) not in plan.keys:
                if isinstance(value, ColumnElement):
                    self.visit(value)
            elif not seen:
                raise UsageError(
                    "an INSERT or UPDATE deep inside another statement writes encrypted columns or owners of "
                    f"{plan.table}: run it as a statement of its own, attach it with add_cte() or select() from it"
                )
        self.encrypted = self.encrypted or plan_of(statement.table) is not None


def _name(element: Any) -> str:
    if isinstance(element, TextualLabelReference):
        return element.element
    inner = bare(element)
    if isinstance(inner, Column):
        return f"{inner.table}.{inner.name}"
    if isinstance(inner, FunctionElement):
        return f"in {getattr(inner, 'name', 'a function')}()"
    return str(getattr(inner, "name", None) or type(inner).__name__)


_HANDLERS: tuple[tuple[Any, Callable[[_Walk, Any], None]], ...] = (
    (UpdateBase, _Walk._visit_dml),
    (CompoundSelect, _Walk._visit_compound),
    (Select, _Walk._visit_select),
    (TextualSelect, _Walk._visit_text),
    (FromStatement, _Walk._visit_from_statement),
    (BinaryExpression, _Walk._visit_comparison),
    (Exists, _Walk._visit_exists),
    (count, _Walk._visit_count),
    (Table, _Walk._visit_nothing),
)
