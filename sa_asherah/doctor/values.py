# SPDX-License-Identifier: Apache-2.0
"""Examines stored values: what each one is, whether its key exists, and, with keys, whether it opens where it is."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, NamedTuple

from sa_asherah.core import cell, row_record
from sa_asherah.doctor.findings import Place
from sa_asherah.doctor.layout import partition_of
from sa_asherah.doctor.origin import Spot
from sa_asherah.doctor.pages import read_pages
from sa_asherah.errors import DecryptionError, MalformedCellError, OwnerRequiredError
from sa_asherah.orm.windows import NOT_ROW_BOUND, PLAINTEXT, RECORD, UNPADDED, holds_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Connection, Row

    from sa_asherah.core.key import Key
    from sa_asherah.doctor.chest import Chest
    from sa_asherah.doctor.findings import Findings
    from sa_asherah.doctor.keys import KeyExamination
    from sa_asherah.doctor.layout import Layout
    from sa_asherah.doctor.notebook import Notebook
    from sa_asherah.doctor.origin import Origin, Traces
    from sa_asherah.doctor.subject import Subject
    from sa_asherah.orm.types import Encrypted

__all__ = ["ValueExamination"]

_PRECISION = 3600
"""How far, at most, a new key is dated back, in seconds; a longer setting is unheard of."""
_WINDOWS = {cell.PADDED: UNPADDED, cell.ROW_BOUND: NOT_ROW_BOUND}


class _Value(NamedTuple):
    """A stored value that looks as it should: a cell with its header, or a record."""

    spot: Spot
    cell: bytes
    header: cell.Header | None
    record: row_record.DataRowRecord | None
    places: Sequence[tuple[str, int]]

    def __repr__(self) -> str:
        return "<value>"


class ValueExamination:
    """One pass over the tables.

    Attributes:
        unsearched: How many values of columns without owner could not be told from damaged ones.
    """

    def __init__(  # noqa: PLR0917 -- what it is made of
        self,
        connection: Connection,
        subject: Subject,
        keys: KeyExamination,
        chest: Chest,
        notebook: Notebook,
        traces: Traces,
        findings: Findings,
    ) -> None:
        """Prepare.

        Args:
            connection: To the database of the data.
            subject: The names in the settings.
            keys: Examines keys that are found later.
            chest: Opens keys.
            notebook: Knows the keys.
            traces: Finds where values belong.
            findings: Where to note what is wrong.
        """
        self._connection = connection
        self._subject = subject
        self._keys = keys
        self._chest = chest
        self._notebook = notebook
        self._traces = traces
        self._findings = findings
        self._started = subject.clock()
        self._known: dict[tuple[str, int], str] = {}
        self._open: dict[tuple[str, int], Key] = {}
        self._used: set[str] = set()
        self.unsearched = 0

    def run(self, layout: Layout, batch: int) -> None:
        """Examine a table.

        Args:
            layout: The table.
            batch: How many rows a page has.
        """
        for rows in read_pages(self._connection, layout.pages, layout.columns, layout.sized, batch):
            self._findings.rows += len(rows)
            values = [value for row in rows for value in self._row(layout, row)]
            self._learn(values)
            for value in values:
                if value.record is not None:
                    self._judge_record(value, value.record)
                elif value.header is not None:
                    self._judge_cell(value, value.header)
            self._notebook.use(self._used)
            self._used.clear()

    def _learn(self, values: Sequence[_Value]) -> None:
        """Look up the keys of a page of values, also those that were made since the key table was read."""
        places = {place for value in values for place in value.places}
        self._known = self._notebook.states(places)
        absent = {place for value in values if not self._states(value) for place in value.places}
        found = self._chest.read(absent)
        if found:
            self._keys.take(found)
            self._traces.renew()
            self._known |= self._notebook.states(absent)
        self._open = self._chest.open([place for place, state in self._known.items() if state == "good"])

    def _add(self, code: str, spot: Spot, detail: str = "") -> None:
        table, column = spot.slot.layout.plan.table.fullname, spot.slot.column.column.name
        self._findings.add(code, Place(table, column, spot.primary_key), detail)

    # What a value is by its looks

    def _row(self, layout: Layout, row: Row[Any]) -> list[_Value]:
        found: list[_Value] = []
        key = layout.primary_key(row)
        for group, owner, text, values in layout.groups(row):
            self._findings.values += len(values)
            partition: str | None = None
            if group.owner is not None:
                place = Place(layout.plan.table.fullname, group.owner.name, key)
                if not owner:
                    self._findings.add("owner-missing", place)
                    continue
                with contextlib.suppress(OwnerRequiredError):
                    partition = partition_of(group, owner)
                if partition is None or not self._subject.key_ids(partition):
                    self._findings.add("owner-malformed", place)
                    continue
                self._used.add(partition)
            for slot, stored in values:
                value = self._read(Spot(slot, key, partition, text), stored)
                if value is not None:
                    found.append(value)
        return found

    def _read(self, spot: Spot, stored: Any) -> _Value | None:
        """Tell what a value is; note it unless it is a cell or record as declared."""
        type_ = spot.slot.type
        wanted = RECORD if type_.format == RECORD else type_.storage
        raw = stored if isinstance(stored, str) else bytes(stored)
        kind = _kind(raw)
        if kind != wanted and not self._passes_form(spot, type_, kind, raw):
            return None
        try:
            if kind == RECORD:
                return self._read_record(spot, raw)
            found = cell.from_text(raw) if isinstance(raw, str) else raw
            header = cell.parse(found)
        except MalformedCellError as error:
            self._add("value-malformed", spot, str(error).split(":")[0])
            return None
        ids = () if spot.partition is None else self._subject.key_ids(spot.partition)
        return _Value(spot, found, header, None, [(each, header.created) for each in ids])

    @staticmethod
    def _read_record(spot: Spot, raw: str | bytes) -> _Value:
        text = raw if isinstance(raw, str) else raw.decode(errors="surrogateescape")
        record = row_record.parse_data_row_record(text)
        return _Value(spot, b"", None, record, [record.parent])

    def _passes_form(self, spot: Spot, type_: Encrypted, kind: str, raw: str | bytes) -> bool:
        """Note a value that is in another form than is written; tell whether it can be examined all the same."""
        if kind in {PLAINTEXT, RECORD} and kind in type_.windows:
            self._add_window(spot, [kind], kind)
            return kind == RECORD
        if kind != PLAINTEXT:
            self._add("format-differs", spot, f"it is {_NAMES[kind]}")
        elif isinstance(raw, bytes) and holds_text(type_.inner) and not _is_utf8(raw):
            self._add("value-malformed", spot, "it is neither text nor a cell")
        else:
            self._add("plaintext", spot)
        return False

    # Whether it belongs where it is

    def _states(self, value: _Value) -> set[str]:
        return {self._known[place] for place in value.places if place in self._known}

    def _judge_cell(self, value: _Value, header: cell.Header) -> None:
        spot, states = value.spot, self._states(value)
        if "erased" in states:
            self._add("value-erased", spot)
            return
        origin = None
        if self._subject.kms is not None:
            keys = [self._open[place] for place in value.places if place in self._open]
            origin = self._traces.find(spot, value.cell, header, keys)
        if origin is not None:
            self._findings.opened += 1
            self._compare(spot, origin, header.flags)
        elif header.flags != spot.slot.type.flags and not self._passes_flags(spot, header.flags):
            self._add("flags-differ", spot, f"it is {cell.describe(header.flags)}")
        elif spot.partition is None:
            self._judge_unowned(spot, header)
        elif not states:
            self._add("key-missing", spot, self._hint(header.created, spot.partition))
        elif self._subject.kms is not None and "bad" not in states:  # a bad key is reported itself
            self._add("value-damaged", spot, self._searched())

    def _judge_unowned(self, spot: Spot, header: cell.Header) -> None:
        """Judge a cell of a column without owner that no key opened."""
        # Of a key table that is not listed, and of keys newer than the list, not all are known.
        is_listed = self._subject.table is None and header.created <= self._started - _PRECISION
        has_keys = bool(self._notebook.partitions_of_date(header.created, 1))
        if is_listed and not has_keys:
            self._add("key-missing", spot, self._hint(header.created, None))
        elif is_listed and self._subject.kms is not None and self._traces.is_complete(header.created):
            self._add("value-damaged", spot, self._searched())
        elif self._subject.kms is not None or not has_keys:
            self.unsearched += 1

    def _compare(self, spot: Spot, origin: Origin, flags: int) -> None:
        """Compare where a cell is with where it belongs."""
        self._used.add(origin.partition)
        detail = "" if origin.slot is None else f"it is of {origin.slot.name}"
        if origin.row:
            detail += f" [{origin.row}]"
        if spot.partition is not None and origin.partition != spot.partition:
            self._add("wrong-owner", spot, f"its owner is {origin.partition!r}{detail and ', ' + detail}")
        elif origin.slot is None:
            self._add("value-damaged", spot, self._searched())
        elif origin.slot.column.label != spot.slot.column.label:
            self._add("wrong-column", spot, detail)
        elif origin.row and origin.row != spot.row:
            self._add("wrong-row", spot, detail)
        elif flags != spot.slot.type.flags and not self._passes_flags(spot, flags):
            self._add("flags-differ", spot, f"it is {cell.describe(flags)}")
        else:
            self._decode(spot, origin.plaintext, spot.slot.decode, padded=bool(flags & cell.PADDED))

    def _passes_flags(self, spot: Spot, flags: int) -> bool:
        """Note a cell without flags that are declared, if reads= names that; tell whether it does."""
        type_ = spot.slot.type
        missing = [form for flag, form in _WINDOWS.items() if type_.flags & ~flags & flag]
        if flags & ~type_.flags or not all(form in type_.windows for form in missing):
            return False
        self._add_window(spot, missing, cell.describe(flags))
        return True

    def _add_window(self, spot: Spot, forms: Sequence[str], detail: str) -> None:
        is_over = any(spot.slot.type.windows.is_over(form, self._started) for form in forms)
        self._add("window-over" if is_over else "window-open", spot, detail)

    def _decode(self, spot: Spot, plaintext: bytes, decode: Callable[[bytes], Any], *, padded: bool = False) -> None:
        is_decoded = False
        with contextlib.suppress(Exception):  # a decorator of the application's may raise anything
            decode(cell.unpad(plaintext) if padded else plaintext)
            is_decoded = True
        if not is_decoded:
            self._add("inner-type-differs", spot)

    def _judge_record(self, value: _Value, record: row_record.DataRowRecord) -> None:
        spot, states = value.spot, self._states(value)
        identity = self._subject.identify(record.parent[0])
        if identity is None:
            self._add("key-missing", spot, f"{record.parent[0]!r}, which is none of the names that are read")
        elif spot.partition is not None and identity.partition != spot.partition:
            self._used.add(identity.partition or "")
            self._add("wrong-owner", spot, f"its owner is {identity.partition!r}")
        elif not states:
            self._add("key-missing", spot, f"{record.parent[0]!r} created {record.parent[1]}")
        elif "erased" in states:
            self._add("value-erased", spot)
        elif (key := self._open.get(record.parent)) is not None:
            decrypt = row_record.opener(key.secret, record.key)
            plaintext: bytes | None = None
            with contextlib.suppress(DecryptionError):
                plaintext = None if decrypt is None else row_record.open_data(decrypt, record.data)
            if plaintext is None:
                self._add("value-damaged", spot)
                return
            self._findings.opened += 1
            self._decode(spot, plaintext, spot.slot.decode_record)

    def _others(self, created: int, partition: str | None) -> list[str]:
        return [each for each in self._notebook.partitions_of_date(created, 4) if each != partition]

    def _hint(self, created: int, partition: str | None) -> str:
        """Without keys: say whose the value may be."""
        others = self._others(created, partition)
        owners = f"; there are keys of that date of {', '.join(map(repr, others[:3]))}" if others else ""
        return f"it is dated {created}{owners}"

    def _searched(self) -> str:
        return "where it came from was not searched for any more" if self._traces.is_exhausted else ""


_NAMES = {"binary": "a binary cell", "text": "a cell as text", RECORD: "a data row record"}


def _kind(raw: str | bytes) -> str:
    """Tell by its looks what a stored value is: `binary` or `text` cell, `asherah` record, or `plaintext`."""
    if isinstance(raw, bytes) and cell.is_marked(raw, text=False):
        return "binary"
    stored = raw.encode(errors="surrogateescape") if isinstance(raw, str) else raw
    if stored.startswith(b"sa1:"):
        return "text"
    return RECORD if row_record.is_marked(stored) else PLAINTEXT


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True
