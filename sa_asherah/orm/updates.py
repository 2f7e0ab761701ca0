# SPDX-License-Identifier: Apache-2.0
"""UPDATE: whose rows it writes, and a guard in its WHERE that nobody changed that in between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Integer, and_, bindparam, false, or_, select, tuple_
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import BinaryExpression, BindParameter, BooleanClauseList

from sa_asherah.errors import OwnerChangedError, OwnerRequiredError
from sa_asherah.orm import flush
from sa_asherah.orm.assignments import ABSENT, NULL_GUARD, STRICT_GUARD, Assignments, column_key
from sa_asherah.orm.inserts import client_default
from sa_asherah.orm.lineage import bare
from sa_asherah.orm.plan import EncryptedColumn, Group, TablePlan, plan_of
from sa_asherah.orm.sealing import Batch, partitions_of, row_texts, rows_with_values

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection
    from sqlalchemy.schema import Column, Table
    from sqlalchemy.sql.dml import Update

    from sa_asherah.orm.attachment import Attachment

__all__ = ["rewrite_update", "writes_encrypted"]

_LENIENT_GUARD = "sa_asherah_owner_"
_COUNTED = 100
_PAGE = 500

Parameters = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class _Owners:
    """Owner values by parameter set, `ABSENT` where no row exists; `strict` if each set means one existing row."""

    values: list[Any]
    strict: bool


def writes_encrypted(statement: Update) -> bool:
    """Tell whether an UPDATE writes into a table with encrypted columns.

    Args:
        statement: The UPDATE.
    """
    return any(plan_of(table) is not None for table in _tables(statement))


def rewrite_update(
    attachment: Attachment,
    connection: Connection,
    statement: Update,
    parameters: Parameters,
    options: Mapping[str, Any],
) -> tuple[Update, Parameters]:
    """Encrypt what an UPDATE writes.

    Args:
        attachment: The engine's Asherah.
        connection: The executing connection.
        statement: The UPDATE.
        parameters: Its parameter sets.
        options: Execution options.

    Returns:
        The statement and the parameters to execute instead.

    Raises:
        AsherahError: A value cannot be encrypted or the owner is not known; nothing is written.
    """
    for table in _tables(statement):
        plan = plan_of(table)
        if plan is not None:
            rewriting = _Rewriting(attachment, connection, statement, parameters, plan, options)
            statement, parameters = rewriting.run()
    return statement, parameters


def _tables(statement: Update) -> list[Any]:
    tables = [statement.table._deannotate()]
    for key in [*(statement._values or ()), *(name for name, _ in getattr(statement, "_ordered_values", None) or ())]:
        table = None if isinstance(key, str) else bare(key).table
        if table is not None and table not in tables:
            tables.append(table)
    return tables


class _Rewriting:
    """The rewriting of one UPDATE for one of its tables."""

    def __init__(  # noqa: PLR0917 -- one call, in the order of the listener
        self,
        attachment: Attachment,
        connection: Connection,
        statement: Update,
        parameters: Parameters,
        plan: TablePlan,
        options: Mapping[str, Any],
    ) -> None:
        self._connection, self._statement, self._plan = connection, statement, plan
        self._rows = Assignments(statement, parameters, plan.table)
        self._is_main = statement.table._deannotate() is plan.table
        self._batch = Batch(attachment)
        self._guards: dict[str, tuple[Column[Any], _Owners]] = {}
        self._options = {name: options[name] for name in ("schema_translate_map",) if name in options}

    def run(self) -> tuple[Update, Parameters]:
        self._fill_onupdate()
        for group in self._plan.groups:
            self._add(group)
        self._batch.seal(self._connection)
        statement: Any = self._rows.statement()
        for owner, owners in self._guards.values():
            statement = self._guard(statement, owner, owners)
        return statement, self._rows.parameters

    def _add(self, group: Group) -> None:
        rows = self._rows
        present = {key: column for key, column in group.columns.items() if key in rows}
        values = {key: rows.column(key) for key in present}
        wanted = rows_with_values(values.values(), len(rows))
        for place in group.places:
            if place.key in rows:
                self._require_all(place, group.columns if place is group.owner else group.row_bound)
        if not any(wanted):
            return
        owners = self._place(group.owner)
        row = group.row if any(column.row_bound for column in present.values()) else None
        keys = self._place(row)
        wanted = [need and ABSENT not in found for need, *found in zip(wanted, owners, keys, strict=True)]
        partitions = partitions_of(group, owners, wanted)
        texts = [""] * len(rows) if row is None else row_texts(row, keys, wanted)
        for key, column in present.items():
            kept = [value if need else None for value, need in zip(values[key], wanted, strict=True)]
            self._batch.add(rows, column, kept, partitions, texts)

    def _place(self, column: Column[Any] | None) -> list[Any]:
        """List the owner or the primary key that each parameter set's row has or gets; `ABSENT` where it has none."""
        if column is None:
            return [None] * len(self._rows)
        if column.key in self._rows:
            return self._rows.column(column.key)
        known = self._guards.get(column.key) or (column, self._owners(column))
        self._guards[column.key] = known
        return known[1].values

    def _fill_onupdate(self) -> None:
        for group in self._plan.groups:
            for column in group.columns.values():
                generator = column.column.onupdate
                if generator is not None and column.column.key not in self._rows and self._is_main:
                    self._rows.put(column.column.key, [client_default(generator, row) for row in self._rows.seen()])

    def _require_all(self, place: Column[Any], columns: Mapping[str, EncryptedColumn]) -> None:
        missing = [
            column.label
            for key, column in columns.items()
            if key not in self._rows and self._noted(column.column) is None
        ]
        if missing:
            raise OwnerChangedError(
                f"the owner or primary key {place} would change but not {', '.join(missing)}, which could not be read "
                "then: write all of them in the same UPDATE, or change the attribute of a loaded object and flush, "
                "which re-encrypts the row"
            )

    def _owners(self, owner: Column[Any]) -> _Owners:
        """Find out whose rows the UPDATE writes, or under which primary key they are."""
        if not self._is_main:
            raise OwnerRequiredError(f"a multi-table UPDATE of encrypted columns must write {owner} too")
        pins, exact = _pinned(self._statement, self._plan.table)
        if pins:
            noted = self._noted(owner)
            if noted is not None:
                return _Owners(noted, strict=True)
            identities = self._identities(pins)
            found = self._by_identity(owner, identities) if len(identities) > 1 else {}
            # The database may find a row by a key that Python does not call equal ("1" and 1): ask it then.
            values = [
                found[identity] if identity in found else self._sole_owner(owner, row)
                for identity, row in zip(identities, self._rows.parameters, strict=True)
            ]
            return _Owners(values, strict=exact)
        if len(self._rows.parameters) > 1:
            raise OwnerRequiredError(
                "executemany UPDATE of encrypted columns needs the owner of each row: put the whole primary key into "
                f"the WHERE, or write {owner} and all its encrypted columns"
            )
        return _Owners([self._sole_owner(owner, self._rows.parameters[0])], strict=False)

    def _identities(self, pins: Sequence[BindParameter[Any]]) -> list[tuple[Any, ...]]:
        return [tuple(row.get(pin.key, pin.effective_value) for pin in pins) for row in self._rows.parameters]

    def _noted(self, column: Column[Any]) -> list[Any] | None:
        """List what a running flush knows of a column of the rows that this UPDATE writes by their primary key."""
        noted = flush.noted(self._connection, self._plan.table, column.key)
        if noted is None:
            return None
        identities = self._identities(_pinned(self._statement, self._plan.table)[0])
        known = all(identity in noted for identity in identities)
        return [noted[identity] for identity in identities] if known else None

    def _by_identity(self, owner: Column[Any], identities: list[tuple[Any, ...]]) -> dict[tuple[Any, ...], Any]:
        keys = list(self._plan.table.primary_key)
        found: dict[tuple[Any, ...], Any] = {}
        for start in range(0, len(identities), _PAGE):
            page = identities[start : start + _PAGE]
            rows = keys[0].in_([one for (one,) in page]) if len(keys) == 1 else tuple_(*keys).in_(page)
            query = select(*keys, owner).where(rows)
            for row in self._connection.execute(query, execution_options=self._options):
                found[tuple(row[:-1])] = row[-1]
        return found

    def _sole_owner(self, owner: Column[Any], row: Mapping[str, Any]) -> Any:
        """Ask for the distinct owners of the rows that the UPDATE matches; `ABSENT` where it matches none."""
        subject = self._statement._propagate_attrs.get("plugin_subject")
        if subject is not None and owner in subject.mapper._columntoproperty:
            # Not the property's own class, which may be a parent: the criteria of the entity count.
            query = select(getattr(subject.entity, subject.mapper.get_property_by_column(owner).key))
        else:
            query = select(owner)
        query = query.where(*self._statement._where_criteria).distinct().limit(_COUNTED)
        query = query.options(*self._statement._with_options)
        parameters = {key: value for key, value in row.items() if column_key(self._plan.table, key) is None}
        found = self._connection.execute(query, parameters, execution_options=self._options).scalars().all()
        if len(found) > 1:
            count = f"{_COUNTED} or more" if len(found) == _COUNTED else str(len(found))
            raise OwnerRequiredError(
                f"the rows to write have {count} owners or primary keys ({owner}), and one ciphertext cannot be for "
                "all of them: name one in the WHERE, or assign to attributes of loaded objects"
            )
        return found[0] if found else ABSENT

    def _guard(self, statement: Any, owner: Column[Any], owners: _Owners) -> Any:
        name = (STRICT_GUARD if owners.strict else _LENIENT_GUARD) + owner.key
        if len(owners.values) > 1:
            for row, value in zip(self._rows.parameters, owners.values, strict=True):
                row[name] = None if value is ABSENT else value
            known = owner == bindparam(name, type_=owner.type)
            if None not in owners.values:
                return statement.where(known)
            # NULL equals nothing, and a row of nobody is to be written, too: the UPDATE may set other columns.
            for row, value in zip(self._rows.parameters, owners.values, strict=True):
                row[NULL_GUARD + owner.key] = int(value is None)
            nobody = bindparam(NULL_GUARD + owner.key, type_=Integer()) == 1
            return statement.where(or_(known, and_(owner.is_(None), nobody)))
        if owners.values[0] is ABSENT:
            return statement.where(false())
        return statement.where(owner == bindparam(name, owners.values[0], type_=owner.type))


def _pinned(statement: Update, table: Table) -> tuple[list[BindParameter[Any]], bool]:
    """Find the parameters that name the primary key in the WHERE, and whether the WHERE says nothing else."""
    pins: dict[Any, BindParameter[Any]] = {}
    exact = True
    clauses: list[Any] = list(statement._where_criteria)
    while clauses:
        clause = clauses.pop()
        if isinstance(clause, BooleanClauseList) and clause.operator is operators.and_:
            clauses += clause.clauses
        elif (
            isinstance(clause, BinaryExpression)
            and clause.operator is operators.eq
            and isinstance(clause.right, BindParameter)
            and bare(clause.left) in set(table.primary_key)
        ):
            pins[bare(clause.left)] = clause.right
        else:
            exact = False
    keys = list(table.primary_key)
    return ([pins[key] for key in keys], exact) if len(pins) == len(keys) > 0 else ([], False)
