# SPDX-License-Identifier: Apache-2.0
"""One table and what becomes of it: its pages are read, their values opened and sealed anew, and the rows swapped.

Who does it, when, and which part of the table, is none of its business.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import false, func, or_, select

from sa_asherah.reencrypt.conversion import mark_of
from sa_asherah.reencrypt.lease import Counts
from sa_asherah.reencrypt.pages import Pages, text_of
from sa_asherah.reencrypt.report import Quarantined
from sa_asherah.reencrypt.swap import NOTHING, Stored, Swap, Swapper, old_of
from sa_asherah.reencrypt.values import Values

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import ColumnElement, Connection, Row, Table

    from sa_asherah.reencrypt.conversion import Conversion
    from sa_asherah.reencrypt.database import Database
    from sa_asherah.reencrypt.pages import Bounds, Position

__all__ = ["Converter", "Treated"]

_RANGES: Final = 256


@dataclass(slots=True)
class Treated:
    """A page, ready to be swapped.

    Attributes:
        swaps: Rows to be changed.
        partial_swaps: Likewise, but another value of the row cannot be opened and stays.
        counts: What is known before they are.
        quarantined: Values that cannot be opened.
        before: Values by key as they were found.
        after: Values by key as they will be.
    """

    swaps: list[Swap] = field(default_factory=list[Swap])
    partial_swaps: list[Swap] = field(default_factory=list[Swap])
    counts: Counts = field(default_factory=Counts)
    quarantined: list[Quarantined] = field(default_factory=list["Quarantined"])
    before: Counter[str] = field(default_factory=Counter[str])
    after: Counter[str] = field(default_factory=Counter[str])


class Converter:
    """A table and what becomes of its columns: everything about its rows that is not who does it, and when.

    Attributes:
        name: The table's name.
        pages: Its pages.
        swap: Replaces values in a transaction; tells how many rows still were as they were read.
    """

    def __init__(self, database: Database, source: Table, conversions: Sequence[Conversion]) -> None:
        """Prepare the statements.

        Args:
            database: The database.
            source: The table.
            conversions: What becomes of its columns.
        """
        self.name = source.fullname
        self.pages = Pages(source, database.dialect)
        self.conversions = conversions
        self._database = database
        columns, dialect = self.pages.source.c, database.dialect
        forms = [form for each in conversions for form in (each.target, *each.sources)]
        keys = {key: None for form in forms for key in (form.owner, form.row) if key}
        types = {name: type_ for each in conversions for name, type_ in each.types.items()}
        self.places = {key: source.c[key].name for key in keys}
        """Names of the columns that say whose values are, by `Column.key`."""
        self._owners = sorted({self.places[form.owner] for form in forms if form.owner})
        place_types = {self.places[key]: source.c[key].type for key in keys}
        self.stored = {name: Stored(columns[name], type_, dialect) for name, type_ in {**place_types, **types}.items()}
        self._selected: list[ColumnElement[Any]] = []
        self.spans: dict[str, tuple[int, int]] = {}
        """Where the parts of each column are in a row."""
        for name in types:
            self._select(name, self.stored[name].selected)
        for name in place_types:
            self._select(name, [self.stored[name].text])
        self._wanted: ColumnElement[bool] = or_(*(columns[each.column].is_not(None) for each in conversions))
        self.swap = Swapper(self.pages, self.stored).execute

    def cut(self, batch: int) -> tuple[int, list[Position]]:
        """Cut the table into ranges: as many as make sense, but not too many.

        Args:
            batch: Rows in a transaction.

        Returns:
            Rows of the table, and the last position of each range.
        """

        def look(connection: Connection) -> tuple[int, list[Position]]:
            total = int(connection.execute(select(func.count()).select_from(self.pages.source)).scalar_one())
            size = max(4 * batch, -(-total // _RANGES))
            cuts = list(self.pages.cuts(connection, size)) if total > size else []
            end = self.pages.end(connection)
            return total, cuts if end is None or end in cuts else [*cuts, end]

        return self._database.read(look)

    def end(self) -> Position | None:
        """Find the last row there is now; `None` if there is none."""
        return self._database.read(self.pages.end)

    def count(self) -> int:
        """Count the rows that have a value."""
        return self._count(self._wanted)

    def missed(self, counts: Counts) -> int:
        """Count the rows that are left although no page showed them, by a query that knows nothing of pages.

        Where cells can be told by how they begin, it counts what does not look as wanted: what was behind the page
        when an old writer wrote it, or is not where the order of the primary key has it. Elsewhere it counts
        everything, if the pages showed nothing. What old code emptied, and its copy not, is never in a page.

        Args:
            counts: What the pages showed.

        Returns:
            Rows.
        """
        conditions = [self._unlike(each) for each in self.conversions]
        known = [condition for condition in conditions if condition is not None]
        emptied = or_(false(), *(self._emptied(each) for each in self.conversions))
        if len(known) == len(conditions):
            return max(self._count(or_(*known, emptied)) - counts.left_over - counts.quarantined, 0)
        return self._count(emptied) + (0 if counts.found else self.count())

    def _unlike(self, conversion: Conversion) -> ColumnElement[bool] | None:
        """Tell by SQL which rows do not look as wanted, where that is possible."""
        goal, source = self.stored[conversion.into], self.pages.source.c[conversion.column]
        mark = mark_of(conversion.target)
        if mark is not None:
            return source.is_not(None) & ~goal.begins(mark)
        marks = [mark_of(form) for form in conversion.sources]
        if conversion.into == conversion.column and None not in marks:
            return or_(*(goal.begins(mark) for mark in marks if mark is not None))
        return None

    def _emptied(self, conversion: Conversion) -> ColumnElement[bool]:
        """Tell which rows have a copy of what is not there any more."""
        if conversion.into == conversion.column or conversion.moved:
            return false()
        columns = self.pages.source.c
        return columns[conversion.column].is_(None) & columns[conversion.into].is_not(None)

    def _count(self, condition: ColumnElement[bool]) -> int:
        statement = select(func.count()).select_from(self.pages.source).where(condition)
        return self._database.read(lambda connection: int(connection.execute(statement).scalar_one()))

    def _select(self, name: str, parts: Sequence[ColumnElement[Any]]) -> None:
        start = len(self.pages.keys) + len(self._selected)
        self.spans[name] = (start, start + len(parts))
        self._selected += [part.label(f"sa_asherah_{start + n}") for n, part in enumerate(parts)]

    def read(self, bounds: Bounds, limit: int) -> Sequence[Row[Any]]:
        """Read a page.

        Args:
            bounds: After which position, and up to which.
            limit: Rows at most.

        Returns:
            The rows.
        """
        statement, parameters = self.pages.page(self._selected, self._wanted, bounds, limit)
        return self._database.read(lambda connection: connection.execute(statement, parameters).all())

    def walk(self, bounds: Bounds, limit: int) -> Iterator[Sequence[Row[Any]]]:
        """Read page after page.

        Args:
            bounds: After which position, and up to which.
            limit: Rows of a page at most.

        Yields:
            The pages.
        """
        after, upto = bounds
        while rows := self.read((after, upto), limit):
            yield rows
            if len(rows) < limit:
                return
            after = self.position(rows[-1])

    def treat(self, rows: Sequence[Row[Any]], *, sealing: bool) -> Treated:
        """Open every value of a page, and seal anew those that are not as they are to be.

        Args:
            rows: The page.
            sealing: Whether to seal; else they are counted as left over.

        Returns:
            What to do with the page.
        """
        return self._database.repeat(lambda: self._treat(rows, sealing=sealing))

    def _treat(self, rows: Sequence[Row[Any]], *, sealing: bool) -> Treated:
        values = [Values(self, conversion, rows) for conversion in self.conversions]
        for each in values:
            each.open()
        if sealing and any(each.pending for each in values):
            if self._database.has_one_connection:
                self._database.write(lambda connection: _seal(values, connection))
            else:
                _seal(values, None)  # no transaction is open meanwhile
        treated = Treated(counts=Counts(found=len(rows)))
        for number, row in enumerate(rows):
            self._finish(treated, row, number, values, sealing=sealing)
        return treated

    def position(self, row: Row[Any]) -> Position:
        """Give the primary key of a row."""
        return tuple(row[: len(self.pages.keys)])

    def _finish(self, treated: Treated, row: Row[Any], number: int, values: Sequence[Values], *, sealing: bool) -> None:
        """Sum up what is to be done with a row: its columns are swapped together or not at all."""
        position = self.position(row)
        new = {each.into: each.sealed[number] for each in values if number in each.sealed}
        pending = [each for each in values if number in each.pending]
        failed = [each for each in values if number in each.errors]
        for each in values:
            for counter, key in zip((treated.before, treated.after), each.keys(number), strict=True):
                if key is not None:
                    counter[key] += 1
        for each in failed:
            error = each.errors[number]
            reason = f"{type(error).__name__}: {error}"
            treated.quarantined.append(Quarantined(self.name, text_of(position), each.conversion.column, reason))
        counts = treated.counts
        if new:
            old = {name: old for each in values if number in each.sealed for name, old in each.old(number).items()}
            places = {name: row[self.spans[name][0]] for name in self._owners}
            old |= {name: NOTHING if place is None else old_of(bytes(place)) for name, place in places.items()}
            (treated.partial_swaps if failed else treated.swaps).append(Swap(position, old, new))
        if failed:
            counts.quarantined += 1
        elif pending and not sealing:
            counts.left_over += 1
        elif not pending:
            counts.already += 1


def _seal(values: Sequence[Values], connection: Connection | None) -> None:
    for each in values:
        each.seal(connection)
