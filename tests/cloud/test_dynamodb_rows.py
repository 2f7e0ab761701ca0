# SPDX-License-Identifier: Apache-2.0
"""Rows of a key table in DynamoDB: exact, consistent, never overwritten by accident, in the others' form."""

from __future__ import annotations

import dataclasses
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sa_asherah.core.hierarchy import Hierarchy
from sa_asherah.core.policy import CryptoPolicy
from sa_asherah.core.ports import KeyRow
from sa_asherah.errors import (
    ConfigurationError,
    KeyNotFoundError,
    KeyRecordError,
    MetastoreError,
    MetastoreUnavailableError,
)
from sa_asherah.metastore.dynamodb import DynamoDBMetastore
from sa_asherah.metastore.dynamodb.items import record_of, text_of
from tests.metastore.backends import IDS, KMS, row
from tests.servers.moto import REGIONS

if TYPE_CHECKING:
    from collections.abc import Callable

    from sa_asherah.core.ids import KeyIds
    from sa_asherah.core.ports import KeyRows
    from tests.servers.moto import Aws

START = 1_800_000_000
REGION = REGIONS[0]


def insert(metastore: DynamoDBMetastore, *rows: KeyRow) -> None:
    metastore.run(lambda found: found.insert(rows))


def exact(metastore: DynamoDBMetastore, *pairs: tuple[str, int]) -> dict[tuple[str, int], KeyRow]:
    return dict(metastore.run(lambda found: found.exact(pairs)))


def newest(metastore: DynamoDBMetastore, *ids: str, not_after: int = START + 10**6) -> dict[str, int]:
    return {key: found.created for key, found in metastore.run(lambda rows: rows.newest(ids, not_after)).items()}


def raw(aws: Aws, metastore: DynamoDBMetastore) -> list[dict[str, Any]]:
    return list(aws.client("dynamodb").scan(TableName=metastore._table.name)["Items"])


def put(aws: Aws, metastore: DynamoDBMetastore, key_id: str, created: str, **attributes: Any) -> None:
    item = {"Id": {"S": key_id}, "Created": {"N": created}, **attributes}
    aws.client("dynamodb").put_item(TableName=metastore._table.name, Item=item)


texts = st.text(st.sampled_from('aB0"\\/é账\n😀'), max_size=4)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(texts, json_values, max_size=4))
def test_a_record_s_text_survives_the_map(record: dict[str, object]) -> None:
    found = text_of(record_of(json.dumps(record, indent=1)))
    assert json.loads(found) == record
    assert text_of(record_of(found)) == found


def test_the_form_is_the_other_implementations(aws: Aws, metastore: DynamoDBMetastore) -> None:
    members = {"Revoked": True, "ParentKeyMeta": {"KeyId": "_SK_s_p", "Created": START}, "Bind": "YmluZA=="}
    insert(metastore, row("_IK_7_s_p", START + 60, **members))
    assert raw(aws, metastore) == [
        {
            "Id": {"S": "_IK_7_s_p"},
            "Created": {"N": str(START + 60)},
            "KeyRecord": {
                "M": {
                    "Revoked": {"BOOL": True},
                    "Created": {"N": str(START + 60)},
                    "Key": {"S": "a2V5"},
                    "ParentKeyMeta": {"M": {"KeyId": {"S": "_SK_s_p"}, "Created": {"N": str(START)}}},
                    "Bind": {"S": "YmluZA=="},
                }
            },
        }
    ]


def test_rows_come_back_as_they_were(metastore: DynamoDBMetastore) -> None:
    rows = [row("_IK_Ünï 账户_s_p", START, Bind="YQ=="), row("_IK_8_s_p", START + 1, Key="+/+/")]
    insert(metastore, *rows)
    found = exact(metastore, *[(one.id, one.created) for one in rows], ("_IK_8_s_p", START), ("_IK_8_s", START + 1))
    assert {place: json.loads(one.text) for place, one in found.items()} == {
        (one.id, one.created): json.loads(one.text) for one in rows
    }
    assert exact(metastore, *[(one.id, one.created) for one in rows]) == found
    assert exact(metastore) == {}


def test_the_newest_row_of_each_id_up_to_a_date(metastore: DynamoDBMetastore) -> None:
    dates = (START, START + 60, START + 3_600)
    insert(metastore, *[row(key_id, created) for key_id in ("_IK_7_s_p", "_IK_8_s_p") for created in dates])
    insert(metastore, row("_IK_9_s_p", START + 3_600))
    ids = ["_IK_7_s_p", "_IK_8_s_p", "_IK_9_s_p", "_IK_10_s_p"]
    assert newest(metastore, *ids, not_after=START + 3_599) == {"_IK_7_s_p": START + 60, "_IK_8_s_p": START + 60}
    assert newest(metastore, *ids, not_after=START + 3_600) == dict.fromkeys(ids[:3], START + 3_600)
    assert newest(metastore, *ids, not_after=START - 1) == {}


