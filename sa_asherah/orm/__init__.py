# SPDX-License-Identifier: Apache-2.0
"""The SQLAlchemy plugin: the column type, the owner's way through every statement, sealing and opening."""
