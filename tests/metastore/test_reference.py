# SPDX-License-Identifier: Apache-2.0
"""Data row records of the published package `asherah`, read through its own key table, and written beside its keys."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sa_asherah.core.ids import KeyIds
from sa_asherah.core.session import Session
from sa_asherah.errors import KeyRecordError
from sa_asherah.metastore import check
from tests.metastore.backends import engine_of, hierarchy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

REFERENCE = Path(__file__).parents[1] / "vectors" / "reference"
VECTORS: list[dict[str, Any]] = json.loads((REFERENCE / "vectors.json").read_text("utf-8"))["vectors"]


def ids_of(vector: dict[str, Any], *, peers: bool = True) -> KeyIds:
    config = vector["config"]
    return KeyIds(config["ServiceName"], config["ProductID"], config.get("RegionSuffix", ""), peers)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    shutil.copy(REFERENCE / "keys.sqlite", tmp_path / "keys.sqlite")
    with engine_of(f"sqlite:///{tmp_path / 'keys.sqlite'}") as engine:
        yield engine


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: str(vector["name"]))
def test_records_of_the_package_are_read_and_ours_stand_beside(engine: Engine, vector: dict[str, Any]) -> None:
    with engine.begin() as connection:
        check(connection, peers=True)
        session = Session(hierarchy(engine, ids_of(vector)), vector["partition"], connection)
        assert session.decrypt(vector["drr"]) == base64.b64decode(vector["plaintext"])
        record = session.encrypt(b"ours")
        assert session.decrypt(record) == b"ours"
    assert Session(hierarchy(engine, ids_of(vector)), vector["partition"]).decrypt(record) == b"ours"


def test_without_peers_their_keys_are_refused(engine: Engine) -> None:
    vector = VECTORS[0]
    ids = ids_of(vector, peers=False) if "_" not in str(vector["config"]) else None
    if ids is not None:
        with pytest.raises(KeyRecordError, match="peers=True"):
            Session(hierarchy(engine, ids), vector["partition"]).decrypt(vector["drr"])
