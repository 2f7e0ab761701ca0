# SPDX-License-Identifier: Apache-2.0
"""Alembic operations that encrypt columns, and an autogenerate that proposes them.

Alembic loads `sa_asherah.alembic.plugin` by its entry point: the operations are there without a line in `env.py`.
Autogenerate needs one: `context.configure(..., autogenerate_plugins=["alembic.autogenerate.*", "sa_asherah"])`.
"""

from __future__ import annotations

import alembic as alembic

from sa_asherah.alembic.errors import MigrationError

__all__ = ["MigrationError"]
