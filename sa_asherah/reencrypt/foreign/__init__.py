# SPDX-License-Identifier: Apache-2.0
"""Types that read what other libraries encrypted, so that it can be encrypted anew. They import none of them."""

from sa_asherah.reencrypt.foreign.fernet import FernetTokens
from sa_asherah.reencrypt.foreign.pgcrypto import PgpSymmetric
from sa_asherah.reencrypt.foreign.sqlalchemy_utils import SQLAlchemyUtilsAES, SQLAlchemyUtilsFernet, SQLAlchemyUtilsGCM
from sa_asherah.reencrypt.foreign.written import Foreign

__all__ = [
    "FernetTokens",
    "Foreign",
    "PgpSymmetric",
    "SQLAlchemyUtilsAES",
    "SQLAlchemyUtilsFernet",
    "SQLAlchemyUtilsGCM",
]
