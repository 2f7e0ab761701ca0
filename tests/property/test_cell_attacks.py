# SPDX-License-Identifier: Apache-2.0
"""Whatever is done to a cell, it opens to what was sealed in its own place, or one typed error is raised."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sa_asherah.core import cell
from sa_asherah.errors import DecryptionError

CELL_KEY = cell.derive_cell_key(bytes(range(32)))
OTHER_KEY = cell.derive_cell_key(bytes(range(32, 64)))
CREATED = 1_767_225_600
AAD = cell.context("records", "clinic", "42", "patients.ssn", "7")
FLAGS = range(4)


def sealed(flags: int, value: bytes = b"123-45-6789") -> bytes:
    plaintext = b"\x01" + value
    padded = cell.pad(plaintext, 16) if flags & cell.PADDED else plaintext
    return cell.seal([cell.Request(CELL_KEY, CREATED, flags, AAD, padded)])[0]


def outcome(stored: bytes | str, flags: int) -> str:
    """Open with the declared flags; only the typed errors are caught."""
    try:
        cell.open_(CELL_KEY, cell.from_text(stored) if isinstance(stored, str) else stored, AAD, flags)
    except DecryptionError:
        return "refused"
    return "opened"


@pytest.mark.parametrize("flags", FLAGS)
def test_every_flipped_bit_is_refused(flags: int) -> None:
    original = sealed(flags)
    assert outcome(original, flags) == "opened"
    for bit in range(8 * len(original)):
        damaged = bytearray(original)
        damaged[bit // 8] ^= 1 << bit % 8
        for declared in FLAGS:
            assert outcome(bytes(damaged), declared) == "refused", (bit, declared)


@pytest.mark.parametrize("flags", FLAGS)
def test_every_truncation_and_extension_is_refused(flags: int) -> None:
    original = sealed(flags)
    for size in range(len(original)):
        assert outcome(original[:size], flags) == "refused", size
        assert outcome(original[-size:] if size else b"", flags) == "refused", size
        assert outcome(original[:size] + original[size + 1 :], flags) == "refused", size
    for extension in (b"\x00", b"\x80", original):
        assert outcome(original + extension, flags) == "refused"
        assert outcome(extension + original, flags) == "refused"


@pytest.mark.parametrize("flags", FLAGS)
def test_every_flipped_bit_and_truncation_of_the_text_form_is_refused(flags: int) -> None:
    original = cell.to_text(sealed(flags))
    assert outcome(original, flags) == "opened"
    for bit in range(8 * len(original)):
        damaged = bytearray(original.encode())
        damaged[bit // 8] ^= 1 << bit % 8
        assert outcome(damaged.decode("latin-1"), flags) == "refused", bit
    for size in range(len(original)):
        assert outcome(original[:size], flags) == "refused", size
        assert outcome(f"{original[:size]}\ud800{original[size:]}", flags) == "refused", size


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(FLAGS))
@example(b"\xa5\x01\x01" + bytes(100), 0)
def test_foreign_bytes_are_refused(stored: bytes, flags: int) -> None:
    assert outcome(stored, flags) == "refused"
    assert outcome(cell.to_text(stored), flags) == "refused"


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200), st.sampled_from(FLAGS))
@example("sa1:", 0)
def test_foreign_texts_are_refused(stored: str, flags: int) -> None:
    assert outcome(stored, flags) == "refused"
    assert outcome(f"sa1:{stored}", flags) == "refused"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0, 12, 28, 60, 72]), st.sampled_from([12, 28, 60, 72, 88])), max_size=3))
def test_cells_cut_and_pasted_from_one_another_are_refused(cuts: list[tuple[int, int]]) -> None:
    first, second = sealed(0, b"a" * 16), sealed(0, b"b" * 16)
    mixed = first
    for start, end in cuts:
        mixed = mixed[:start] + second[start:end] + mixed[max(start, end) :]
    assert outcome(mixed, 0) == ("opened" if mixed in {first, second} else "refused")


names = st.text("ab.", max_size=2)
places = st.tuples(st.sampled_from([CELL_KEY, OTHER_KEY]), names, names, names, names, names)


@settings(max_examples=100, deadline=None)
@given(st.lists(places, min_size=2, max_size=8, unique=True), st.sampled_from(FLAGS))
def test_a_cell_opens_in_its_own_place_only(where: list[tuple[bytes, str, str, str, str, str]], flags: int) -> None:
    requests = [
        cell.Request(key, CREATED, flags, cell.context(*parts), cell.pad(b"\x02%d" % number, 8))
        for number, (key, *parts) in enumerate(where)
    ]
    cells = cell.seal(requests)
    for one, stored in zip(requests, cells, strict=True):
        assert cell.open_(one.cell_key, stored, one.aad, flags) == one.plaintext
    for (one, _), (other, moved) in combinations(zip(requests, cells, strict=True), 2):
        with pytest.raises(DecryptionError):
            cell.open_(one.cell_key, moved, one.aad, flags)
        assert one.aad != other.aad or one.cell_key != other.cell_key


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=1, max_size=100), st.integers(1, 70))
def test_padding_is_undone_and_fills_blocks(data: bytes, block: int) -> None:
    padded = cell.pad(data, block)
    assert cell.unpad(padded) == data
    assert len(padded) % block == 0
    assert len(data) < len(padded) <= len(data) + block


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=100))
def test_text_form_is_undone_and_unique(data: bytes) -> None:
    assert cell.from_text(cell.to_text(data)) == data
