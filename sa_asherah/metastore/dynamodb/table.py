# SPDX-License-Identifier: Apache-2.0
"""One DynamoDB table: calls to it, and what their failures are called here."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from sa_asherah.boto import Clients, Failure, Kind, check_region
from sa_asherah.errors import MetastoreError, MetastoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from mypy_boto3_dynamodb import DynamoDBClient

__all__ = ["Table"]

# More than threads ask at once for one piece of work: several of these may run.
_CONNECTIONS = 32

T = TypeVar("T")

_ADVICE: dict[Kind, str] = {
    "unavailable": "try again; if it lasts, check the network, AWS_ENDPOINT_URL and the table's capacity",
    "credentials": "AWS does not accept the credentials, or there are none; check where boto3 finds them (environment, "
    "profile, role of the instance or pod) and the clock of this machine",
    "rights": "allow dynamodb:GetItem, dynamodb:Query and dynamodb:PutItem on the table",
    "missing": "it does not exist; check DDB_TABLE and AWS_REGION, or run asherah.create_metastore()",
}


class Table:
    """A table. Safe to share between threads and forks.

    Attributes:
        region: The region.
        name: Name of the table.
    """

    def __init__(self, region: str, name: str) -> None:
        """Note where the table is; nothing is connected yet.

        Args:
            region: The region.
            name: Name of the table.

        Raises:
            ConfigurationError: The region's name is malformed.
        """
        self.region = check_region(region, "AWS_REGION")
        self.name = name
        self._clients: Clients[DynamoDBClient] = Clients("dynamodb", connections=_CONNECTIONS)

    def ask(self, call: Callable[[DynamoDBClient], T], *, passed: Kind = "condition") -> T:
        """Make a call.

        Args:
            call: The call, given the client.
            passed: Failures of this kind are the caller's business.

        Returns:
            What it returned.

        Raises:
            Failure: It failed, in a way that is the caller's business.
            MetastoreUnavailableError: DynamoDB cannot be reached, limits the rate or does not know the credentials.
            MetastoreError: The table cannot be used.
        """
        try:
            return self._clients.ask(self.region, call)
        except Failure as failure:
            if failure.kind == passed:
                raise
            error = self._error(failure)
        raise error

    def close(self) -> None:
        """Close connections; the next call opens new ones."""
        self._clients.close()

    def __str__(self) -> str:
        return f"the DynamoDB table {self.name!r} in {self.region}"

    def _error(self, failure: Failure) -> MetastoreError:
        # With credentials that are renewed elsewhere, too, a later attempt may succeed; until then cached keys serve.
        is_passing = failure.kind in {"unavailable", "credentials"}
        advice = _ADVICE.get(failure.kind, "AWS's own log (CloudTrail) says more")
        error = (MetastoreUnavailableError if is_passing else MetastoreError)(
            f"{self} cannot be used: {failure.code}; {advice}"
        )
        error.__cause__ = failure.__cause__
        return error
