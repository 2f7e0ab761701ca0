# SPDX-License-Identifier: Apache-2.0
"""The assertion that no value of an application's own tables can be read anywhere but where it was written."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, MetaData, Table, and_, inspect, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Mapper

from sa_asherah.core import cell
from sa_asherah.errors import DecryptionError, UsageError
from sa_asherah.orm.plan import Group, TablePlan, plan_of
from sa_asherah.orm.scope import current_scope
from sa_asherah.orm.sealing import partitions_of
from sa_asherah.testing.stored import Bind, cell_of, connected, raw_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from sqlalchemy import Connection, RowMapping

    from sa_asherah.orm.types import Encrypted

__all__ = ["SwapReport", "assert_swaps_refused"]


@dataclass(frozen=True, slots=True)
class SwapReport:
    """What a swap test did.

    Attributes:
        refused: How many moved values were refused, by what they were moved to: another `owner`'s row, another
            `column` or `table`, or, of row-bound columns, another `row` of the same owner.
        accepted: How many values were read in another row of the same owner and column. That is by design where the
            column has no `bind_row=`: nothing in such a value says which of the owner's rows it belongs to. Values of
            `format="asherah"` columns count here in the owner's other columns of that format, too.
        untried: What could not be tried, and why.
    """

    refused: Mapping[str, int]
    accepted: int
    untried: tuple[str, ...]

    @property
    def tried(self) -> int:
        """How many values were moved to where they must not be read."""
        return sum(self.refused.values())

    def __str__(self) -> str:
        """Give the counts in words."""
        refused = ", ".join(f"{count} to another {kind}" for kind, count in self.refused.items())
        accepted = f"; {self.accepted} read in another row of the same owner, where no bind_row= forbids it"
        untried = "".join(f"\n  not tried: {reason}" for reason in self.untried)
        return f"{self.tried} moved values refused ({refused}){accepted if self.accepted else ''}{untried}"


@dataclass(frozen=True, slots=True, eq=False)
class _Slot:
    """One encrypted column of one row, and what is in it."""

    column: Column[Any]
    raw: Table
    label: str
    row: tuple[Any, ...] = field(repr=False)
    partition: str = field(repr=False)
    cell: bytes | None = field(repr=False)

    def this_row(self, table: Table) -> Any:
        keys = self.column.table.primary_key.columns
        return and_(*(table.c[key.key] == value for key, value in zip(keys, self.row, strict=True)))


_Slots = dict[Column[Any], list[_Slot]]


def assert_swaps_refused(bind: Bind, *targets: type[Any] | Table | MetaData) -> SwapReport:
    """Move every stored value to where it must not be read, and assert that reading it there is refused.

    Each value is moved to a row of another owner, to every other encrypted column of its row, to every encrypted
    column of the other tables (the same owner's row if there is one) and, where the column has `bind_row=`, to another
    row of the same owner. Each move is an UPDATE past the column type in a savepoint that is rolled back at once, so
    the data are afterwards as they were.

    What cannot be tried does not fail the test but is in the report; if nothing can be tried, it fails. For a full
    test, store rows of two owners in every table.

    Args:
        bind: The attached engine, or a connection or session on it, whose uncommitted rows count too. With an
            asynchronous one: `await connection.run_sync(assert_swaps_refused, Base)`.
        *targets: Mapped classes, a declarative base, tables or a `MetaData`. Values are moved between all of them.

    Returns:
        What was tried. `print(report)` shows it.

    Raises:
        AssertionError: A moved value was read, a value does not open where it belongs, or nothing could be tried.
        AsherahError: It could not be found out, e.g. because no `Asherah` is attached to the engine.
    """
    __tracebackhide__ = True
    plans = [plan for table in _tables(targets) if (plan := plan_of(table)) is not None]
    if not plans:
        raise AssertionError("there is no Encrypted column in what was given, so nothing could be tried")
    with connected(bind, plans[0].table) as connection:
        connection.begin_nested().rollback()  # fails where nothing would be rolled back, before anything is moved
        untried: list[str] = []
        groups = {plan.table: _testable(plan, untried) for plan in plans}
        slots = _read(connection, groups)
        swaps = _Swaps(connection)
        swaps.require_opening(slots)
        untried += [reason for column in slots for reason in swaps.move_all(column, slots)]
        _require_unchanged(_read(connection, groups), slots)
    return swaps.report(untried)


class _Swaps:
    """Moves values and counts what became of it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._refused: Counter[str] = Counter()
        self._read: Counter[str] = Counter()
        self._allowed = 0

    def require_opening(self, slots: _Slots) -> None:
        """Refuse to move anything if a value does not open as it is: then its refusal elsewhere says nothing."""
        __tracebackhide__ = True
        for column in slots:
            if not all(self._opens(slot) for slot in slots[column] if slot.cell is not None):
                raise AssertionError(f"a value of {column} does not open where it belongs, so nothing was moved")

    def move_all(self, column: Column[Any], slots: _Slots) -> Iterator[str]:
        """Move every value of a column everywhere; yield what could not be tried."""
        sources = [slot for slot in slots[column] if slot.cell is not None]
        if not sources:
            yield f"{column}: it holds no value"
        unmoved: Counter[tuple[str, str]] = Counter()
        for source in sources:
            for kind, target, reason in _moves(source, slots):
                if target is None or not self._move(kind, source, target):
                    unmoved[kind, reason if target is None else f"the database refuses it in {target.column}"] += 1
        for (kind, reason), count in unmoved.items():
            yield f"{column}, {count} of {len(sources)} values to another {kind}: {reason}"

    def report(self, untried: list[str]) -> SwapReport:
        """Give the verdict."""
        __tracebackhide__ = True
        reasons = "".join(f"\n  {reason}" for reason in untried)
        if self._read:
            places = "".join(f"\n  {place}: {count}" for place, count in self._read.items())
            raise AssertionError(f"{self._read.total()} moved values were read where they do not belong:{places}")
        if not self._refused:
            raise AssertionError(
                f"no value could be moved to where it must not be read, so nothing was tried:{reasons}"
            )
        return SwapReport(dict(self._refused), self._allowed, tuple(untried))

    def _move(self, kind: str, source: _Slot, target: _Slot) -> bool:
        """Try one move; tell whether the database let it happen."""
        savepoint = self._connection.begin_nested()
        try:
            self._connection.execute(
                update(target.raw)
                .where(target.this_row(target.raw))
                .values({target.column.key: _stored(source, target)})
            )
            opens = self._opens(target)
        except DBAPIError:  # a unique or check constraint
            return False
        finally:
            savepoint.rollback()
        if not opens:
            self._refused[kind] += 1
        elif _may_be_read(kind, source, target):
            self._allowed += 1
        else:
            self._read[f"{source.label} of another {kind} in {target.label}"] += 1
        return True

    def _opens(self, slot: _Slot) -> bool:
        """Read a value as an application does, without keeping it."""
        try:
            self._connection.execute(select(slot.column).where(slot.this_row(slot.column.table))).one()
        except DecryptionError:
            return False
        return True


def _tables(targets: Iterable[Any]) -> list[Table]:
    """List the tables of whatever was given, each once."""
    found: dict[Any, None] = {}
    for target in targets:
        mapper = inspect(target, raiseerr=False)
        if isinstance(target, Table):
            found[target] = None
        elif isinstance(mapper, Mapper):
            found |= dict.fromkeys(table for each in mapper.self_and_descendants for table in each.tables)
        else:
            metadata = target if isinstance(target, MetaData) else getattr(target, "metadata", None)
            if not isinstance(metadata, MetaData):
                raise UsageError("assert_swaps_refused takes mapped classes, a declarative base, tables or a MetaData")
            found |= dict.fromkeys(metadata.tables.values())
    return list(found)


def _testable(plan: TablePlan, untried: list[str]) -> list[Group]:
    """List the columns of a table whose values have a key and an owner; note the others."""
    if not plan.table.primary_key:
        untried.append(f"{plan.table.fullname}: it has no primary key")
        return []
    scope = current_scope.get()
    is_named = scope is not None and len(scope) == 1
    untried += [
        f"{column.column}: it has no owner=, so try it inside partition_scope('...')"
        for group in plan.groups
        for column in group.columns.values()
        if group.owner is None and not is_named
    ]
    return [group for group in plan.groups if group.owner is not None or is_named]


def _read(connection: Connection, groups: Mapping[Table, Sequence[Group]]) -> _Slots:
    """Read every row that has an owner, past the column types."""
    slots: _Slots = {}
    for table, of_table in groups.items():
        keys = list(table.primary_key.columns)
        owners = [group.owner for group in of_table if group.owner is not None]
        encrypted = [column.column for group in of_table for column in group.columns.values()]
        raw = raw_table(table, dict.fromkeys([*keys, *owners, *encrypted]))
        if encrypted:
            rows = connection.execute(select(raw).order_by(*(raw.c[key.key] for key in keys))).mappings().all()
            slots |= {column: found for group in of_table for column, found in _slots(group, raw, keys, rows)}
    return slots


def _slots(
    group: Group, raw: Table, keys: list[Column[Any]], rows: Iterable[RowMapping]
) -> Iterator[tuple[Column[Any], list[_Slot]]]:
    owned = [row for row in rows if group.owner is None or row[raw.c[group.owner.key]] is not None]
    owners = [None if group.owner is None else row[raw.c[group.owner.key]] for row in owned]
    partitions = partitions_of(group, owners, [True] * len(owned))
    scope = current_scope.get()
    for each in group.columns.values():
        slots: list[_Slot] = []
        for row, partition in zip(owned, partitions, strict=True):
            # What a scope refuses says nothing about the value.
            if partition is None or (scope is not None and partition not in scope):
                continue
            stored = row[raw.c[each.column.key]]
            key = tuple(row[raw.c[key.key]] for key in keys)
            found = None if stored is None else _require_cell(stored, each.column)
            slots.append(_Slot(each.column, raw, each.label, key, partition, found))
        yield each.column, slots


def _require_cell(stored: object, column: Column[Any]) -> bytes:
    try:
        return cell_of(stored, column.type)  # type: ignore[arg-type]
    except DecryptionError as error:
        raise AssertionError(f"{column} holds a value that is not encrypted as declared: {error}") from None


def _moves(source: _Slot, slots: _Slots) -> Iterator[tuple[str, _Slot | None, str]]:
    """List where a value is to be moved: kind, place, and the reason if there is no place."""
    column = slots[source.column]
    here = column.index(source)
    others = column[here + 1 :] + column[:here]
    strangers = (slot for slot in others if slot.partition != source.partition)
    yield "owner", next(strangers, None), "all rows have the same owner"
    siblings = (slot for slot in others if slot.partition == source.partition)
    yield "row", next(siblings, None), "the owner has one row only"
    beside = [other for other in slots if other.table is source.column.table and other is not source.column]
    for other in beside:
        yield "column", next((slot for slot in slots[other] if slot.row == source.row), None), f"no owner for {other}"
    elsewhere = [other for other in slots if other.table is not source.column.table]
    for other in elsewhere:
        same = (slot for slot in slots[other] if slot.partition == source.partition)
        yield "table", next(same, next(iter(slots[other]), None)), f"{other.table.fullname} has no row"
    if not beside:
        yield "column", None, "the table has no other encrypted column"
    if not elsewhere:
        yield "table", None, "there is no other table with encrypted columns"


def _may_be_read(kind: str, source: _Slot, target: _Slot) -> bool:
    """Tell whether nothing in the value says that it does not belong there."""
    if _type(source).format == _type(target).format == "asherah":
        return source.partition == target.partition
    return kind == "row" and _type(target).bind_row is None


def _stored(source: _Slot, target: _Slot) -> bytes | str:
    """Write a value in the form that its new column has, as somebody would who wants it to be read there."""
    found = source.cell or b""
    if _type(target).storage == "binary":
        return found
    return cell.to_text(found) if _type(source).format == "cell" else found.decode()


def _type(slot: _Slot) -> Encrypted:
    return slot.column.type  # type: ignore[return-value]


def _require_unchanged(after: _Slots, before: _Slots) -> None:
    if any([slot.cell for slot in after[column]] != [slot.cell for slot in before[column]] for column in before):
        raise UsageError(
            "the database did not roll back: values are not where they were. Use tables and an isolation level with "
            "transactions (InnoDB, not AUTOCOMMIT), and fill the database anew"
        )
