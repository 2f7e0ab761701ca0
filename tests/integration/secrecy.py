# SPDX-License-Identifier: Apache-2.0
"""Provoke an error and make sure that no secret comes out with it."""

from __future__ import annotations

import pickle
import traceback
from typing import TYPE_CHECKING, TypeVar

import pytest

from sa_asherah.errors import AsherahError
from tests.reachable import texts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

E = TypeVar("E", bound=AsherahError)


def failure_of(kind: type[E], call: Callable[[], object], tokens: Iterable[str], sent: Iterable[str]) -> E:
    """Return the error of exactly this kind that the call raises, after a search for secrets in all that it holds.

    Args:
        kind: The class of the error.
        call: What raises it.
        tokens: Secrets that must not show in local variables either.
        sent: Secrets that the caller has anyway, and thus the traceback.
    """
    with pytest.raises(AsherahError) as caught:
        call()
    error = caught.value
    assert type(error) is kind, f"{type(error).__name__}: {error}"
    # Frames that a cause was raised in lead to the request.
    assert error.__cause__ is None or error.__cause__.__traceback__ is None
    for secret in {*tokens, *sent}:
        _assert_free_of(secret, error)
    for token in tokens:
        _assert_not_local(token, error)
    return error


def _assert_free_of(secret: str, error: BaseException) -> None:
    assert secret.encode() not in pickle.dumps(error)
    for link in _chain(error):
        assert secret not in f"{link}{link!r}{link.args!r}{vars(link)!r}{getattr(link, '__notes__', '')!r}"
        assert secret not in "".join(traceback.format_exception(link))
        assert not any(secret in text for text in texts(link))


def _assert_not_local(token: str, error: BaseException) -> None:
    for link in _chain(error):
        for frame in traceback.TracebackException.from_exception(link, capture_locals=True).stack:
            assert "/sa_asherah/" not in frame.filename or token not in repr(frame.locals), frame


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error:
        yield error
        error = error.__cause__ or error.__context__
