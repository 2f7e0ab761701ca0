# SPDX-License-Identifier: Apache-2.0
"""The life of a token in a time that passes when told to; against a real server: tests/integration."""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sa_asherah.errors import KmsAuthError, KmsUnavailableError
from sa_asherah.kms.vault.credentials import Credentials
from sa_asherah.kms.vault.token import Held, Tokens
from tests.unit.kms.fakes import DENIED, NO_POLICY, REJECTED, FakeVault, Time

SECRET = "a1b2c3d4-secret-id"
GIVEN = "hvs.given"
ENCRYPT, DECRYPT = "transit/encrypt/key", "transit/decrypt/key"
DOWN = KmsUnavailableError("connection refused", retryable=True, operation="login")
BUSY = (503, {"errors": ["Vault is sealed"]})


@pytest.fixture(autouse=True)
def _own_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def vault(time: Time) -> FakeVault:
    return FakeVault(time)


@pytest.fixture
def reusable(vault: FakeVault, tmp_path: Path) -> Iterator[Tokens]:
    """A credential that is good at any time."""
    (tmp_path / "secret-id").write_text(SECRET)
    credentials = Credentials(auth_method="approle", role_id="e5f6-role-id", secret_id_file=tmp_path / "secret-id")
    yield from closing(tokens_of(vault, credentials))


@pytest.fixture
def single(vault: FakeVault) -> Iterator[Tokens]:
    """A credential that may be good once."""
    yield from closing(tokens_of(vault, Credentials(auth_method="approle", role_id="e5f6-role-id", secret_id=SECRET)))


@pytest.fixture
def given(vault: FakeVault) -> Iterator[Tokens]:
    """A token that somebody else made."""
    yield from closing(tokens_of(vault, Credentials(token=vault.adopt(GIVEN))))


def tokens_of(vault: FakeVault, credentials: Credentials, jitter: float = 0.0) -> Tokens:
    return Tokens(credentials, vault, scope="https://vault", startup_jitter=jitter, clock=vault.time.clock)


def closing(tokens: Tokens) -> Iterator[Tokens]:
    yield tokens
    tokens.close()


def held(tokens: Tokens, seconds: float = 20.0) -> Held:
    return tokens.held(tokens._clock.now() + seconds)


def refused(tokens: Tokens, token: Held, path: str = DECRYPT) -> bool:
    return tokens.refused(token, tokens._clock.now() + 20, path)


def accepted(tokens: Tokens, token: Held, path: str = DECRYPT) -> None:
    tokens.accepted(token, tokens._clock.now() + 20, path)


# Renewal


@pytest.mark.parametrize("lease", [3, 60, 3_600, 2_764_800])
def test_a_token_is_renewed_at_two_thirds_of_each_lease(
    vault: FakeVault, time: Time, reusable: Tokens, lease: int
) -> None:
    vault.lease = lease
    first = held(reusable)
    for renewals in (1, 2, 3):
        time.pass_(lease * 0.66)
        assert held(reusable) == first
        assert vault.count("renew-self") == renewals - 1
        time.pass_(lease * 0.01)
        assert held(reusable) == first
        assert vault.count("renew-self") == renewals
    assert vault.count("login") == 1


def test_a_token_that_never_expires_is_left_alone(vault: FakeVault, time: Time, reusable: Tokens) -> None:
    vault.faults["login"] = (200, {"auth": {"client_token": "t", "lease_duration": 0, "renewable": False}})
    held(reusable)
    time.pass_(1e9)
    held(reusable)
    assert len(vault.asked) == 1


@pytest.mark.parametrize(
    "fault",
    [
        (403, DENIED),
        (400, {"errors": ["lease is not renewable"]}),
        (500, {"errors": ["past the max TTL, cannot renew"]}),
        BUSY,
        (200, {}),
        DOWN,
    ],
)
def test_a_renewal_that_fails_in_any_way_is_followed_by_a_login(
    vault: FakeVault, time: Time, reusable: Tokens, fault: tuple[int, object] | Exception
) -> None:
    first = held(reusable)
    vault.faults["renew-self"] = fault
    time.pass_(2_500)
    assert held(reusable).generation == first.generation + 1
    assert (vault.count("renew-self"), vault.count("login")) == (1, 2)


def test_a_token_that_cannot_be_renewed_is_replaced_before_it_dies(
    vault: FakeVault, time: Time, reusable: Tokens
) -> None:
    vault.renewable = False
    held(reusable)
    time.pass_(2_500)
    assert held(reusable).generation == 2
    assert vault.count("renew-self") == 0


