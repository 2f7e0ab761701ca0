# SPDX-License-Identifier: Apache-2.0
"""Encrypted columns for SQLAlchemy: a key for each row owner, in Asherah's key hierarchy."""

from sa_asherah import errors
from sa_asherah.asherah import Asherah
from sa_asherah.core.events import write_audit_log
from sa_asherah.errors import *  # noqa: F403
from sa_asherah.hardening import Hardening, harden_process
from sa_asherah.orm import flush as _flush  # noqa: F401 # pyright: ignore[reportUnusedImport] # registers listeners
from sa_asherah.orm.scope import partition_scope
from sa_asherah.orm.types import Encrypted
from sa_asherah.orm.unreadable import Unreadable

__all__ = [
    "Asherah",
    "Encrypted",
    "Hardening",
    "Unreadable",
    "harden_process",
    "partition_scope",
    "write_audit_log",
]
__all__ += errors.__all__
