# SPDX-License-Identifier: Apache-2.0
"""Models for `--models`: notes, whose text was stored in plaintext until now."""

from __future__ import annotations

from sqlalchemy import String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sa_asherah import Encrypted


class Base(DeclarativeBase):
    pass


class Memo(Base):
    __tablename__ = "memos"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(String(40))
    text: Mapped[str | None] = mapped_column(
        Encrypted(String(), owner="tenant", reads=("plaintext@2099-12-31",), storage="text")
    )
