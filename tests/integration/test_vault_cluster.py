# SPDX-License-Identifier: Apache-2.0
"""A cluster of three whose leader fails in every way, under load: nobody notices."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.conftest import Access
from tests.integration.load import load, round_trip
from tests.integration.methods import AppRole
from tests.integration.records import Process
from tests.servers.raft import Raft

DEADLINE = 20.0


@pytest.fixture
def raft(openbao: object) -> Iterator[Raft]:  # noqa: ARG001 # it skips where there is no OpenBao
    """A cluster that the test may harm; two of the nodes must live at any time."""
    with Raft() as raft:
        yield raft


@pytest.mark.long
def test_a_leader_that_steps_down_is_sealed_or_killed(raft: Raft, sqlite_url: str) -> None:
    access = Access.made_on(raft.leader)
    # Its tokens live for so short a time that each failure meets renewals and logins.
    role = AppRole.made_on(raft.leader, access.policy, token_ttl="3s", token_max_ttl="6s")
    options = role.options(secret_id=role.secret_id(), addr=raft.addr, deadline=DEADLINE)
    cold, warm = access.kms(**options), Process(sqlite_url, access.kms(**options))
    warm.create_tables()
    notes = [warm.write("tenant") for _ in range(10)]

    def read() -> None:
        assert warm.read("tenant") == notes

    work = {f"cold {number}": round_trip(cold) for number in (1, 2, 3, 4)}
    with load(work, threads=1) as calls, load({"reader": read, "writer": warm.write}, threads=1) as users:
        for fail in (_step_down, _seal, _kill):
            fail(raft)
            calls.go_on()
            users.go_on()
    assert calls.failures == []
    assert users.failures == []
    assert calls.slowest < DEADLINE
    assert warm.count() == 10 + users.rounds["writer"]
    cold.close()
    warm.close()


def _step_down(raft: Raft) -> None:
    leader = raft.leader
    leader.step_down()
    raft.wait_for_another_leader(leader)
    raft.wait_until_whole()


def _seal(raft: Raft) -> None:
    leader = raft.leader
    leader.seal()
    raft.wait_for_another_leader(leader)
    leader.unseal()
    raft.wait_until_whole()


def _kill(raft: Raft) -> None:
    leader = raft.leader
    leader.kill()
    raft.wait_for_another_leader(leader)
    leader.restart()
    raft.wait_until_whole()
