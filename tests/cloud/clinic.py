# SPDX-License-Identifier: Apache-2.0
"""An application on SQLite whose keys are elsewhere, and a program that is one of its processes.

Run by its path with the URL of the database and the name of the key table: eight threads that start at once write one
row each, all of one owner, and the program prints how many failed.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import Engine, String, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sa_asherah import Asherah, AsherahError, Encrypted
from sa_asherah.kms import StaticKMS
from sa_asherah.metastore.dynamodb import DynamoDBMetastore

MASTER_KEY = bytes(range(32))
REGION = "us-west-2"
THREADS = 8


class Base(DeclarativeBase):
    """The application's tables."""


class Patient(Base):
    """A row with an owner and a secret."""

    __tablename__ = "patients"

    id: Mapped[int] = mapped_column(primary_key=True)
    clinic_id: Mapped[int]
    ssn: Mapped[str] = mapped_column(Encrypted(String(), owner="clinic_id"))


def add(engine: Engine, clinic_id: int, ssn: str) -> None:
    """Add a patient."""
    with Session(engine) as session:
        session.add(Patient(clinic_id=clinic_id, ssn=ssn))
        session.commit()


def ssns(engine: Engine) -> list[str]:
    """Return what all rows hold."""
    with Session(engine) as session:
        return sorted(patient.ssn for patient in session.query(Patient))


def main() -> None:
    """Be one process."""
    url, table, start = sys.argv[1:]
    warnings.simplefilter("ignore")
    engine = create_engine(url, connect_args={"timeout": 60})
    barrier = threading.Barrier(THREADS)
    kms = StaticKMS(MASTER_KEY, {})

    def work(number: int) -> bool:
        barrier.wait()
        try:
            add(engine, 1, f"{os.getpid()}-{number}")
        except AsherahError:
            return False
        return True

    with Asherah("records", "clinic", kms, metastore=DynamoDBMetastore(REGION, table)) as asherah:
        asherah.attach(engine)
        time.sleep(max(0.0, float(start) - time.time()))
        with ThreadPoolExecutor(THREADS) as pool:
            print(list(pool.map(work, range(THREADS))).count(False))  # noqa: T201
    engine.dispose()


if __name__ == "__main__":
    main()
