# SPDX-License-Identifier: Apache-2.0
"""Pytest fixtures for applications with encrypted columns: `asherah`, `attach_asherah`, `leak_canaries`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest

from sa_asherah.testing import AttachEngines, LeakCanaries, static_asherah

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from sa_asherah.asherah import Asherah

__all__ = ["asherah", "attach_asherah", "leak_canaries"]

_VERDICTS = (AssertionError, pytest.fail.Exception, pytest.skip.Exception)
_CANARIES: pytest.StashKey[LeakCanaries] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the settings."""
    parser.addini("sa_asherah_service", "service name of the fixture `asherah`", default="tests")
    parser.addini("sa_asherah_product", "product name of the fixture `asherah`", default="tests")


@pytest.fixture(scope="session")
def asherah(pytestconfig: pytest.Config) -> Iterator[Asherah]:
    """An `Asherah` under a random static master key that lasts as long as the test run, attached to nothing yet.

    An engine of wider scope than a test attaches it by itself: `asherah.attach(engine)`,
    `asherah.create_metastore(engine)`, and `asherah.detach(engine)` at its end.
    """
    service, product = pytestconfig.getini("sa_asherah_service"), pytestconfig.getini("sa_asherah_product")
    with static_asherah(service, product) as found:
        yield found


@pytest.fixture
def attach_asherah(asherah: Asherah) -> Iterator[AttachEngines]:
    """Attach `asherah` to an engine and create the key table; after the test it is detached.

    `engine = attach_asherah(create_engine(...))`, `engine = await attach_asherah(create_async_engine(...))`
    """
    attach = AttachEngines(asherah)
    yield attach
    attach.close()


@pytest.fixture
def leak_canaries(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[LeakCanaries]:
    """Unique values that may show nowhere: `leak_canaries("ssn")` gives one, `leak_canaries.watch(engine)` a place.

    After the test, before any fixture ends (which may drop the tables), the database and the statement cache of each
    watched engine, the log, the warnings, the captured output and the exception that ended the test are searched.
    """
    # caplog may outlive this fixture: it restores the levels that it saw first, so let them be the right ones.
    caplog.set_level(logging.getLogger("sqlalchemy.engine").level, "sqlalchemy.engine")
    caplog.set_level(logging.NOTSET)
    with LeakCanaries() as canaries:
        request.node.stash[_CANARIES] = canaries
        yield canaries


@pytest.hookimpl(wrapper=True, tryfirst=True)  # outermost: what was printed has been collected when it goes on
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Check the canaries of a test that has some when its body is done."""
    __tracebackhide__ = True
    error: BaseException | None = None
    result = None
    try:
        result = yield
    except (Exception, *_VERDICTS) as raised:  # noqa: BLE001 -- raised again below
        error = raised
    canaries = item.stash.get(_CANARIES, None)
    if canaries is not None:
        _check(canaries, item, error)
    if error is not None:
        raise error
    return result


def _check(canaries: LeakCanaries, item: pytest.Item, error: BaseException | None) -> None:
    __tracebackhide__ = True
    reported: Any = item
    for _, stream, text in reported._report_sections:  # noqa: SLF001 -- the public way comes too late to fail the test
        if stream in {"stdout", "stderr"}:
            canaries.look(f"the captured {stream}", text)
    # A failed assertion shows what it compared: that is the test's own doing.
    if error is not None and not isinstance(error, _VERDICTS):
        canaries.look(f"the {type(error).__name__} that ended the test", error)
    try:
        canaries.check()
    except AssertionError as leak:
        if not isinstance(error, AssertionError | pytest.fail.Exception):
            raise
        error.add_note(str(leak))
