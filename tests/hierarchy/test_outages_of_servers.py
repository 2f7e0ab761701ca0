# SPDX-License-Identifier: Apache-2.0
"""The main cells of `docs/reference/outages.md` with real servers: PostgreSQL holds the keys, OpenBao wraps them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, insert, select

from sa_asherah import Asherah
from sa_asherah.errors import MetastoreUnavailableError
from sa_asherah.kms.static import StaticKMS
from tests.hierarchy.outages import COLUMNS, DOWN
from tests.hierarchy.servers import PATIENTS, RealStage, Sites
from tests.hierarchy.test_outages import CELLS, run
from tests.servers.openbao import SealableOpenBao
from tests.servers.postgresql import PostgreSQL
from tests.servers.process import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PLAYED = {
    "A process starts": (COLUMNS[1], COLUMNS[4]),
    "A look is due": (COLUMNS[0], COLUMNS[2], COLUMNS[4]),
    "The system key expires": (COLUMNS[0], COLUMNS[1]),
}


@pytest.fixture(scope="module")
def sites(postgresql_server: PostgreSQL, openbao: object) -> Iterator[Sites]:  # noqa: ARG001 # they skip where there are none
    """Servers that nobody else uses."""
    with PostgreSQL() as postgresql, SealableOpenBao() as bao:
        yield Sites(postgresql, bao)


@pytest.mark.filterwarnings("ignore::sa_asherah.errors.StaticKeyWarning")
def test_a_key_table_out_of_reach_is_told_before_the_first_statement() -> None:
    """SQLAlchemy's own error would tell nobody that it is the keys that are missing."""
    engine = create_engine("sqlite://")
    keys = create_engine(f"postgresql+psycopg://nobody@127.0.0.1:{free_port()}/nothing")
    with Asherah("records", "clinic", StaticKMS(bytes(32))) as asherah, engine.connect() as connection:
        asherah.attach(engine, metastore=keys)
        PATIENTS.metadata.create_all(connection)
        for _ in range(2):
            with pytest.raises(MetastoreUnavailableError, match="cannot be reached"):
                connection.execute(insert(PATIENTS).values(clinic="7", ssn="1"))
            with pytest.raises(MetastoreUnavailableError, match="cannot be reached"):
                connection.execute(select(PATIENTS.c.clinic, PATIENTS.c.ssn))
    engine.dispose()
    keys.dispose()


@pytest.mark.long
@pytest.mark.parametrize("when", PLAYED)
def test_an_application_does_what_the_cells_say(sites: Sites, tmp_path: Path, when: str) -> None:
    played = [cell for cell in CELLS if cell.when == when and cell.column in PLAYED[when]]
    for number, cell in enumerate(played):
        folder = tmp_path / str(number)
        folder.mkdir()
        with RealStage(sites, folder) as stage:
            run(cell, stage)
    assert len(played) == len(DOWN) * len(PLAYED[when])