@pytest.mark.parametrize("lease", [2, 3, 60, 3_600])
def test_near_the_end_of_its_renewals_a_token_is_replaced(
    vault: FakeVault, time: Time, reusable: Tokens, lease: int
) -> None:
    vault.lease, vault.max_ttl = lease, lease * 2.5
    for _ in range(400):
        token = held(reusable)
        assert vault.lives[token.text][1] > time.now, "no dead token is handed out"
        time.pass_(lease / 20)
    assert 7 < vault.count("login") < 400 / 20
    assert vault.count("renew-self") < 400 / 5


def test_a_failure_to_look_after_a_living_token_is_nobodys_error(
    vault: FakeVault, time: Time, reusable: Tokens, caplog: pytest.LogCaptureFixture
) -> None:
    first = held(reusable)
    vault.faults = {"renew-self": DOWN, "login": DOWN}
    time.pass_(2_500)
    asked = len(vault.asked)
    for _ in range(100):
        assert held(reusable) == first
    assert len(vault.asked) == asked + 2, "the next calls do not try again"
    assert all(until <= time.now + 2 for _, _, until in vault.asked[asked:]), "nor does it cost the call its time"
    assert "could not be renewed: connection refused" in caplog.text
    vault.faults.clear()
    time.pass_(60)
    assert held(reusable) == first
    assert vault.count("renew-self") == 2


def test_a_dead_token_is_never_handed_out(vault: FakeVault, time: Time, reusable: Tokens) -> None:
    held(reusable)
    vault.faults["login"] = DOWN
    time.pass_(3_600)
    for _ in range(3):
        with pytest.raises(KmsUnavailableError, match="connection refused"):
            held(reusable)
    vault.faults.clear()
    assert held(reusable).generation == 2


@pytest.mark.parametrize("fault", [DOWN, BUSY, (500, {"errors": ["active cluster node not found"]})])
def test_an_outage_does_not_cost_a_credential_that_is_good_once(
    vault: FakeVault, time: Time, single: Tokens, fault: tuple[int, object] | Exception
) -> None:
    first = held(single)
    vault.faults["renew-self"] = fault
    time.pass_(2_500)
    assert held(single) == first
    assert vault.count("login") == 1
    vault.faults.clear()
    time.pass_(300)
    assert held(single) == first
    assert vault.count("login") == 1
    assert vault.lives[first.text][1] > time.now + 3_000


# Several threads


def in_threads(count: int, call: Callable[[], Held]) -> list[Held]:
    with ThreadPoolExecutor(count) as pool:
        return [future.result() for future in [pool.submit(call) for _ in range(count)]]


def test_of_many_threads_one_logs_in(vault: FakeVault, reusable: Tokens) -> None:
    everybody = threading.Barrier(8)

    def call() -> Held:
        everybody.wait(10)
        return held(reusable)

    assert len(set(in_threads(8, call))) == 1
    assert vault.count("login") == 1


def test_three_revocations_under_eight_threads_cost_three_logins(vault: FakeVault, reusable: Tokens) -> None:
    everybody = threading.Barrier(8, action=vault.revoke)

    def call() -> Held:
        token = held(reusable)
        for _ in range(3):
            everybody.wait(10)
            assert refused(reusable, token)
            token = held(reusable)
            assert token.text in vault.lives
            accepted(reusable, token)
        return token

    assert len(set(in_threads(8, call))) == 1
    assert vault.count("login") == 4


def test_nobody_waits_for_the_renewal_of_a_token_that_works(vault: FakeVault, time: Time, reusable: Tokens) -> None:
    first = held(reusable)
    time.pass_(2_500)
    renewing, go_on = threading.Event(), threading.Event()

    def hold(path: str) -> None:
        if path.endswith("renew-self"):
            renewing.set()
            assert go_on.wait(10)

    vault.hold = hold
    with ThreadPoolExecutor(1) as pool:
        renewal = pool.submit(held, reusable)
        assert renewing.wait(10)
        assert held(reusable) == first
        go_on.set()
        assert renewal.result(10) == first


def test_who_waits_for_a_login_gives_up_at_the_deadline(vault: FakeVault, reusable: Tokens) -> None:
    going, go_on = threading.Event(), threading.Event()

    def hold(_path: str) -> None:
        going.set()
        assert go_on.wait(10)

    vault.hold = hold
    with ThreadPoolExecutor(1) as pool:
        login = pool.submit(held, reusable)
        assert going.wait(10)
        with pytest.raises(KmsUnavailableError, match="another thread was still logging in"):
            held(reusable, seconds=0.01)
        go_on.set()
        assert login.result(10).text in vault.lives


