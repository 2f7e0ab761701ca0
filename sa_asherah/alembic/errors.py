# SPDX-License-Identifier: Apache-2.0
"""The error of a migration that must not go on."""

from __future__ import annotations

from alembic.util import CommandError

from sa_asherah.errors import ReencryptionError

__all__ = ["MigrationError"]


class MigrationError(ReencryptionError, CommandError):
    """A migration stopped: data would stay plaintext, get lost, or cannot be handled in this mode.

    As a `CommandError` it ends Alembic's command line with its text and status 255 instead of a traceback.
    """