def test_all_versions_newest_first_over_several_pages(aws: Aws, metastore: DynamoDBMetastore) -> None:
    rows = [row("_SK_s_p", START + number, Filler="x" * 60_000) for number in range(40)]
    insert(metastore, *rows, row("_SK_s_p_eu", START), row("_SK_S_p", START))
    aws.calls.clear()
    found = metastore.run(lambda key_rows: key_rows.versions("_SK_s_p"))
    assert [one.created for one in found] == [START + number for number in reversed(range(40))]
    assert aws.calls.count((REGION, "Query")) > 1


def test_many_ids_at_once(metastore: DynamoDBMetastore) -> None:
    rows = [row(f"_IK_{number}_s_p", START) for number in range(30)]
    insert(metastore, *rows)
    places = [(one.id, one.created) for one in rows]
    assert list(exact(metastore, *places, *places)) == list(exact(metastore, *places))
    assert set(exact(metastore, *places)) == set(places)
    assert newest(metastore, *[one.id for one in rows]) == dict(places)


def test_a_taken_place_is_left_as_it_is(metastore: DynamoDBMetastore) -> None:
    insert(metastore, row("_IK_7_s_p", START, Key="Zmlyc3Q="))
    insert(metastore, row("_IK_8_s_p", START), row("_IK_7_s_p", START, Key="c2Vjb25k"))
    found = exact(metastore, ("_IK_7_s_p", START), ("_IK_8_s_p", START))
    assert json.loads(found["_IK_7_s_p", START].text)["Key"] == "Zmlyc3Q="
    assert len(found) == 2


def test_of_threads_that_insert_one_place_one_wins(metastore: DynamoDBMetastore) -> None:
    barrier = threading.Barrier(8)

    def compete(number: int) -> str:
        barrier.wait()
        insert(metastore, row("_SK_s_p", START, Key=f"AA{number}="))
        return exact(metastore, ("_SK_s_p", START))["_SK_s_p", START].text

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(compete, range(8)))) == 1


def replace(metastore: DynamoDBMetastore, old: KeyRow, text: str) -> bool:
    return metastore.run(lambda rows: rows.replace(old, text))


def test_a_record_is_replaced_only_as_it_was_read(aws: Aws, metastore: DynamoDBMetastore) -> None:
    put(aws, metastore, "_SK_s_p", str(START), KeyRecord=record_of(row("", START).text), Owner={"S": "somebody"})
    read = exact(metastore, ("_SK_s_p", START))["_SK_s_p", START]
    second = row("_SK_s_p", START, Key="c2Vjb25k").text
    assert replace(metastore, read, second)
    assert not replace(metastore, read, row("_SK_s_p", START, Key="dGhpcmQ=").text)
    assert not replace(metastore, KeyRow("_SK_s_p", START + 1, read.text), second)
    (item,) = raw(aws, metastore)
    assert item["KeyRecord"]["M"]["Key"] == {"S": "c2Vjb25k"}
    assert item["Owner"] == {"S": "somebody"}


def test_of_threads_that_replace_one_record_one_wins(metastore: DynamoDBMetastore) -> None:
    insert(metastore, row("_SK_s_p", START))
    read = exact(metastore, ("_SK_s_p", START))["_SK_s_p", START]
    barrier = threading.Barrier(8)

    def compete(number: int) -> bool:
        barrier.wait()
        return replace(metastore, read, row("_SK_s_p", START, Key=f"AA{number}=").text)

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(compete, range(8)))
    assert won.count(True) == 1
    now = exact(metastore, ("_SK_s_p", START))["_SK_s_p", START]
    assert json.loads(now.text)["Key"] == f"AA{won.index(True)}="


def test_a_change_between_reading_and_writing_is_noticed(aws: Aws, metastore: DynamoDBMetastore) -> None:
    insert(metastore, row("_SK_s_p", START))
    read = exact(metastore, ("_SK_s_p", START))["_SK_s_p", START]
    theirs = row("_SK_s_p", START, Revoked=True)

    def revoke(_region: str, operation: str) -> None:
        if operation == "PutItem":
            aws.before = lambda _region, _operation: None
            put(aws, metastore, "_SK_s_p", str(START), KeyRecord=record_of(theirs.text))

    aws.before = revoke
    assert not replace(metastore, read, row("_SK_s_p", START, Key="c2Vjb25k").text)
    assert json.loads(exact(metastore, ("_SK_s_p", START))["_SK_s_p", START].text) == json.loads(theirs.text)


