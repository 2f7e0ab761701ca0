# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import pickle

import pytest

from sa_asherah.core.cell import derive_cell_key
from sa_asherah.core.key import Key, Secret
from sa_asherah.core.key_record import KeyRecord
from sa_asherah.core.ports import KeyRow

SECRET = bytes(range(32))
RECORD = KeyRecord("_IK_7_records_clinic", 1_800_000_000, "d3JhcHBlZA==", ("_SK_records_clinic", 1_700_000_000))


def make(record: KeyRecord = RECORD, parent: Key | None = None) -> Key:
    return Key(record, '{"Created":1}', Secret(SECRET), "7", parent)


def test_a_key_says_where_it_belongs_and_nothing_else() -> None:
    key = make()
    assert (key.id, key.created, key.partition) == (RECORD.id, RECORD.created, "7")
    assert key.row == KeyRow(RECORD.id, RECORD.created, '{"Created":1}')
    assert repr(key) == "<Key '_IK_7_records_clinic' created 1800000000>"


def test_the_cell_key_is_derived_once() -> None:
    key = make()
    assert bytes(key.cell_key) == derive_cell_key(SECRET)
    assert key.cell_key is key.cell_key


@pytest.mark.parametrize("refused", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_key_is_not_copied(refused: object) -> None:
    with pytest.raises(TypeError, match="cannot be pickled or copied"):
        refused(make())  # type: ignore[operator]


def test_a_secret_is_wiped_with_its_last_reference_and_not_before() -> None:
    wiped: list[bytes] = []

    class Watched(Secret):
        def __del__(self) -> None:
            super().__del__()
            wiped.append(bytes(self))

    secret = Watched(SECRET)
    key = Key(RECORD, "", secret, "7")
    del secret
    assert (bytes(key.secret), wiped) == (SECRET, [])
    del key
    assert wiped == [bytes(32)]


def test_the_secret_of_a_key_that_is_gone_can_still_be_used() -> None:
    secret = make().secret
    assert bytes(secret) == SECRET


def test_a_key_is_revoked_with_its_system_key() -> None:
    record = KeyRecord("_SK_records_clinic", 1_700_000_000, "d3JhcHBlZA==")
    revoked = KeyRecord("_SK_records_clinic", 1_700_000_000, "d3JhcHBlZA==", revoked=True)
    assert not make(parent=make(record)).revoked
    assert make(parent=make(revoked)).revoked
    assert make(revoked).revoked


def test_two_keys_are_compared_by_their_bytes() -> None:
    other = Key(RECORD, "", Secret(32), "7")
    assert make().has_same_secret(make())
    assert not make().has_same_secret(other)
