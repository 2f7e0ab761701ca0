# SPDX-License-Identifier: Apache-2.0
"""Key rows that are deleted while the application runs: they come back, with the data they encrypted."""

from __future__ import annotations

import logging
import threading
from datetime import timedelta
from itertools import count

import pytest
from sqlalchemy.orm import Session

from sa_asherah.errors import MetastoreError
from tests.transactions.programs.notes import NOW, note, read_all
from tests.transactions.site import App, Site, assert_cached_keys_are_stored

_NEWEST = "DELETE FROM encryption_key WHERE (id, created) IN (SELECT * FROM ({}) AS newest)"
NEWEST = _NEWEST.format("SELECT id, max(created) FROM encryption_key GROUP BY id")
VANISH = {
    "sqlite": [
        "CREATE TRIGGER vanish AFTER INSERT ON encryption_key BEGIN DELETE FROM encryption_key; END",
        "DELETE FROM encryption_key",
    ],
    "postgresql": [
        """CREATE FUNCTION vanish() RETURNS trigger LANGUAGE plpgsql AS
        $$BEGIN DELETE FROM encryption_key; RETURN NULL; END$$""",
        "CREATE TRIGGER vanish AFTER INSERT ON encryption_key FOR EACH STATEMENT EXECUTE FUNCTION vanish()",
        "DELETE FROM encryption_key",
    ],
}
TENANTS = [f"tenant {number}" for number in range(4)]


def test_the_newest_keys_come_back_at_the_next_look(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    now = [NOW]
    app = site.start(clock=lambda: now[0], expire_after=timedelta(hours=2))
    app.write("acme", "first")
    now[0] += 7_300  # the first keys have expired: newer ones encrypt
    app.write("acme", "second")
    assert site.sql("SELECT count(*) FROM encryption_key") == [(4,)]
    site.sql(NEWEST)
    now[0] += 4_000  # the check interval is over
    app.write("acme", "third")
    assert site.sql("SELECT count(*) FROM encryption_key") == [(4,)]
    assert_cached_keys_are_stored(app)
    lost = [record for record in caplog.records if "was lost" in record.message]
    assert (site.kind == "sqlite") == (not lost)
    assert all(record.levelno == logging.ERROR for record in lost)
    assert site.restart_and_read() == ["first", "second", "third"]


def test_all_keys_come_back(site: Site) -> None:
    app = site.start(check_interval=timedelta(0))
    app.write("acme", "first")
    app.write("other", "second")
    site.sql("DELETE FROM encryption_key")
    with Session(app.engine) as session:
        session.add_all([note("acme", "third"), note("other", "fourth")])
        session.commit()
    assert_cached_keys_are_stored(app)
    assert site.restart_and_read() == ["first", "second", "third", "fourth"]


@pytest.mark.parametrize("family", ["sqlite", "postgresql"])
def test_a_key_that_cannot_come_back_is_not_replaced(family: str, request: pytest.FixtureRequest) -> None:
    """A new key with its id and date would make everything unreadable that it encrypted."""
    site = Site(request.getfixturevalue(f"{family}_url")).create()
    app = site.start(check_interval=timedelta(0))
    app.write("acme", "first")
    kept = site.sql("SELECT * FROM encryption_key ORDER BY id")
    for statement in VANISH[family]:
        site.sql(statement)
    with pytest.raises(MetastoreError, match="is not there"):
        app.write("acme", "refused")
    site.sql("DROP TRIGGER vanish" + (" ON encryption_key" if family == "postgresql" else ""))
    app.write("acme", "second")
    assert site.sql("SELECT * FROM encryption_key ORDER BY id") == kept
    assert site.restart_and_read() == ["first", "second"]
    site.close()


class Load:
    """Four threads that write for four tenants until they are told to end."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._written = threading.Semaphore(0)
        self._ended = threading.Event()
        self._failures: list[Exception] = []
        self._threads = [threading.Thread(target=self._write, args=(number,)) for number in range(4)]
        for thread in self._threads:
            thread.start()

    def wait(self, notes: int) -> None:
        """Wait until as many notes more have been written."""
        for _ in range(notes):
            self._written.acquire()

    def end(self) -> None:
        """Let each thread write once more and end."""
        self._ended.set()
        for thread in self._threads:
            thread.join()
        assert not self._failures

    def _write(self, number: int) -> None:
        try:
            for turn in count():
                self._app.write(TENANTS[(number + turn) % 4], f"note {number}.{turn}")
                self._written.release()
                if self._ended.is_set():
                    return
        except Exception as error:  # noqa: BLE001 - asserted in `end`
            self._failures.append(error)
            self._written.release(1_000)


def test_they_come_back_under_load(shared_site: Site) -> None:
    options = {"connect_args": {"timeout": 60}} if shared_site.kind == "sqlite" else {}
    app = shared_site.start(check_interval=timedelta(0), **options)
    for tenant in TENANTS:
        app.write(tenant, "first")
    load = Load(app)
    for _ in range(10):
        load.wait(4)
        shared_site.sql(NEWEST)
    load.end()
    for tenant in TENANTS:
        app.write(tenant, "last")
    assert_cached_keys_are_stored(app)
    notes = shared_site.restart_and_read()
    assert notes == read_all(app.engine)
    assert len(notes) >= 48
