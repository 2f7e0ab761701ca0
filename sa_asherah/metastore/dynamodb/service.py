# SPDX-License-Identifier: Apache-2.0
"""Access to a key table in DynamoDB."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, TypeVar

from sa_asherah.boto import Failure
from sa_asherah.errors import ConfigurationError
from sa_asherah.metastore.dynamodb.rows import ItemRows
from sa_asherah.metastore.dynamodb.table import Table
from sa_asherah.metastore.loader import off_loop

if TYPE_CHECKING:
    from collections.abc import Callable

    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_dynamodb.type_defs import TableDescriptionTypeDef

    from sa_asherah.core.ports import KeyRows

__all__ = ["DynamoDBMetastore"]

_KEY: dict[str, Any] = {
    "KeySchema": [{"AttributeName": "Id", "KeyType": "HASH"}, {"AttributeName": "Created", "KeyType": "RANGE"}],
    "AttributeDefinitions": [
        {"AttributeName": "Id", "AttributeType": "S"},
        {"AttributeName": "Created", "AttributeType": "N"},
    ],
}

T = TypeVar("T")

_logger = logging.getLogger("sa_asherah.metastore")


class DynamoDBMetastore:
    """The key table of other Asherah implementations: `Id` and `Created` are the key, `KeyRecord` is a map.

    Reads are consistent, and a row is only added, or replaced if it is still the one that was read. It needs the rights
    `dynamodb:GetItem`, `dynamodb:Query` and `dynamodb:PutItem`, as the other implementations do. In a global table
    the last writer wins: give each region a `region_suffix` of its own. Safe to share between threads and forks;
    boto3 finds the credentials.

    Attributes:
        enlisted: Always false.
        keeps_all: Always false.
    """

    enlisted = False
    keeps_all = False

    def __init__(self, region: str, table: str = "EncryptionKey") -> None:
        """Note where the table is; nothing is connected yet.

        Args:
            region: The region.
            table: Name of the table.

        Raises:
            ConfigurationError: The region's name is malformed.
        """
        self._table = Table(region, table)

    def run(self, work: Callable[[KeyRows], T], connection: object | None = None, *, writing: bool = False) -> T:
        """Run `work`, in a thread where it would stop an event loop.

        Args:
            work: What to do.
            connection: Not used.
            writing: Not used.

        Returns:
            What `work` returned.

        Raises:
            MetastoreUnavailableError: DynamoDB cannot be reached, limits the rate or does not know the credentials.
            MetastoreError: The table cannot be used.
        """
        del connection, writing
        return off_loop(lambda: work(ItemRows(self._table)))

    def off_loop(self, call: Callable[[], T]) -> T:
        """Make a call that blocks, in a thread where it would stop an event loop.

        Args:
            call: The call.

        Returns:
            What it returned.
        """
        return off_loop(call)

    def close(self) -> None:
        """Close connections; the next use opens new ones."""
        self._table.close()

    def check(self) -> None:
        """Make sure that the table exists and has the key that every implementation expects.

        Where the credentials may not describe the table, which its use does not need, nothing is checked.

        Raises:
            MetastoreError: The table does not exist, or DynamoDB cannot be reached.
            ConfigurationError: The table's key is another one.
        """
        off_loop(self._check)

    def create(self) -> None:
        """Create the table, paid by use, if it does not exist, and wait until it can be used.

        Raises:
            MetastoreError: It cannot be created.
            ConfigurationError: It exists and its key is another one.
        """
        off_loop(self._create)

    def _check(self) -> None:
        try:
            description = self._table.ask(self._describe, passed="rights")
        except Failure:
            _logger.info("%s was not checked: dynamodb:DescribeTable is not allowed", self._table)
            return
        if not _has_key(description):
            raise ConfigurationError(
                f"{self._table} is no key table: its partition key must be Id (a string) and its sort key Created (a "
                "number); check DDB_TABLE"
            )

    def _create(self) -> None:
        try:
            description = self._table.ask(self._describe, passed="missing")
        except Failure:
            description = None
        if description is None:
            self._table.ask(self._create_and_wait)
        self._check()

    def _describe(self, client: DynamoDBClient) -> TableDescriptionTypeDef:
        return client.describe_table(TableName=self._table.name)["Table"]

    def _create_and_wait(self, client: DynamoDBClient) -> None:
        try:
            client.create_table(TableName=self._table.name, BillingMode="PAY_PER_REQUEST", **_KEY)
        except client.exceptions.ResourceInUseException:
            _logger.debug("another process is creating %s", self._table)
        waiter = client.get_waiter("table_exists")
        waiter.wait(TableName=self._table.name, WaiterConfig={"Delay": 1, "MaxAttempts": 60})

    def __repr__(self) -> str:
        return f"DynamoDBMetastore({self._table.region!r}, {self._table.name!r})"


def _has_key(description: TableDescriptionTypeDef) -> bool:
    types = {one["AttributeName"]: one["AttributeType"] for one in description.get("AttributeDefinitions", [])}
    key = {one["KeyType"]: one["AttributeName"] for one in description.get("KeySchema", [])}
    return key == {"HASH": "Id", "RANGE": "Created"} and (types.get("Id"), types.get("Created")) == ("S", "N")
