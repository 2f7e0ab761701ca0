# SPDX-License-Identifier: Apache-2.0
"""AWS KMS: keys of one or several regions wrap the system keys. Needs `pip install 'sa_asherah[aws]'`."""

from __future__ import annotations

from sa_asherah.kms.aws.service import AwsKMS

__all__ = ["AwsKMS"]
