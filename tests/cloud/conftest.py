# SPDX-License-Identifier: Apache-2.0
"""One stand-in for AWS for all tests here, open and forgetful for each; keys and tables are a test's own."""

from __future__ import annotations

import itertools
import os
import warnings
from typing import TYPE_CHECKING

import pytest

from sa_asherah import StaticKeyWarning
from sa_asherah.kms import StaticKMS
from sa_asherah.metastore.dynamodb import DynamoDBMetastore
from tests.servers.moto import REGIONS, Aws

if TYPE_CHECKING:
    from collections.abc import Iterator

MASTER_KEY = bytes(range(32))

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def running_aws() -> Iterator[Aws]:
    """The server."""
    with Aws() as aws:
        yield aws


@pytest.fixture
def aws(running_aws: Aws, monkeypatch: pytest.MonkeyPatch) -> Aws:
    """The server, as boto3 finds it in the environment."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    for name, value in running_aws.environ.items():
        monkeypatch.setenv(name, value)
    running_aws.reset()
    return running_aws


@pytest.fixture
def metastore(aws: Aws) -> Iterator[DynamoDBMetastore]:
    """An empty key table."""
    metastore = DynamoDBMetastore(REGIONS[0], f"Keys{next(_numbers)}")
    metastore.create()
    aws.calls.clear()
    yield metastore
    metastore.close()


@pytest.fixture(scope="session")
def static_kms() -> StaticKMS:
    """The key service of tests that are about the key table."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StaticKeyWarning)  # it comes once per process: here, or somewhere earlier
        return StaticKMS(MASTER_KEY, {})
