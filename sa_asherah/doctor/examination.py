# SPDX-License-Identifier: Apache-2.0
"""The whole examination, in its order: declarations, key table, values, what both tell together, the key service."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from sa_asherah.doctor.chest import Chest
from sa_asherah.doctor.findings import Findings, Place
from sa_asherah.doctor.keys import KeyExamination
from sa_asherah.doctor.layout import Layout, labelled
from sa_asherah.doctor.notebook import Notebook
from sa_asherah.doctor.origin import Traces
from sa_asherah.doctor.schema import examinable, plans_of
from sa_asherah.doctor.service import examine_service
from sa_asherah.doctor.subject import subject_of
from sa_asherah.doctor.values import ValueExamination
from sa_asherah.errors import ConfigurationError, UsageError
from sa_asherah.metastore import open_metastore, root_engine

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine, MetaData

    from sa_asherah.asherah import Asherah
    from sa_asherah.config import Settings
    from sa_asherah.doctor.subject import Subject

__all__ = ["examine"]

_OFFLINE = (
    "the Bind of each key, whether values open, and whether they are in the place they were encrypted for: no key was "
    "opened, since the key service was not asked (online)"
)
_UNLISTED = (
    "keys that no value examined names, keys stored twice, orphaned keys, keys of other names or regions: the key "
    "table is in DynamoDB, where keys are looked up one by one"
)


def examine(
    engine: Engine,
    asherah_or_settings: Asherah | Settings,
    metadata: MetaData,
    *,
    online: bool = False,
    metastore: Engine | None = None,
    batch: int = 500,
    limit: int = 20,
) -> Findings:
    """Examine keys and encrypted values. Reads only: a user with SELECT on the tables suffices.

    Every page is read in a short transaction of its own, with bounded memory; what must be remembered of keys is kept
    in a temporary file, which holds ids, dates and hashes. The application may go on meanwhile.

    Args:
        engine: The database of the data; an `Asherah` need not be attached.
        asherah_or_settings: The names, regions and key service of the application.
        metadata: Its tables.
        online: Whether the key service may be asked to open system keys, and is examined itself. Keys under a static
            master key are opened in any case.
        metastore: The database of the key table, if it is another one.
        batch: How many rows a page has.
        limit: How many findings of each code are kept for each column.

    Returns:
        What was found.

    Raises:
        ConfigurationError: A setting is unusable.
        UsageError: The engine is asynchronous, or there are two key tables, one here and one in the settings.
        MetastoreError: The key table cannot be read.
        sqlalchemy.exc.SQLAlchemyError: The database failed.
    """
    if engine.dialect.is_async or (metastore is not None and metastore.dialect.is_async):
        raise UsageError("doctor needs an engine with a synchronous driver: create_engine(...)")
    findings = Findings(limit)
    with ExitStack() as stack:
        subject = stack.enter_context(subject_of(asherah_or_settings, online=online))
        if subject.table is not None and metastore is not None:
            raise UsageError("metastore= names another key table than the settings, whose is in DynamoDB; leave it out")
        connection = stack.enter_context(engine.connect())
        keys = connection if metastore is None else stack.enter_context(metastore.connect())
        notebook = stack.enter_context(Notebook())
        _Examination(connection, keys, subject, notebook, findings).run(metadata, batch, online=online)
    return findings


class _Examination:
    """What the steps have in common."""

    def __init__(
        self, connection: Connection, keys: Connection, subject: Subject, notebook: Notebook, findings: Findings
    ) -> None:
        self._connection = connection
        self._subject = subject
        self._notebook = notebook
        self._findings = findings
        rows = subject.table or open_metastore(root_engine(keys.engine), separate=keys is not connection)
        self._chest = Chest(subject, rows, keys)
        self._keys = KeyExamination(keys, subject, self._chest, notebook, findings)

    def run(self, metadata: MetaData, batch: int, *, online: bool) -> None:
        layouts = self._layouts(metadata)
        has_keys = self._keys.run(batch)
        if has_keys:
            if self._subject.table is not None:
                self._findings.not_checked.append(_UNLISTED)
            if self._subject.kms is None:
                self._findings.not_checked.append(_OFFLINE)
            self._examine_values(layouts, batch)
            self._keys.finish()
        if online and self._subject.kms is not None:
            examine_service(
                self._subject.kms, self._findings, creates=self._subject.creates, has_keys=self._chest.has_system_keys
            )

    def _layouts(self, metadata: MetaData) -> list[Layout]:
        layouts: list[Layout] = []
        for plan in plans_of(metadata, self._findings):
            if examinable(self._connection, plan, self._findings):
                try:
                    layouts.append(Layout(plan, self._connection.dialect))
                except ConfigurationError as error:
                    self._findings.add("no-primary-key", Place(plan.table.fullname), str(error))
        return layouts

    def _examine_values(self, layouts: list[Layout], batch: int) -> None:
        traces = Traces(self._connection, self._subject, self._chest, self._notebook, labelled(layouts))
        examination = ValueExamination(
            self._connection, self._subject, self._keys, self._chest, self._notebook, traces, self._findings
        )
        # Tables whose rows do not tell the owner come last, when all keys are known that can be.
        for layout in sorted(layouts, key=lambda layout: any(slot.group.owner is None for slot in layout.slots)):
            examination.run(layout, batch)
        if examination.unsearched:
            self._findings.not_checked.append(
                f"{examination.unsearched} values of columns without owner=: of the keys of their date some do not "
                "open, are not known, or there are too many"
            )
        if traces.is_exhausted:
            self._findings.not_checked.append("where further misplaced values came from: too many were tried already")
