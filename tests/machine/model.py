# SPDX-License-Identifier: Apache-2.0
"""The twins, one encrypted and one plain, the database they share, and who reads it."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, Final

from sqlalchemy import BigInteger, Engine, String, Text, delete, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sa_asherah import Asherah, Encrypted, OwnerChangedError, OwnerRequiredError
from sa_asherah.errors import AsherahError
from tests.attacks.registry import NOW, asherah_of
from tests.transactions.site import Site

MARK: Final = "plain"
"""Stands in every text that is written and is not empty."""
GROUPS: Final = {"tenant": ("a", "b"), "region": ("c", "d")}
"""The encrypted columns of each owner column."""
SECRETS: Final = ("a", "b", "c", "d")
NAMES: Final = ("id", "side", "tenant", "region", *SECRETS)
Changes = dict[str, Any]
DAY: Final = 86_400


class Base(DeclarativeBase):
    pass


class Row:
    """What both twins have."""

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    side: Mapped[int]
    tenant: Mapped[int | None]
    region: Mapped[str | None] = mapped_column(String(10))


class Cipher(Row, Base):
    __tablename__ = "ciphers"

    a: Mapped[str | None] = mapped_column(Encrypted(String(), owner="tenant", partition="tenant-{}"))
    b: Mapped[str | None] = mapped_column(Encrypted(Text(), owner="tenant", partition="tenant-{}"))
    c: Mapped[str | None] = mapped_column(Encrypted(String(), owner="region", partition="region-{}"))
    d: Mapped[int | None] = mapped_column(Encrypted(BigInteger(), owner="region", partition="region-{}"))


class Plain(Row, Base):
    __tablename__ = "plains"

    a: Mapped[str | None] = mapped_column(String(40))
    b: Mapped[str | None] = mapped_column(Text())
    c: Mapped[str | None] = mapped_column(String(40))
    d: Mapped[int | None] = mapped_column(BigInteger())


Model = type[Cipher] | type[Plain]
Pair = tuple[Cipher, Plain]


def columns(source: Any) -> list[Any]:
    """List the attributes of a model or an alias, or the columns of a subquery."""
    return [getattr(source, name) for name in NAMES]


@cache
def everything(model: Any) -> Any:
    """Select all columns, row by row."""
    return select(*columns(model)).order_by(model.id)


def lawless(row: Mapping[str, Any]) -> bool:
    """Tell whether a row holds an encrypted value that belongs to nobody."""
    return any(row[owner] is None and any(row[name] is not None for name in names) for owner, names in GROUPS.items())


def refusal(changes: Changes, owners: Iterable[Mapping[str, Any]]) -> type[AsherahError] | None:
    """Foretell how an UPDATE by criteria is refused, from the owners of the rows that it matches."""
    for owner, names in GROUPS.items():
        written = [name for name in names if name in changes]
        holds = any(changes[name] is not None for name in written)
        if owner in changes:
            if len(written) < len(names):
                return OwnerChangedError
            if holds and changes[owner] is None:
                return OwnerRequiredError
        elif holds and (known := {row[owner] for row in owners}) and (len(known) > 1 or None in known):
            return OwnerRequiredError
    return None


class World:
    """A database, the engine of the application, one of a reader that never knows a key, and what was done.

    Attributes:
        steps: How often each rule was carried out.
    """

    def __init__(self, url: str, *, begins: bool = True) -> None:
        self._site = Site(url, journal="wal", begins=begins)
        self.one_writer = self._site.kind == "sqlite"
        options = {"connect_args": {"timeout": 0}} if self.one_writer else {}  # waiting for oneself never helps
        self.engine = self._site.engine(**options)
        self._reader = self._site.engine(**options)
        self._asherahs: dict[Engine, Asherah] = {}
        self._past = 0
        self.steps: Counter[str] = Counter()
        self.begins = begins or not self.one_writer
        Base.metadata.create_all(self.engine)
        asherah_of().create_metastore(self.engine)

    def renew(self) -> None:
        """Empty the tables, the key table too, and forget all keys."""
        self._past = 0
        # Whether an object that nobody holds is still in a session must not depend on when this runs by itself.
        # What survives is hypothesis's own memory of earlier histories, which grows: it is not looked through again.
        gc.collect()
        gc.freeze()
        with self.engine.begin() as connection:
            for model in (Cipher, Plain):
                connection.execute(delete(model))
            connection.execute(text("DELETE FROM encryption_key"))
        self.forget(self.engine)

    def pass_time(self, days: int) -> None:
        """Let keys grow older."""
        self._past += days * DAY

    def forget(self, engine: Engine) -> None:
        """Give an engine a new Asherah, as in a process that just started."""
        if engine in self._asherahs:
            self._asherahs[engine].close()
        self._asherahs[engine] = asherah_of(clock=lambda: NOW + self._past)
        self._asherahs[engine].attach(engine)

    def read_cold(self) -> None:
        """Read both twins by a process that knows no key."""
        self.forget(self._reader)
        with self._reader.connect() as connection:
            compare(lambda model: connection.execute(everything(model)).all())
            assert_sealed(connection.exec_driver_sql)

    def close(self) -> None:
        """Close all connections."""
        for asherah in self._asherahs.values():
            asherah.close()
        self._site.close()


def compare(work: Callable[[Model], Any]) -> Any:
    """Do the same with both twins; what comes out must be equal."""
    found, wanted = work(Cipher), work(Plain)
    assert found == wanted, f"{found!r} is not {wanted!r}"
    return wanted


def assert_sealed(execute: Callable[[str], Any]) -> None:
    """Find nothing but cells in the columns of the encrypted twin."""
    for row in execute("SELECT a, b, c, d FROM ciphers"):
        for stored in row:
            assert stored is None or bytes(stored)[:4] == b"\xa5\x01\x01\x00"
            assert stored is None or MARK.encode() not in bytes(stored)
