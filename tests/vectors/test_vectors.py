# SPDX-License-Identifier: Apache-2.0
"""The frozen vectors: the generator still gives them, the core and an independent reader agree on every one."""

from __future__ import annotations

import ast
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sa_asherah.core import cell, key_record
from sa_asherah.core.ids import KeyIds
from sa_asherah.errors import DecryptionError, KeyRecordError
from tests.vectors import generate, reader

HERE = Path(__file__).parent
CELLS = reader.vectors("cell/v1.json")
BINDS = reader.vectors("key_record/bind.json")


def name_of(vector: dict[str, Any]) -> str:
    return str(vector["name"])


def read_cell(vector: dict[str, Any]) -> tuple[str, bytes]:
    try:
        stored = cell.from_text(vector["text"]) if "text" in vector else bytes.fromhex(vector["cell"])
        names = (vector[name] for name in ("service", "product", "partition", "label", "primary_key"))
        cell_key = cell.derive_cell_key(bytes.fromhex(vector["secret"]))
        plaintext = cell.open_(cell_key, stored, cell.context(*names), vector["flags"])
        return "ok", cell.unpad(plaintext) if vector["flags"] & cell.PADDED else plaintext
    except DecryptionError as error:
        return type(error).__name__, b""


def test_generating_again_gives_the_same_files() -> None:
    for path, content in generate.files().items():
        assert (HERE / path).read_text("utf-8") == content, path


@pytest.mark.parametrize("read", [read_cell, reader.read_cell], ids=["core", "reader"])
@pytest.mark.parametrize("vector", CELLS, ids=name_of)
def test_cell(vector: dict[str, Any], read: Any) -> None:
    assert read(vector) == (vector["expect"], bytes.fromhex(vector["plaintext"]))


@pytest.mark.parametrize("vector", BINDS, ids=name_of)
def test_bind(vector: dict[str, Any]) -> None:
    ids = KeyIds(vector["service"], vector["product"], vector["suffix"])
    parent = (vector["parent_id"], vector["parent_created"]) if vector["parent_id"] else None
    record = key_record.KeyRecord(vector["id"], vector["created"], "AA==", parent, bind=vector["bind"])
    secret = bytes.fromhex(vector["secret"])
    try:
        key_record.check_bind(record, vector["level"], ids, vector["partition"] or None, secret)
        outcome = "ok"
    except KeyRecordError:
        outcome = "KeyRecordError"
    assert outcome == vector["expect"]
    assert (reader.read_bind(vector) == vector["bind"]) == (vector["expect"] == "ok")


def test_vectors_cover_every_outcome_flag_and_form() -> None:
    assert len(CELLS) >= 200
    assert len({name_of(vector) for vector in CELLS}) == len(CELLS)
    outcomes = Counter(vector["expect"] for vector in CELLS)
    assert set(outcomes) == {"ok", "MalformedCellError", "DecryptionError", "WrongPlaceError"}
    assert {(v["flags"], "text" in v) for v in CELLS if v["expect"] == "ok"} == {
        (flags, text) for flags in range(4) for text in (False, True)
    }


def test_reader_is_short_and_independent() -> None:
    source = (HERE / "reader.py").read_text("utf-8")
    assert len(source.splitlines()) <= 80
    imported: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
    assert imported - sys.stdlib_module_names == {"cryptography"}
