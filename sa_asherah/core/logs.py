# SPDX-License-Identifier: Apache-2.0
"""The loggers of this package, and the filter on them that masks whatever looks like a secret."""

from __future__ import annotations

import logging
import re

__all__ = ["LOGGERS", "Redaction", "redact_all"]

LOGGERS = (
    "sa_asherah.audit",
    "sa_asherah.events",
    "sa_asherah.alembic",
    "sa_asherah.hierarchy",
    "sa_asherah.metastore",
    "sa_asherah.orm",
    "sa_asherah.reencrypt",
    "sa_asherah.kms",
    "sa_asherah.kms.vault.caller",
    "sa_asherah.kms.vault.login",
    "sa_asherah.kms.vault.rejection",
    "sa_asherah.kms.vault.token",
    "sa_asherah.kms.vault.transit",
)
"""All of them: a filter holds for its own logger only."""

_SECRET = re.compile(
    r"""
      \b(?:hv[sbr]|[sbr])\.[\w-]{20,}           # tokens of Vault and OpenBao
    | vault:v\d+:[\w+/=-]+                      # what Transit wrapped
    | \beyJ[\w-]+\.[\w-]+\.[\w-]*               # JSON Web Tokens
    | \b[0-9a-fA-F]{64,}\b                      # keys in hexadecimal
    | (?<![\w+/-])(?=[a-z0-9+/]*[A-Z])[A-Za-z0-9+/]{43,}={0,2}  # keys and ciphertexts in base64
    """,
    re.VERBOSE,
)
_MASK = "<redacted>"


class Redaction(logging.Filter):
    """Masks tokens, wrapped keys and keys in a message. A second lock: nothing logs them in the first place."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Mask.

        Args:
            record: The record, changed in place where there is something to mask.

        Returns:
            Always true.
        """
        message = record.getMessage()
        masked = _SECRET.sub(_MASK, message)
        if masked != message:
            record.msg, record.args = masked, None
        return True


_redaction = Redaction()


def redact_all() -> None:
    """Put the filter on every logger of this package; repeating it is harmless."""
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_redaction)
