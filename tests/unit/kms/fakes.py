# SPDX-License-Identifier: Apache-2.0
"""Time that passes when told to, and a Vault that lives in it: leases of hours in a test of milliseconds."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sa_asherah.kms.vault.clock import Clock
from sa_asherah.kms.vault.connection import Answer

DENIED: dict[str, object] = {"errors": ["permission denied"]}
NO_POLICY: dict[str, object] = {"errors": ["1 error occurred:\n\t* permission denied\n\n"]}
REJECTED: dict[str, object] = {"errors": ["invalid role or secret ID"]}


class Time:
    """A clock that stands still unless somebody waits or turns it."""

    def __init__(self, now: float = 1_000.0) -> None:
        self.now = now
        self.wall = 1_700_000_000.0
        self.pauses: list[float] = []
        self.naps: list[float] = []
        self.naps_left = 0
        self.clock = Clock(
            now=lambda: self.now,
            wall=lambda: self.wall,
            pause=self.pause,
            wait=self.wait,
            between=lambda _low, high: high,
        )

    def pass_(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
        self.wall += seconds

    def pause(self, seconds: float) -> None:
        """Wait, as the code under test does."""
        self.pauses.append(seconds)
        self.pass_(seconds)

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Sleep as a thread in the background does: so many times in no time, then until it is woken."""
        if self.naps_left == 0:
            return event.wait()
        self.naps_left -= 1
        self.naps.append(seconds)
        self.pass_(seconds)
        return event.is_set()


@dataclass
class FakeVault:
    """Gives tokens, renews and revokes them.

    Attributes:
        time: Its time.
        lease: Seconds that a token lives from login or renewal.
        max_ttl: Seconds that it lives at most.
        renewable: Whether it can be renewed.
        faults: What to answer instead, by the end of the path: status and body, or an error to raise.
        hold: Called before an answer.
        asked: Path, token and deadline of each request.
    """

    time: Time
    lease: int = 3_600
    max_ttl: float = 1e9
    renewable: bool = True
    faults: dict[str, tuple[int, object] | Exception] = field(
        default_factory=dict[str, "tuple[int, object] | Exception"]
    )
    hold: Callable[[str], object] = lambda _path: None
    asked: list[tuple[str, str | None, float]] = field(default_factory=list[tuple[str, "str | None", float]])
    bodies: list[Mapping[str, object] | None] = field(default_factory=list["Mapping[str, object] | None"])

    def __post_init__(self) -> None:
        self.lives: dict[str, list[float]] = {}  # by token: when it was made, when it dies
        self._lock = threading.Lock()

    def ask(
        self,
        path: str,
        body: Mapping[str, object] | None,
        *,
        operation: str,
        token: str | None,
        until: float,
        get: bool = False,
        retry: bool = True,
    ) -> Answer:
        """Answer as `login.Asker` wants."""
        assert operation == "login"
        assert get == path.endswith("lookup-self")
        assert retry != (path.startswith("auth/token/") or path.endswith("unwrap"))
        with self._lock:
            self.asked.append((path, token, until))
            self.bodies.append(body)
        self.hold(path)
        what = path.rsplit("/", 1)[1]
        fault = self.faults.get(what)
        if isinstance(fault, Exception):
            raise fault
        status, found = fault or (self._login() if what == "login" else self._self(what, str(token)))
        return Answer(status, found, "")

    def count(self, what: str) -> int:
        """Count the requests whose path ends so."""
        return sum(path.endswith(what) for path, _, _ in self.asked)

    def adopt(self, token: str) -> str:
        """Make a token that somebody else has asked for."""
        self.lives[token] = [self.time.now, self.time.now + self.lease]
        return token

    def revoke(self) -> None:
        """Revoke all tokens."""
        self.lives.clear()

    def _login(self) -> tuple[int, object]:
        with self._lock:
            token = self.adopt(f"hvs.token-{len(self.asked)}")
        return 200, self._granted(token)

    def _self(self, what: str, token: str) -> tuple[int, object]:
        life = self.lives.get(token)
        if life is None or life[1] <= self.time.now:
            return 403, DENIED
        if what == "lookup-self":
            return 200, {"data": {"ttl": int(life[1] - self.time.now), "renewable": self.renewable}}
        if what == "revoke-self":
            del self.lives[token]
            return 204, None
        if not self.renewable:
            return 400, {"errors": ["lease is not renewable"]}
        life[1] = min(self.time.now + self.lease, life[0] + self.max_ttl)
        return 200, self._granted(token)

    def _granted(self, token: str) -> object:
        lease = int(self.lives[token][1] - self.time.now)
        return {"auth": {"client_token": token, "lease_duration": lease, "renewable": self.renewable, "num_uses": 0}}
