# SPDX-License-Identifier: Apache-2.0
"""The walk over a compiled statement that refuses what ciphertext cannot do; done once for each statement shape.

The column's comparator stops `column == 'x'` where it is written. What it cannot see (functions, `literal == column`,
ORDER BY, GROUP BY, DISTINCT) is found here, before anything is sent. Nobody can see which columns SQL text names
(`text()`, `literal_column()`, `column()`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from sqlalchemy.orm.context import FromStatement
from sqlalchemy.schema import ExecutableDDLElement, Table
from sqlalchemy.sql import operators
from sqlalchemy.sql.dml import Insert, Update, UpdateBase
from sqlalchemy.sql.elements import (
    BinaryExpression,
    ColumnElement,
    Null,
    TableValuedColumn,
    TypeCoerce,
)
from sqlalchemy.sql.elements import _textual_label_reference as TextualLabelReference  # noqa: N812
from sqlalchemy.sql.functions import count
from sqlalchemy.sql.selectable import (
    CompoundSelect,
    Exists,
    ScalarSelect,
    Select,
    SelectBase,
    TextualSelect,
)

from sa_asherah.errors import UnsupportedOperatorError, UsageError
from sa_asherah.orm.advice import (
    ADVICE,
    CRITERIA,
    DISTINCT_ON,
    FUNCTION,
    GROUP_BY,
    ORDER_BY,
    PLACES,
    PLAIN_COLUMN,
    TARGET,
    name_of,
)
from sa_asherah.orm.assignments import STRICT_GUARD
from sa_asherah.orm.lineage import bare, origin
from sa_asherah.orm.merging import branches, has_key, require_key, require_same
from sa_asherah.orm.nested import is_rewritten
from sa_asherah.orm.plan import plan_of
from sa_asherah.orm.types import is_encrypted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sqlalchemy.sql.compiler import SQLCompiler

__all__ = ["Shape", "check_condition", "check_definition", "check_expression", "shape_of"]


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


def check_expression(element: Any) -> None:
    """Refuse an expression that a mapping would put into column lists.

    Args:
        element: A SQL expression.

    Raises:
        UnsupportedOperatorError: It does what ciphertext cannot do.
    """
    _Walk([])._bare(element)


def check_condition(element: Any) -> None:
    """Refuse an expression that a mapping would put into criteria, joins, orderings or constraints.

    Args:
        element: A SQL expression.

    Raises:
        UnsupportedOperatorError: It does what ciphertext cannot do.
    """
    _Walk([element])


def check_definition(statement: ExecutableDDLElement) -> None:
    """Refuse a view or a table made of a SELECT of encrypted columns, or with a literal in its criteria.

    Args:
        statement: Any DDL.

    Raises:
        UnsupportedOperatorError: Its result would not be cells that anybody could read.
    """
    source = getattr(statement, "selectable", None)
    if source is not None and _Walk([source]).encrypted:
        raise UnsupportedOperatorError(
            "CREATE VIEW and CREATE TABLE AS cannot select encrypted columns: the result would not be readable; "
            "declare the table and use INSERT FROM SELECT, or create the view by SQL text and declare a Table for it"
        )


Labels = dict[Any, Any]


class _Walk:
    """One walk; `visit` is for places where an encrypted column may not stand, `_bare` for those where it may."""

    def __init__(self, statements: Iterable[Any]) -> None:
        self.encrypted = False
        self._seen: dict[int, Any] = {}  # the elements are kept: the id of a collected one could be used again
        self._places: list[str] = []
        self._labels: Callable[[], Labels] = dict
        self._top = list(statements)
        for statement in self._top:
            self.visit(statement)

    def visit(self, element: Any, place: str | None = None) -> None:
        if id(element) in self._seen:
            return
        self._seen[id(element)] = element
        place = place or next((name for kind, name in PLACES if isinstance(element, kind)), None)
        if place is not None:
            self._places.append(place)
        self._handle(element)
        if place is not None:
            self._places.pop()

    def _handle(self, element: Any) -> None:
        for kind, handle in _HANDLERS:
            if isinstance(element, kind):
                handle(self, element)
                return
        if is_encrypted(element):
            self._refuse(element)
        self._children(element)

    def _children(self, element: Any) -> None:
        for child in element.get_children():
            self.visit(child)

    def _refuse(self, element: Any, place: str | None = None) -> NoReturn:
        place = place or (self._places[-1] if self._places else CRITERIA)
        raise UnsupportedOperatorError(
            f"the encrypted column {name_of(element)} is used in {place}, where ciphertext has no meaning: "
            f"{ADVICE[place]}"
        )

    def _bare(self, element: Any) -> None:
        """Visit an element that stands where an encrypted column may, if it is nothing but the column."""
        if not is_encrypted(element):
            self.visit(element)
            return
        self.encrypted = True
        inner = bare(element)
        if isinstance(inner, TypeCoerce):
            self._visit_named(bare(inner.clause))
        elif not origin(inner):
            self._refuse(element)

    def _visit_named(self, inner: Any) -> None:
        """Visit what `type_coerce` gives a label to: a column, a scalar subquery of one, or SQL text."""
        if isinstance(inner, ScalarSelect):
            self.visit(inner.element)
        else:
            self._bare(inner)

    def _visit_table(self, table: Table) -> None:
        """Stop: a table's columns are its own affair. Its declaration is checked, since a Core table has no mapper."""
        plan_of(table)

    def _visit_row(self, element: TableValuedColumn[Any]) -> None:
        if any(is_encrypted(column) for column in element.scalar_alias.c):
            self._refuse(element, FUNCTION)

    def _visit_comparison(self, element: BinaryExpression[Any]) -> None:
        is_null_test = element.operator in {operators.is_, operators.is_not} and isinstance(element.right, Null)
        if is_null_test and is_encrypted(element.left):
            self._bare(element.left)
        elif is_encrypted(element):
            self._refuse(element)
        else:
            self._children(element)

    def _visit_exists(self, element: Exists) -> None:
        inner = element.element
        self.visit(inner.element if isinstance(inner, ScalarSelect) else inner)

    def _visit_scalar(self, element: ScalarSelect[Any]) -> None:
        """Refuse a subquery as an operand: `tuple_(…).in_(select(…))` shows the type of its first column only."""
        for column in element.element.selected_columns:
            if is_encrypted(column):
                self._refuse(column)
        self.visit(element.element)

    def _visit_count(self, element: count) -> None:
        for argument in element.clauses:
            self._bare(argument)

    def _visit_text(self, element: TextualSelect) -> None:
        self.encrypted = self.encrypted or any(is_encrypted(column) for column in element.column_args)
        for cte in element._independent_ctes:
            self.visit(cte)

    def _visit_label(self, element: TextualLabelReference) -> None:
        column = self._labels().get(element.element)
        if is_encrypted(column):
            self._refuse(column)

    def _visit_select(self, select: Select[Any]) -> None:
        outer, self._labels = self._labels, lambda: _of_sources(select)
        self._visit_listed(select._raw_columns)
        self._labels = lambda: _of_sources(select) | _of_list(select._all_selected_columns)
        distinct_on = _distinct_on(select)
        if select._distinct and not distinct_on:
            require_key(select.selected_columns, "DISTINCT")
        for clause in select._group_by_clauses:
            if is_encrypted(clause) and has_key(clause, select._group_by_clauses):
                self._bare(clause)
            else:
                self.visit(clause, GROUP_BY)
        for clause in select._order_by_clauses:
            self.visit(clause, ORDER_BY)
        for clause in distinct_on:
            self.visit(clause, DISTINCT_ON)
        done = {id(clause) for clause in (*select._raw_columns, *select._group_by_clauses)}
        for child in select.get_children():
            if id(child) not in done:
                self.visit(child)
        self._labels = outer

    def _visit_listed(self, listed: Iterable[Any]) -> None:
        """Visit a column list."""
        for element in listed:
            if "bundle" in element._annotations:
                self._visit_listed(element.clauses)
            elif not isinstance(element, ColumnElement) and hasattr(element, "c"):
                self.encrypted = self.encrypted or any(is_encrypted(column) for column in element.c)
                self.visit(element)
            else:
                self._bare(element)

    def _visit_from_statement(self, element: FromStatement[Any]) -> None:
        self._visit_listed(element._raw_columns)
        self.visit(element.element)

    def _visit_compound(self, compound: CompoundSelect[Any]) -> None:
        outer, self._labels = self._labels, lambda: {each.key: each for each in compound.selected_columns}
        if compound.keyword.name != "UNION_ALL":
            require_same(compound)
        for clause in compound._order_by_clauses:
            self.visit(clause, ORDER_BY)
        self._children(compound)
        self._labels = outer

    def _visit_dml(self, statement: UpdateBase) -> None:
        if isinstance(statement, Insert | Update):
            self._visit_written(statement)
        self._visit_listed(statement._returning)
        for clause in getattr(statement, "_where_criteria", ()):
            self.visit(clause)
        extension = getattr(statement, "_post_criteria_clause", None)
        for clause in (*statement._independent_ctes, *(() if extension is None else (extension,))):
            self.visit(clause)
        if isinstance(statement, Insert) and statement.select is not None:
            self._visit_source(statement.select, [statement.table.c[name] for name in statement._select_names or ()])
            self.visit(statement.select)

    def _visit_source(self, select: Any, targets: list[Any]) -> None:
        """Refuse that INSERT FROM SELECT stores ciphertext in a plain column."""
        for branch in branches(select):
            for target, column in zip(targets, branch.selected_columns, strict=False):
                if is_encrypted(column) and not is_encrypted(target):
                    self._refuse(column, PLAIN_COLUMN)

    def _visit_written(self, statement: Insert | Update) -> None:
        """Values of plain columns must not be ciphertext; those of encrypted ones were sealed in a known statement."""
        seen = is_rewritten(statement) or any(statement is top for top in self._top)
        self._visit_conflict(statement)
        for table, key, value in _written(statement):
            plan = plan_of(table)
            if plan is not None and key in plan.keys and not seen:
                raise UsageError(
                    "an INSERT or UPDATE deep inside another statement writes encrypted columns or owners of "
                    f"{plan.table}: run it as a statement of its own, attach it with add_cte() or select() from it"
                )
            element = value.__clause_element__() if hasattr(value, "__clause_element__") else value
            if isinstance(element, SelectBase):
                element = element.scalar_subquery()
            if isinstance(element, ColumnElement) and not is_encrypted(table.c.get(key)):
                self.visit(element, PLAIN_COLUMN)
        self.encrypted = self.encrypted or plan_of(statement.table) is not None

    def _visit_conflict(self, statement: Insert | Update) -> None:
        """Visit the target and the criteria of an upsert; what it sets is among the written values."""
        clause = statement._post_values_clause
        target = getattr(clause, "inferred_target_elements", None)
        for element in target or ():
            column = statement.table.c.get(element) if isinstance(element, str) else element
            if column is not None:
                self.visit(column, TARGET)
        for name in ("inferred_target_whereclause", "update_whereclause"):
            condition = getattr(clause, name, None)
            if condition is not None:
                self.visit(condition)


