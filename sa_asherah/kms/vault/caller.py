# SPDX-License-Identifier: Apache-2.0
"""Ask Vault until it answers: which node, how often, how long."""

from __future__ import annotations

import itertools
import logging
import math
import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sa_asherah.core.fork import ForkAware
from sa_asherah.errors import KmsError, KmsUnavailableError
from sa_asherah.kms.vault.address import named_node
from sa_asherah.kms.vault.clock import Clock
from sa_asherah.kms.vault.connection import Answer, Connection, Request
from sa_asherah.kms.vault.failure import Failure, subject
from sa_asherah.kms.vault.refusal import patience, refusal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sa_asherah.errors import AsherahError
    from sa_asherah.kms.vault.settings import VaultSettings

__all__ = ["Caller"]

logger = logging.getLogger(__name__)

_AT_ONCE = 8
_FIRST_DELAY, _LONGEST_DELAY = 0.05, 2.0
_HEALTH_SECONDS = 1.0
_UNAVAILABLE, _NOT_INITIALISED = 503, 501
_FOLLOWED = (307, 308)  # others turn the request into a GET


class Caller(ForkAware):
    """Sends requests to the nodes of one Vault, at most 8 at a time; shared by all threads of a process.

    The node that answered last is asked first. A node that does not answer, or says that it cannot now, is left for the
    next one, with growing pauses between.

    Args:
        settings: Where Vault is.
        clock: Tells the time.
    """

    def __init__(self, settings: VaultSettings, clock: Clock | None = None) -> None:
        self._settings = settings
        self._clock = clock or Clock()
        self._connection = Connection(settings)
        self._preferred = settings.nodes[0]
        super().__init__()

    def reset_after_fork(self) -> None:
        """Let go of the turns that threads of the parent were taking."""
        self._turns = threading.BoundedSemaphore(_AT_ONCE)

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
        """Send a request to `/v1/<path>` until there is an answer that is final.

        Args:
            path: The path.
            body: The body, JSON.
            operation: What to call it in an error.
            token: The token, if any.
            until: When to give up, on the clock that is never set.
            get: Whether it is a GET.
            retry: Whether it may be sent again. If not, any answer is returned, whatever its status; a node that the
                request did not reach, or that redirects it to another one of ours, is still left for the next.

        Returns:
            The answer, whatever its status.

        Raises:
            KmsError: There was no answer, or none that is final.
            ConfigurationError: Certificate, address or proxy settings cannot work.
        """
        request = Request(path, body, token, operation, get)
        # An error that is raised here shows this frame in its traceback.
        del body, token
        outcome = self._sent(request, until, retry=retry)
        if isinstance(outcome, Answer):
            return outcome
        raise outcome.error from outcome.cause

    def health(self, node: str) -> int:
        """Ask a node how it is; needs no token.

        Args:
            node: The node's address.

        Returns:
            The HTTP status: 200 active, 429 standby, 472 and 473 standbys of other kinds, 501 not initialised, 503
            sealed.

        Raises:
            KmsUnavailableError: There was no answer.
            ConfigurationError: Certificate, address or proxy settings cannot work.
        """
        outcome = self._connection.send(node, _HEALTH, self._settings.timeouts)
        if isinstance(outcome, Answer):
            return outcome.status
        raise outcome.error from outcome.cause

    def close(self) -> None:
        """Close the connections; the next request opens new ones."""
        self._connection.close()

    def _sent(self, request: Request, until: float, *, retry: bool) -> Answer | Failure:
        round_trip = _Round(self._settings.nodes, self._preferred, self._clock)
        outcome: Answer | Failure | None = None
        for failures in itertools.count():
            sent = self._followed(request, round_trip, until)
            if sent is None or (outcome and self._is_cut(sent, until)):  # the one before says more
                break
            outcome = sent
            wait = self._patience(outcome, retry=retry)
            if not wait:
                if isinstance(outcome, Answer):
                    self._preferred = outcome.node
                return outcome
            pause = min(_LONGEST_DELAY, _FIRST_DELAY * 2.0 ** min(failures, 10)) * self._clock.between(0.5, 1.5)
            rest = round_trip.move_on(outcome, pause)
            if self._clock.now() + rest >= round_trip.end(wait, until):
                break
            logger.info("%s: asked again in %.2f s", self._error(outcome, request), rest)
            self._clock.pause(rest)
        return self._given_up(outcome, request)

    def _followed(self, request: Request, round_trip: _Round, until: float) -> Answer | Failure | None:
        """Ask one node, and those that it redirects to, which are all ours; None if there is no time left."""
        outcome = self._once(request, round_trip.node, until)
        for _ in self._settings.nodes:
            if not isinstance(outcome, Answer) or outcome.status not in _FOLLOWED:
                break
            target = named_node(outcome.location, self._settings.nodes)
            if target in {None, round_trip.node}:
                break
            round_trip.node = str(target)
            outcome = self._once(request, round_trip.node, until)
        return outcome

    def _once(self, request: Request, node: str, until: float) -> Answer | Failure | None:
        turns = self._turns
        if not turns.acquire(timeout=max(0.0, until - self._clock.now())):
            return None
        try:
            left = until - self._clock.now()
            connect, read = self._settings.timeouts
            return self._connection.send(node, request, (min(connect, left), min(read, left))) if left > 0 else None
        finally:
            turns.release()

    @staticmethod
    def _patience(outcome: Answer | Failure, *, retry: bool) -> float:
        if isinstance(outcome, Answer):
            return patience(outcome) if retry else 0.0
        is_final = not isinstance(outcome.error, KmsError) or (outcome.was_sent and not retry)
        return 0.0 if is_final else math.inf

    def _is_cut(self, outcome: Answer | Failure, until: float) -> bool:
        return isinstance(outcome, Failure) and isinstance(outcome.cause, TimeoutError) and self._clock.now() >= until

    def _given_up(self, outcome: Answer | Failure | None, request: Request) -> Failure:
        if outcome is None:
            message = (
                f"{subject(request.operation)} request failed: no time left; other calls took it (VAULT_RETRY_DEADLINE)"
            )
            return Failure(KmsUnavailableError(message, retryable=True, operation=request.operation))
        if isinstance(outcome, Failure):
            return outcome
        if outcome.status == _UNAVAILABLE and self._is_new(outcome.node):
            outcome = replace(outcome, body={"errors": ["Vault is not initialised"]})  # it says "sealed" then, too
        return Failure(self._error(outcome, request))

    def _error(self, outcome: Answer | Failure, request: Request) -> AsherahError:
        if isinstance(outcome, Failure):
            return outcome.error
        return refusal(outcome, request.operation, self._settings)

    def _is_new(self, node: str) -> bool:
        outcome = self._connection.send(node, _HEALTH, (_HEALTH_SECONDS, _HEALTH_SECONDS))
        return isinstance(outcome, Answer) and outcome.status == _NOT_INITIALISED