# Rejected logins


def test_a_rejected_login_is_remembered_longer_each_time(vault: FakeVault, time: Time, reusable: Tokens) -> None:
    vault.faults["login"] = (400, REJECTED)
    for count, pause in enumerate((60, 120, 240, 960, 960), start=1):
        with pytest.raises(KmsAuthError) as first:
            held(reusable)
        assert vault.count("login") == count
        time.pass_(pause - 1)
        with pytest.raises(KmsAuthError) as again:
            held(reusable)
        assert (str(again.value), again.value.status) == (str(first.value), 400)
        assert again.value is not first.value
        assert vault.count("login") == count
        time.pass_(1)
    vault.faults.clear()
    assert held(reusable).text in vault.lives


def test_a_wrong_secret_id_never_locks_the_role(vault: FakeVault, time: Time, single: Tokens) -> None:
    vault.faults["login"] = (400, REJECTED)
    rejections: list[float] = []
    for _ in range(20_000):
        before = vault.count("login")
        with pytest.raises(KmsAuthError):
            held(single)
        rejections += [time.now] * (vault.count("login") - before)
        time.pass_(1)
    # The server locks at the fifth that comes before 15 minutes have passed without one.
    run = longest = 1
    for earlier, later in itertools.pairwise(rejections):
        assert later - earlier >= 60
        run = run + 1 if later - earlier <= 900 else 1
        longest = max(longest, run)
    assert (len(rejections) > 20, longest) == (True, 4)


def test_a_secret_id_that_was_put_right_waits_a_minute_at_most(
    vault: FakeVault, time: Time, reusable: Tokens, tmp_path: Path
) -> None:
    vault.faults["login"] = (400, REJECTED)
    for pause in (60, 120, 240):
        with pytest.raises(KmsAuthError):
            held(reusable)
        time.pass_(pause)
    with pytest.raises(KmsAuthError):
        held(reusable)
    vault.faults.clear()
    (tmp_path / "secret-id").write_text("another-secret-id")
    with pytest.raises(KmsAuthError):
        held(reusable)
    time.pass_(60)
    assert held(reusable).text in vault.lives


def test_an_outage_is_not_remembered(vault: FakeVault, reusable: Tokens) -> None:
    vault.faults["login"] = DOWN
    for count in (1, 2, 3):
        with pytest.raises(KmsUnavailableError):
            held(reusable)
        assert vault.count("login") == count


def test_a_living_token_is_used_although_the_next_login_is_rejected(
    vault: FakeVault, time: Time, single: Tokens
) -> None:
    vault.max_ttl = 4_000
    first = held(single)
    time.pass_(2_500)
    vault.faults["login"] = (400, REJECTED)
    while time.now < 1_000 + 3_990:
        assert held(single) == first
        time.pass_(5)
    time.pass_(10)
    with pytest.raises(KmsAuthError, match="invalid role or secret ID"):
        held(single)
    assert vault.count("login") <= 5


# 403


def test_a_denied_path_costs_one_login_a_minute(vault: FakeVault, time: Time, reusable: Tokens) -> None:
    accepted(reusable, held(reusable), DECRYPT)
    for logins in (2, 3):
        assert refused(reusable, held(reusable), ENCRYPT)
        for _ in range(50):
            assert not refused(reusable, held(reusable), ENCRYPT)
        assert vault.count("login") == logins
        assert "was refused, too: check the policies of its role" in reusable.describe()
        accepted(reusable, held(reusable), DECRYPT)
        time.pass_(61)


def test_a_denial_hides_no_revocation(reusable: Tokens) -> None:
    assert refused(reusable, held(reusable), ENCRYPT)
    assert not refused(reusable, held(reusable), ENCRYPT)
    assert refused(reusable, held(reusable), DECRYPT), "that path was not denied"
    accepted(reusable, held(reusable), DECRYPT)
    accepted(reusable, held(reusable), ENCRYPT)
    assert refused(reusable, held(reusable), ENCRYPT), "the policy was put right since"


