# SPDX-License-Identifier: Apache-2.0
"""The application under test: notes of tenants. The tests import it; run by path it is a process of its own.

`notes.py read URL` prints the texts of all notes as JSON, each decrypted and compared.
`notes.py first URL TENANT CLOCK THREADS` prints `ready`, waits for a line, and lets threads write a note at once.
"""

from __future__ import annotations

import json
import sys
import threading
import traceback
import warnings
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, String, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sa_asherah import Asherah, Encrypted
from sa_asherah.errors import StaticKeyWarning
from sa_asherah.kms.static import StaticKMS

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

NOW = 1_700_000_000.0


class Base(DeclarativeBase):
    """All tables."""


class Note(Base):
    """A note, encrypted, beside the same text in the clear: what must come out."""

    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(String(64))
    clear: Mapped[str] = mapped_column(String(64))
    secret: Mapped[str] = mapped_column(Encrypted(String(), owner="tenant"))
    remark: Mapped[str | None] = mapped_column(Encrypted(String(), owner="tenant"))


def note(tenant: str, text: str, **others: Any) -> Note:
    """Return a new note."""
    return Note(tenant=tenant, clear=text, secret=text, remark=f"about {text}", **others)


def asherah(clock: Callable[[], float] = lambda: NOW, **settings: Any) -> Asherah:
    """Return an Asherah with empty caches."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StaticKeyWarning)
        kms = StaticKMS(bytes(32))
    return Asherah("records", "clinic", kms, clock=clock, **settings)


def read_all(bind: Engine | Connection) -> list[str]:
    """Read every note and compare it with its clear text; a note that cannot be opened raises.

    Raises:
        ValueError: A note has another text.
    """
    with Session(bind) as session:
        notes = session.scalars(select(Note).order_by(Note.id)).all()
        for each in notes:
            if each.secret != each.clear or each.remark not in {None, f"about {each.clear}"}:
                raise ValueError(f"note {each.id} is not {each.clear}")
        return [each.clear for each in notes]


def _read(url: str) -> None:
    engine = create_engine(url)
    asherah().attach(engine)
    sys.stdout.write(json.dumps(read_all(engine)))


def _first(url: str, tenant: str, clock: float, threads: int) -> None:
    options: dict[str, Any] = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
    engine = create_engine(url, pool_size=threads, **options)
    asherah(lambda: clock).attach(engine)
    barrier = threading.Barrier(threads + 1)
    failures: list[str] = []

    def write(number: int) -> None:
        try:
            with Session(engine) as session:
                session.connection()
                barrier.wait(60)
                session.add(note(tenant, f"note {number}"))
                session.commit()
        except Exception as error:  # noqa: BLE001 - the parent asserts that there is none
            traceback.print_exc()
            failures.append(repr(error))

    workers = [threading.Thread(target=write, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    barrier.wait(60)
    for worker in workers:
        worker.join()
    sys.stdout.write(json.dumps(failures))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["read", url]:
            _read(url)
        case ["first", url, tenant, clock, threads]:
            _first(url, tenant, float(clock), int(threads))
        case _:
            sys.exit(__doc__)
