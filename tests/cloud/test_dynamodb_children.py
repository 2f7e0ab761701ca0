# SPDX-License-Identifier: Apache-2.0
"""In DynamoDB, too, a system key that is gone or retired gets no children, and an erased owner keeps no key."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.cloud.test_dynamodb_rows import START, exact, insert
from tests.metastore.backends import row

if TYPE_CHECKING:
    from sa_asherah.metastore.dynamodb import DynamoDBMetastore

PARENT = ("_SK_s_p", START)
CHILD = row("_IK_7_s_p", START)
PLACE = (CHILD.id, CHILD.created)


def test_a_child_is_inserted_only_under_a_parent_that_is_there_and_not_retired(metastore: DynamoDBMetastore) -> None:
    insert(metastore, row(*PARENT))
    parent = exact(metastore, PARENT)[PARENT]
    assert metastore.run(lambda rows: rows.insert([CHILD], parent)) is True
    assert metastore.run(lambda rows: rows.insert([row(*PLACE, Key="b3RoZXI=")], parent)) is True
    child = exact(metastore, PLACE)[PLACE]
    assert '"a2V5"' in child.text
    assert metastore.run(lambda rows: rows.remove(child)) is True
    assert metastore.run(lambda rows: rows.remove(child)) is False
    assert metastore.run(lambda rows: rows.replace(parent, row(*PARENT, Retired=2).text)) is True
    assert metastore.run(lambda rows: rows.insert([CHILD], parent)) is False
    retired = exact(metastore, PARENT)[PARENT]
    assert metastore.run(lambda rows: rows.remove(retired)) is True
    assert metastore.run(lambda rows: rows.insert([CHILD], retired)) is False
    assert exact(metastore, PLACE) == {}


def test_every_record_of_an_id_is_overwritten_and_no_other(metastore: DynamoDBMetastore) -> None:
    other, stone = row("_IK_8_s_p", START), row("_XK_7_s_p", 86_400)
    insert(metastore, CHILD, row("_IK_7_s_p", START + 1), other)
    before = exact(metastore, (other.id, START))
    erased = metastore.run(
        lambda rows: rows.erase([stone], ["_IK_7_s_p"], lambda one: row(one.id, one.created, Key="bmV3").text)
    )
    assert sorted(one.created for one in erased) == [START, START + 1]
    found = exact(metastore, PLACE, ("_IK_7_s_p", START + 1), (stone.id, stone.created))
    assert len(found) == 3
    assert all('"bmV3"' in one.text for place, one in found.items() if place[0] == "_IK_7_s_p")
    assert exact(metastore, (other.id, START)) == before
