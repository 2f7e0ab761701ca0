# SPDX-License-Identifier: Apache-2.0
"""The values of one column in one page: each is opened by the first form that fits it.

A value that has the shape of the target must open as such, or by a source that encrypts; it never counts as plaintext.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sa_asherah.errors import AsherahError, MalformedCellError
from sa_asherah.reencrypt.ciphertext import EncryptedForm
from sa_asherah.reencrypt.form import UNOPENED

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from sqlalchemy import Connection, Row

    from sa_asherah.errors import OwnerRequiredError
    from sa_asherah.reencrypt.conversion import Conversion
    from sa_asherah.reencrypt.converter import Converter
    from sa_asherah.reencrypt.form import Form
    from sa_asherah.reencrypt.swap import Old

__all__ = ["Values"]


class Values:
    """The values of one conversion in one page, by number of the row.

    Attributes:
        conversion: The conversion.
        into: The column that takes the new values.
        pending: Values that are to be sealed.
        sealed: Those that are, as the driver takes them.
        errors: Why values cannot be opened or sealed.
    """

    def __init__(self, converter: Converter, conversion: Conversion, rows: Sequence[Row[Any]]) -> None:
        """Pick them.

        Args:
            converter: The table.
            conversion: The column.
            rows: The page.
        """
        self.conversion = conversion
        self.into = conversion.into
        self.pending: dict[int, Any] = {}
        self.sealed: dict[int, Any] = {}
        self.errors: dict[int, AsherahError] = {}
        self._converter = converter
        self._rows = rows
        self._raws = {n: raw for n, raw in enumerate(self._column(conversion.column)) if raw is not None}
        is_in_place = conversion.into == conversion.column
        self._goals = self._raws if is_in_place else dict(enumerate(self._column(conversion.into)))
        self._found: dict[int, Form] = {}

    def open(self) -> None:
        """Find the form of each value, and those that are to be sealed."""
        if self.into != self.conversion.column:
            self._compare(self._by_sources(list(self._raws)))
        else:
            self._classify()
        self._require_owners()

    def _classify(self) -> None:
        """Tell in place what is as it is to be from what is not."""
        target = self.conversion.target
        shaped = [n for n, raw in self._raws.items() if target.recognises(raw)]
        opened = self._try(target, shaped)
        if self.conversion.newest and opened and isinstance(target, EncryptedForm):
            numbers = list(opened)
            newest = target.is_newest([self._raws[n] for n in numbers], self._texts(target.owner, numbers))
            self.pending = {n: opened[n] for n, is_newest in zip(numbers, newest, strict=True) if not is_newest}
        self.pending |= self._by_sources([n for n in self._raws if n not in opened], set(shaped))

    def seal(self, connection: Connection | None) -> None:
        """Seal what is pending; a value that cannot be does not stop the others.

        Args:
            connection: The connection, where there is only one.
        """
        self.sealed = {}
        numbers = [n for n in self.pending if n not in self.errors]
        try:
            self.sealed = dict(zip(numbers, self._seal(numbers, connection), strict=True))
        except UNOPENED:
            for n in numbers:
                try:
                    self.sealed[n] = self._seal([n], connection)[0]
                except UNOPENED as error:
                    self.errors[n] = error

    def old(self, number: int) -> dict[str, Old]:
        """Tell what must still be in a row when it is changed.

        Args:
            number: Number of the row.

        Returns:
            What was read, by column.
        """
        found: dict[str, Old] = {}
        for name in {self.conversion.column, self.into}:
            start, end = self._converter.spans[name]
            form = self._found[number] if name == self.conversion.column else self.conversion.target
            is_cell = form.is_cell and (name == self.conversion.column)
            found[name] = self._converter.stored[name].old(self._rows[number][start:end], is_cell=is_cell)
        return found

    def keys(self, number: int) -> tuple[str | None, str | None]:
        """Tell under which key the value of a row was found, and under which it will be.

        Args:
            number: Number of the row.

        Returns:
            Both; `None` for NULL.
        """
        raw, new = self._goals.get(number), self.sealed.get(number)
        target = self.conversion.target
        form = self._found.get(number) if self.into == self.conversion.column else target
        before = None if raw is None else "unreadable" if form is None else form.key_of(raw)
        return before, before if new is None else target.key_of(new)

    def _column(self, name: str) -> list[Any]:
        stored, (start, end) = self._converter.stored[name], self._converter.spans[name]
        return [stored.value(row[start:end]) for row in self._rows]

    def _by_sources(self, numbers: list[int], shaped: Container[int] = ()) -> dict[int, Any]:
        """Open by the sources in their order."""
        values: dict[int, Any] = {}
        for source in self.conversion.sources:
            left = [n for n in numbers if n not in values and (source.is_encrypted or n not in shaped)]
            values |= self._try(source, [n for n in left if source.recognises(self._raws[n])])
        for n in numbers:
            if n in values:
                self.errors.pop(n, None)
            elif n not in self.errors:
                self.errors[n] = MalformedCellError("the value has the form of none of the types that the plan names")
        return values

    def _compare(self, values: dict[int, Any]) -> None:
        """Seal for another column what is not there yet, or not any more what is here."""
        stored = {n: self._goals[n] for n in values}
        there = [n for n, raw in stored.items() if raw is not None and self.conversion.target.recognises(raw)]
        target = self.conversion.target
        copies = dict(zip(there, self._open(target, [stored[n] for n in there], there), strict=True))
        self.pending = {n: value for n, value in values.items() if n not in copies or not _same(copies[n], value)}

    def _require_owners(self) -> None:
        """Tell also without sealing, in a dry run, what cannot be sealed since nobody owns it."""
        target = self.conversion.target
        if not isinstance(target, EncryptedForm):
            return
        numbers = list(self.pending)
        refusals: dict[bytes | None, OwnerRequiredError | None] = {}
        for n, owner in zip(numbers, self._texts(target.owner, numbers), strict=True):
            if owner not in refusals:
                refusals[owner] = target.refusal(owner)
            if (refusal := refusals[owner]) is not None:
                self.errors[n] = refusal

    def _try(self, form: Form, numbers: list[int]) -> dict[int, Any]:
        opened: dict[int, Any] = {}
        for n, value in zip(numbers, self._open(form, [self._raws[n] for n in numbers], numbers), strict=True):
            if isinstance(value, AsherahError):
                self.errors.setdefault(n, value)
            else:
                opened[n] = value
                self._found[n] = form
        return opened

    def _open(self, form: Form, raws: list[Any], numbers: list[int]) -> Sequence[Any]:
        if not numbers:
            return ()
        return form.open(raws, self._texts(form.owner, numbers), self._texts(form.row, numbers))

    def _seal(self, numbers: list[int], connection: Connection | None) -> Sequence[Any]:
        if not numbers:
            return ()
        target = self.conversion.target
        owners, pks = self._texts(target.owner, numbers), self._texts(target.row, numbers)
        return target.seal([self.pending[n] for n in numbers], owners, pks, connection)

    def _texts(self, key: str | None, numbers: list[int]) -> list[bytes | None]:
        """Give what names the owners, or the primary keys, of rows, as the server writes it."""
        if key is None:
            return [None] * len(numbers)
        place = self._converter.spans[self._converter.places[key]][0]
        found = [self._rows[n][place] for n in numbers]
        return [None if text is None else bytes(text) for text in found]


def _same(one: Any, other: Any) -> bool:
    # What is no number is not equal to itself.
    return type(one) is type(other) and (one == other or repr(one) == repr(other) == "nan")