def test_the_refusal_stands_where_no_other_token_is_to_be_had(vault: FakeVault, single: Tokens) -> None:
    token = held(single)
    vault.faults["login"] = (400, REJECTED)
    for _ in range(10):
        assert not refused(single, token)
    assert vault.count("login") == 2
    assert "no other one is to be had: Vault approle auth failed: invalid role or secret ID" in single.describe()
    vault.faults["login"] = DOWN
    vault.time.pass_(60)
    with pytest.raises(KmsUnavailableError):
        refused(single, token)


# A token that somebody else made


def test_a_given_token_is_looked_up_once_it_has_worked(vault: FakeVault, given: Tokens) -> None:
    token = held(given)
    assert token.text == GIVEN
    assert vault.asked == []
    for _ in range(3):
        accepted(given, token)
    assert [path for path, _, _ in vault.asked] == ["auth/token/lookup-self"]


def test_a_given_token_is_renewed_at_half_its_life(vault: FakeVault, time: Time, given: Tokens) -> None:
    accepted(given, held(given))
    time.pass_(1_700)
    held(given)
    assert vault.count("renew-self") == 0
    time.pass_(200)
    held(given)
    assert vault.count("renew-self") == 1
    assert vault.lives[GIVEN][1] == time.now + 3_600


@pytest.mark.parametrize("fault", [(403, NO_POLICY), (403, DENIED), (404, None), (200, {"data": {"ttl": "x"}})])
def test_a_given_token_without_rights_over_itself_is_used_as_it_is(
    vault: FakeVault, time: Time, given: Tokens, fault: tuple[int, object]
) -> None:
    vault.faults["lookup-self"] = fault
    for _ in range(3):
        accepted(given, held(given))
    time.pass_(1e6)
    assert held(given).text == GIVEN
    assert len(vault.asked) == 1


def test_a_lookup_that_vault_could_not_answer_is_made_up_for(vault: FakeVault, given: Tokens) -> None:
    for fault in (DOWN, BUSY):
        vault.faults["lookup-self"] = fault
        accepted(given, held(given))
    vault.faults.clear()
    accepted(given, held(given))
    accepted(given, held(given))
    assert vault.count("lookup-self") == 3


@pytest.mark.parametrize("fault", [(403, NO_POLICY), BUSY, DOWN])
def test_a_failed_renewal_of_a_given_token_is_only_logged(
    vault: FakeVault, time: Time, given: Tokens, fault: tuple[int, object] | Exception
) -> None:
    accepted(given, held(given))
    vault.faults["renew-self"] = fault
    for _ in range(1_000):
        time.pass_(10)
        assert held(given).text == GIVEN, "only the server can say that it is dead"
    assert vault.count("login") == 0


def test_a_refused_given_token_cannot_be_replaced(vault: FakeVault, given: Tokens) -> None:
    assert not refused(given, held(given))
    assert given.describe() == "VAULT_AUTH_METHOD=token cannot renew it: set a new VAULT_TOKEN"
    assert vault.asked == []


