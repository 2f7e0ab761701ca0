# SPDX-License-Identifier: Apache-2.0
"""A real OpenBao that fails in the middle of a flush. That the whole suite passes with it, `conftest.app` sees to."""

from __future__ import annotations

import datetime as dt
import logging
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import hvac.exceptions
import pytest
from sqlalchemy import Engine, create_engine, event, func, select
from sqlalchemy.orm import Session

from sa_asherah import Asherah, KeyExpiredError, KmsAuthError, KmsError, KmsUnavailableError
from sa_asherah.kms.vault import VaultTransitKMS
from tests.integration.secrecy import failure_of
from tests.orm.models import CANARY, Base, Clinic, Patient, Visit
from tests.orm.traces import assert_no_traces
from tests.servers.openbao import SealableOpenBao

SENT = (f"{CANARY} ssn", f"{CANARY} note", f"{CANARY} finding")


@dataclass
class Site:
    """A database whose keys depend on an OpenBao of its own."""

    server: SealableOpenBao
    engine: Engine
    mount: str
    key: str
    token: str
    now: float = field(default_factory=time.time)

    def attach(self) -> Asherah:
        """Attach as a process that just started."""
        kms = VaultTransitKMS(addr=self.server.addr, key=self.key, token=self.token, mount=self.mount, deadline=0.5)
        self.asherah = Asherah("records", "clinic", kms, rotation_grace=dt.timedelta(0), clock=lambda: self.now)
        self.asherah.attach(self.engine)
        return self.asherah

    def restart(self) -> None:
        """Go on as a process that just started."""
        self.asherah.close()
        self.attach()

    def counts(self) -> list[int]:
        """Count the rows of each table."""
        with self.engine.connect() as connection:
            return [connection.scalar(select(func.count()).select_from(t)) or 0 for t in (Clinic, Patient, Visit)]


@pytest.fixture
def server(openbao: object) -> Iterator[SealableOpenBao]:  # noqa: ARG001 # it skips where there is no OpenBao
    """A server that the test may seal and stop."""
    with SealableOpenBao() as server:
        yield server


@pytest.fixture
def site(server: SealableOpenBao, database_url: str, caplog: pytest.LogCaptureFixture) -> Iterator[Site]:
    """A database with one patient, and every logger as loud as it can be."""
    caplog.set_level(logging.DEBUG)
    engine = create_engine(database_url, echo="debug")
    mount, key = server.new_transit()
    site = Site(server, engine, mount, key, server.transit_token(mount, key))
    site.attach().create_metastore(engine)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Clinic(id=1, patients=[Patient(id=1, ssn="canary 1")]))
        session.commit()
    yield site
    site.asherah.close()
    engine.dispose()


def stop(site: Site) -> None:
    site.server.stop()


def seal(site: Site) -> None:
    site.server.seal()


def revoke(site: Site) -> None:
    site.server.root.auth.token.revoke(site.token)


def new_family() -> Clinic:
    """Instances that one flush writes by three statements, one after the other."""
    visits = [Visit(id=2, place_id=2, finding=SENT[2])]
    return Clinic(id=2, patients=[Patient(id=2, ssn=SENT[0], notes=SENT[1], visits=visits)])


