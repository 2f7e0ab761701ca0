# SPDX-License-Identifier: Apache-2.0
"""Ends an epoch: what backups of the key table hold opens no more, since Vault forgets the versions that wrapped it."""

from __future__ import annotations

import dataclasses
import math
from datetime import timedelta
from typing import TYPE_CHECKING

from sa_asherah.copies import export_lines, read_export
from sa_asherah.core.erasure import changed
from sa_asherah.core.key_record import parse_key_record
from sa_asherah.core.ports import KeyRow
from sa_asherah.core.system_keys import epoch_place
from sa_asherah.errors import ConfigurationError, KeyRecordError, KmsCiphertextError, MetastoreError, UsageError
from sa_asherah.metastore.stored import pages, stored_rows
from sa_asherah.shred.children import Children, Findings
from sa_asherah.shred.state import ALTERED, CANCELLED, State, state_of, text_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sqlalchemy import Engine

    from sa_asherah.asherah import Asherah
    from sa_asherah.core.key import Key
    from sa_asherah.core.ports import KeyRows

__all__ = ["Epoch", "State"]

_TRIES = 100


class Epoch:
    """One epoch at a time. `run` goes as far as it can; call it again when its time has come, or after an end."""

    def __init__(
        self, engine: Engine, asherah: Asherah, exclusive_key: str, *, soak: timedelta = timedelta(days=7)
    ) -> None:
        """Prepare; nothing is read or written yet.

        Args:
            engine: The engine of the database that holds the key table.
            asherah: The keys. Its token may also read, rotate, configure and trim the Transit key.
            exclusive_key: The name of the Transit key, once more: no other service, product or database uses it.
            soak: How long old versions stay in Vault, disabled, before they are destroyed.

        Raises:
            ConfigurationError: The key service is not Transit, the key is another one, or other implementations share
                the key table.
        """
        # Their package imports hvac.
        from sa_asherah.kms.vault import VaultTransitKMS  # noqa: PLC0415
        from sa_asherah.kms.vault.versions import Versions, version_of  # noqa: PLC0415

        self._engine = engine
        self._soak = soak
        self._system_keys = asherah.system_keys(engine)
        service = self._system_keys.service
        if not isinstance(service, VaultTransitKMS):
            raise ConfigurationError(
                "only Vault's Transit forgets versions of a key (KMS=vault, without KMS_PREVIOUS): with other services "
                "backups end by moving to another master key (kms migrate) and destroying the old one"
            )
        if self._system_keys.ids.peers:
            raise ConfigurationError("other Asherah implementations share this key table (peers=True); stop that first")
        if exclusive_key != service.settings.key:
            raise ConfigurationError(
                f"the Transit key in use is {service.settings.key!r}, the one named as exclusive is {exclusive_key!r}. "
                "Check that no other service, product or database uses it, and name it"
            )
        self._key = f"{service.settings.mount}/{service.settings.key}"
        self._versions = Versions(service)
        self._version_of: Callable[[bytes], int] = version_of
        self._children = Children(engine, self._system_keys)
        self._metastore = self._system_keys.metastore
        self._place = epoch_place(self._system_keys.ids)
        self._steps = (
            self._rotate,
            self._make,
            self._retire,
            self._move,
            self._count,
            self._verify,
            self._disable,
            self._trim,
        )

    def state(self) -> State | None:
        """Tell how far an epoch has come.

        Returns:
            Its state; `None` if none is running.
        """
        row = self._row()
        return None if row is None else state_of(row)

    def run(self, *, snapshot_taken: bool = False, export: Path | None = None, trim: bool = False) -> State:
        """Go on as far as possible: to the next step that needs time, or a word of the operator.

        Args:
            snapshot_taken: A snapshot of Vault was taken after its key was rotated (needed after step 2).
            export: Where to write an export of the key table, in a second place (needed for step 7).
            trim: Destroy the old versions (step 9, when the soak is over). It cannot be undone.

        Returns:
            The state. Step 9: complete. Step 2: take a snapshot. Step 6: give `export`. Step 8: give `trim`. Any step
            with `until` in the future: come back then.

        Raises:
            UsageError: Another run is at work, another Transit key was named before, or the epoch was cancelled.
            ConfigurationError: The Transit key also wraps system keys of other regions, products or services.
            MetastoreError: Keys do not open that must not be given up, or the key table failed.
            KmsError: Vault failed.
        """
        for _ in range(_TRIES):
            row = self._row()
            if row is None:
                self._refuse_others(self._versions.newest() + 1)
                row = self._begun()
            state = self._ours(row)
            if state.step == CANCELLED:
                raise UsageError("this epoch is being cancelled; complete that first (--cancel)")
            go = {2: snapshot_taken, 6: export is not None, 8: trim}.get(state.step, True)
            if not go or self._now() < state.until:
                return state
            following = self._steps[state.step - 1](state, export)
            if following.step == len(self._steps) + 1:
                self._end(row)
                return following
            self._save(row, following)
        raise MetastoreError("others rotate or rewrap all the time; let them end and start again")

    def cancel(self) -> bool:
        """Give the epoch up before its last step: Vault opens again what it did, and system keys are used again.

        The new version of the Transit key and the new system key stay: the newest ones, as after any rotation. Call it
        again after an end.

        Returns:
            Whether one was running.

        Raises:
            UsageError: Its last step has begun, another run is at work, or another Transit key was named before.
            MetastoreError: The key table failed, or the state was altered.
            KmsError: Vault failed.
        """
        row = self._row()
        if row is None:
            return False
        state = self._ours(row)
        if state.final:
            raise UsageError("step 9 has begun, and what it destroyed is gone: complete it (--trim)")
        if state.step != CANCELLED:
            self._save(row, dataclasses.replace(state, step=CANCELLED))  # from here on no run goes on
            return self.cancel()
        self._undo(state)
        self._end(row)
        return True

    # The steps, by the number of the one before

    def _rotate(self, state: State, _export: Path | None) -> State:
        """2: a new version of the master key."""
        newest = self._versions.newest()
        version = state.version or newest + 1
        if newest < version:
            self._versions.rotate()
        return dataclasses.replace(state, step=2, version=version, opens=self._versions.oldest())

    def _make(self, state: State, _export: Path | None) -> State:
        """3: a system key under that version."""
        old = tuple(row.created for row in self._rows())
        return dataclasses.replace(state, step=3, old=old, new=self._system_keys.make_key().created)

    def _retire(self, state: State, _export: Path | None) -> State:
        """4: the older ones get no more children. One that was wrapped anew meanwhile would outlive its version."""
        late = [row.created for row in self._rows() if row.created not in state.old and self._is_old(row, state)]
        state = dataclasses.replace(state, old=(*state.old, *late))
        for row in self._rows():
            if row.created in state.old:
                self._mark(row, state.version)
        outliving = [row for row in self._rows() if row.created in state.old and not self._is_old(row, state)]
        if outliving:
            return dataclasses.replace(state, step=1, version=self._versions.newest() + 1)
        return dataclasses.replace(state, step=4)

    def _move(self, state: State, _export: Path | None) -> State:
        """5: what they wrap is wrapped by the new one."""
        self._moved(state)
        until = self._now() + math.ceil(self._system_keys.policy.last_use_after)
        return dataclasses.replace(state, step=5, until=int(until))

    def _count(self, state: State, _export: Path | None) -> State:
        """6: when no process can have an older view, there is nothing left to move."""
        if any(self._is_old(row, state) and row.created not in state.old for row in self._rows()):
            return dataclasses.replace(state, step=3)
        if self._moved(state).moved:
            return dataclasses.replace(state, step=4)
        return dataclasses.replace(state, step=6, until=0)

    def _verify(self, state: State, export: Path | None) -> State:
        """7: everything opens, here and in an export in a second place."""
        assert export is not None  # noqa: S101 # `run` sees to it
        self._refuse(self._moved(state))
        self._refuse(self._children.check())
        ids = self._system_keys.ids
        with self._engine.connect() as connection, export.open("w", encoding="utf-8") as file:
            file.writelines(export_lines(ids, (ids,), stored_rows(connection)))
        with export.open(encoding="utf-8") as file:
            self._refuse(self._children.check_copy(read_export(file)))
        return dataclasses.replace(state, step=7)

    def _disable(self, state: State, _export: Path | None) -> State:
        """8: Vault opens nothing older; that can be undone until step 9."""
        self._refuse_others(state.version)
        self._given_up(state)
        self._versions.open_from(state.version)
        return dataclasses.replace(state, step=8, until=int(self._now() + self._soak.total_seconds()))

    def _trim(self, state: State, _export: Path | None) -> State:
        """9: the old system keys go, and the old versions. First it is noted that this cannot be cancelled any more."""
        given_up = self._given_up(state)
        if not state.final:
            return dataclasses.replace(state, final=True)
        if not self._metastore.run(lambda rows: all(rows.remove(row) for row in given_up), writing=True):
            raise MetastoreError("somebody changed a given-up system key meanwhile; start again")
        self._versions.trim(state.version)
        return dataclasses.replace(state, step=9, until=0)

    # What they use

    def _given_up(self, state: State) -> list[KeyRow]:
        """List the system keys that go, when nothing needs them, whatever the state says: it may have been altered."""
        rows = self._rows()
        going = [row for row in rows if row.created in state.old]
        if any(self._is_old(row, state) for row in rows if row not in going):
            raise MetastoreError(f"a system key that stays needs a version before {state.version}; {ALTERED}")
        # Read before the keys that they wrap, and removed only as it was read: nothing comes under them in between.
        if not all(parse_key_record(row).retired for row in going):
            raise MetastoreError(f"a system key that goes is not retired; {ALTERED}")
        left = self._moved(state)
        self._refuse(left)
        if left.moved:
            raise MetastoreError("a process still made keys under a given-up system key; find it, and start again")
        self._refuse(self._children.check())
        return going

    def _now(self) -> float:
        return self._system_keys.policy.clock()

    def _rows(self) -> list[KeyRow]:
        return list(self._metastore.run(lambda rows: rows.versions(self._system_keys.ids.system_key_id())))

    def _is_old(self, row: KeyRow, state: State) -> bool:
        return self._version_of(parse_key_record(row).wrapped) < state.version

    def _mark(self, row: KeyRow, retired: int | None) -> None:
        """Retire a system key, or undo that, whatever else happens to its record."""
        place = (row.id, row.created)

        def work(rows: KeyRows) -> None:
            while current := rows.exact((place,)).get(place):
                if rows.replace(current, changed(current.text, Retired=retired)):
                    return

        self._metastore.run(work, writing=True)

    def _undo(self, state: State) -> None:
        if 0 < state.opens < self._versions.oldest():
            self._versions.reopen(state.opens)
        for row in self._rows():
            if parse_key_record(row).retired:
                self._mark(row, None)

    def _moved(self, state: State) -> Findings:
        return self._children.move(state.old, self._new_key(state))

    def _new_key(self, state: State) -> Key:
        return self._system_keys.key(state.new)

    @staticmethod
    def _refuse(findings: Findings) -> None:
        if findings.problems:
            raise MetastoreError(
                f"{findings.problems} keys would be lost for ever, or are not what they should be. The first: "
                f"{findings.first}. When that is done, start again"
            )

    def _refuse_others(self, version: int) -> None:
        """Refuse to give up versions that wrap keys of others; those of other tables nobody sees from here."""
        system_id = self._system_keys.ids.system_key_id()
        for page in pages(self._engine, "_SK_"):
            for row in page:
                if row.id != system_id and self._depends_on_older(row, version):
                    raise ConfigurationError(
                        f"the Transit key {self._key} also wraps the system key {row.id!r} of another region, product "
                        "or service, whose data would be lost. Move those keys to a Transit key of their own first "
                        "(sa-asherah kms migrate, with their settings)"
                    )

    def _depends_on_older(self, row: KeyRow, version: int) -> bool:
        try:
            wrapped = parse_key_record(row).wrapped
            if not 0 < self._version_of(wrapped) < version:
                return False
            self._system_keys.service.decrypt_key(wrapped)
        except (KeyRecordError, KmsCiphertextError):
            return False
        return True

    # The state

    def _row(self) -> KeyRow | None:
        return self._metastore.run(lambda rows: rows.exact((self._place,))).get(self._place)

    def _ours(self, row: KeyRow) -> State:
        state = state_of(row)
        if state.key != self._key:
            raise UsageError(f"an epoch of the Transit key {state.key} is running; finish that one first")
        return state

    def _begun(self) -> KeyRow:
        row = KeyRow(*self._place, text_of(State(self._key)))
        self._metastore.run(lambda rows: rows.insert([row]), writing=True)
        found = self._row()
        if found is None:
            raise MetastoreError("the state of the epoch was inserted and is not there; check the key table")
        return found

    def _save(self, row: KeyRow, state: State) -> None:
        if self._metastore.run(lambda rows: rows.replace(row, text_of(state)), writing=True):
            return
        current = self._row()
        if current is None or state_of(current).step == CANCELLED:
            self._undo(state)  # what this run did after the one that cancelled
            raise UsageError("this epoch was cancelled meanwhile")
        raise UsageError("another run of this epoch is at work; let it end, and start again")

    def _end(self, row: KeyRow) -> None:
        self._metastore.run(lambda rows: rows.remove(row), writing=True)