def test_a_write_whose_answer_was_lost_is_a_write(aws: Aws, metastore: DynamoDBMetastore) -> None:
    insert(metastore, row("_SK_s_p", START))
    read = exact(metastore, ("_SK_s_p", START))["_SK_s_p", START]
    mine = row("_SK_s_p", START, Key="c2Vjb25k")

    def lose(_region: str, operation: str) -> None:
        # What the table holds when boto3 repeats the request: exactly what the first one wrote.
        if operation == "PutItem":
            put(aws, metastore, "_SK_s_p", str(START), KeyRecord=record_of(mine.text))

    aws.before = lose
    assert replace(metastore, read, mine.text)


def test_foreign_rows_are_passed_over(aws: Aws, metastore: DynamoDBMetastore) -> None:
    guard = {"M": {"Created": {"N": "946684800"}, "Key": {"S": "e30="}}}
    put(aws, metastore, "__asherah_internal_config_drift_guard_v1__:abc", "946684800", KeyRecord=guard)
    insert(metastore, row("_SK_s_p", START))
    for created in ("-5", f"{START + 60}.5", "1e20"):
        put(aws, metastore, "_SK_s_p", created, KeyRecord=guard)
    assert newest(metastore, "_SK_s_p") == {"_SK_s_p": START}
    assert [one.created for one in metastore.run(lambda rows: rows.versions("_SK_s_p"))] == [START]


def hierarchy(metastore: DynamoDBMetastore, ids: KeyIds = IDS, **policy: Any) -> Hierarchy:
    return Hierarchy(ids, CryptoPolicy(**policy), KMS, metastore)


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"KeyRecord": {"S": '{"Created": 1, "Key": "AAAA"}'}},
        {"KeyRecord": {"M": {}}},
        {"KeyRecord": {"M": {"Created": {"S": "1"}, "Key": {"S": "AAAA"}}}},
        {"KeyRecord": {"M": {"Created": {"N": "1"}, "Key": {"B": b"AAAA"}}}},
        {"KeyRecord": {"M": {"Created": {"N": "1"}, "Key": {"SS": ["AAAA"]}}}},
    ],
    ids=["absent", "text", "empty", "text-date", "binary-key", "set-key"],
)
def test_a_record_that_is_none_is_an_error_and_no_reason_for_a_new_key(
    aws: Aws, metastore: DynamoDBMetastore, attributes: dict[str, Any]
) -> None:
    keys = hierarchy(metastore)
    newest_id = IDS.intermediate_key_id("7")
    (created,) = [key.created for key in hierarchy(metastore).encryption_keys(["7"]).values()]
    put(aws, metastore, newest_id, str(created + 1), **attributes)
    count = len(raw(aws, metastore))
    with pytest.raises(KeyRecordError):
        keys.encryption_keys(["7"])
    assert len(raw(aws, metastore)) == count


@pytest.mark.parametrize("ids", [IDS, dataclasses.replace(IDS, peers=True)], ids=["alone", "peers"])
def test_every_read_is_consistent_and_with_peers_the_rights_are_theirs(
    aws: Aws, metastore: DynamoDBMetastore, monkeypatch: pytest.MonkeyPatch, ids: KeyIds
) -> None:
    seen: list[Any] = []
    ask = metastore._table.ask

    def spy(call: Callable[[Any], Any], **options: Any) -> Any:
        def spied(client: Any) -> Any:
            client.meta.events.register("provide-client-params.dynamodb", lambda params, **_: seen.append(dict(params)))
            return call(client)

        return ask(spied, **options)

    monkeypatch.setattr(metastore._table, "ask", spy)
    made = hierarchy(metastore, ids).encryption_keys(["7", "8"])
    hierarchy(metastore, ids).decryption_key("7", made["7"].created)
    rights = {"GetItem", "Query", "PutItem"}
    assert {operation for _, operation in aws.calls} == (rights if ids.peers else rights | {"TransactWriteItems"})
    writes = [params for params in seen if "Item" in params]
    guarded = [item for params in seen for item in params.get("TransactItems", ())]
    assert all(params["ConsistentRead"] for params in seen if not params.keys() & {"Item", "TransactItems"})
    assert all("ConditionExpression" in params for params in writes)
    assert all("ConditionExpression" in part for item in guarded for part in item.values())


REFUSALS = [
    ("ProvisionedThroughputExceededException", 400, MetastoreUnavailableError, "try again"),
    ("InternalServerError", 500, MetastoreUnavailableError, "try again"),
    ("ExpiredTokenException", 400, MetastoreUnavailableError, "does not accept the credentials"),
    ("AccessDeniedException", 400, MetastoreError, "allow dynamodb:GetItem"),
    ("ResourceNotFoundException", 400, MetastoreError, "check DDB_TABLE and AWS_REGION"),
    ("ValidationException", 400, MetastoreError, "CloudTrail"),
]