def _distinct_on(select: Any) -> tuple[Any, ...]:
    """List the columns of DISTINCT ON, which `postgresql.distinct_on` of SQLAlchemy 2.1 keeps in an extension."""
    extension = getattr(select, "_pre_columns_clause", None)
    return (*select._distinct_on, *getattr(extension, "_distinct_on", ()))


def _written(statement: Any) -> Iterator[tuple[Any, str, Any]]:
    """List what a DML statement writes: table, `Column.key`, value."""
    table = statement.table
    clause = statement._post_values_clause
    upsert = getattr(clause, "update_values_to_set", None) or getattr(clause, "update", None) or ()
    items = [
        *(statement._values or {}).items(),
        *(getattr(statement, "_ordered_values", None) or ()),
        *dict(upsert).items(),
    ]
    for rows in statement._multi_values:
        for row in rows:
            items += row.items() if isinstance(row, dict) else zip(table.c.keys(), row, strict=False)
    for key, value in items:
        if isinstance(key, str):
            yield table, key, value
        else:
            column = bare(key)
            yield column.table, column.key, value


def _of_sources(select: Select[Any]) -> Labels:
    """List the columns that a text in `order_by("name")` may mean."""
    return {column.key: column for source in select.get_final_froms() for column in source.c}


def _of_list(columns: Iterable[Any]) -> Labels:
    """List the columns of a column list by the names that SQLAlchemy gives them."""
    return {getattr(each, "_tq_label", None) or getattr(each, "key", None): each for each in columns}


_HANDLERS: tuple[tuple[Any, Callable[[_Walk, Any], None]], ...] = (
    (UpdateBase, _Walk._visit_dml),
    (CompoundSelect, _Walk._visit_compound),
    (Select, _Walk._visit_select),
    (ScalarSelect, _Walk._visit_scalar),
    (TextualSelect, _Walk._visit_text),
    (FromStatement, _Walk._visit_from_statement),
    (BinaryExpression, _Walk._visit_comparison),
    (Exists, _Walk._visit_exists),
    (count, _Walk._visit_count),
    (TableValuedColumn, _Walk._visit_row),
    (TextualLabelReference, _Walk._visit_label),
    (Table, _Walk._visit_table),
)
