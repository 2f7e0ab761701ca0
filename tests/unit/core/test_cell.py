# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import hmac
import os
import pickle
from unittest import mock

import pytest

from sa_asherah.core import aead, cell
from sa_asherah.core.ids import MAX_CREATED
from sa_asherah.errors import DecryptionError, MalformedCellError, UnsupportedValueError, UsageError, WrongPlaceError

CREATED = 1_767_225_600
KEY = cell.derive_cell_key(bytes(range(32)))
OTHER = cell.derive_cell_key(bytes(32))
AAD = cell.context("svc", "prod", "7", "patients.ssn")


def request(key: bytes = KEY, flags: int = 0, plaintext: bytes = b"\x01abc", created: int = CREATED) -> cell.Request:
    return cell.Request(key, created, flags, AAD, plaintext)


def salt(sealed: bytes) -> bytes:
    return sealed[12:28]


def test_layout() -> None:
    (sealed,) = cell.seal([request(flags=cell.ROW_BOUND)])
    assert len(sealed) == 88 + 4
    assert sealed[:12] == bytes.fromhex("a5010101") + CREATED.to_bytes(8, "big")
    header = cell.parse(sealed)
    assert (header.created, header.flags) == (CREATED, cell.ROW_BOUND)
    assert (header.salt, header.commitment) == (sealed[12:28], sealed[28:60])
    assert cell.open_(KEY, sealed, AAD, cell.ROW_BOUND) == b"\x01abc"


def test_cells_of_one_statement_share_a_salt_by_key_date_and_flags() -> None:
    groups = [request(), request(OTHER), request(flags=cell.ROW_BOUND), request(created=CREATED + 60)]
    cells = cell.seal(groups * 3)
    assert [cell.open_(one.cell_key, sealed, AAD, one.flags) for one, sealed in zip(groups * 3, cells, strict=True)]
    assert len({salt(sealed) for sealed in cells}) == 4
    assert [sealed[:60] for sealed in cells[:4]] * 3 == [sealed[:60] for sealed in cells]
    assert len({sealed[60:72] for sealed in cells}) == len(cells)


def test_statements_never_share_salts_or_nonces() -> None:
    cells = [cell.seal([request()])[0] for _ in range(500)]
    assert len({salt(sealed) for sealed in cells}) == len({sealed[60:72] for sealed in cells}) == 500


def test_randomness_is_drawn_once_at_use() -> None:
    with mock.patch("os.urandom", wraps=os.urandom) as urandom:
        cell.seal([request(), request(OTHER), request(flags=1)] * 10)
    urandom.assert_called_once()


def test_nothing_to_seal() -> None:
    assert cell.seal([]) == []


def test_plain_tuples_do_as_well() -> None:
    (sealed,) = cell.seal([tuple(request())])  # type: ignore[list-item] # pyright: ignore[reportArgumentType]
    assert cell.open_(KEY, sealed, AAD, 0) == b"\x01abc"


@pytest.mark.parametrize(
    ("cost", "budget", "salts"), [(2**16, 2**36, 1), (2**16, 3 * 2**16, 3), (0, 8, 3), (1, 5, 6), (0, 3, 6)]
)
def test_a_salt_has_a_budget(monkeypatch: pytest.MonkeyPatch, cost: int, budget: int, salts: int) -> None:
    monkeypatch.setattr(cell, "CELL_COST", cost)
    monkeypatch.setattr(cell, "SALT_BUDGET", budget)
    cells = cell.seal([request() for _ in range(6)])
    assert len({salt(sealed) for sealed in cells}) == salts
    assert {cell.open_(KEY, sealed, AAD, 0) for sealed in cells} == {b"\x01abc"}


def test_the_budget_keeps_both_limits() -> None:
    assert cell.SALT_BUDGET // cell.CELL_COST <= 2**20
    assert cell.SALT_BUDGET <= 2**36


@pytest.mark.parametrize(
    "bad",
    [
        request(plaintext=b""),
        request(flags=4),
        request(flags=-1),
        request(flags=256),
        request(created=-1),
        request(created=MAX_CREATED + 1),
        request(b""),
        request(bytes(32)),
        request(flags=cell.PADDED, plaintext=b"\x01abc"),
        request(flags=cell.PADDED, plaintext=b"\x80\x00"),
        request(flags=cell.PADDED, plaintext=b""),
    ],
)
def test_what_no_reader_takes_is_not_written(bad: cell.Request) -> None:
    with pytest.raises(UsageError):
        cell.seal([request(), bad])