@pytest.mark.parametrize(("code", "status", "expected", "advice"), REFUSALS, ids=[refusal[0] for refusal in REFUSALS])
def test_each_refusal_has_its_error(
    aws: Aws, metastore: DynamoDBMetastore, code: str, status: int, expected: type[MetastoreError], advice: str
) -> None:
    aws.refusals = {(REGION, "PutItem"): (code, status)}
    with pytest.raises(MetastoreError, match=rf"Keys\d+' in us-west-2 cannot be used: {code}; .*{advice}") as caught:
        insert(metastore, row("_SK_s_p", START))
    assert type(caught.value) is expected
    assert "canary" not in str(caught.value)
    assert caught.value.__context__ is None


def test_a_refused_read_is_never_an_empty_table(aws: Aws, metastore: DynamoDBMetastore) -> None:
    calls: dict[str, Callable[[KeyRows], Any]] = {
        "Query": lambda rows: (rows.newest(["_SK_s_p"], START), rows.versions("_SK_s_p")),
        "GetItem": lambda rows: (rows.exact([("_SK_s_p", START)]), rows.replace(row("_SK_s_p", START), "{}")),
    }
    for operation, call in calls.items():
        aws.refusals = {(REGION, operation): ("AccessDeniedException", 400)}
        with pytest.raises(MetastoreError, match="allow dynamodb:GetItem"):
            metastore.run(call)


def test_an_outage_ends_many_reads_soon(aws: Aws, metastore: DynamoDBMetastore) -> None:
    aws.down = {REGION}
    with pytest.raises(MetastoreUnavailableError):
        newest(metastore, *[f"_IK_{number}_s_p" for number in range(400)])
    assert len(aws.calls) < 100


def test_cached_keys_ride_out_an_outage(aws: Aws, metastore: DynamoDBMetastore) -> None:
    now = [float(START)]
    keys = hierarchy(metastore, check_interval=60, clock=lambda: now[0])
    before = keys.encryption_keys(["7"])
    aws.down = {REGION}
    now[0] += 120
    assert keys.encryption_keys(["7"]) == before
    with pytest.raises(MetastoreUnavailableError):
        keys.encryption_keys(["8"])
    aws.down.clear()
    now[0] += 60
    assert set(keys.encryption_keys(["7", "8"])) == {"7", "8"}


def test_a_lost_record_is_not_found_and_no_key_is_guessed(aws: Aws, metastore: DynamoDBMetastore) -> None:
    assert aws.calls == []
    with pytest.raises(KeyNotFoundError):
        hierarchy(metastore).decryption_key("7", START)


def test_the_table_is_made_once_and_checked(aws: Aws) -> None:
    table = DynamoDBMetastore(REGION, "Made")
    with pytest.raises(MetastoreError, match="'Made' in us-west-2 cannot be used: ResourceNotFoundException; it does"):
        table.check()
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: table.create(), range(4))) == [None] * 4
    table.check()
    table.create()
    description = aws.client("dynamodb").describe_table(TableName="Made")["Table"]
    assert [one["AttributeName"] for one in description["KeySchema"]] == ["Id", "Created"]


@pytest.mark.parametrize(
    ("hash_key", "range_key"),
    [
        (("Id", "S"), None),
        (("Id", "S"), ("Created", "S")),
        (("id", "S"), ("created", "N")),
        (("Created", "N"), ("Id", "S")),
    ],
    ids=["no-sort-key", "text-date", "lower-case", "swapped"],
)
def test_another_table_is_refused(
    aws: Aws, request: pytest.FixtureRequest, hash_key: tuple[str, str], range_key: tuple[str, str] | None
) -> None:
    name = request.node.callspec.id
    keys = [(hash_key, "HASH")] + ([(range_key, "RANGE")] if range_key else [])
    aws.client("dynamodb").create_table(
        TableName=name,
        KeySchema=[{"AttributeName": key[0], "KeyType": kind} for key, kind in keys],
        AttributeDefinitions=[{"AttributeName": key[0], "AttributeType": key[1]} for key, _ in keys],
        BillingMode="PAY_PER_REQUEST",
    )
    table = DynamoDBMetastore(REGION, name)
    for call in (table.check, table.create):
        with pytest.raises(ConfigurationError, match="its partition key must be Id"):
            call()


def test_rights_to_describe_the_table_are_not_needed(aws: Aws, metastore: DynamoDBMetastore) -> None:
    aws.refusals[REGION, "DescribeTable"] = ("AccessDeniedException", 400)
    metastore.check()
    with pytest.raises(MetastoreError, match="AccessDeniedException"):
        metastore.create()
