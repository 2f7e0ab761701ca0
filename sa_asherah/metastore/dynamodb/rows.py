# SPDX-License-Identifier: Apache-2.0
"""The rows of a key table in DynamoDB."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from sa_asherah.boto import Failure
from sa_asherah.core.ids import MAX_CREATED
from sa_asherah.core.ports import KeyRow
from sa_asherah.metastore.dynamodb.items import item_of, key_of, record_of, row_of, text_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from sa_asherah.metastore.dynamodb.items import Item
    from sa_asherah.metastore.dynamodb.table import Table

__all__ = ["ItemRows"]

_PARALLEL = 8
_TRIES = 5

A = TypeVar("A")
B = TypeVar("B")


class ItemRows:
    """Rows as items. Every call is one request, several of them at a time; a write is there when its call returns.

    Only with the rights that the other implementations need: no BatchGetItem, no UpdateItem.
    """

    def __init__(self, table: Table) -> None:
        """Use a table.

        Args:
            table: The table.
        """
        self._table = table

    def newest(self, ids: Sequence[str], not_after: int) -> Mapping[str, KeyRow]:
        """Read the newest row of each id.

        Args:
            ids: Exact key ids.
            not_after: Rows with a later `created` (seconds) do not count.

        Returns:
            The rows found, by id.

        Raises:
            MetastoreError: The table cannot be read.
        """
        rows = _each(lambda key_id: next(self._descending(key_id, not_after, 1), None), ids)
        return {row.id: row for row in rows if row is not None}

    def exact(self, pairs: Sequence[tuple[str, int]]) -> Mapping[tuple[str, int], KeyRow]:
        """Read rows by exact id and `created`.

        Args:
            pairs: (id, created in seconds).

        Returns:
            The rows found, by pair.

        Raises:
            MetastoreError: The table cannot be read.
        """
        items = _each(self._item, set(pairs))
        rows = [row_of(item) for item in items if item is not None]
        return {(row.id, row.created): row for row in rows if row is not None}

    def versions(self, key_id: str) -> Sequence[KeyRow]:
        """Read all rows of one id.

        Args:
            key_id: Exact key id.

        Returns:
            The rows, newest first.

        Raises:
            MetastoreError: The table cannot be read.
        """
        return list(self._descending(key_id, MAX_CREATED, 1000))

    def replace(self, row: KeyRow, text: str) -> bool:
        """Put another record in the place of one, if it is still exactly the one that was read.

        Args:
            row: The row as it was read.
            text: The new record, JSON.

        Returns:
            Whether the row was as it was read and holds the new record now.

        Raises:
            MetastoreError: The table cannot be read or written.
        """
        item = self._item((row.id, row.created))
        if item is None or text_of(item.get("KeyRecord")) != row.text:
            return False
        record = record_of(text)
        if self._put(
            Item=item | {"KeyRecord": record},
            ConditionExpression="KeyRecord = :read",
            ExpressionAttributeValues={":read": item["KeyRecord"]},
        ):
            return True
        # boto3 repeats a request whose answer was lost: then the record that is in the way is the new one.
        item = self._item((row.id, row.created))
        return item is not None and item.get("KeyRecord") == record

    def insert(self, rows: Sequence[KeyRow], parent: KeyRow | None = None) -> bool:
        """Insert the rows whose (id, created) is not taken.

        Args:
            rows: The rows.
            parent: The row of the key that wraps theirs. It needs the right `dynamodb:ConditionCheckItem`.

        Returns:
            Whether the parent is there and not retired.

        Raises:
            MetastoreError: The table cannot be written.
        """
        if parent is None:
            _each(lambda row: self._put(Item=item_of(row), ConditionExpression="attribute_not_exists(Id)"), rows)
            return True
        return all(_each(lambda row: self._put_child(row, parent), rows))

    def remove(self, row: KeyRow) -> bool:
        """Delete a row, if it is still exactly the one that was read. It needs the right `dynamodb:DeleteItem`.

        Args:
            row: The row as it was read.

        Returns:
            Whether it was.

        Raises:
            MetastoreError: The table cannot be read or written.
        """
        item = self._item((row.id, row.created))
        if item is None or text_of(item.get("KeyRecord")) != row.text:
            return False
        request: dict[str, Any] = {
            "TableName": self._table.name,
            "Key": key_of(row.id, row.created),
            "ConditionExpression": "KeyRecord = :read",
            "ExpressionAttributeValues": {":read": item["KeyRecord"]},
        }
        try:
            self._table.ask(lambda client: client.delete_item(**request))
        except Failure:
            return False
        return True

    def erase(self, tombstones: Sequence[KeyRow], ids: Sequence[str], text: Callable[[KeyRow], str]) -> list[KeyRow]:
        """Insert tombstones, then overwrite every record of some ids, one after the other.

        Args:
            tombstones: Rows to insert unless they are there.
            ids: Exact key ids.
            text: Gives the new record of a row.

        Returns:
            The rows as they are now.

        Raises:
            MetastoreError: The table cannot be written.
        """
        self.insert(tombstones)
        found = [row for key_id in ids for row in self.versions(key_id)]
        new = [KeyRow(row.id, row.created, text(row)) for row in found]
        _each(lambda row: self._put(Item=item_of(row)), new)
        return new

    def _item(self, place: tuple[str, int]) -> Item | None:
        answer = self._table.ask(
            lambda client: client.get_item(TableName=self._table.name, Key=key_of(*place), ConsistentRead=True)
        )
        return answer.get("Item")

    def _put(self, **request: Any) -> bool:
        try:
            self._table.ask(lambda client: client.put_item(TableName=self._table.name, **request))
        except Failure:
            return False
        return True

    def _put_child(self, row: KeyRow, parent: KeyRow) -> bool:
        check = {
            "TableName": self._table.name,
            "Key": key_of(parent.id, parent.created),
            "ConditionExpression": "attribute_exists(Id) AND attribute_not_exists(KeyRecord.Retired)",
        }
        put = {
            "TableName": self._table.name,
            "Item": item_of(row),
            "ConditionExpression": "attribute_not_exists(Id)",
        }
        items: Any = [{"ConditionCheck": check}, {"Put": put}]
        for _ in range(_TRIES):
            try:
                self._table.ask(lambda client: client.transact_write_items(TransactItems=items))
            except Failure:
                # Refused for the parent; or the row is taken, which is no error; or another transaction was faster.
                if not self._is_usable(parent):
                    return False
                if self._item((row.id, row.created)) is None:
                    continue
            break
        return True

    def _is_usable(self, parent: KeyRow) -> bool:
        item = self._item((parent.id, parent.created))
        return item is not None and "Retired" not in item.get("KeyRecord", {}).get("M", {})

    def _descending(self, key_id: str, not_after: int, page: int) -> Iterator[KeyRow]:
        request: dict[str, Any] = {
            "KeyConditionExpression": "#id = :id AND #created BETWEEN :first AND :last",
            "ExpressionAttributeNames": {"#id": "Id", "#created": "Created"},
            "ExpressionAttributeValues": {
                ":id": {"S": key_id},
                ":first": {"N": "0"},
                ":last": {"N": str(not_after)},
            },
            "ScanIndexForward": False,
            "ConsistentRead": True,
            "Limit": page,
        }
        while True:
            answer = self._table.ask(lambda client: client.query(TableName=self._table.name, **request))
            for item in answer["Items"]:
                row = row_of(item)
                if row is not None:
                    yield row
            if "LastEvaluatedKey" not in answer:
                return
            request["ExclusiveStartKey"] = answer["LastEvaluatedKey"]


def _each(call: Callable[[A], B], items: Collection[A]) -> list[B]:
    """Make a call for each item, several at a time; the first error ends it."""
    if len(items) <= 1:
        return [call(item) for item in items]
    with ThreadPoolExecutor(min(_PARALLEL, len(items)), thread_name_prefix="sa_asherah keys") as pool:
        return list(pool.map(call, items))
