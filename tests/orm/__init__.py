# SPDX-License-Identifier: Apache-2.0
"""The promises of the column type on every path of SQLAlchemy, on real databases, sync, async, against OpenBao."""