# Without token and namespace: inside a namespace this path does not exist.
_HEALTH = Request("sys/health", operation="health", get=True, is_global=True)


@dataclass(slots=True)
class _Round:
    """Whose turn it is in one call.

    Attributes:
        nodes: All nodes.
        node: The one to ask.
        clock: Tells the time.
        resting: When each node that asked to be left alone may be asked again.
        since: When the first answer came that is worth asking again for so many seconds.
    """

    nodes: tuple[str, ...]
    node: str
    clock: Clock
    resting: dict[str, float] = field(default_factory=dict[str, float])
    since: dict[float, float] = field(default_factory=dict[float, float])

    def move_on(self, outcome: Answer | Failure, pause: float) -> float:
        """Choose the next node; return the seconds to wait for it."""
        now = self.clock.now()
        if isinstance(outcome, Answer) and outcome.retry_after:
            self.resting[outcome.node] = now + outcome.retry_after
        place = self.nodes.index(self.node) + 1
        ready = now + pause
        self.node = min(
            (*self.nodes[place:], *self.nodes[:place]), key=lambda node: max(ready, self.resting.get(node, 0.0))
        )
        return max(ready, self.resting.get(self.node, 0.0)) - now

    def end(self, wait: float, until: float) -> float:
        """Return when to give up on an answer that is worth so many seconds."""
        return min(until, self.since.setdefault(wait, self.clock.now()) + wait)