def test_a_value_beyond_the_cipher_is_refused() -> None:
    broken = mock.Mock(encrypt=mock.Mock(side_effect=OverflowError("Data or associated data too long")))
    with (
        mock.patch.object(aead, "cipher", return_value=broken),
        pytest.raises(UnsupportedValueError, match="longer than"),
    ):
        cell.seal([request()])


def test_commitment_is_compared_in_constant_time_before_a_cipher_exists() -> None:
    (sealed,) = cell.seal([request()])
    with (
        mock.patch("hmac.compare_digest", wraps=hmac.compare_digest) as compare,
        mock.patch.object(aead, "cipher") as cipher,
    ):
        with pytest.raises(DecryptionError) as caught:
            cell.opener(OTHER, sealed[:60])
        cipher.assert_not_called()
        cell.opener(KEY, sealed[:60])
    assert compare.call_count == 2
    cipher.assert_called_once()
    assert type(caught.value) is DecryptionError


@pytest.mark.parametrize("size", [0, 27, 28, 59, 61, 92])
def test_a_head_of_another_size_is_refused(size: int) -> None:
    (sealed,) = cell.seal([request()])
    with pytest.raises(DecryptionError):
        cell.opener(KEY, sealed[:size])


def test_one_opener_serves_all_cells_with_the_same_head() -> None:
    cells = cell.seal([request(plaintext=b"\x01%d" % number) for number in range(10)])
    decrypt = cell.opener(KEY, cells[0][: cell.HEAD_SIZE])
    opened = [decrypt(one[cell.HEAD_SIZE : cell.NONCE_END], one[cell.NONCE_END :], AAD) for one in cells]
    assert opened == [b"\x01%d" % number for number in range(10)]


def test_errors_say_what_happened_and_hold_nothing() -> None:
    (sealed,) = cell.seal([request(plaintext=b"\x01123-45-6789")])
    with pytest.raises(MalformedCellError, match="declares not row-bound and padded"):
        cell.open_(KEY, sealed, AAD, cell.PADDED)
    with pytest.raises(WrongPlaceError, match="another owner") as caught:
        cell.open_(KEY, sealed, AAD + b"x", 0)
    assert caught.value.__suppress_context__
    with pytest.raises(MalformedCellError, match="12 bytes"):
        cell.parse(sealed[:12])
    with pytest.raises(MalformedCellError, match="never encrypted"):
        cell.parse(b"1" * 100)


def test_the_smallest_cells() -> None:
    (plain,) = cell.seal([request(plaintext=b"\x01")])
    assert len(plain) == cell.MIN_SIZE
    (padded,) = cell.seal([request(flags=cell.PADDED, plaintext=cell.pad(b"\x01", 1))])
    assert len(padded) == cell.MIN_SIZE + 1
    assert cell.parse(padded).flags == cell.PADDED
    with pytest.raises(MalformedCellError):
        cell.parse(padded[:-1])


def test_requests_and_headers_do_not_show_or_pickle_secrets() -> None:
    one = request()
    assert repr([one]) == "[<Request>]"
    with pytest.raises(TypeError):
        pickle.dumps(one)
    with pytest.raises(TypeError):
        copy.copy(one)
    header = cell.parse(cell.seal([one])[0])
    assert repr(header) == f"Header(created={CREATED}, flags=0)"


@pytest.mark.parametrize(
    "data", [b"", b"\x80", b"\x80\x00", b"\x00", b"\x01", b"\x01\x00", b"\x01\x80\x01", b"\x01\x40"]
)
def test_unpad_refuses_what_is_not_padded(data: bytes) -> None:
    with pytest.raises(MalformedCellError):
        cell.unpad(data)


def test_two_padded_lengths_look_alike() -> None:
    assert {len(cell.pad(b"\x01" * size, 16)) for size in range(1, 16)} == {16}
    assert len(cell.pad(b"\x01" * 16, 16)) == 32


def test_keys_of_cells_differ_from_the_intermediate_key_and_its_bind_key() -> None:
    secret = bytes(range(32))
    assert len(KEY) == 64
    assert hmac.compare_digest(KEY, hmac.digest(secret, b"sa_asherah/cell-key/1", "sha512"))
    assert KEY[:32] != hmac.digest(secret, b"sa_asherah/bind-key/1", "sha512")[:32]
