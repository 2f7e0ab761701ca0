# SPDX-License-Identifier: Apache-2.0
"""An application whose keys are in PostgreSQL under a key of OpenBao; both can be put out of service."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Self

from sqlalchemy import Column, Engine, Integer, MetaData, String, Table, create_engine, insert, select, text

from sa_asherah import Asherah, Encrypted
from sa_asherah.kms.vault import VaultTransitKMS
from tests.hierarchy.outages import COLUMNS, OLDER
from tests.unit.core.fakes import EXPIRE_AFTER, START, Clock, key_id

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from tests.servers.openbao import SealableOpenBao
    from tests.servers.postgresql import PostgreSQL

PATIENTS = Table(
    "patients",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("clinic", String),
    Column("ssn", Encrypted(String(), owner="clinic")),
)
OWNERS = ("warm", "cold", *(f"cold {number}" for number in range(4)))


class Sites:
    """The two servers; what a test put out of service is back after it."""

    def __init__(self, postgresql: PostgreSQL, openbao: SealableOpenBao) -> None:
        self.postgresql = postgresql
        self.openbao = openbao
        self.mount, self.key = openbao.new_transit()
        self.token = openbao.transit_token(self.mount, self.key)
        self._is_table_down = self._is_kms_down = False

    @property
    def table_is_down(self) -> bool:
        return self._is_table_down

    @table_is_down.setter
    def table_is_down(self, is_down: bool) -> None:
        if is_down != self._is_table_down:
            (self.postgresql.stop if is_down else self.postgresql.start)()
        self._is_table_down = is_down

    @property
    def kms_is_down(self) -> bool:
        return self._is_kms_down

    @kms_is_down.setter
    def kms_is_down(self, is_down: bool) -> None:
        if is_down != self._is_kms_down:
            (self.openbao.seal if is_down else self.openbao.unseal)()
        self._is_kms_down = is_down

    def kms(self) -> VaultTransitKMS:
        return VaultTransitKMS(addr=self.openbao.addr, key=self.key, mount=self.mount, token=self.token, deadline=1.0)


class Application:
    """One process: its engine on the data, and its own one on the key table."""

    def __init__(self, file: Path, sites: Sites, clock: Clock) -> None:
        self.asherah = Asherah(
            "records",
            "clinic",
            sites.kms(),
            rotation_spread=timedelta(0),
            early_rotation=0,
            clock=clock,
        )
        self.keys = create_engine(sites.postgresql.url("postgres"))
        self.engine: Engine = create_engine(f"sqlite:///{file}")
        self.asherah.attach(self.engine, metastore=self.keys)

    def write(self, *owners: str) -> None:
        with self.engine.begin() as connection:
            connection.execute(insert(PATIENTS), [{"clinic": owner, "ssn": f"of {owner}"} for owner in owners])

    def read(self, owner: str) -> None:
        with self.engine.connect() as connection:
            query = select(PATIENTS.c.clinic, PATIENTS.c.ssn).where(PATIENTS.c.clinic == owner)
            assert {tuple(row) for row in connection.execute(query)} == {(owner, f"of {owner}")}

    def used_a_new_key(self, owner: str) -> bool:
        key = self.engine.dialect._sa_asherah.hierarchy._keyring.intermediate.newest(key_id(owner))  # type: ignore[attr-defined]
        assert key is not None
        return bool(key.created != START)

    def close(self) -> None:
        self.asherah.detach(self.engine)
        self.asherah.close()
        self.engine.dispose()
        self.keys.dispose()


class World:
    """What a scene sets."""

    def __init__(self) -> None:
        self.clock = Clock()


class RealStage:
    """The stage of `tests.hierarchy.outages`, played by an application with real servers."""

    def __init__(self, sites: Sites, folder: Path) -> None:
        self.world = World()
        self.looked = float(START)
        self.expires = float(START + EXPIRE_AFTER)
        self._sites = sites
        self._strangers = 0
        self._elsewhere = Application(folder / "data.db", sites, self.world.clock)
        with self._elsewhere.keys.begin() as connection:
            connection.execute(text("DROP TABLE IF EXISTS encryption_key"))
        self._elsewhere.asherah.create_metastore(self._elsewhere.keys)
        PATIENTS.metadata.create_all(self._elsewhere.engine)
        self.world.clock.now = OLDER
        self._elsewhere.write("older")
        self.world.clock.now = START
        self._elsewhere.write(*OWNERS)
        self._process = Application(folder / "data.db", sites, self.world.clock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._sites.table_is_down = self._sites.kms_is_down = False
        self._process.close()
        self._elsewhere.close()

    def look(self, now: float) -> None:
        self.world.clock.now = self.looked = now
        self._process.write("warm")
        self._process.read("warm")

    def begin(self, down: str, *, midway: bool = False) -> None:
        assert not midway, "that moment is too short for real servers"
        self._sites.table_is_down = down != "key service"
        self._sites.kms_is_down = down != "key table"

    def end(self) -> None:
        self._sites.table_is_down = self._sites.kms_is_down = False
        self.world.clock.now += 11

    def act(self, column: str) -> bool:
        if column == COLUMNS[0]:
            self._process.write("warm")
            return self._process.used_a_new_key("warm")
        if column == COLUMNS[1]:
            cold, new = f"cold {self._strangers}", f"new {self._strangers}"
            self._strangers += 1
            self._process.write(cold)
            self._process.write(new)
            return self._process.used_a_new_key(cold)
        self._process.read(dict(zip(COLUMNS[2:], ("warm", "cold", "older"), strict=True))[column])
        return False

    def seconds_left(self) -> float:
        return self._process.asherah.seconds_until_writes_stop()