def when_inserting(site: Site, table: str, fail: Callable[[], Any]) -> None:
    """Let something happen once, just before rows are inserted into a table."""
    waiting = [fail]

    def listen(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if waiting and statement.startswith(f"INSERT INTO {table} "):
            waiting.pop()()

    event.listen(site.engine, "before_cursor_execute", listen)


FAILURES = pytest.mark.parametrize(
    ("fail", "kind"), [(stop, KmsUnavailableError), (seal, KmsUnavailableError), (revoke, KmsAuthError)]
)


@pytest.mark.long
@FAILURES
def test_a_flush_that_loses_its_key_service_writes_nothing_and_shows_nothing(
    site: Site, fail: Callable[[Site], None], kind: type[KmsError], caplog: pytest.LogCaptureFixture
) -> None:
    site.restart()
    before = site.counts()
    caplog.clear()
    when_inserting(site, "clinics", lambda: fail(site))
    with Session(site.engine) as session:
        session.add(new_family())
        error = failure_of(kind, session.flush, (site.token, site.server.root_token), SENT)
        assert error.operation == "decrypt"
        assert str(error).startswith("Vault Transit decrypt ")
        session.rollback()
    assert site.counts() == before
    assert_nothing_shown(site, caplog)


@pytest.mark.long
@pytest.mark.parametrize("fail", [stop, seal, revoke])
def test_a_flush_that_cannot_rotate_its_keys_undoes_what_it_had_encrypted(
    site: Site, fail: Callable[[Site], None], caplog: pytest.LogCaptureFixture
) -> None:
    before = site.counts()
    caplog.clear()

    def fail_as_the_keys_expire() -> None:
        fail(site)
        site.now += 91 * 24 * 3600

    when_inserting(site, "patients", fail_as_the_keys_expire)
    with Session(site.engine) as session:
        session.add(new_family())
        with pytest.raises(KeyExpiredError, match="no successor could be made: Vault Transit encrypt ") as caught:
            session.flush()
        assert not hasattr(caught.value, "params")
        told = "".join(traceback.format_exception(caught.value)) + "".join(map(repr, chain(caught.value)))
        assert not [secret for secret in (*SENT, site.token) if secret in told]
        session.rollback()
    assert site.counts() == before
    assert_nothing_shown(site, caplog)


def chain(error: BaseException | None) -> Iterator[object]:
    """Give what an error and its causes hold."""
    while error is not None:
        yield error.args, vars(error)
        error = error.__cause__ or error.__context__


def assert_nothing_shown(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    assert "INSERT INTO clinics" in caplog.text, "echo was on"
    assert not [secret for secret in (*SENT, site.token) if secret in caplog.text]
    assert_no_traces(site.engine)


@pytest.mark.long
def test_the_same_flush_succeeds_when_the_service_is_back(site: Site) -> None:
    site.restart()
    when_inserting(site, "clinics", site.server.seal)
    with Session(site.engine) as session:
        session.add(new_family())
        with pytest.raises(KmsUnavailableError) as caught:
            session.flush()
        assert caught.value.retryable
        session.rollback()
        site.server.unseal()
        session.add(new_family())
        session.commit()
    site.restart()
    with Session(site.engine) as session:
        assert session.execute(select(Patient.ssn, Patient.notes).order_by(Patient.id)).all() == [
            ("canary 1", None), SENT[:2],
        ]  # fmt: skip
        assert session.scalars(select(Visit.finding)).all() == [SENT[2]]


def test_known_keys_outlive_the_service(site: Site) -> None:
    site.server.seal()
    with Session(site.engine) as session:
        session.add(new_family())
        session.commit()
        assert len(session.scalars(select(Patient.ssn)).all()) == 2


def test_reading_with_a_cold_key_fails_clearly(site: Site) -> None:
    site.restart()
    site.server.seal()
    with Session(site.engine) as session:
        query = select(Patient.ssn)
        failure_of(KmsUnavailableError, lambda: session.scalars(query).all(), (site.token,), [f"{CANARY} 1"])
        assert session.scalars(select(Patient.id)).all() == [1]


def test_the_token_may_do_nothing_else(site: Site) -> None:
    client = site.server.client(site.token)
    requests: tuple[Callable[[], object], ...] = (
        lambda: client.adapter.get(f"/v1/{site.mount}/keys/{site.key}"),
        lambda: client.adapter.post(f"/v1/{site.mount}/rewrap/{site.key}", json={"ciphertext": "vault:v1:eA=="}),
        lambda: client.adapter.post(f"/v1/{site.mount}/encrypt/other", json={"plaintext": "eA=="}),
        lambda: client.adapter.get("/v1/auth/token/lookup-self"),
    )
    for forbidden in requests:
        with pytest.raises(hvac.exceptions.Forbidden):
            forbidden()
