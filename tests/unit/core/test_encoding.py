# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from sa_asherah.core.encoding import lp
from sa_asherah.errors import UsageError


def test_each_part_is_preceded_by_its_length() -> None:
    assert lp() == b""
    assert lp("é", b"\x00\xff", 5, "") == bytes.fromhex("00000002c3a9 0000000200ff 000000080000000000000005 00000000")


def test_lone_surrogates_are_refused_without_quoting_the_text() -> None:
    with pytest.raises(UsageError) as caught:
        lp("secret-name\ud800")
    assert "secret-name" not in str(caught.value)
    assert caught.value.__context__ is None


@pytest.mark.parametrize("number", [-1, 2**64])
def test_integers_out_of_range_are_refused(number: int) -> None:
    with pytest.raises(OverflowError):
        lp(number)
