# SPDX-License-Identifier: Apache-2.0
"""The life of a token: log in, renew in time, log in again when it is refused, revoke at the end."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sa_asherah.core.fork import ForkAware
from sa_asherah.errors import AsherahError, KmsAuthError, KmsUnavailableError
from sa_asherah.kms.vault.clock import Clock
from sa_asherah.kms.vault.login import Login, granted, login_method
from sa_asherah.kms.vault.refusal import is_transient, members, words

if TYPE_CHECKING:
    from collections.abc import Generator

    from sa_asherah.kms.vault.connection import Answer
    from sa_asherah.kms.vault.credentials import Credentials
    from sa_asherah.kms.vault.login import Asker

__all__ = ["Held", "Tokens"]

logger = logging.getLogger(__name__)

_OK = 200
_DENIAL_SECONDS = 60.0
_BESIDES_SECONDS = 2.0  # what looking after a token that still works may take of a call
_BACKGROUND_SECONDS = 20.0
_AGAIN_SECONDS = 30.0  # at most, between two attempts to renew
_LEAST_SECONDS = 0.1
_FINAL = ("max TTL", "during renewal")  # with status 500, and yet no use to ask again


@dataclass(frozen=True, slots=True)
class Held:
    """A token for one call.

    Attributes:
        text: The token.
        generation: Which one it is: each other token has a higher number.
    """

    text: str = field(repr=False)
    generation: int


@dataclass(frozen=True, slots=True)
class _State:
    """The token that is held, and its life on the clock that is never set.

    Attributes:
        text: The token.
        generation: Its number.
        is_known: Whether its life is what Vault says, or was asked for in vain.
        pid: The process that got it.
        lease: Seconds that it was last given to live.
        expires: When it dies.
        due: When to look after it.
        renewable: Whether it can be renewed.
    """

    text: str = field(repr=False)
    generation: int
    is_known: bool
    pid: int
    lease: float = math.inf
    expires: float = math.inf
    due: float = math.inf
    renewable: bool = False


class Tokens(ForkAware):
    """The token of one process, shared by its threads; a forked child goes on with it.

    Args:
        credentials: Who asks.
        caller: Asks Vault.
        scope: Which Vault, by address and namespace: credentials rejected by one are not those of another.
        startup_jitter: Seconds; the first login waits a random time up to this, so that a fleet that starts at once
            does not log in at once.
        clock: Tells the time.
    """

    def __init__(
        self,
        credentials: Credentials,
        caller: Asker,
        *,
        scope: str,
        startup_jitter: float = 0.0,
        clock: Clock | None = None,
    ) -> None:
        self._credentials = credentials
        self._is_given = credentials.auth_method == "token"
        self._caller = caller
        self._clock = clock or Clock()
        self._method = login_method(credentials, caller, scope, self._clock)
        self._jitter = startup_jitter
        self._state: _State | None = None
        self._generations = 0
        self._renewed_for: dict[str, int] = {}
        self._denied: dict[str, float] = {}
        self._failure = ""
        self._worry = ""
        super().__init__()

    def reset_after_fork(self) -> None:
        """Make lock and thread anew; the token is kept."""
        self._changed = threading.Condition()
        self._is_busy = False
        self._renewer: threading.Thread | None = None
        self._ended = threading.Event()

    def held(self, until: float) -> Held:
        """Return the token for a call; logs in or renews first where that is due.

        Of several threads one does that. The others wait for it only if there is no token that works.

        Args:
            until: When to give up, on the clock that is never set.

        Returns:
            The token.

        Raises:
            KmsAuthError: Vault rejects the credential, now or a moment ago.
            KmsUnavailableError: There is no token, and Vault cannot be reached.
        """
        while True:
            with self._changed:
                state, now = self._state, self._clock.now()
                is_alive = state is not None and now < state.expires
                if state is not None and is_alive and (self._is_busy or now < state.due):
                    self._start_renewer(state)
                    return Held(state.text, state.generation)
                if self._is_busy:
                    self._wait(until)
                    continue
                self._is_busy = True
            with self._landing():
                if state is not None and is_alive:
                    self._look_after(state, min(until, now + _BESIDES_SECONDS))
                else:
                    self._log_in(until)

    def accepted(self, held: Held, until: float, path: str = "") -> None:
        """Learn that Vault served a call: now it is worth asking how long a token lives that somebody else made.

        Args:
            held: The token of the call.
            until: When to give up, on the clock that is never set.
            path: What was asked.
        """
        with self._changed:
            self._renewed_for.pop(path, None)
            self._denied.pop(path, None)
            state = self._state
            if state is None or state.is_known or state.generation != held.generation:
                return
            self._state = replace(state, is_known=True)
        self._look_up(state, min(until, self._clock.now() + _BESIDES_SECONDS))

    def refused(self, held: Held, until: float, path: str = "") -> bool:
        """Learn that Vault refused a call with 403: the token is dead, or it may not do this.

        Both look alike, so one login tells: if the new token is refused for the same path before it has served a call
        to it, it may not, and for a minute nobody logs in for that again.

        Args:
            held: The token of the call.
            until: When to give up, on the clock that is never set.
            path: What was asked.

        Returns:
            True if there is another token now: ask once more with it. False if the refusal stands.

        Raises:
            KmsUnavailableError: Vault cannot be reached for a login.
        """
        with self._changed:
            while True:
                state = self._state
                if state is None or state.generation != held.generation:
                    return True
                if self._is_denied(path, held.generation):
                    return False
                if not self._is_busy:
                    break
                self._wait(until)
            self._is_busy = True
        with self._landing():
            try:
                self._log_in(until)
            except KmsAuthError as error:
                self._failure = str(error)
                return False
            is_other = self._state is not None and self._state.generation != held.generation
            if is_other and not self._is_given:
                self._renewed_for[path] = self._generations
            return is_other

    def describe(self) -> str:
        """Say why no other token cured a 403.

        Returns:
            A sentence without full stop.
        """
        credentials = self._credentials
        if self._failure:
            return f"no other one is to be had: {self._failure}"
        if credentials.token_file:
            return f"VAULT_TOKEN_FILE {credentials.token_file!r} still holds this token; let its agent write a new one"
        if self._is_given:
            return "VAULT_AUTH_METHOD=token cannot renew it: set a new VAULT_TOKEN"
        return f"a new token from auth/{credentials.auth_mount} was refused, too: check the policies of its role"

    def close(self) -> None:
        """Stop renewing, and revoke the token if this very process logged in for it."""
        self._ended.set()
        renewer = self._renewer
        if renewer:
            renewer.join(_BESIDES_SECONDS)
        with self._changed:
            state, self._state = self._state, None
        if state is None or self._is_given or state.pid != os.getpid() or self._clock.now() >= state.expires:
            return
        try:
            self._ask("revoke-self", state, self._clock.now() + _BESIDES_SECONDS)
        except AsherahError as error:
            logger.info("the token was not revoked: %s", error)

    def _wait(self, until: float) -> None:
        if not self._changed.wait(until - self._clock.now()):
            raise KmsUnavailableError(
                f"Vault {self._credentials.auth_method} auth failed: another thread was still logging in when the time "
                "for this call was over",
                retryable=True,
                operation="login",
            )

    @contextlib.contextmanager
    def _landing(self) -> Generator[None]:
        try:
            yield
        finally:
            with self._changed:
                self._is_busy = False
                self._changed.notify_all()

    def _is_denied(self, path: str, generation: int) -> bool:
        now = self._clock.now()
        if self._renewed_for.get(path) == generation:
            del self._renewed_for[path]
            self._denied[path] = now + _DENIAL_SECONDS
            self._failure = ""
        return now < self._denied.get(path, 0.0)

    def _log_in(self, until: float) -> None:
        """Get another token; one that is the same text leaves everything as it is."""
        if self._jitter and not self._is_given:
            delay, self._jitter = self._clock.between(0.0, self._jitter), 0.0
            self._clock.pause(max(0.0, min(delay, (until - self._clock.now()) / 2)))
        login = self._method.log_in(until)
        self._failure = ""
        # Counted from the answer, since retries may have taken longer than a short life; a token that turns out to
        # have died a moment earlier is replaced like any other.
        state, now = self._state, self._clock.now()
        if state is None or state.text != login.token:
            self._generations += 1
        elif now < state.expires:
            return
        own = _State(login.token, self._generations, is_known=not self._is_given, pid=os.getpid())
        with self._changed:  # a look-up of the old one may be under way
            self._state = self._lived(own, login, now)

    def _lived(self, state: _State, life: Login, started: float) -> _State:
        # Looked after at two thirds of its life; one that nobody can replace, at half of it.
        share = 1 / 2 if self._is_given else 2 / 3
        return replace(
            state,
            lease=life.lease,
            expires=started + life.lease,
            due=started + life.lease * share,
            renewable=life.renewable and life.lease < math.inf,
        )

    def _look_after(self, state: _State, until: float) -> None:
        """Renew a token that still works, or get another one. A failure is logged, and the token used as it is."""
        try:
            if self._is_given:  # a file may hold another one
                self._log_in(until)
            is_settled = self._state is not state or (state.renewable and self._renew(state, until))
            if not (is_settled or self._is_given):
                self._log_in(until)
        except AsherahError as error:
            is_new, self._worry = str(error) != self._worry, str(error)
            logger.log(
                logging.WARNING if is_new else logging.DEBUG,
                "the token for Vault works for another %.0f s and could not be renewed: %s",
                max(0.0, state.expires - self._clock.now()),
                error,
            )
        self._put_off()

    def _put_off(self) -> None:
        """Make sure that what failed is not tried again by the very next call."""
        state, now = self._state, self._clock.now()
        if state is None or now < state.due:
            return
        rest = state.expires - now
        pause = min(_AGAIN_SECONDS, max(rest / 4, _LEAST_SECONDS)) if rest > 0 else _AGAIN_SECONDS
        self._state = replace(state, due=now + pause)

    def _renew(self, state: _State, until: float) -> bool:
        """Tell whether the token has a new life; if not, it is time to log in."""
        started = self._clock.now()
        is_reusable = self._credentials.is_reusable
        try:
            answer = self._ask("renew-self", state, until)
        except KmsUnavailableError:
            if is_reusable:
                return False
            raise  # a login would cost the credential, for nothing
        life = granted(answer) if answer.status == _OK else None
        if life is None:
            said = words(answer.body, (state.text,)) or f"HTTP {answer.status}"
            if is_transient(answer.status) and not is_reusable and not any(text in said for text in _FINAL):
                raise KmsUnavailableError(f"Vault token renewal failed: {said}", retryable=True, operation="login")
            logger.info("the token for Vault cannot be renewed: %s", said)
            self._state = replace(state, renewable=False)
            return False
        # Near its maximum a token is renewed for ever shorter times, at last for "0", less than a second.
        if life.lease == math.inf:
            life = replace(life, lease=state.expires - started)
        is_shrunk = life.lease <= state.lease / 2
        self._state = self._lived(state, replace(life, renewable=life.renewable and not is_shrunk), started)
        return not is_shrunk

    def _look_up(self, state: _State, until: float) -> None:
        """Learn the life of a token that somebody else made, if the token may ask for that."""
        started = self._clock.now()
        try:
            answer = self._ask("lookup-self", state, until, get=True)
        except AsherahError:
            answer = None
        data = members(members(answer.body).get("data") if answer and answer.status == _OK else None)
        lease, renewable = data.get("ttl"), data.get("renewable")
        with self._changed:
            now_held = self._state
            if now_held is None or now_held.generation != state.generation:
                return
            if answer is None or is_transient(answer.status):
                self._state = replace(now_held, is_known=False)
            elif isinstance(lease, int) and lease > 0 and isinstance(renewable, bool):
                self._state = self._lived(now_held, Login(state.text, lease, renewable), started)
                self._start_renewer(self._state)

    def _ask(self, what: str, state: _State, until: float, *, get: bool = False) -> Answer:
        path = f"auth/token/{what}"
        return self._caller.ask(path, None, operation="login", token=state.text, until=until, get=get, retry=False)

    def _start_renewer(self, state: _State) -> None:
        """Have a thread renew what no login can replace, also while nobody calls. The lock is held."""
        if self._credentials.is_reusable or not state.renewable or (self._renewer and self._renewer.is_alive()):
            return
        self._ended = threading.Event()
        self._renewer = threading.Thread(target=self._keep, args=(self._ended,), name="sa_asherah-vault", daemon=True)
        try:
            self._renewer.start()
        except RuntimeError as error:  # the interpreter is ending, or the system has no thread left
            self._renewer = None
            logger.info("no thread to renew the token for Vault: %s", error)

    def _keep(self, ended: threading.Event) -> None:
        while True:
            state = self._state
            if state is None or not state.renewable:
                return
            rest = (state.due - self._clock.now()) * self._clock.between(0.9, 1.1)
            if self._clock.wait(ended, max(0.0, rest)):
                return
            with self._changed:
                if self._is_busy:
                    self._changed.wait(_BESIDES_SECONDS)
                if self._is_busy or self._state is not state:
                    continue
                self._is_busy = True
            with self._landing():
                self._look_after(state, self._clock.now() + _BACKGROUND_SECONDS)