def test_a_token_file_is_read_again_when_its_token_is_refused(vault: FakeVault, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(f"{vault.adopt('hvs.one')}\n")
    tokens = tokens_of(vault, Credentials(token_file=path))
    one = held(tokens)
    assert not refused(tokens, one)
    assert f"VAULT_TOKEN_FILE '{path}' still holds this token" in tokens.describe()
    for name in ("hvs.two", "hvs.three"):
        path.write_text(vault.adopt(name))
        assert held(tokens) == one
        assert refused(tokens, one)
        assert held(tokens).text == name
        one = held(tokens)
    path.unlink()
    assert not refused(tokens, one)
    assert f"cannot read VAULT_TOKEN_FILE '{path}': No such file or directory" in tokens.describe()
    tokens.close()


def test_a_token_file_is_read_again_at_half_its_tokens_life(vault: FakeVault, time: Time, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(vault.adopt("hvs.one"))
    tokens = tokens_of(vault, Credentials(token_file=path))
    accepted(tokens, held(tokens))
    path.write_text(vault.adopt("hvs.two"))
    time.pass_(1_000)
    assert held(tokens).text == "hvs.one"
    time.pass_(1_000)
    assert held(tokens).text == "hvs.two"
    assert vault.count("renew-self") == 0
    tokens.close()


# The thread that renews


def renewer_of(tokens: Tokens) -> threading.Thread:
    assert tokens._renewer
    return tokens._renewer


def test_what_is_good_once_is_renewed_although_nobody_calls(vault: FakeVault, time: Time, single: Tokens) -> None:
    renewed = threading.Event()
    vault.hold = lambda _path: renewed.set() if vault.count("renew-self") == 3 else None
    time.naps_left = 3
    held(single)
    assert renewed.wait(10)
    assert time.naps == pytest.approx([3_600 * 2 / 3 * 1.1] * 3)
    assert vault.count("login") == 1
    assert renewer_of(single).daemon


def test_close_ends_the_thread(single: Tokens) -> None:
    held(single)
    renewer = renewer_of(single)
    assert renewer.is_alive()
    single.close()
    assert not renewer.is_alive()
    held(single)
    assert renewer_of(single).is_alive(), "a later call logs in again"


def test_only_what_is_good_once_needs_the_thread(vault: FakeVault, reusable: Tokens, given: Tokens) -> None:
    held(reusable)
    held(given)
    assert (reusable._renewer, given._renewer) == (None, None)
    accepted(given, held(given))
    assert renewer_of(given).is_alive()
    vault.renewable = False
    other = tokens_of(vault, Credentials(token=vault.adopt("hvs.other")))
    accepted(other, held(other))
    assert other._renewer is None


def test_a_system_without_threads_does_not_fail_the_call(single: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        token = held(single)
    assert single._renewer is None
    assert held(single) == token
    assert renewer_of(single).is_alive()


# Fork


def in_a_child(work: Callable[[], object]) -> int:
    """Fork; return what the child answers, 0 if `work` passed."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_keeps_the_token_and_makes_its_own_thread(vault: FakeVault, single: Tokens) -> None:
    token = held(single)

    def work() -> None:
        assert single._renewer is None
        assert held(single) == token
        assert renewer_of(single).is_alive()
        single.close()
        assert (vault.count("login"), vault.count("revoke-self")) == (1, 0), "it is the siblings' token"

    assert in_a_child(work) == 0
    single.close()
    assert vault.count("revoke-self") == 1


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_forked_during_a_login_does_not_hang(vault: FakeVault, reusable: Tokens) -> None:
    codes: list[int] = []

    def work() -> None:
        vault.hold = lambda _path: None
        vault._lock = threading.Lock()
        assert held(reusable).text in vault.lives

    vault.hold = lambda _path: codes.append(in_a_child(work)) if not codes else None
    # The parent holds the lock of the host's file: the child must get its own token when that is free again.
    reusable._method._host._folder = _no_folder  # type: ignore[attr-defined]
    assert held(reusable).text in vault.lives
    assert codes == [0]


def _no_folder() -> Path:
    raise OSError("none here")


# The end, and the start


def test_close_revokes_only_what_lives_and_was_logged_in_for(
    vault: FakeVault, time: Time, reusable: Tokens, given: Tokens
) -> None:
    reusable.close()
    accepted(given, held(given))
    given.close()
    held(reusable)
    time.pass_(3_600)
    reusable.close()
    assert vault.count("revoke-self") == 0
    token = held(reusable)
    reusable.close()
    reusable.close()
    assert vault.asked[-1][:2] == ("auth/token/revoke-self", token.text)
    assert vault.count("revoke-self") == 1


@pytest.mark.parametrize("fault", [(403, NO_POLICY), DOWN])
def test_close_does_not_mind_a_revocation_that_fails(
    vault: FakeVault, reusable: Tokens, fault: tuple[int, object] | Exception
) -> None:
    held(reusable)
    vault.faults["revoke-self"] = fault
    reusable.close()
    assert vault.count("revoke-self") == 1


def test_the_first_login_waits_a_random_time(vault: FakeVault, time: Time) -> None:
    credentials = Credentials(auth_method="approle", role_id="e5f6-role-id")
    tokens = tokens_of(vault, credentials, jitter=5)
    held(tokens)
    assert time.pauses == [5]
    time.pass_(4_000)
    held(tokens)
    assert time.pauses == [5]
    held(tokens_of(vault, credentials, jitter=50), seconds=20)
    assert time.pauses == [5, 10], "a call keeps half of its time"
    held(tokens_of(vault, Credentials(token=GIVEN), jitter=5))
    assert len(time.pauses) == 2


def test_no_token_shows(vault: FakeVault, reusable: Tokens, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    token = held(reusable)
    vault.faults = {"renew-self": (400, {"errors": [f"no {token.text}"]}), "login": DOWN}
    vault.time.pass_(2_500)
    held(reusable)
    assert "cannot be renewed: no …" in caplog.text
    assert not [text for text in (repr(token), repr(reusable._state), caplog.text) if token.text in text]
