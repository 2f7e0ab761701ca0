# SPDX-License-Identifier: Apache-2.0
"""The key table in DynamoDB, as other Asherah implementations keep it. Needs `pip install 'sa_asherah[aws]'`."""

from __future__ import annotations

from sa_asherah.metastore.dynamodb.service import DynamoDBMetastore

__all__ = ["DynamoDBMetastore"]
