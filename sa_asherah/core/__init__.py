# SPDX-License-Identifier: Apache-2.0
"""The pure core: ids, records, cells, policy and the key hierarchy. It knows nothing of SQLAlchemy."""
